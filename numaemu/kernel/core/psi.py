"""Pressure stall information: how much time tasks lose because memory, the disk or a CPU is short. Linux's kernel/sched/psi.c.

Each context (a CPU, or the kernel threads of a node) counts for itself, by its own clock, how long it was in each state:

    some    at least one task of the context could not go on for want of the resource
    full    none could

Intervals in which several tasks waited count once. psi_avgs_work sums the contexts up, each weighted by the time in which it was
not idle; the averages fade over 10, 60 and 300 s. Linux's kernel threads run on CPUs and count there; here each node's have a
clock of their own, and count as a CPU more, which is idle unless they work.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.loadavg import FIXED_1, calc_load, calc_load_n
from numaemu.kernel.core.smp import machine_of, spin_unlock
from numaemu.kernel.include.mm_types import PG_workingset, machine_t
from numaemu.mmu import clock_ns

U = np.uint64
PSI_IO_SOME, PSI_IO_FULL, PSI_MEM_SOME, PSI_MEM_FULL, PSI_CPU_SOME, NR_PSI_STATES = range(6)
PSI_PERIOD_NS = 2_000_000_000  # psi_period
EXP_10S, EXP_60S, EXP_300S = 1677, 1981, 2034  # 1/exp(2s/10s), 60 s, 300 s
AVERAGES = 3
WEIGHT_BITS = 20  # of a context's time that was not idle: with them no product leaves its word

# Shared words of psi_group_cpu_t: the word | its writer | why a reader may trust it.
# - runnable, runnable_ns, runnable_since_ns | The CPU's process, under its run queue's mutex. | Whoever sums up may see one
#   before the other, and finds the rest the next time: sums never shrink.
# - all others | Its context. | Single words that only grow.
# Shared words of psi_group_t: the word | its writer | why a reader may trust it.
# - avg_next_update | Under the lock. | A hint: who is early finds nothing to do.
# - all others | Under its lock, which nobody waits for but a reader of the files. | Under the lock.
# fmt: off
psi_group_cpu_t = Struct("psi_group_cpu_t", [
    ("io_some_ns", i64), ("mem_some_ns", i64), ("mem_full_ns", i64),      # a full wait for the disk is cpu_t.iowait_ns
    ("io_until_ns", i64), ("mem_until_ns", i64),     # up to when such time has been counted
    ("nr_iowait", i64),         # tasks that sleep until the disk is done
    ("in_memstall", i64), ("memstall_start_ns", i64),
    ("sleep_memstall", i64),    # 1: the sleep that the fault under way has asked for is for memory it had before
    ("runnable", i64),          # tasks that want the CPU beside the one that runs
    ("runnable_ns", i64), ("runnable_since_ns", i64),      # time with any, up to then
    ("_pad", u64, 4),
])

psi_group_t = Struct("psi_group_t", [
    ("lock", u64),
    ("avg_last_update", i64), ("avg_next_update", i64),
    ("total", i64, NR_PSI_STATES), ("avg_total", i64, NR_PSI_STATES),     # ns so far, and as far as it is in the averages
    ("avg", i64, NR_PSI_STATES * AVERAGES),      # percent, with FSHIFT bits behind the point
    ("seen", u64),              # address of an i64[NR_PSI_STATES + 1] for each context: its times as they were last, and not idle
])
# fmt: on


@hot
def psi_of(cpu):
    return psi_group_cpu_t.array(machine_of(cpu).psi_cpus)[cpu.id]


# -- counting ----------------------------------------------------------------------------------------------------


@hot
def count_memstall(cpu, of, start_ns, end_ns):
    """A task has lost this time for want of memory."""
    lost = end_ns - max(start_ns, of.mem_until_ns)
    if lost > 0:
        of.mem_until_ns = end_ns
        of.mem_some_ns += lost


@kernel("bool(cpu_t*)")
def psi_memstall_enter(cpu):
    """The running task works for memory instead of for itself, or waits for it; False: it does so already."""
    of = psi_of(cpu)
    if of.in_memstall != 0:
        return False
    of.in_memstall, of.memstall_start_ns = 1, clock_ns(cpu)
    return True


@kernel("void(cpu_t*, bool)")
def psi_memstall_leave(cpu, entered):
    """It goes on, if it was this caller who said that it works for memory. Nobody else had the CPU meanwhile."""
    of, now_ns = psi_of(cpu), clock_ns(cpu)
    if not entered:
        return
    of.in_memstall = 0
    count_memstall(cpu, of, of.memstall_start_ns, now_ns)
    if of.runnable == 0:
        of.mem_full_ns += max(now_ns - of.memstall_start_ns, 0)


@hot
def count_io(of, start_ns, end_ns):
    """A task has waited for the disk, or is to wait for it, in this time."""
    waited = end_ns - max(start_ns, of.io_until_ns)
    if waited > 0:
        of.io_until_ns = end_ns
        of.io_some_ns += waited


@kernel("void(cpu_t*, i64)")
def account_iowait(cpu, ns):
    """The running task waits for the disk so long, and the CPU with it."""
    count_io(psi_of(cpu), clock_ns(cpu), clock_ns(cpu) + ns)
    cpu.clock_base_ns += ns
    cpu.iowait_ns += ns


@hot
def psi_thrashing_start(cpu, page):
    """Before a page is read or waited for: one that was in use when it was taken away is a loss for want of memory."""
    return load_acquire(page, "flags") & U(PG_workingset) != U(0) and psi_memstall_enter(cpu)


@kernel("void(cpu_t*)")
def psi_note_sleep(cpu):
    """The fault under way has asked for a sleep until the disk is done (io_until_ns): remember whether it is for want of memory."""
    of = psi_of(cpu)
    if of.in_memstall != 0:
        of.sleep_memstall = 1


@kernel("i64(cpu_t*, i64)")
def psi_sleep(cpu, until_ns):
    """The task is going to sleep until then for the disk, while others run; whether it is for want of memory."""
    of = psi_of(cpu)
    stalled, of.sleep_memstall = of.sleep_memstall, 0
    of.nr_iowait += 1
    count_io(of, clock_ns(cpu), until_ns)
    if stalled != 0:
        count_memstall(cpu, of, clock_ns(cpu), until_ns)
    return stalled


@kernel("void(cpu_t*, i64, i64)")
def psi_slept(cpu, idle_ns, stalled):
    """The sleep is over; nobody has used the CPU for its last `idle_ns`."""
    of = psi_of(cpu)
    of.nr_iowait -= 1
    if idle_ns > 0:
        cpu.clock_base_ns += idle_ns
        cpu.iowait_ns += idle_ns
        if stalled != 0:
            of.mem_full_ns += idle_ns


@kernel("void(cpu_t*, i64)")
def psi_set_runnable(cpu, runnable):
    """So many tasks want the CPU beside the one that runs. Under the run queue's mutex."""
    of, now_ns = psi_of(cpu), clock_ns(cpu)
    if of.runnable != 0:
        of.runnable_ns += max(now_ns - of.runnable_since_ns, 0)
    of.runnable, of.runnable_since_ns = runnable, now_ns


# -- summing up --------------------------------------------------------------------------------------------------


@hot
def time_in(machine, number, state):
    """ns that a context has been in a state of PSI_*, or (NR_PSI_STATES) not idle."""
    cpu, of = cpu_t.array(machine.cpus)[number], psi_group_cpu_t.array(machine.psi_cpus)[number]
    if state == PSI_IO_SOME:
        return of.io_some_ns
    if state == PSI_IO_FULL:
        return cpu.iowait_ns
    if state == PSI_MEM_SOME:
        return of.mem_some_ns
    if state == PSI_MEM_FULL:
        return of.mem_full_ns
    if state == PSI_CPU_SOME:
        return of.runnable_ns + (max(clock_ns(cpu) - of.runnable_since_ns, 0) if of.runnable != 0 else 0)
    return clock_ns(cpu) - cpu.idle_ns


@hot
def recent(machine, number, state):
    """How much that has grown since it was last seen."""
    seen = psi_group_t.at(machine.psi).seen
    return max(time_in(machine, number, state) - i64.array(seen)[number * (NR_PSI_STATES + 1) + state], 0)


@kernel("void(machine_t*, psi_group_t*)")
def collect_percpu_times(machine, group):
    """Add to the totals what the contexts have counted since: the mean of all, weighted by their time that was not idle."""
    longest = 1
    for number in range(machine.nr_cpu_ids):
        longest = max(longest, recent(machine, number, NR_PSI_STATES))
    shift = 0
    while longest >> shift >= 1 << WEIGHT_BITS:
        shift += 1
    for state in range(NR_PSI_STATES):
        weighted, weights = 0, 0
        for number in range(machine.nr_cpu_ids):
            weight = recent(machine, number, NR_PSI_STATES) >> shift
            weights += weight
            weighted += recent(machine, number, state) * weight
        group.total[state] += weighted // max(weights, 1)
    for number in range(machine.nr_cpu_ids):
        for state in range(NR_PSI_STATES + 1):
            i64.array(group.seen)[number * (NR_PSI_STATES + 1) + state] += recent(machine, number, state)


@kernel("void(psi_group_t*, i64)")
def update_averages(group, now_ns):
    """A period or more is over: bring the averages up to now. Periods that nobody looked at count as quiet ones."""
    missed = (now_ns - group.avg_next_update) // PSI_PERIOD_NS
    period = now_ns - (group.avg_last_update + missed * PSI_PERIOD_NS)
    group.avg_next_update += (1 + missed) * PSI_PERIOD_NS
    group.avg_last_update = now_ns
    for state in range(NR_PSI_STATES):
        sample = min(group.total[state] - group.avg_total[state], period)
        group.avg_total[state] += sample
        percent = sample * 100 // period * FIXED_1
        for i in range(AVERAGES):
            exp = EXP_10S if i == 0 else EXP_60S if i == 1 else EXP_300S
            faded = calc_load_n(group.avg[state * AVERAGES + i], exp, 0, missed)
            group.avg[state * AVERAGES + i] = calc_load(faded, exp, percent)


@kernel("bool(machine_t*, i64)")
def psi_avgs_work(machine, now_ns):
    """Sum up, and bring the averages up to now if a period is over. False: somebody else does so at this moment."""
    group = psi_group_t.at(machine.psi)
    lock = address_of(group, "lock")
    if compare_exchange(u64.array(lock), 0, U(0), U(1)) != U(0):
        return False
    collect_percpu_times(machine, group)
    if now_ns >= group.avg_next_update:
        update_averages(group, now_ns)
    spin_unlock(lock)
    return True


@hot
def psi_due(cpu):
    """True if a period is over by this CPU's clock."""
    return clock_ns(cpu) >= load_acquire(psi_group_t.at(machine_of(cpu).psi), "avg_next_update")


@entry("bool(u64, i64)")
def psi_look(machine_address, now_ns):
    """The same for a reader of the files, who tries again."""
    return psi_avgs_work(machine_t.at(machine_address), now_ns)


def psi_init(machine, blocks):
    """At boot: nothing was lost yet."""
    group = psi_group_t.at(machine.psi)
    group.avg_next_update, group.seen = PSI_PERIOD_NS, blocks["psi_seen"]

"""Tasks take turns on a CPU: Linux's kernel/sched/core.c, as far as one CPU's tasks of equal weight need it.

Who runs next is decided in the CPU's process (runqueue.py); here is what compiled code has to do with it. A task keeps
its CPU for a slice of emulated time, `sched_base_slice_ns`, while others wait for it. A slice may end inside a long
vector of accesses or a user kernel: before every access the CPU compares `event_at` with its count of accesses. Who
posts something to it (a shootdown, a task that wants the CPU) stores 0 there, and `handle_event` the access at which the
slice may be over: as many as the time left can hold at a cost that only accesses with a page walk exceed; then it looks
again. So a slice costs a few dozen looks, a task alone on its CPU none, and an access nothing.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire, store_release
from numaemu.compiler.decorators import callback, entry, hot, kernel
from numaemu.compiler.native import call_address, sem_post, sem_wait
from numaemu.compiler.pointer import address_of, u64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.arch.tlb import switch_mm
from numaemu.kernel.core.lockstep import LOOK_AT_LEAST, go_by, look_at_clock, look_at_least, pause, time_left
from numaemu.kernel.core.psi import psi_set_runnable, psi_sleep, psi_slept
from numaemu.kernel.core.smp import enter, leave, machine_of
from numaemu.kernel.core.strand import lockstep_t
from numaemu.kernel.core.timer import run_local_timers
from numaemu.kernel.include.mm_types import TASK_DEAD, TASK_RUNNING, TASK_ZOMBIE, task_t
from numaemu.kernel.include.trace import SCHED_SWITCH, SCHED_WAKEUP, trace_event, trace_on, trace_record
from numaemu.mmu import clock_ns

U = np.uint64
NEVER = 1 << 62  # accesses
WALK_SHARE = 4  # an access is taken to cost so many times the longest latency at most, until the next look


@kernel("void(cpu_t*)")
def put_prev_task(cpu):
    """The running task's time ends: its part of Linux's update_curr. No task runs then."""
    if cpu.task != 0:
        task = task_t.array(machine_of(cpu).tasks)[cpu.task]
        task.sum_exec_runtime += clock_ns(cpu) - cpu.exec_start_ns
        if cpu.preempted != 0:
            task.nivcsw += 1
        else:
            task.nvcsw += 1
    cpu.task = 0


@kernel("void(cpu_t*, i64, i64)")
def trace_sched_switch(cpu, prev, following):
    """The tracepoint sched_switch: from task `prev` to `following`, by their numbers; 0: the CPU is idle."""
    tasks = task_t.array(machine_of(cpu).tasks)
    before, after = tasks[prev], tasks[following]
    names = u64.array(address_of(after, "comm"))
    trace_record(
        cpu,
        SCHED_SWITCH,
        U(before.pid if prev != 0 else 0),
        U(after.pid if following != 0 else 0),
        U(1 if cpu.preempted == 0 and prev != 0 else 0),
        names[0] if following != 0 else U(0),
        names[1] if following != 0 else U(0),
    )


@kernel("void(cpu_t*, i64)")
def context_switch(cpu, task_number):
    """Make a task the running one. Linux counts a task that yields as switched against its will, and so do we."""
    machine = machine_of(cpu)
    task = task_t.array(machine.tasks)[task_number]
    if cpu.task != task_number:
        if trace_on(cpu, SCHED_SWITCH):
            trace_sched_switch(cpu, cpu.task, task_number)
        put_prev_task(cpu)
        cpu.nr_switches += 1
        cpu.clock_base_ns += machine.context_switch_ns
        cpu.exec_start_ns = cpu.slice_start_ns = cpu.numa_at_ns = clock_ns(cpu)
    cpu.preempted = 0
    mm = mm_of(machine, task.mm)
    if cpu.mm != task.mm or cpu.mm_id != mm.id:
        switch_mm(cpu, task.mm)
    cpu.task = task_number
    task.cpu = cpu.id


@hot
def slice_left_ns(cpu):
    """Emulated time until the running task's slice is over, or until a task that sleeps is to wake, which comes first then:
    it has used less of the CPU (wakeup preemption).
    """
    end = cpu.slice_start_ns + machine_of(cpu).sched_base_slice_ns
    return (min(end, cpu.wake_at_ns) if cpu.wake_at_ns != 0 else end) - clock_ns(cpu)


@entry("i64(u64)")
def slice_left(cpu_address):
    return slice_left_ns(cpu_t.at(cpu_address))


EVERY = 1  # instead of a time, for machine.on_schedule: the driver's functions are due
GONE, ZOMBIE, VICTIM, HERE, WANTED, DUE = (1 << i for i in range(6))  # task_standing


@hot
def every_due(cpu):
    """True if it is time for the driver's functions (machine.every)."""
    due = load_acquire(machine_of(cpu), "every_at_ns")
    return due != 0 and clock_ns(cpu) >= due


@entry("i64(u64)")
def claim_every(cpu_address):
    """This CPU is to have them run: its clock; or 0: another one has been first."""
    cpu = cpu_t.at(cpu_address)
    due = load_acquire(machine_of(cpu), "every_at_ns")
    if due == 0 or clock_ns(cpu) < due or compare_exchange(machine_of(cpu), "every_at_ns", due, 0) != due:
        return 0
    return clock_ns(cpu)


@hot
def standing_of(cpu, number, pid):
    """What has become of task `pid`, in one call for every operation: GONE or ZOMBIE, else if it is the OOM killer's
    VICTIM, if it is on this CPU (HERE), and if NUMA balancing wants it on another (WANTED). DUE: the driver's functions are.
    """
    task = task_t.array(machine_of(cpu).tasks)[number]
    if task.pid != pid or task.state == TASK_DEAD:
        return GONE
    standing = VICTIM if load_acquire(task, "oom_victim") == pid else 0
    if every_due(cpu):
        standing |= DUE
    if task.state == TASK_ZOMBIE:
        return standing | ZOMBIE
    return standing | (HERE if task.cpu == cpu.id else 0) | (WANTED if task.numa_migrate_to != 0 else 0)


@entry("i64(u64, i64, i64)")
def task_standing(cpu_address, number, pid):
    return standing_of(cpu_t.at(cpu_address), number, pid)


@entry("i64(u64)")
def clock(cpu_address):
    """The CPU's emulated time in ns."""
    return clock_ns(cpu_t.at(cpu_address))


@entry("void(u64)")
def new_slice(cpu_address):
    """The running task gets a slice again."""
    cpu = cpu_t.at(cpu_address)
    cpu.slice_start_ns = clock_ns(cpu)


@entry("void(u64, u64)", nogil=True)
def switch_thread(post, wait):
    """Wake the thread that waits for the semaphore `post`, if not 0, and wait for `wait`.

    In one call without Python's lock, which the other thread needs at once: two calls would make it wait twice.
    """
    if post != U(0):
        sem_post(post)
    while sem_wait(wait) != 0:
        pass


@kernel("void(cpu_t*, i64)")
def idle_until(cpu, until_ns):
    """If nobody has used the CPU until then it has been idle, which is a switch, too."""
    idle = until_ns - clock_ns(cpu)
    if idle > 0:
        if trace_on(cpu, SCHED_SWITCH) and cpu.task != 0:
            trace_sched_switch(cpu, cpu.task, 0)
        put_prev_task(cpu)
        cpu.nr_switches += 1
        cpu.clock_base_ns += idle
        cpu.idle_ns += idle


@entry("void(u64, i64)")
def sleep_until(cpu_address, until_ns):
    """The end of a sleep, or of waiting for another CPU."""
    cpu = cpu_t.at(cpu_address)
    idle_until(cpu, until_ns)
    run_local_timers(cpu)


@entry("void(u64, u64)")
def enter_turn(lockstep_address, cpu_address):
    """In lockstep the running strand goes by the clock of a context from now on, and lets those run that are behind. The context
    continues at the time at which the strand was woken, if that is later: it has been idle.
    """
    lockstep = lockstep_t.at(lockstep_address)
    strand = lockstep.strands[lockstep.running]
    idle_until(cpu_t.at(cpu_address), strand.clock_ns)
    strand.clock_of = cpu_address
    go_by(lockstep, 1)
    pause(lockstep)


@entry("void(u64, i64, i64, i64)")
def set_nr_waiting(cpu_address, n, runnable, wake_at_ns):
    """So many tasks wait for the CPU (`runnable` of them), or sleep, the first until `wake_at_ns` (0: none), so that it is to look
    if it is inside accesses. Under the run queue's mutex.
    """
    cpu = cpu_t.at(cpu_address)
    cpu.wake_at_ns = wake_at_ns
    psi_set_runnable(cpu, runnable)
    store_release(cpu, "nr_waiting", n)
    if n != 0:
        exchange(cpu, "event_at", 0)


@entry("void(u64)")
def deactivate(cpu_address):
    """The running task leaves this CPU."""
    put_prev_task(cpu_t.at(cpu_address))


@kernel("i64(cpu_t*)")
def next_event(cpu):
    """The access before which to look again whether the slice or in lockstep the quantum is over, or NUMA balancing or the
    driver has something to do.
    """
    waiting, balancing = load_acquire(cpu, "nr_waiting") != 0, machine_of(cpu).numa_balancing != 0
    every_at_ns, lockstep = load_acquire(machine_of(cpu), "every_at_ns"), machine_of(cpu).lockstep != U(0)
    if not waiting and not balancing and every_at_ns == 0 and not lockstep:
        return NEVER
    left = slice_left_ns(cpu) if waiting else NEVER
    if balancing:
        left = min(left, cpu.numa_at_ns - clock_ns(cpu))
    if every_at_ns != 0:
        left = min(left, every_at_ns - clock_ns(cpu))
    if lockstep:
        left = min(left, time_left(cpu))
    if left >= NEVER // 2:
        return NEVER
    longest, at_least = 1, look_at_least(cpu) if lockstep else LOOK_AT_LEAST
    for node in range(cpu.nr_nodes):
        longest = max(longest, cpu.latency_ns[node])
    return cpu.tick + max(left // (WALK_SHARE * longest), at_least)


@kernel("void(cpu_t*, i64)")
def schedule(cpu, until_ns):
    """Between two accesses: let the tasks that wait run, until a time (io_schedule) or (0) until it is our turn again. The
    access goes on as if nothing had been. If nobody has used the CPU until then it has been idle.

    Others may have ended the task meanwhile, to have its memory: then the access finds no address space, and fails.
    """
    task_number = cpu.task
    task = task_t.array(machine_of(cpu).tasks)[task_number]
    for_disk = until_ns > EVERY
    stalled = psi_sleep(cpu, until_ns) if for_disk else 0
    leave(cpu)
    overlap, loaded_ps, chain_ps = cpu.overlap, cpu.loaded_ps, cpu.chain_ps  # of the access under way
    cpu.overlap = cpu.chain_ps = 0
    task.preempted = 1
    call_address(machine_of(cpu).on_schedule, U(cpu.id), U(task_number), U(until_ns))
    task.preempted = 0
    cpu.overlap, cpu.loaded_ps, cpu.chain_ps = overlap, loaded_ps, chain_ps
    idle = until_ns - clock_ns(cpu)
    if idle > 0:
        if trace_on(cpu, SCHED_SWITCH) and cpu.task != 0:
            trace_sched_switch(cpu, cpu.task, 0)
        put_prev_task(cpu)
        cpu.nr_switches += 1
    if for_disk:
        psi_slept(cpu, idle, stalled)
    if until_ns != 0:
        trace_event(cpu, SCHED_WAKEUP, task.pid, cpu.id, 0, 0, 0)
    if task.state == TASK_RUNNING:
        context_switch(cpu, task_number)
    else:
        put_prev_task(cpu)
        switch_mm(cpu, 0)
    cpu.slice_start_ns = clock_ns(cpu)
    exchange(cpu, "event_at", 0)
    enter(cpu)


@callback("u64(u64, u64, u64)")
def handle_event(cpu_address, _b, _c):
    """A CPU inside, between two accesses, has reached `event_at`. That is set before it looks at what may be posted.

    A fault that has asked the disk for a page has left word until when its task sleeps: nothing of it is under way here.
    """
    cpu = cpu_t.at(cpu_address)
    if machine_of(cpu).lockstep != U(0):
        look_at_clock(cpu)
    exchange(cpu, "event_at", next_event(cpu))
    if load_acquire(cpu, "ipi_pending") != U(0):
        call_address(cpu.on_ipi, cpu.address, U(0), U(0))
    if machine_of(cpu).numa_balancing != 0 and cpu.task != 0 and clock_ns(cpu) >= cpu.numa_at_ns:
        call_address(machine_of(cpu).on_task_tick, cpu.address, U(0), U(0))
    if cpu.io_until_ns != 0:
        until, cpu.io_until_ns = cpu.io_until_ns, 0
        schedule(cpu, until)
    elif cpu.task != 0 and every_due(cpu):
        schedule(cpu, EVERY)
    elif load_acquire(cpu, "nr_waiting") != 0 and cpu.task != 0 and slice_left_ns(cpu) <= 0:
        schedule(cpu, 0)
    return U(0)

"""Scanning: a task that runs makes its memory inaccessible part by part, so that hinting faults tell who uses what. task_tick_numa,
task_numa_work and init_numa_balancing of Linux's kernel/sched/fair.c.

The scheduler looks at a running task when `cpu.numa_at_ns` has come (core/sched.py), so nothing is looked at while
machine.numa_balancing is 0. Linux looks at every tick of the CPU, 250 times a second; here it is the tick at which something is due.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire
from numaemu.compiler.decorators import callback, entry, hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of, pmd_size
from numaemu.kernel.core.smp import enter, leave, machine_of, read_trylock, read_unlock
from numaemu.kernel.include.mm_types import VM_HUGETLB, VM_READ, VM_WRITE, task_t
from numaemu.kernel.mm.numa.fault_stats import task_scan_max, task_scan_start
from numaemu.kernel.mm.numa.prot_numa import change_prot_numa, vma_is_accessible
from numaemu.kernel.mm.numa.sampling import sample_task, sampling_is_due
from numaemu.kernel.mm.numa.should_migrate import vma_policy_mof
from numaemu.kernel.mm.numa.tiering import samples_accessed
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.kernel.mm.space.vma_index import find_position, vma_at
from numaemu.mmu import clock_ns
from numaemu.spec.param import CPU_WORDS, PAGE_SHIFT

U = np.uint64
NS_PER_MS = 1_000_000
TICK_NSEC = 4_000_000  # CONFIG_HZ=250
VMA_PID_RESET_PERIODS = 4  # of scan_delay_ms: VMA_PID_RESET_PERIOD
VMA_UNIT = 8  # virtual space that is looked at, in scan_size_mb: virtpages
GOLDEN_RATIO_32 = 0x61C88647


@hot
def pid_bit(pid):
    """The bit of a pid in pids_active: hash_32(pid, 6)"""
    return U(1) << U(((pid * GOLDEN_RATIO_32) & 0xFFFFFFFF) >> 26)


@hot
def task_runtime(cpu, task):
    """sum_exec_runtime of the running task up to now."""
    return task.sum_exec_runtime + clock_ns(cpu) - cpu.exec_start_ns


@hot
def reset_ptenuma_scan(mm):
    mm.numa_scan_seq += 1
    mm.numa_scan_offset = U(0)


# -- which VMAs --------------------------------------------------------------------------------------------------


@kernel("bool(cpu_t*, vma_t*)")
def vma_is_scanned(cpu, vma):
    """False for mappings whose pages are never moved by hinting faults: pools of huge pages, policies, read-only files, PROT_NONE."""
    if vma.flags & VM_HUGETLB or not vma_policy_mof(cpu, vma):
        return False
    if vma.file != 0 and vma.flags & (VM_READ | VM_WRITE) == VM_READ:
        return False
    return vma_is_accessible(vma)


@kernel("void(cpu_t*, mm_t*, vma_t*)")
def init_numab_state(cpu, mm, vma):
    """A VMA is met for the first time: new ones are left alone for a while."""
    state, delay_ns = vma.numab, machine_of(cpu).numa_scan_delay_ms * NS_PER_MS
    state.start_scan_seq, state.prev_scan_seq = mm.numa_scan_seq, mm.numa_scan_seq - 1
    state.next_scan_ns = clock_ns(cpu) + delay_ns
    state.pids_active_reset_ns = state.next_scan_ns + VMA_PID_RESET_PERIODS * delay_ns
    state.pids_active[0] = state.pids_active[1] = U(0)
    state.there = 1


@kernel("bool(cpu_t*, mm_t*, vma_t*)")
def vma_is_accessed(cpu, mm, vma):
    """True if the running task has used a VMA lately, or nobody else will scan it. The first two scans go everywhere."""
    state = vma.numab
    if mm.numa_scan_seq - state.start_scan_seq < 2:
        return True
    if (state.pids_active[0] | state.pids_active[1]) & pid_bit(current_task(cpu).pid) != U(0):
        return True
    if mm.numa_scan_offset > vma.start:
        return True
    return mm.numa_scan_seq > state.prev_scan_seq + load_acquire(mm, "users")


SCAN_IT, SKIP, SKIP_PID = range(3)


@kernel("i64(cpu_t*, mm_t*, vma_t*, bool)")
def look_at_vma(cpu, mm, vma, forced):
    """Whether to scan a VMA now: SCAN_IT, SKIP, or SKIP_PID: this task has not used it."""
    if not vma_is_scanned(cpu, vma):
        return SKIP
    state, now = vma.numab, clock_ns(cpu)
    if state.there == 0:
        init_numab_state(cpu, mm, vma)
    if mm.numa_scan_seq != 0 and now < state.next_scan_ns:
        return SKIP
    if mm.numa_scan_seq != 0 and now > state.pids_active_reset_ns:
        state.pids_active_reset_ns += VMA_PID_RESET_PERIODS * machine_of(cpu).numa_scan_delay_ms * NS_PER_MS
        state.pids_active[0], state.pids_active[1] = state.pids_active[1], U(0)
    if state.prev_scan_seq == mm.numa_scan_seq:
        mm.numa_scan_offset = vma.end
        return SKIP
    return SCAN_IT if forced or vma_is_accessed(cpu, mm, vma) else SKIP_PID


# -- one piece ---------------------------------------------------------------------------------------------------


@hot
def end_of_piece(machine, vma, start, pages):
    """Where a piece of so many pages ends that begins at `start`: at the end of a huge page, or of the VMA."""
    size = pmd_size(machine)
    end = (start + (U(pages) << U(PAGE_SHIFT)) + size - U(1)) & ~(size - U(1))
    return min(end, vma.end)


@kernel("i64(cpu_t*, i64, mm_t*, bool)")
def scan_from_offset(cpu, mm_number, mm, forced):
    """Scan up to scan_size_mb from the saved place on. 1: all VMAs are through, and some were not this task's; 0."""
    machine, skipped = machine_of(cpu), 0
    pages, start = machine.numa_scan_size_mb << (20 - PAGE_SHIFT), mm.numa_scan_offset
    virtpages, position = pages * VMA_UNIT, find_position(machine, mm_number, start)
    if position >= mm.map_count:
        reset_ptenuma_scan(mm)
        start, position = U(0), 0
    while position < mm.map_count:
        vma = vma_at(machine, mm_number, position)
        verdict = look_at_vma(cpu, mm, vma, forced)
        if verdict == SCAN_IT:
            start, end = max(start, vma.start), U(0)
            while end != vma.end:
                end = end_of_piece(machine, vma, start, pages)
                size = np.int64((end - start) >> U(PAGE_SHIFT))
                if change_prot_numa(cpu, vma, start, end) > 0:
                    pages -= size
                virtpages -= size
                start = end
                if pages <= 0 or virtpages <= 0:
                    mm.numa_scan_offset = start
                    return 0
            vma.numab.prev_scan_seq = mm.numa_scan_seq
            if forced:
                mm.numa_scan_offset = start
                return 0
        elif verdict == SKIP_PID:
            skipped = 1
        position += 1
    if skipped != 0 and not forced:
        return 1
    reset_ptenuma_scan(mm)
    return 0


@kernel("void(cpu_t*)")
def task_numa_work(cpu):
    """Scan a piece of the running task's memory, unless another thread has just done so. The CPU is outside."""
    machine, task = machine_of(cpu), current_task(cpu)
    mm_number, now, runtime = task.mm, clock_ns(cpu), task_runtime(cpu, task)
    mm = mm_of(machine, mm_number)
    due = load_acquire(mm, "numa_next_scan_ns")
    if due == 0:
        due = mm.numa_next_scan_ns = now + machine.numa_scan_delay_ms * NS_PER_MS
    if now < due:
        return
    if task.numa_scan_period == 0:
        task.numa_scan_period_max, task.numa_scan_period = task_scan_max(machine, task), task_scan_start(machine, task)
    following = now + task.numa_scan_period * NS_PER_MS
    if compare_exchange(mm, "numa_next_scan_ns", due, following) != due:
        return
    task.node_stamp += 2 * TICK_NSEC  # another thread will rather be first the next time
    lock = address_of(mm, "mmap_lock")
    if not read_trylock(lock):
        return
    if scan_from_offset(cpu, mm_number, mm, False) != 0:
        scan_from_offset(cpu, mm_number, mm, True)
    read_unlock(lock)
    spent = (task_runtime(cpu, task) - runtime) // TICK_NSEC * TICK_NSEC  # as far as ticks have seen it
    task.node_stamp += 32 * spent  # at most 3 % of the time


@hot
def scan_is_due(cpu, mm):
    """True if the time of the next scan has come. A time too far ahead is another CPU's, whose clock is; it starts anew here."""
    machine, now = machine_of(cpu), clock_ns(cpu)
    due = load_acquire(mm, "numa_next_scan_ns")
    if due - now > 2 * (machine.numa_scan_period_max_ms + machine.numa_scan_delay_ms) * NS_PER_MS:
        compare_exchange(mm, "numa_next_scan_ns", due, now)
        return True
    return now >= due


@callback("u64(u64, u64, u64)")
def task_tick(cpu_address, _b, _c):
    """machine.on_task_tick: the running task has run for long enough to be looked at (task_tick_numa). Between two accesses."""
    cpu = cpu_t.at(cpu_address)
    machine, task = machine_of(cpu), current_task(cpu)
    if samples_accessed(machine):
        if task.mm != 0 and sampling_is_due(cpu):
            leave(cpu)
            sample_task(cpu)
            enter(cpu)
        return U(0)
    period, runtime = task.numa_scan_period * NS_PER_MS, task_runtime(cpu, task)
    if task.mm != 0 and runtime > task.node_stamp + period:
        if task.node_stamp == 0:
            task.numa_scan_period = task_scan_start(machine, task)
        task.node_stamp += period
        if scan_is_due(cpu, mm_of(machine, task.mm)):
            leave(cpu)
            task_numa_work(cpu)
            enter(cpu)
    left = task.node_stamp + task.numa_scan_period * NS_PER_MS - task_runtime(cpu, task)
    cpu.numa_at_ns = (clock_ns(cpu) + max(left, 0)) // TICK_NSEC * TICK_NSEC + TICK_NSEC
    exchange(cpu, "event_at", 0)
    return U(0)


# -- tasks that move -----------------------------------------------------------------------------------------------


@entry("void(u64, i64, i64)")
def set_task_cpu(cpu_address, number, new_cpu):
    """A task that does not run is on another CPU from now on. Moved away from the node that it prefers, or before its first scan is
    over, it begins to scan anew (update_scan_period).
    """
    machine = machine_of(cpu_t.at(cpu_address))
    task = task_t.array(machine.tasks)[number]
    src, dst = cpu_t.array(machine.cpus)[task.cpu].node, cpu_t.array(machine.cpus)[new_cpu].node
    task.cpu, task.numa_migrate_to = new_cpu, 0
    if machine.numa_balancing == 0 or task.mm == 0 or task.numa_faults == 0 or src == dst:
        return
    away = task.numa_preferred_nid == -1 or src == task.numa_preferred_nid
    if task.numa_scan_seq == 0 or (dst != task.numa_preferred_nid and away):
        task.numa_scan_period = task_scan_start(machine, task)


# -- tasks that begin ----------------------------------------------------------------------------------------------


@kernel("void(cpu_t*, i64, i64, bool)")
def init_numa_balancing(cpu, number, parent, shares_mm):
    """A new task's words; its `parent` (0: none) may share its address space with it. Before others find it.

    As on Linux a fork begins the scans of the parent's address space anew, if the parent is alone in it.
    """
    machine = machine_of(cpu)
    task = task_t.array(machine.tasks)[number]
    delay_ns, mm = machine.numa_scan_delay_ms * NS_PER_MS, mm_of(machine, task.mm)
    task.node_stamp, task.numa_scan_period, task.numa_scan_period_max = 0, machine.numa_scan_delay_ms, 0
    task.numa_migrate_retry_ns = task.numa_pages_migrated = task.numa_faults = task.total_numa_faults = 0
    task.last_task_numa_placement_ns = task.last_sum_exec_runtime = task.numa_group = task.numa_migrate_to = 0
    for i in range(3):
        task.numa_faults_locality[i] = 0
    for word in range(CPU_WORDS):
        task.cpus_mask[word] = U(0)
    if not shares_mm:
        mm.numa_next_scan_ns, mm.numa_scan_seq = clock_ns(cpu) + delay_ns, 0
        task.numa_preferred_nid = -1
        if parent != 0 and task_t.array(machine.tasks)[parent].mm != 0:
            other = mm_of(machine, task_t.array(machine.tasks)[parent].mm)
            if load_acquire(other, "users") == 1:
                other.numa_next_scan_ns, other.numa_scan_seq = mm.numa_next_scan_ns, 0
            mm.numa_scan_offset, mm.numa_scan_seq = other.numa_scan_offset, other.numa_scan_seq
    elif parent != 0:
        of = task_t.array(machine.tasks)[parent]
        task.numa_preferred_nid = of.numa_preferred_nid
        wait_ns = of.numa_scan_period * load_acquire(mm, "users") * NS_PER_MS
        task.node_stamp = min(task_scan_max(machine, of) * NS_PER_MS, wait_ns) + 2 * TICK_NSEC
    task.numa_scan_seq = mm.numa_scan_seq

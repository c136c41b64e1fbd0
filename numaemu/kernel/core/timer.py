"""Timers in emulated time, which has no interrupt of its own: CPUs look at them where they enter the kernel anyway.

That is at each system call and each time a CPU's page list is empty. The clock is that of the CPU that looks, so a
timer goes off when the first CPU has come so far (Linux: kernel/time/timer.c). The flusher's is in page_writeback.py.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.decorators import kernel
from numaemu.kernel.core.psi import psi_avgs_work, psi_due
from numaemu.kernel.core.smp import machine_of, wake_kthread
from numaemu.kernel.include.mmzone import KCOMPACTD, KHUGEPAGED, node_of
from numaemu.kernel.include.vmstat import do_flush_stats
from numaemu.mmu import clock_ns

U = np.uint64
HPAGE_FRAG_CHECK_INTERVAL_NS = 500_000_000  # HPAGE_FRAG_CHECK_INTERVAL_MSEC
STATS_FLUSH_NS = 2_000_000_000  # FLUSH_TIME of mm/memcontrol.c


@kernel("void(cpu_t*)")
def khugepaged_wake_if_due(cpu):
    """Who sees that its time has come wakes it."""
    machine = machine_of(cpu)
    if machine.thp_enabled != 0 and clock_ns(cpu) >= machine.khugepaged_next_ns:
        wake_kthread(cpu, 0, U(KHUGEPAGED))


@kernel("void(cpu_t*, i64)")
def flush_stats_once(cpu, due_ns):
    """Sum up the memory cgroups' counters, unless another CPU does so first."""
    later_ns = (clock_ns(cpu) // STATS_FLUSH_NS + 1) * STATS_FLUSH_NS
    if compare_exchange(machine_of(cpu), "stats_flush_ns", due_ns, later_ns) == due_ns:
        do_flush_stats(machine_of(cpu))


@kernel("void(cpu_t*)")
def flush_memcg_stats(cpu):
    """Sum them up if it is time (flush_memcg_stats_dwork)."""
    due_ns = load_acquire(machine_of(cpu), "stats_flush_ns")
    if clock_ns(cpu) >= max(due_ns, STATS_FLUSH_NS):
        flush_stats_once(cpu, due_ns)


@kernel("void(cpu_t*)")
def mem_cgroup_flush_stats_ratelimited(cpu):
    """Reclaim is about to go by the sums. On a machine that has run for long the timer has made them; on a young one, whose
    sums were never made, this makes them.
    """
    if load_acquire(machine_of(cpu), "stats_flush_ns") == 0:
        flush_stats_once(cpu, 0)


@kernel("void(cpu_t*)")
def run_local_timers(cpu):
    """Wake each kcompactd whose time has come to look at the fragmentation of its node; one CPU does it each time."""
    machine = machine_of(cpu)
    khugepaged_wake_if_due(cpu)
    flush_memcg_stats(cpu)
    if psi_due(cpu):
        psi_avgs_work(machine, clock_ns(cpu))
    if machine.compaction_proactiveness == 0:
        return
    now_ns, due_ns = clock_ns(cpu), load_acquire(machine, "kcompactd_timer_ns")
    if now_ns < due_ns:
        return
    if compare_exchange(machine, "kcompactd_timer_ns", due_ns, now_ns + HPAGE_FRAG_CHECK_INTERVAL_NS) != due_ns:
        return
    for node in range(machine.nr_nodes):
        if now_ns >= node_of(machine, node).proactive_next_ns:
            wake_kthread(cpu, node, U(KCOMPACTD))

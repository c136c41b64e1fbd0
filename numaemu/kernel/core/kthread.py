"""A node's kernel threads: what runs in its context behind the CPUs (machine_t.nr_cpu_ids), when the coordinator wakes it.

One thread of the node's process does all of it in turn: kswapd, kcompactd, on node 0 khugepaged and zswap's shrink_worker. Who wants
something sets its bit in node_t.kthread_pending; the bits are taken by exchange, so that no wake-up is lost.
"""

import numpy as np

from numaemu.compiler.atomic import exchange, load_acquire, store_release
from numaemu.compiler.decorators import entry
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.core.strand import advance_clock
from numaemu.kernel.include.mmzone import KCOMPACTD, KHUGEPAGED, KSWAPD, ZSWAP_SHRINK, node_of
from numaemu.kernel.mm.huge.khugepaged import khugepaged
from numaemu.kernel.mm.migrate.kcompactd import kcompactd
from numaemu.kernel.mm.reclaim.kswapd import kswapd
from numaemu.kernel.mm.reclaim.lru_batches import lru_add_drain
from numaemu.kernel.mm.swap.zswap_writeback import shrink_worker

U = np.uint64


@entry("void(u64)", nogil=True)
def run_kthreads(context_address):
    """Do what is pending until nothing is."""
    cpu = cpu_t.at(context_address)
    node, pgdat = cpu.node, node_of(machine_of(cpu), cpu.node)
    store_release(pgdat, "kthread_running", 1)
    while load_acquire(pgdat, "kthread_pending") != U(0):
        pending = exchange(pgdat, "kthread_pending", 0)
        advance_clock(cpu, load_acquire(pgdat, "kthread_wake_ns"))
        if pending & U(KSWAPD) != U(0):
            kswapd(cpu, node)
        if pending & U(ZSWAP_SHRINK) != U(0):
            shrink_worker(cpu)
        if pending & U(KCOMPACTD) != U(0):
            kcompactd(cpu, node)
        if pending & U(KHUGEPAGED) != U(0):
            khugepaged(cpu)
    if node == 0 and load_acquire(machine_of(cpu), "thp_enabled") != 0:
        khugepaged(cpu)  # nobody may have seen that its time has come
    lru_add_drain(cpu)  # pages that the threads have moved or kept: nobody else empties the batches of this context
    store_release(pgdat, "kthread_running", 0)

"""A NUMA node's process: it owns its frames, its page structs and its zones' free lists, and serves requests for pages.

A second thread of it runs the node's kernel threads (kswapd, kcompactd, ...) in a context of their own, as a CPU would:
they take locks, wait for shootdowns and ask the first thread for pages as CPUs do, so that it never waits for them.
"""

import threading

from numaemu.hardware.processor import cpu_t
from numaemu.host.threads import Threads
from numaemu.kernel.core.kthread import run_kthreads
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, zone_of
from numaemu.kernel.mm.migrate.compaction_free import serve_node
from numaemu.kernel.mm.migrate.kcompactd import compact_node_now
from numaemu.kernel.mm.page_alloc.node_side import free_pcppages_bulk, take_back_shelves
from numaemu.kernel.syscalls.common import drain_lru
from numaemu.process.actor import Actor


class Node(Actor):
    """Node `node`. What CPUs ask for is served by one compiled loop on the node's own zones, which never waits."""

    def __init__(self, world, node):
        super().__init__(world, 1 + node)
        self.node = node
        self.zones = range(node * MAX_NR_ZONES, (node + 1) * MAX_NR_ZONES)
        self.context = cpu_t.array(self.machine.cpus)[self.machine.nr_cpus + node]
        self.threads = Threads("kthread")
        self.turn = threading.Lock()  # held while kernel threads work, and while they must not

    def run(self):
        threading.Thread(target=self.serve_kthreads, daemon=True, name="kthreads").start()
        super().run()

    def serve_kthreads(self):
        while True:
            self.world.kthread_bells[self.node].acquire()
            with self.turn:
                run_kthreads(self.context.address)

    def rpc_settle(self):
        """What the kernel threads have been woken for is done when the answer comes."""
        return self.threads.submit(self.settle)

    def settle(self):
        with self.turn:
            run_kthreads(self.context.address)

    def fetch(self):
        return serve_node(self.machine.address, self.mailbox.address, self._pointer.address)

    def rpc_compact_node(self):
        """Compact this node, when its kernel threads have nothing else to do."""
        return self.threads.submit(self.compact_node)

    def compact_node(self):
        with self.turn:
            compact_node_now(self.context.address, self.node)

    def rpc_hold(self):
        """Let no kernel thread run until `release`."""
        return self.threads.submit(self.hold)

    def hold(self):
        self.turn.acquire()
        drain_lru(self.context.address)

    def rpc_release(self):
        self.turn.release()

    def rpc_sync(self):
        """Everything sent to this node before is done; so are the returned pages."""
        return sum(free_pcppages_bulk(self.machine, zone_of(self.machine, zone)) for zone in self.zones)

    def rpc_drain_all(self):
        """The node's part of drain_all_pages: pages that CPUs do not hold themselves come back."""
        return self.rpc_sync() + sum(take_back_shelves(self.machine, zone) for zone in self.zones)

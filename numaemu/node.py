"""A NUMA node's process: it owns its frames, its page structs and its zones' free lists, and serves requests for pages."""
from numaemu.actor import Actor
from numaemu.kernel.mmzone import MAX_NR_ZONES, zone_of
from numaemu.kernel.page_alloc import alloc_block, fill_shelf, free_block, free_pcppages_bulk, take_back_shelves
from numaemu.kernel.smp import MSG_ALLOC, MSG_DRAIN, MSG_FILL, MSG_FREE, reply


class Node(Actor):
    """Node `node`: every handler is one compiled call on its own zones and never waits."""

    def __init__(self, world, node):
        super().__init__(world, 1 + node)
        self.node = node
        self.zones = range(node * MAX_NR_ZONES, (node + 1) * MAX_NR_ZONES)
        self.handlers = {MSG_FILL: self.on_fill, MSG_DRAIN: self.on_drain, MSG_ALLOC: self.on_alloc,
                         MSG_FREE: self.on_free}

    def on_fill(self, message):
        """a = zone * 4 + watermark, b = migratetype, c = pages, d = CPU: put a chain of pages on that CPU's shelf."""
        fill_shelf(self.machine, message.a // 4, message.b, message.c, message.d, message.a % 4)

    def on_drain(self, message):
        """a = zone: take back what CPUs returned."""
        free_pcppages_bulk(self.machine, zone_of(self.machine, message.a))

    def on_alloc(self, message):
        """a = zone, b = order, c = migratetype, d = CPU: one block."""
        reply(self.machine, message.d, message.token, alloc_block(self.machine, message.a, message.b, message.c))

    def on_free(self, message):
        """a = pfn, b = order."""
        free_block(self.machine, message.a, message.b)

    def rpc_sync(self):
        """Everything sent to this node before is done; so are the returned pages."""
        return sum(free_pcppages_bulk(self.machine, zone_of(self.machine, zone)) for zone in self.zones)

    def rpc_drain_all(self):
        """The node's part of drain_all_pages: pages that CPUs do not hold themselves come back."""
        return self.rpc_sync() + sum(take_back_shelves(self.machine, zone) for zone in self.zones)

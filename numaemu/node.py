"""A NUMA node's process: it owns its frames, its page structs and its zones' free lists, and serves requests for pages."""
from numaemu.actor import Actor
from numaemu.kernel.buddy import free_pcppages_bulk, take_back_shelves
from numaemu.kernel.compaction_free import serve_node
from numaemu.kernel.mmzone import MAX_NR_ZONES, zone_of


class Node(Actor):
    """Node `node`. What CPUs ask for is served by one compiled loop on the node's own zones, which never waits."""

    def __init__(self, world, node):
        super().__init__(world, 1 + node)
        self.node = node
        self.zones = range(node * MAX_NR_ZONES, (node + 1) * MAX_NR_ZONES)

    def fetch(self):
        return serve_node(self.machine, self.mailbox, self._pointer)

    def rpc_sync(self):
        """Everything sent to this node before is done; so are the returned pages."""
        return sum(free_pcppages_bulk(self.machine, zone_of(self.machine, zone)) for zone in self.zones)

    def rpc_drain_all(self):
        """The node's part of drain_all_pages: pages that CPUs do not hold themselves come back."""
        return self.rpc_sync() + sum(take_back_shelves(self.machine, zone) for zone in self.zones)

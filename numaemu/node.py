"""A NUMA node's process: it owns its frames, its page structs and its zones' free lists, and serves requests for pages.

A second thread of it runs the node's kernel threads (kswapd, kcompactd, ...) in a context of their own, as a CPU would:
they take locks, wait for shootdowns and ask the first thread for pages as CPUs do, so that it never waits for them.
"""

import contextlib
import threading

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import i64, u64
from numaemu.hardware.mailbox import fetch, mailbox_t
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.kthread import run_kthreads
from numaemu.kernel.core.lockstep import begin_strand, leave_turn
from numaemu.kernel.core.sched import enter_turn
from numaemu.kernel.core.smp import (
    MSG_ALLOC,
    MSG_DRAIN,
    MSG_FILL,
    MSG_FREE,
    MSG_ISOLATE_FREE,
    MSG_NONE,
    MSG_RANGE,
    MSG_UNRESERVE,
    reply,
)
from numaemu.kernel.include.internal import unpack_zone
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_used, machine_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, node_of, page_of, zone_of
from numaemu.kernel.mm.migrate.compact_control import compact_control_of, pageblock_end
from numaemu.kernel.mm.migrate.free_scanner import isolate_freepages
from numaemu.kernel.mm.migrate.kcompactd import compact_node_now
from numaemu.kernel.mm.page_alloc.mobility import unreserve_highatomic_pageblock
from numaemu.kernel.mm.page_alloc.node_side import (
    alloc_block,
    fill_shelf,
    free_block,
    free_pcppages_bulk,
    take_back_shelves,
)
from numaemu.kernel.mm.page_alloc.page_isolation import serve_range
from numaemu.kernel.syscalls.common import drain_lru
from numaemu.process.actor import Actor
from numaemu.process.strands import StrandLock
from numaemu.spec.param import PAGEBLOCK_PAGES

U = np.uint64
_USED = U(PG_used)
MAP_PAGES = 16  # what the host maps at a reading fault: fault_around_bytes of its mm/memory.c
MAP_AHEAD = 4 * PAGEBLOCK_PAGES  # how far before either scanner: what a batch or two need; assumed


# -- what is about to be moved, mapped ahead -------------------------------------------------------------------
# The host maps frames into a process at the process's first access, which costs half of what moving pages does. A CPU has
# mapped what its tasks use, its node's process has not. So while the node's kernel threads move a batch, its first
# thread, as long as nobody asks it for anything, maps what comes next (in parallel, on another host core). Nothing
# emulated changes.


@hot
def map_frames(machine, zone, pfn):
    """Access the first frame in use, or used before, of MAP_PAGES. An untouched one would cost the host memory."""
    if zone.virgin_pfn <= pfn < zone.virgin_end:
        return
    for at in range(pfn, pfn + MAP_PAGES):
        if page_of(machine, at).flags & _USED != U(0):
            load_acquire(u64.array(frame_of(machine, at)), 0)
            return


@kernel("bool(machine_t*, i64)")
def map_ahead(machine, context):
    """Map some frames before the scanners of this node's own compaction; False if all are, so far. Another context is a
    CPU's. The scanners' places are hints: the context that compacts moves one meanwhile.
    """
    cc = compact_control_of(machine, context)
    zone = zone_of(machine, cc.zone)
    node, low, high, mapped = (
        node_of(machine, zone.node),
        cc.migrate_pfn & -MAP_PAGES,
        pageblock_end(cc.free_pfn),
        False,
    )
    if context != machine.nr_cpus + zone.node:
        return False
    if not low <= node.map_source <= low + MAP_AHEAD:
        node.map_source = low
    if not high - MAP_AHEAD <= node.map_target <= high:
        node.map_target = high
    if node.map_source < min(low + MAP_AHEAD, high):
        map_frames(machine, zone, node.map_source)
        node.map_source += MAP_PAGES
        mapped = True
    if node.map_target > max(high - MAP_AHEAD, low):
        node.map_target -= MAP_PAGES
        map_frames(machine, zone, node.map_target)
        mapped = True
    return mapped


# -- the node's loop ---------------------------------------------------------------------------------------------


@kernel("bool(machine_t*, i64*)")
def serve_message(machine, words):
    """Do what a CPU asks for: the message's words are kind, sender, token, a, b, c, d. False: it is none of ours."""
    kind, token, a, b, c, d = words[0], words[2], words[3], words[4], words[5], words[6]
    if kind == MSG_FILL:  # a = zone and alloc flags, b = migratetype, c = pages, d = CPU
        zone_number, alloc_flags = unpack_zone(a)
        fill_shelf(machine, zone_number, b, c, d, alloc_flags)
    elif kind == MSG_DRAIN:  # a = zone
        free_pcppages_bulk(machine, zone_of(machine, a))
        if token != 0:
            reply(machine, d, token, 0)
    elif kind == MSG_ALLOC:  # a = zone and alloc flags, b = order, c = migratetype, d = CPU
        zone_number, alloc_flags = unpack_zone(a)
        reply(machine, d, token, alloc_block(machine, zone_number, b, c, alloc_flags))
    elif kind == MSG_FREE:  # a = pfn, b = order
        free_block(machine, a, b)
    elif kind == MSG_UNRESERVE:  # a = zone, b = migratetype, c = force, d = CPU
        reply(machine, d, token, unreserve_highatomic_pageblock(machine, zone_of(machine, a), b, c))
    elif kind == MSG_RANGE:  # a = zone and step, b = first page, c = pages, d = context
        zone_number, step = unpack_zone(a)
        reply(machine, d, token, serve_range(machine, zone_number, step, b, c))
    elif kind == MSG_ISOLATE_FREE:  # d = context, whose compact_control_t says the rest
        isolate_freepages(machine, d)
        reply(machine, d, token, compact_control_of(machine, d).nr_freepages)
    else:
        return False
    return True


@entry("i64(u64, u64, u64)", nogil=True)
def serve_node(machine_address, mailbox_address, words_address):
    """Serve what CPUs ask of this node's zones until another kind of message comes, or there is none: its kind, or 0.

    The message's words stand at `words_address`. Between messages the node does ahead what can be done ahead. The node's
    kernel threads need Python's lock meanwhile.
    """
    machine, mailbox, words = machine_t.at(machine_address), mailbox_t.at(mailbox_address), i64.array(words_address)
    served = -1  # the context for which free pages were isolated last
    while True:
        kind = fetch(mailbox, words)
        if kind == MSG_ISOLATE_FREE:
            served = words[6]
        if kind != MSG_NONE:
            if not serve_message(machine, words):
                return kind
        elif served < 0 or not map_ahead(machine, served):
            return kind


class Node(Actor):
    """Node `node`. What CPUs ask for is served by one compiled loop on the node's own zones, which never waits."""

    def __init__(self, world, node):
        super().__init__(world, 1 + node)
        self.node = node
        self.zones = range(node * MAX_NR_ZONES, (node + 1) * MAX_NR_ZONES)
        self.context = cpu_t.array(self.machine.cpus)[self.machine.nr_cpus + node]
        self.threads = self.new_threads("kthread")
        # held while kernel threads work, and while they must not
        self.turn = StrandLock(self.lockstep) if self.lockstep else threading.Lock()

    def run(self):
        threading.Thread(target=self.serve_kthreads, daemon=True, name="kthreads").start()
        super().run()

    def serve_kthreads(self):
        """The second thread: what the kernel threads are woken for."""
        bell = self.world.kthread_bells[self.node]
        if self.lockstep:
            begin_strand(self.lockstep, bell.strand)  # it has been woken
        else:
            bell.acquire()
        while True:
            with self.working():
                run_kthreads(self.context.address)
            bell.acquire()

    @contextlib.contextmanager
    def working(self):
        """In the context of the node's kernel threads, of which one works at a time."""
        with self.turn:
            if self.lockstep:
                enter_turn(self.lockstep, self.context.address)
            try:
                yield
            finally:
                if self.lockstep:
                    leave_turn(self.lockstep)

    def rpc_settle(self):
        """What the kernel threads have been woken for is done when the answer comes."""
        return self.threads.submit(self.settle)

    def settle(self):
        with self.working():
            run_kthreads(self.context.address)

    def fetch(self):
        return serve_node(self.machine.address, self.mailbox.address, self._pointer.address)

    def rpc_compact_node(self):
        """Compact this node, when its kernel threads have nothing else to do."""
        return self.threads.submit(self.compact_node)

    def compact_node(self):
        with self.working():
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
        return self.rpc_sync() + sum(take_back_shelves(self.machine, zone, -1) for zone in self.zones)

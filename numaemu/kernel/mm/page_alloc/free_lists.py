"""Booting with the free lists of a real machine: where its free blocks lie, and putting them onto the lists.

/proc/buddyinfo tells how many blocks there are of each order, not where. They are laid out as the buddy system can have them: no
two free buddies side by side, each in a pageblock of its type, spread over the zone (always in the same way). All else is in
use, by nobody: it cannot be freed or moved.
"""

import random

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.errors import ConfigError
from numaemu.kernel.include.mm_types import machine_t
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    ZONE_NAMES,
    zone_of,
)
from numaemu.kernel.mm.page_alloc.free_area import add_to_free_list, set_pageblock_migratetype
from numaemu.spec.buddyinfo import TYPES
from numaemu.spec.param import MAX_ORDER, PAGEBLOCK_ORDER, PAGEBLOCK_PAGES

ANY = -1  # the type of pageblocks that nothing has been put into


@entry("void(u64, i64, i64[])")
def add_free_blocks(machine_address, number, blocks):
    """Put blocks onto a zone's lists; `blocks`: first page, order and migratetype of each."""
    machine = machine_t.at(machine_address)
    zone = zone_of(machine, number)
    for i in range(0, len(blocks), 3):
        pfn, order, migratetype = blocks[i], blocks[i + 1], blocks[i + 2]
        zone.free_pages += 1 << order
        add_to_free_list(machine, zone, pfn, order, migratetype, True)


class Places:
    """The parts of a zone from which free blocks can be cut.

    `loose`: {(type, order): parts that may be free as a whole}, as their buddies are not; `parts`: those that may not.
    """

    def __init__(self, first, end):
        self.loose, self.parts, self.types = {}, {}, {}
        self.random = random.Random(first)
        while first < end:
            order = MAX_ORDER
            while first & (1 << order) - 1 or first + (1 << order) > end:
                order -= 1
            self.loose.setdefault((ANY if order >= PAGEBLOCK_ORDER else MIGRATE_MOVABLE, order), []).append(first)
            first += 1 << order

    def draw(self, table, key):
        """Take one part out of a table, or None."""
        if not (found := table.get(key)):
            return None
        i = self.random.randrange(len(found))
        found[i], found[-1] = found[-1], found[i]
        return found.pop()

    def mark(self, pfn, order, migratetype):
        """The pageblocks of a part get a type."""
        for block in range(pfn >> PAGEBLOCK_ORDER, (pfn + (1 << order) - 1 >> PAGEBLOCK_ORDER) + 1):
            self.types.setdefault(block, migratetype)

    def take(self, order, migratetype):
        """The first page of a free block, or None: there is no room for one."""
        kinds = (ANY, migratetype) if order >= PAGEBLOCK_ORDER else (migratetype,)
        for kind in kinds:
            if (pfn := self.draw(self.loose, (kind, order))) is not None:
                self.mark(pfn, order, migratetype)
                return pfn
        part = self.part(order + 1, migratetype) if order < MAX_ORDER else None
        if part is None:
            return None
        half = 1 << order
        free = part + half * self.random.randrange(2)
        rest = part + half if free == part else part
        self.parts.setdefault((ANY if order >= PAGEBLOCK_ORDER else migratetype, order), []).append(rest)
        self.mark(free, order, migratetype)
        return free

    def part(self, order, migratetype):
        """A part of this order that cannot be free as a whole, for blocks of this type; larger ones are cut for it."""
        kind = ANY if order > PAGEBLOCK_ORDER else migratetype
        for table in (self.parts, self.loose):
            if (pfn := self.draw(table, (kind, order))) is not None:
                return pfn
        if order == PAGEBLOCK_ORDER:
            for table in (self.parts, self.loose):
                if (pfn := self.draw(table, (ANY, order))) is not None:
                    self.mark(pfn, order, migratetype)
                    return pfn
        if order >= MAX_ORDER:
            return None
        larger = self.part(order + 1, migratetype)
        if larger is None:
            return None
        self.parts.setdefault((kind if order < PAGEBLOCK_ORDER else ANY, order), []).append(larger + (1 << order))
        if order == PAGEBLOCK_ORDER:
            self.mark(larger, order, migratetype)
        return larger


def place(first, end, wanted, pageblocks, name):
    """(blocks as add_free_blocks takes them, {pageblock: type}) of a zone whose pages [first, end) may be free.

    wanted: {type: counts by order}; pageblocks: {type: how many}, may be empty.
    """
    places, blocks = Places(first, end), []
    for order in range(MAX_ORDER, -1, -1):
        for kind in sorted(wanted):
            migratetype = TYPES.index(kind)
            for n in range(wanted[kind][order]):
                pfn = places.take(order, migratetype)
                if pfn is None:
                    raise ConfigError(
                        f"buddyinfo: {name} has no room for {wanted[kind][order]} free blocks of order {order} ({kind}), only for {n}"
                    )
                blocks += (pfn, order, migratetype)
    left = [
        b
        for b in range(first + PAGEBLOCK_PAGES - 1 >> PAGEBLOCK_ORDER, end >> PAGEBLOCK_ORDER)
        if b not in places.types
    ]
    places.random.shuffle(left)
    for kind, n in pageblocks.items():
        have = sum(t == TYPES.index(kind) for t in places.types.values())
        for block in [left.pop() for _ in range(min(max(n - have, 0), len(left)))]:
            places.types[block] = TYPES.index(kind)
    return blocks, places.types


def set_free_lists(machine, lists):
    """Give every zone of a machine that has just been laid out the free blocks of a FreeLists."""
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if not zone.present_pages:
            continue
        key = int(zone.node), ZONE_NAMES[zone.type]
        name = f"zone {key[1]} of node {key[0]}"
        if key not in lists.free:
            raise ConfigError(
                f"buddyinfo: {name} is missing; it has {', '.join(f'{z} of node {n}' for n, z in lists.free)}"
            )
        set_zone(machine, number, lists.free[key], lists.pageblocks.get(key, {}), name)


def set_zone(machine, number, wanted, pageblocks, name):
    """One zone: its untouched range becomes the blocks that are wanted, and memory in use."""
    zone = zone_of(machine, number)
    if machine.page_group_by_mobility_disabled:  # all is of one type
        wanted, pageblocks = {TYPES[MIGRATE_UNMOVABLE]: [sum(counts) for counts in zip(*wanted.values())]}, {}
    first, end = int(zone.virgin_pfn), int(zone.virgin_end)
    blocks, types = place(first, end, wanted, pageblocks, name)
    zone.virgin_pfn, zone.free_pages = end, 0
    for block, migratetype in types.items():
        set_pageblock_migratetype(machine, block << PAGEBLOCK_ORDER, migratetype)
    reserved = sum(migratetype == MIGRATE_HIGHATOMIC for migratetype in types.values())
    zone.nr_reserved_highatomic = reserved * PAGEBLOCK_PAGES
    add_free_blocks(int(machine.address), number, np.array(blocks, np.int64))

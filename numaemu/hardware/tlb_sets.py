"""Sets of a CPU's TLBs: how an entry is found, and which one makes room: the one that was used longest ago, by its age.

Entries of the L1 have their access's number as age. Those of the L2 have twice that, and 1 more where they have been used
since they came. On a timed CPU (timing.py) a set of the L2 with 5 to 16 ways also has a word with an *order* of its ways (replacement.py, the last to make room
in the lowest bits) and a mark for each (marks.py), so that a miss, and what makes room for it, are known without a look at
all entries, which would be far from the host behind all that timing looks at. A use changes the age only, so the order may be of the past; what holds is:

    a way stands ahead of another only if it has been used later than the other came to its place

So the way at the end makes room if it has not been used since it came there. Else it takes its place by its age, behind
those that have been used later, and it is the next one's turn. Whoever forgets entries empties the order (0): ages tell it anew.
"""

import numpy as np

from numaemu.compiler.bits import lowest_bit
from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.marks import MARK_BITS, MARK_MASK, WORD_MARKS, mark_of, mark_words, marked_as, put_mark
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import TAG_SIZE, TAG_VALID, cpu_t, level_shift  # noqa: F401  (the type in signatures)
from numaemu.hardware.replacement import MAX_ORDERED, WAY_BITS, WAY_MASK, last_to_front, last_way

U = np.uint64
LEAST_ORDERED = 5  # ways of a set that are worth an order and marks
USED = 1  # in an L2 entry's age: used since it came to its place


@hot
def set_index(page_number, sets, mask):
    """The set of a page: a mask where the number of sets is a power of two, a remainder elsewhere."""
    return np.int64(page_number & mask) if mask != U(0) or sets == U(1) else np.int64(page_number % sets)


@hot
def find_in_set(entries, first, ways, tag):
    """Index of the entry with this tag among `ways` from `first` on, or -1."""
    for slot in range(first, first + ways):
        if entries[slot].tag == tag:
            return slot
    return -1


@hot
def oldest_of(entries, first, ways):
    """Index of the entry of a set that was used longest ago."""
    victim, oldest = first, entries[first].age
    for slot in range(first + 1, first + ways):
        age = entries[slot].age
        if age < oldest:
            victim, oldest = slot, age
    return victim


@hot
def l2_set(cpu, page_number):
    """The set of a page in the L2."""
    return set_index(page_number, cpu.l2_sets, cpu.l2_mask)


@hot
def l2_find_in_set(cpu, page_number, tag):
    """Index of the L2 entry with this tag, or -1."""
    number = l2_set(cpu, page_number)
    first = number * cpu.l2_ways
    if cpu.l2_ordered == U(0):
        return find_in_set(cpu.l2, first, cpu.l2_ways, tag)
    words, mark = mark_words(cpu.l2_ways), mark_of(page_number)
    for word in range(words):
        likely = marked_as(cpu.l2_marks[number * words + word], mark)
        while likely != U(0):
            slot = first + word * WORD_MARKS + (lowest_bit(likely) >> 3)
            if slot < first + cpu.l2_ways and cpu.l2[slot].tag == tag:
                return slot
            likely &= likely - U(1)
    return -1


@hot
def way_at(order, place):
    """The way at a place of an order."""
    return np.int64((order >> (WAY_BITS * U(place))) & WAY_MASK)


@kernel("u64(cpu_t*, i64)")
def order_by_age(cpu, number):
    """The order of a set's ways by their ages alone, the one used last first; empty ones come last."""
    order, first = U(0), number * cpu.l2_ways
    for way in range(cpu.l2_ways):
        place = 0
        for other in range(cpu.l2_ways):
            age, others = cpu.l2[first + way].age >> 1, cpu.l2[first + other].age >> 1
            place += 1 if others > age or (others == age and other > way) else 0
        order |= U(way) << (WAY_BITS * U(place))
    for way in range(cpu.l2_ways):
        cpu.l2[first + way].age &= ~USED
    return order


@kernel("u64(cpu_t*, i64, u64)")
def settle_last(cpu, number, order):
    """The order of a set once the ways at its end that have been used there have taken their places."""
    first = number * cpu.l2_ways
    while True:
        entry = cpu.l2[first + last_way(order, cpu.l2_ways)]
        if entry.age & USED == 0:
            return order
        way, place = last_way(order, cpu.l2_ways), 0
        while cpu.l2[first + way_at(order, place)].age >> 1 > entry.age >> 1:
            place += 1
        ahead = (U(1) << (WAY_BITS * U(place))) - U(1)
        behind = order & ~ahead & ~(WAY_MASK << (WAY_BITS * U(cpu.l2_ways - 1)))
        order = (order & ahead) | (U(way) << (WAY_BITS * U(place))) | (behind << WAY_BITS)
        entry.age &= ~USED


@hot
def ordered_victim(cpu, number, page_number):
    """The way of a set with an order that makes room, which comes to the front of it."""
    order = cpu.l2_order[number]
    if order == U(0):
        order = order_by_age(cpu, number)
    elif cpu.l2[number * cpu.l2_ways + last_way(order, cpu.l2_ways)].age & USED != 0:
        order = settle_last(cpu, number, order)
    way = last_way(order, cpu.l2_ways)
    cpu.l2_order[number] = last_to_front(order, cpu.l2_ways)
    put_mark(cpu.l2_marks, number * mark_words(cpu.l2_ways), way, mark_of(page_number))
    return way


@hot
def l2_victim(cpu, page_number):
    """Index of the least recently used L2 entry of a page's set, which the page gets."""
    number = l2_set(cpu, page_number)
    first = number * cpu.l2_ways
    if cpu.l2_ordered != U(0):
        slot = first + ordered_victim(cpu, number, page_number)
    else:
        slot = oldest_of(cpu.l2, first, cpu.l2_ways)
    cpu.l2[slot].age = (cpu.tick + 1) << 1
    return slot


@hot
def use_l2(cpu, slot):
    """An L2 entry is used by the access under way."""
    cpu.l2[slot].age = (cpu.tick + 1) << 1 | USED


@hot
def forget_l2_order(cpu, number):
    """An entry of a set has been forgotten."""
    if cpu.l2_ordered != U(0):
        cpu.l2_order[number] = U(0)


@hot
def forget_l2_orders(cpu):
    """Entries of any set have been forgotten."""
    if cpu.l2_ordered != U(0):
        for number in range(np.int64(cpu.l2_sets)):
            cpu.l2_order[number] = U(0)


def order_l2(cpu):
    """Have orders and marks in the L2's sets, if they have ways enough. At boot."""
    cpu.l2_ordered = int(LEAST_ORDERED <= cpu.l2_ways <= MAX_ORDERED)


def init_tlbs(cpu, l1, l2):
    """Give a CPU its TLBs, as the machine file has them. At boot."""
    for level, spec in (("l1", l1), ("l2", l2)):
        sets = spec.entries // spec.ways
        setattr(cpu, f"{level}_sets", sets)
        setattr(cpu, f"{level}_ways", spec.ways)
        setattr(cpu, f"{level}_latency_ns", spec.latency_ns)
        setattr(cpu, f"{level}_mask", sets - 1 if sets & (sets - 1) == 0 else 0)


# -- for the audit -------------------------------------------------------------------------------------------------


@hot
def is_marked(cpu, number, way):
    """True where an entry's mark is its page's, or the entry need not have one."""
    tag = cpu.l2[number * cpu.l2_ways + way].tag
    if tag & TAG_VALID == U(0):
        return True
    mark = cpu.l2_marks[number * mark_words(cpu.l2_ways) + (way >> 3)] >> (U(way & (WORD_MARKS - 1)) * MARK_BITS)
    return mark & MARK_MASK == mark_of((tag & PAGE_MASK) >> level_shift(cpu, np.int64((tag & TAG_SIZE) >> U(9))))


@kernel("i64(cpu_t*)")
def disordered_set(cpu):
    """The first set of the L2 whose order or marks are not as said above, or -1."""
    for number in range(np.int64(cpu.l2_sets) if cpu.l2_ordered != U(0) else 0):
        order, first, seen = cpu.l2_order[number], number * cpu.l2_ways, U(0)
        for place in range(cpu.l2_ways):
            if not is_marked(cpu, number, place):
                return number
            age, seen = cpu.l2[first + way_at(order, place)].age, seen | (U(1) << U(way_at(order, place)))
            for ahead in range(place if order != U(0) and age & USED == 0 else 0):
                if cpu.l2[first + way_at(order, ahead)].age >> 1 < age >> 1:
                    return number
        if order != U(0) and seen != (U(1) << U(cpu.l2_ways)) - U(1):
            return number
    return -1

"""Rates: each memory controller and each direction of a link is a server that moves one line of 64 bytes after another.

A server's time is cut into slots, each as long as a line takes at its rate, and a slot moves one line. A line that comes while its
slot is taken gets the first free one behind it, and waits so long. Lines come a little out of the order of emulated time, since a
CPU may be ahead of another; one that comes late finds the slots of its own time as they are, free or taken, so that no server
ever moves more than its rate in any span of time, and never idles while a line waits for it. For arrivals at random that is the
queue M/D/1, exactly: the mean wait does not depend on where in its slot a line comes.

The slots of a server are bits of a ring of words:

     63          32 31                 0
    +--------------+--------------------+
    |     lap      | 32 slots: 1 = taken |      word (slot / 32) modulo the size of the ring
    +--------------+--------------------+

`lap` says for which round of the ring the bits are: a word of an earlier round is free as a whole. A line whose word is of a later
round already is *late*: the server has forgotten that time. Then its CPU is only kept from moving more than the rate by itself.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.bits import highest_bit, lowest_bit
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import prefetch
from numaemu.compiler.pointer import Struct, f64, i64, u16, u64
from numaemu.hardware.processor import cpu_t  # noqa: F401  (the type in signatures)

U = np.uint64
LINE_SHIFT = 6  # lines of 64 bytes
LINE_BYTES = 1 << LINE_SHIFT
SLOT_SHIFT = 5
SLOTS = 1 << SLOT_SHIFT  # of a word
AHEAD = 128  # words of a ring that the host is asked for before they are wanted: some lines of memory later; measured
ALL_TAKEN = U(0xFFFFFFFF)
LATE = -1  # instead of a slot
MAX_HOPS = 64  # of a path, with the word that ends it
END_OF_PATH = 0xFFFF

# fmt: off
# A server as one CPU, or one node's kernel threads, meets it.
passage_t = Struct("passage_t", [
    # set at boot
    ("ring", u64),              # u64[ring_words], which all have in common; 0: there is no limit
    ("line_ps", f64),           # what a line takes
    ("lines_per_ps", f64),
    # what it has had from the server; written by that CPU only
    ("lines", i64),             # moved
    ("moves", i64), ("moved", i64),      # requests for many lines at once, and these lines
    ("queued_ps", i64),         # what requests have waited, for one line or many
    ("late", i64),              # of these requests, those whose time the server had forgotten
    ("late_until_ps", i64),     # until when late ones of this CPU keep it busy
    ("_pad", i64, 7),
], nbytes=128)

# Set at boot, read by all.
rates_t = Struct("rates_t", [
    ("nr_nodes", i64),          # servers 0 to nr_nodes - 1 are the nodes' controllers; then come links, a -> b and b -> a of each
    ("nr_servers", i64),
    ("lap_shift", u64),         # log2 of ring_words
    ("ring_mask", i64),         # ring_words - 1
    ("shared", i64),            # 1: CPUs run at the same time; 0: in lockstep
    ("paths", u64),             # u16[nr_nodes][nr_nodes][MAX_HOPS]: the servers from node to node, END_OF_PATH ends; 0: no links
])
# fmt: on


@hot
def rates_of(cpu):
    return rates_t.at(cpu.rates)


@hot
def passage_of(cpu, number):
    """A server as a CPU meets it."""
    return passage_t.array(cpu.passages)[number]


@hot
def popcount(bits):
    """How many of the lower 32 bits are set, of a word that has no others."""
    bits = bits - ((bits >> U(1)) & U(0x55555555))
    bits = (bits & U(0x33333333)) + ((bits >> U(2)) & U(0x33333333))
    bits = (bits + (bits >> U(4))) & U(0x0F0F0F0F)
    return np.int64(((bits * U(0x01010101)) >> U(24)) & U(0xFF))


@hot
def from_slot(slot):
    """The slots of a word from one on."""
    return (ALL_TAKEN << U(slot & (SLOTS - 1))) & ALL_TAKEN


@kernel("i64(rates_t*, passage_t*, i64)")
def find_slot(rates, passage, first):
    """take_slot where the first one may be taken."""
    ring, number, wanted = u64.array(passage.ring), first >> SLOT_SHIFT, from_slot(first)
    while True:
        place = number & rates.ring_mask
        word, lap = load_acquire(ring, place), U(number) >> rates.lap_shift
        if (word >> U(32)) > lap:
            return LATE
        taken = word & ALL_TAKEN if (word >> U(32)) == lap else U(0)
        free = ~taken & wanted
        if free == U(0):
            number, wanted = number + 1, ALL_TAKEN
            continue
        slot = lowest_bit(free)
        if compare_exchange(ring, place, word, (lap << U(32)) | taken | (U(1) << U(slot))) == word:
            return number * SLOTS + slot


@hot
def take_slot(rates, passage, first):
    """Take the first free slot of a server from `first` on: its number, or LATE."""
    ring, number, bit = u64.array(passage.ring), first >> SLOT_SHIFT, U(1) << U(first & (SLOTS - 1))
    place, lap = number & rates.ring_mask, U(number) >> rates.lap_shift
    prefetch(passage.ring + U(((place + AHEAD) & rates.ring_mask) * 8))
    word = load_acquire(ring, place)
    now = word if word >> U(32) >= lap else lap << U(32)  # a word of an earlier round is free as a whole
    if now >> U(32) == lap and now & bit == U(0):
        if rates.shared == 0:
            ring[place] = now | bit
            return first
        if compare_exchange(ring, place, word, now | bit) == word:
            return first
    return find_slot(rates, passage, first)


@hot
def first_of(free, n):
    """The first n of the bits that are set in a word, or all if they are fewer."""
    if popcount(free) <= n:
        return free
    some = U(0)
    for _ in range(n):
        some |= U(1) << U(lowest_bit(free & ~some))
    return some


@kernel("i64(rates_t*, passage_t*, i64, i64)")
def take_slots(rates, passage, first, lines):
    """Take so many free slots, the first from `first` on: the number of the last, or LATE (none was taken)."""
    ring, number, wanted, begun = u64.array(passage.ring), first >> SLOT_SHIFT, from_slot(first), False
    while True:
        place = number & rates.ring_mask
        word, lap = load_acquire(ring, place), U(number) >> rates.lap_shift
        if (word >> U(32)) > lap:
            if not begun:
                return LATE
            number, wanted = number + 1, ALL_TAKEN  # others have gone round meanwhile
            continue
        taken = word & ALL_TAKEN if (word >> U(32)) == lap else U(0)
        some = first_of(~taken & wanted, lines)
        if some != U(0) and compare_exchange(ring, place, word, (lap << U(32)) | taken | some) != word:
            continue
        begun, lines = begun or some != U(0), lines - popcount(some)
        if lines == 0:
            return number * SLOTS + highest_bit(some)
        number, wanted = number + 1, ALL_TAKEN


@hot
def slot_at(passage, now_ps):
    """The slot of a time. Half a ps more, so that rounding never makes it the slot before."""
    return np.int64((now_ps + 0.5) * passage.lines_per_ps)


@hot
def wait_for_slot(rates, passage, now_ps):
    """pass_line at a server that has a limit; the line has been counted."""
    first = slot_at(passage, now_ps)
    slot = take_slot(rates, passage, first)
    if slot == first:
        return 0
    if slot == LATE:
        passage.late += 1
        begin = max(now_ps, passage.late_until_ps)
        passage.late_until_ps = begin + np.int64(passage.line_ps)
        waited = begin - now_ps
    else:
        waited = np.int64((slot - first) * passage.line_ps)
    passage.queued_ps += waited
    return waited


@hot
def pass_line(cpu, number, now_ps):
    """A line for a CPU comes to a server at a time: the ps that it waits there."""
    passage = passage_of(cpu, number)
    passage.lines += 1
    return wait_for_slot(rates_of(cpu), passage, now_ps) if passage.ring != U(0) else 0


@kernel("i64(cpu_t*, i64, i64, i64)")
def pass_lines(cpu, number, now_ps, lines):
    """Many lines come to a server at once: the ps until the last has passed."""
    passage = passage_of(cpu, number)
    passage.lines += lines
    passage.moved += lines
    passage.moves += 1
    if passage.ring == U(0):
        return 0
    alone_ps = np.int64(lines * passage.line_ps)
    first = slot_at(passage, now_ps)
    last = take_slots(rates_of(cpu), passage, first, lines)
    if last == LATE:
        passage.late += 1
        begin = max(now_ps, passage.late_until_ps)
        passage.late_until_ps = begin + alone_ps
        took = begin + alone_ps - now_ps
    else:
        took = np.int64((last + 1 - first) * passage.line_ps)
    passage.queued_ps += max(took - alone_ps, 0)
    return took


@hot
def path_of(rates, source, target):
    """Where the servers between two nodes begin in `rates.paths`."""
    return (source * rates.nr_nodes + target) * MAX_HOPS


@kernel("i64(cpu_t*, i64, i64, i64)")
def pass_path(cpu, source, target, now_ps):
    """A line goes over the links from node to node: the ps that it waits on the way."""
    rates, waited = rates_of(cpu), 0
    if rates.paths == U(0):
        return 0
    hops, at = u16.array(rates.paths), path_of(rates, source, target)
    while np.int64(hops[at]) != END_OF_PATH:
        waited += pass_line(cpu, np.int64(hops[at]), now_ps + waited)
        at += 1
    return waited


@kernel("i64(cpu_t*, i64, i64, i64, i64)")
def pass_path_many(cpu, source, target, now_ps, lines):
    """The same for many lines, which all links of the way move at the same time: the ps that the slowest takes."""
    rates, longest = rates_of(cpu), 0
    if rates.paths == U(0):
        return 0
    hops, at = u16.array(rates.paths), path_of(rates, source, target)
    while np.int64(hops[at]) != END_OF_PATH:
        longest = max(longest, pass_lines(cpu, np.int64(hops[at]), now_ps, lines))
        at += 1
    return longest

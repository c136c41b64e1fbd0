"""Caches of physical lines: sets, what a set gives up, and the words of a machine that has caches.

A cache holds tags only; what is in memory is always what was stored last. It lies in one piece: a tag for each way of each set, then the
words that say what makes room (replacement.py), one for each set, or with AGES one for each way; then for each set a byte for each
way, its *mark*, in whole words.

    tag: number of the line << 3 | LINE_PREFETCHED | state, 0: the way is empty

A mark (marks.py) is of the line that came into a way last; the tag decides. Who writes a tag's line writes its mark before it.

States, as in MESI: a line that others may have too (SHARED); that no other CPU has (EXCLUSIVE); that memory does not have yet
(MODIFIED). An exclusive line becomes modified without asking anybody. A cache that CPUs share has lines only SHARED
or MODIFIED.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire
from numaemu.compiler.bits import lowest_bit
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import prefetch
from numaemu.compiler.pointer import Struct, i64, u8, u32, u64
from numaemu.hardware.marks import WORD_MARKS, mark_of, mark_words, marked_as
from numaemu.hardware.replacement import (
    WAY_MASK,
    last_to_front,
    last_way,
    next_random,
    point_away,
    pointed_at,
    to_back,
    to_front,
)
from numaemu.spec.cache import LEVELS

U = np.uint64

LINE_SHARED, LINE_EXCLUSIVE, LINE_MODIFIED = U(1), U(2), U(3)
STATE_MASK = U(3)
LINE_PREFETCHED = U(4)  # a prefetcher brought it, and no access has asked for it yet
TAG_SHIFT, FLAGS = U(3), U(7)
LRU, PLRU, RANDOM, AGES = range(4)  # in the order of spec/cache.py; AGES: `lru` with more ways than an order holds
MAX_LEVELS = len(LEVELS)
HOST_LINE = 64  # bytes
LINE_HINTS = 4096  # where a line was last seen in the first level: a short cut, checked by the tag
STRIDE_PAGES = 16  # pages whose strides a CPU's prefetcher follows; assumed

# A *bank* is the lines whose number has the same low bits: each set of each cache has lines of one bank only, and each bank has a
# lock. It guards the bank's sets in all caches, and its words of the directory. Nobody takes a second lock while having one.
#
# Shared words of cache_t: (the tags and words that it leads to) the word | its writer | why a reader may trust it.
# - tags of a first level | Its CPU and others, with the bank's lock; its CPU without it, from EXCLUSIVE to MODIFIED. | Only its
#   CPU brings lines in, and reads without the lock. It compares and exchanges, others exchange: one of them sees the other.
# - words of a first level | Its CPU, without the lock; who takes a line out, with it. | Each writes a whole order: one that misses
#   the other's change lets another line make room.
# - marks of a first level | Its CPU, with the bank's lock. | Its CPU alone searches without it.
# - tags, words and marks of the others | Who has the bank's lock. | Readers have it, too.
#
# Shared words of bank_t: the word | its writer | why a reader may trust it.
# - lock | Who takes it (compare and exchange) and gives it back (release). | What was done with it is seen by the next one.
# - clock, seed, nr_held; the bank's words of the directory | Who has the lock. | Readers have it, too.
# fmt: off
cache_t = Struct("cache_t", [
    # set at boot
    ("tags", u64), ("words", u64),       # host addresses
    ("order", u64),         # with LRU what its words are combined with (xor), so that 0 is a set that nobody has used
    ("sets", i64), ("mask", u64),        # sets - 1 where that is a power of two, else 0
    ("ways", i64), ("latency_ns", i64), ("policy", i64), ("inclusive", i64), ("level", i64),
    ("private", i64),       # 1: of one CPU
    ("node", i64), ("holder", i64),      # whose it is in the directory
    ("first_core", i64), ("nr_cores", i64),          # the CPUs that share it
    ("marks", u64),         # host address
], nbytes=128)

stride_t = Struct("stride_t", [("page", u64), ("line", i64), ("stride", i64), ("times", i64)], nbytes=32)

core_t = Struct("core_t", [              # a CPU's way to memory
    # set at boot
    ("l1_tags", u64), ("line_shift", u64), ("l1_latency_ns", i64),
    ("hierarchy", u64), ("nr_levels", i64), ("nr_private", i64),     # levels from the inside that are only its own
    ("level", u64, MAX_LEVELS),          # address of its cache_t of each
    ("holder", i64), ("node", i64), ("own", u64),    # in the directory: its number, the bits of all caches on its way
    ("prefetchers", u64), ("_pad0", u64, 3),
    # written by this CPU only
    ("clock", i64),                      # uses of its first level, where that has AGES
    ("hits", i64, MAX_LEVELS), ("misses", i64, MAX_LEVELS), ("write_backs", i64, MAX_LEVELS),
    ("invalidations", i64),              # copies of others that its stores took away
    ("transfers", i64),                  # lines that came from another CPU's caches, where they were dirty
    ("prefetches", i64), ("prefetch_hits", i64),
    # what it has just learned from the others (hierarchy.py)
    ("served_ns", i64), ("gone_ns", i64), ("shared", i64), ("at", i64), ("state", u64),
    ("_pad1", u64, 4),
    ("strides", stride_t, STRIDE_PAGES),
    ("hint", u32, LINE_HINTS),           # by the line's low bits: its word among the first level's tags
])

bank_t = Struct("bank_t", [
    ("lock", u64),
    ("clock", i64),         # uses of the bank's sets that have AGES
    ("seed", u64),
    ("nr_held", i64),       # bits that the directory has set for the bank's lines
    ("_pad", u64, 4),
], nbytes=64)

hierarchy_t = Struct("hierarchy_t", [    # set at boot
    ("cores", u64), ("nr_cores", i64), ("caches", u64), ("nr_caches", i64),
    ("holders", u64), ("nr_holders", i64),           # address of core_t, or of cache_t | 1 where CPUs share it
    ("banks", u64), ("bank_mask", u64),
    ("directory", u64),                  # a word per line of memory; 0: one CPU only
    ("cache_to_cache", u64), ("nr_nodes", i64),      # ns, a row for each node
    ("line_shift", u64),
])
# fmt: on


@hot
def set_number(cache, line):
    """The set of a line."""
    number = line & cache.mask if cache.mask != U(0) or cache.sets == 1 else line % U(cache.sets)
    return np.int64(number)


@hot
def line_of(tag):
    return tag >> TAG_SHIFT


@hot
def state_of(tag):
    return tag & STATE_MASK


@hot
def find_in_set(cache, number, line):
    """The word of a line's tag in its set, or -1."""
    tags, marks = u64.array(cache.tags), u64.array(cache.marks)
    first, groups = number * cache.ways, mark_words(cache.ways)
    wanted, mark = line << TAG_SHIFT, mark_of(line)
    for group in range(groups):
        likely = marked_as(marks[number * groups + group], mark)
        while likely != U(0):
            at = first + (group << 3) + (lowest_bit(likely) >> 3)
            # they differ in the flags only, and these are not all 0; behind the last way are marks of none
            if at < first + cache.ways and U(0) < tags[at] ^ wanted <= FLAGS:
                return at
            likely &= likely - U(1)
    return -1


@kernel("i64(cache_t*, u64)")
def find_line(cache, line):
    """The word of a line's tag, or -1."""
    return find_in_set(cache, set_number(cache, line), line)


@hot
def now_of(core, bank, level):
    """The age of a use: the first level goes by its CPU's clock, the others by their bank's."""
    if level == 0:
        core.clock += 1
        return U(core.clock)
    bank.clock += 1
    return U(bank.clock)


@hot
def use_way(core, cache, bank, number, way):
    """Note that a way of a set is used."""
    words = u64.array(cache.words)
    if cache.policy == LRU:
        order = words[number] ^ cache.order
        if order & WAY_MASK != U(way):
            words[number] = to_front(order, way) ^ cache.order
    elif cache.policy == PLRU:
        words[number] = point_away(words[number], way, cache.ways)
    elif cache.policy == AGES:
        words[number * cache.ways + way] = now_of(core, bank, cache.level)


@hot
def oldest_way(words, first, ways):
    """The way that was used longest ago; empty ways have the age 0."""
    oldest, age = 0, words[first]
    for way in range(1, ways):
        other = words[first + way]
        older = other < age
        oldest, age = (way if older else oldest), (other if older else age)
    return oldest


@kernel("i64(cache_t*, bank_t*, i64)")
def choose_among_all(cache, bank, number):
    """`choose_way` where no order of the set is at hand."""
    words, tags, first = u64.array(cache.words), u64.array(cache.tags), number * cache.ways
    if cache.policy == AGES:
        return oldest_way(words, first, cache.ways)
    for way in range(cache.ways):
        if tags[first + way] == U(0):
            return way
    if cache.policy == PLRU:
        return pointed_at(words[number], cache.ways)
    bank.seed = next_random(bank.seed)
    return np.int64(bank.seed % U(cache.ways))


@hot
def choose_way(cache, bank, number):
    """The way of a set that has to make room: an empty one if there is one."""
    if cache.policy == LRU:
        return last_way(u64.array(cache.words)[number] ^ cache.order, cache.ways)
    return choose_among_all(cache, bank, number)


@hot
def put_line(core, cache, bank, line, flags):
    """Bring a line that is not there into its set: (where its tag stands, the tag that made room, or 0).

    With the bank's lock, and into a CPU's own level by that CPU: nobody else changes the tag meanwhile.
    """
    tags, number = u64.array(cache.tags), set_number(cache, line)
    way = choose_way(cache, bank, number)
    at = number * cache.ways + way
    old = tags[at]
    u8.array(cache.marks)[number * mark_words(cache.ways) * WORD_MARKS + way] = mark_of(line)
    tags[at] = (line << TAG_SHIFT) | flags
    if cache.policy == LRU:
        words = u64.array(cache.words)
        words[number] = last_to_front(words[number] ^ cache.order, cache.ways) ^ cache.order
    else:
        use_way(core, cache, bank, number, way)
    return at, old


@kernel("u64(cache_t*, u64)")
def drop_line(cache, line):
    """Take a line out; its tag as it was, or 0. With the bank's lock."""
    at, words = find_line(cache, line), u64.array(cache.words)
    if at < 0:
        return U(0)
    old, number = exchange(u64.array(cache.tags), at, U(0)), set_number(cache, line)
    if cache.policy == LRU:
        way = at - number * cache.ways
        words[number] = to_back(words[number] ^ cache.order, way, cache.ways) ^ cache.order
    elif cache.policy == AGES:
        words[at] = U(0)
    return old


@kernel("u64(cache_t*, u64, u64)")
def set_state(cache, line, state):
    """Give a line another state; its tag as it was, or 0 where it is not. With the bank's lock."""
    at = find_line(cache, line)
    if at < 0:
        return U(0)
    tags = u64.array(cache.tags)
    old = load_acquire(tags, at)
    while True:  # a CPU may just be storing to its exclusive line
        seen = compare_exchange(tags, at, old, (old & ~STATE_MASK) | state)
        if seen == old:
            return old
        old = seen


@hot
def ask_for_set(cache, line):
    """Ask the host for the tags and words of a line's set, which will be wanted soon."""
    number = set_number(cache, line)
    where = cache.tags + U(number * cache.ways * 8)
    for tag in range(0, cache.ways, HOST_LINE // 8):
        prefetch(where + U(tag * 8))
    prefetch(cache.words + U((number * cache.ways if cache.policy == AGES else number) * 8))
    prefetch(cache.marks + U(number * mark_words(cache.ways) * 8))


@hot
def cache_of(core, level):
    return cache_t.at(core.level[level])

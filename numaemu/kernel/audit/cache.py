"""The audit of the CPUs' caches: a line has one place in a cache, the directory knows all who have it, and what one has for
itself nobody else has.
"""

import numpy as np

from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import u64
from numaemu.errors import MachineCheck
from numaemu.hardware.cache import (
    LINE_EXCLUSIVE,
    LINE_SHARED,
    cache_of,
    cache_t,
    core_t,
    find_line,
    hierarchy_t,
    line_of,
    set_number,
    state_of,
)
from numaemu.hardware.coherence import HOLDER_BITS, IS_CACHE, OWNED, bank_of, bit_of, held_state, holder_at
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.mm_types import present_cpus

U = np.uint64
FINE, WRONG_SET, TWICE, WRONG_STATE, UNKNOWN, NOT_OWNED, OTHERS, NOT_BELOW, UNMARKED = range(9)
SAYS = {
    WRONG_SET: "stands in a set that is not its own",
    TWICE: "stands there twice",
    WRONG_STATE: "has no state",
    UNKNOWN: "is there, and the directory does not say so",
    NOT_OWNED: "is owned there, and the directory does not say so",
    OTHERS: "is owned there, and another cache has it, too",
    NOT_BELOW: "is there, and not in the inclusive cache below",
    UNMARKED: "is there, and its mark is another's",
}


@hot
def is_related(hierarchy, cache, holder):
    """True for a holder that lies above or below a cache: some CPU uses both."""
    where = holder_at(hierarchy, holder)
    if where & IS_CACHE == U(0):
        number = np.int64((where - hierarchy.cores) // U(core_t.nbytes))
        return cache.first_core <= number < cache.first_core + cache.nr_cores
    other = cache_t.at(where & ~IS_CACHE)
    return cache.first_core < other.first_core + other.nr_cores and other.first_core < cache.first_core + cache.nr_cores


@kernel("bool(hierarchy_t*, cache_t*, u64)")
def others_have(hierarchy, cache, line):
    """True if a cache that no CPU uses together with this one has the line."""
    word = u64.array(hierarchy.directory)[line]
    for bit in range(HOLDER_BITS):
        if (word >> U(bit)) & U(1) != U(0):
            for holder in range(bit, hierarchy.nr_holders, HOLDER_BITS):
                if not is_related(hierarchy, cache, holder) and held_state(hierarchy, holder, line) != U(0):
                    return True
    return False


@kernel("i64(hierarchy_t*, cache_t*, i64)")
def wrong_copy(hierarchy, cache, at):
    """What is wrong with the line whose tag stands at a place of a cache."""
    tag = u64.array(cache.tags)[at]
    line, state = line_of(tag), state_of(tag)
    if set_number(cache, line) != at // cache.ways:
        return WRONG_SET
    found = find_line(cache, line)
    if found != at:
        return TWICE if found >= 0 else UNMARKED
    if state == U(0) or (cache.private == 0 and state == LINE_EXCLUSIVE):
        return WRONG_STATE
    core = core_t.array(hierarchy.cores)[cache.first_core]
    for level in range(cache.level + 1, core.nr_levels):
        if cache_of(core, level).inclusive != 0 and find_line(cache_of(core, level), line) < 0:
            return NOT_BELOW
    if hierarchy.directory == U(0):
        return FINE
    holder = core.holder if cache.private != 0 else cache.holder
    word = u64.array(hierarchy.directory)[line]
    if word & bit_of(holder) == U(0):
        return UNKNOWN
    if state != LINE_SHARED and word & OWNED == U(0):
        return NOT_OWNED
    return OTHERS if state != LINE_SHARED and others_have(hierarchy, cache, line) else FINE


@hot
def is_counted(hierarchy, cache, line):
    """True if this copy is the first for which the directory has a bit: further levels and holders with the same bit count once."""
    core = core_t.array(hierarchy.cores)[cache.first_core]
    if cache.private != 0:
        for level in range(cache.level):
            if find_line(cache_of(core, level), line) >= 0:
                return False
    holder = core.holder if cache.private != 0 else cache.holder
    for other in range(holder % HOLDER_BITS, holder, HOLDER_BITS):
        if held_state(hierarchy, other, line) != U(0):
            return False
    return True


@entry("i64(u64, u64[])")
def validate_caches(hierarchy_address, found):
    """What is wrong with a line, FINE if nothing is; found: number of its cache, its line, the directory's word; and how many
    bits the directory must have set.
    """
    hierarchy = hierarchy_t.at(hierarchy_address)
    found[3] = U(0)
    for number in range(hierarchy.nr_caches):
        cache = cache_t.array(hierarchy.caches)[number]
        for at in range(cache.sets * cache.ways):
            if u64.array(cache.tags)[at] == U(0):
                continue
            line = line_of(u64.array(cache.tags)[at])
            wrong = wrong_copy(hierarchy, cache, at)
            if wrong != FINE:
                found[0], found[1] = U(number), line
                return wrong
            if hierarchy.directory != U(0) and is_counted(hierarchy, cache, line):
                found[3] += U(1)
    return FINE


def cache_name(hierarchy, number):
    """A cache for a message: its level, from 1, and the positions of its CPUs."""
    cache = cache_t.array(hierarchy.caches)[number]
    return f"cache {number} (level {cache.level + 1}, of {cache.nr_cores} CPUs from the {cache.first_core}th on)"


def audit_caches(machine):
    """Every line of every cache, and the directory's words of all lines."""
    caches = cpu_t.array(machine.cpus)[next(iter(present_cpus(machine)))].caches
    if not caches:
        return
    hierarchy, found = hierarchy_t.at(core_t.at(caches).hierarchy), np.zeros(4, np.uint64)
    wrong = validate_caches(int(hierarchy.address), found)
    number, line, _, bits = map(int, found)
    if wrong != FINE:
        word = int(u64.array(hierarchy.directory)[line]) if hierarchy.directory else 0
        at = find_line(cache_t.array(hierarchy.caches)[number], U(line))
        state = int(u64.array(cache_t.array(hierarchy.caches)[number].tags)[at] if at >= 0 else 0)
        raise MachineCheck(
            f"{cache_name(hierarchy, number)}: line {line:#x} {SAYS[wrong]}; its tag is {state:#x}, the directory has {word:#x}"
        )
    held = sum(bank_of(hierarchy, U(bank)).nr_held for bank in range(int(hierarchy.bank_mask) + 1))
    if held != bits:
        raise MachineCheck(f"caches: the directory has {held} bits set, the lines that they have make it {bits}")
    locked = [bank for bank in range(int(hierarchy.bank_mask) + 1) if bank_of(hierarchy, U(bank)).lock]
    if locked:
        raise MachineCheck(f"caches: the lock of bank {locked[0]} is held, and nobody is in an access")

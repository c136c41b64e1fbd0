"""Coherence of the CPUs' caches: a directory knows who has a line, so that a store takes it away from the others.

Holders are the CPUs, each with the levels that are only its own, and the caches that CPUs share. For each line of memory
the directory has a word:

    63      62 .. 0
    OWNED   holders: bit n for those whose number modulo 63 is n

OWNED is set while anybody may have the line EXCLUSIVE or MODIFIED; without it all copies are clean and may be read. A bit
that more than 63 holders share is only a hint where to look. Everything here wants the lock of the line's bank.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import let_host_run
from numaemu.compiler.pointer import u64
from numaemu.hardware.cache import (
    LINE_SHARED,
    bank_t,
    cache_of,
    cache_t,
    core_t,
    drop_line,
    find_line,
    hierarchy_t,
    set_state,
    state_of,
)

U = np.uint64
OWNED = U(1 << 63)
HOLDER_BITS = 63
IS_CACHE = U(1)  # in the address of a holder: a cache that CPUs share
SPINS = 100  # tries for a lock before the host may run somebody else; assumed


@hot
def hierarchy_of(core):
    return hierarchy_t.at(core.hierarchy)


@hot
def bank_of(hierarchy, line):
    return bank_t.array(hierarchy.banks)[np.int64(line & hierarchy.bank_mask)]


@kernel("void(bank_t*)")
def wait_for_bank(bank):
    """Take a bank's lock. Its holder waits for nothing, so it will give it up."""
    tries = 0
    while compare_exchange(bank, "lock", U(0), U(1)) != U(0):
        tries += 1
        if tries % SPINS == 0:
            let_host_run()


@hot
def lock_bank(hierarchy, line):
    """Take the lock of a line's bank; with one CPU there is none."""
    if hierarchy.directory != U(0):
        wait_for_bank(bank_of(hierarchy, line))


@hot
def unlock_bank(hierarchy, line):
    if hierarchy.directory != U(0):
        store_release(bank_of(hierarchy, line), "lock", U(0))


@hot
def holder_at(hierarchy, holder):
    """The address of a holder's core_t, or of its cache_t | IS_CACHE."""
    return u64.array(hierarchy.holders)[holder]


@hot
def bit_of(holder):
    return U(1) << U(holder % HOLDER_BITS)


@kernel("u64(hierarchy_t*, i64, u64)")
def held_state(hierarchy, holder, line):
    """The strongest state in which a holder has a line; 0: it has not."""
    where, strongest = holder_at(hierarchy, holder), U(0)
    if where & IS_CACHE != U(0):
        cache = cache_t.at(where & ~IS_CACHE)
        at = find_line(cache, line)
        return state_of(u64.array(cache.tags)[at]) if at >= 0 else U(0)
    core = core_t.at(where)
    for level in range(core.nr_private):
        cache = cache_of(core, level)
        at = find_line(cache, line)
        if at >= 0 and state_of(u64.array(cache.tags)[at]) > strongest:
            strongest = state_of(u64.array(cache.tags)[at])
    return strongest


@hot
def change_copy(cache, line, drop):
    """Take a copy out, or leave it SHARED; the state that it had, 0: there was none."""
    return state_of(drop_line(cache, line) if drop else set_state(cache, line, LINE_SHARED))


@kernel("u64(hierarchy_t*, i64, u64, bool)")
def change_copies(hierarchy, holder, line, drop):
    """Take a line away from a holder, or leave it SHARED; the strongest state in which the holder had it, 0: it had it not."""
    where, strongest = holder_at(hierarchy, holder), U(0)
    if where & IS_CACHE != U(0):
        return change_copy(cache_t.at(where & ~IS_CACHE), line, drop)
    core = core_t.at(where)
    for level in range(core.nr_private):
        state = change_copy(cache_of(core, level), line, drop)
        if state > strongest:
            strongest = state
    return strongest


@hot
def hold(hierarchy, holder, line):
    """A holder has the line now."""
    if hierarchy.directory != U(0):
        words = u64.array(hierarchy.directory)
        if words[line] & bit_of(holder) == U(0):
            words[line] = words[line] | bit_of(holder)
            bank_of(hierarchy, line).nr_held += 1


@kernel("void(hierarchy_t*, i64, u64)")
def forget(hierarchy, holder, line):
    """A holder has the line no more. The bit stays if others that share it have the line."""
    words = u64.array(hierarchy.directory)
    for other in range(holder % HOLDER_BITS, hierarchy.nr_holders, HOLDER_BITS):
        if other != holder and held_state(hierarchy, other, line) != U(0):
            return
    left = words[line] & ~bit_of(holder)
    if left != words[line]:
        bank_of(hierarchy, line).nr_held -= 1
    words[line] = left if left != OWNED else U(0)


@kernel("void(core_t*, i64, u64)")
def leave_level(core, level, line):
    """A line has left the cache of a level on a CPU's way: tell the directory if its holder has no other copy."""
    hierarchy = hierarchy_of(core)
    if hierarchy.directory == U(0):
        return
    if level >= core.nr_private:
        forget(hierarchy, cache_of(core, level).holder, line)
        return
    for other in range(core.nr_private):
        if other != level and find_line(cache_of(core, other), line) >= 0:
            return
    forget(hierarchy, core.holder, line)


@hot
def first_core_of(hierarchy, holder):
    """The position of a CPU among those that use a holder."""
    where = holder_at(hierarchy, holder)
    if where & IS_CACHE != U(0):
        return cache_t.at(where & ~IS_CACHE).first_core
    return np.int64((where - hierarchy.cores) // U(core_t.nbytes))


@hot
def node_of_holder(hierarchy, holder):
    where = holder_at(hierarchy, holder)
    return cache_t.at(where & ~IS_CACHE).node if where & IS_CACHE != U(0) else core_t.at(where).node


@kernel("bool(hierarchy_t*, core_t*, i64)")
def is_on_way(hierarchy, core, holder):
    """True for the CPU's own levels and the caches that it uses together with others."""
    if holder == core.holder:
        return True
    for level in range(core.nr_private, core.nr_levels):
        if cache_of(core, level).holder == holder:
            return True
    return False


@hot
def is_inside(hierarchy, cache, holder):
    """True for a holder whose lines come through a cache."""
    where, core = holder_at(hierarchy, holder), first_core_of(hierarchy, holder)
    if not cache.first_core <= core < cache.first_core + cache.nr_cores:
        return False
    return where & IS_CACHE == U(0) or cache_t.at(where & ~IS_CACHE).level < cache.level


@hot
def copies_of_others(hierarchy, core, line):
    """The bits of holders that a CPU must ask: not of its own way, as far as bits tell."""
    bits = u64.array(hierarchy.directory)[line] & ~OWNED
    return bits & ~core.own if hierarchy.nr_holders <= HOLDER_BITS else bits


@hot
def note_owned(hierarchy, line, owned):
    """Whether anybody may have a line EXCLUSIVE or MODIFIED."""
    if hierarchy.directory != U(0):
        words = u64.array(hierarchy.directory)
        words[line] = words[line] | OWNED if owned else words[line] & ~OWNED

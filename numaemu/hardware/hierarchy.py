"""A CPU's way to memory: through the levels of its caches, and past the caches of the others.

A line that an access misses comes into every level on its way. What makes room goes outwards: a dirty line to the next level, the
last one's to memory; a clean one is gone. A hit costs its level's latency, a miss of all what the memory controller says.
A line that another CPU has dirty comes from there (`cache_to_cache`), and is written back as far as the first cache that both
use, or to memory. A store waits until the farthest copy is gone.

Whatever is not in reach of the fast path (`hit_first_level`) happens with the lock of the line's bank.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import prefetch
from numaemu.compiler.pointer import i64, u64
from numaemu.hardware.cache import (
    LINE_EXCLUSIVE,
    LINE_HINTS,
    LINE_MODIFIED,
    LINE_PREFETCHED,
    LINE_SHARED,
    STATE_MASK,
    TAG_SHIFT,
    ask_for_set,
    cache_of,
    drop_line,
    find_in_set,
    find_line,
    line_of,
    put_line,
    set_number,
    set_state,
    state_of,
    use_way,
)
from numaemu.hardware.coherence import (
    HOLDER_BITS,
    OWNED,
    bank_of,
    change_copies,
    copies_of_others,
    first_core_of,
    forget,
    hierarchy_of,
    hold,
    is_inside,
    is_on_way,
    leave_level,
    lock_bank,
    node_of_holder,
    note_owned,
    unlock_bank,
)
from numaemu.hardware.controller import fetch_line, hand_over_line, write_back_line

U = np.uint64
HINT_MASK = U(LINE_HINTS - 1)
FAR_LINES = 1 << 16  # of a cache whose words are too many for the host to have them at hand; assumed


@hot
def hit_first_level(core, physical, write):
    """True if the first level has the line where it was last seen, in a state that serves the access; it is counted then.

    Without a lock. Others take lines away with an exchange, so a store that finds its line MODIFIED came before that, and one
    that finds it EXCLUSIVE compares.
    """
    line = physical >> core.line_shift
    at = np.int64(core.hint[np.int64(line & HINT_MASK)])
    tags = u64.array(core.l1_tags)
    tag = tags[at]
    flags = tag ^ (line << TAG_SHIFT)
    if flags == U(0) or flags > LINE_MODIFIED:  # another line, or none, or one that was prefetched
        return False
    if write and flags != LINE_MODIFIED:
        if flags == LINE_SHARED or compare_exchange(tags, at, tag, tag | LINE_MODIFIED) != tag:
            return False
    cache = cache_of(core, 0)
    number = set_number(cache, line)
    use_way(core, cache, bank_of(hierarchy_of(core), line), number, at - number * cache.ways)
    core.hits[0] += 1
    return True


@hot
def drop_inner(core, level, line):
    """An inclusive cache drops a line: so do the levels above it, of all CPUs that use it. True if one had it dirty."""
    hierarchy, dirty = hierarchy_of(core), False
    if level < core.nr_private or hierarchy.directory == U(0):
        for inner in range(level):
            dirty = state_of(drop_line(cache_of(core, inner), line)) == LINE_MODIFIED or dirty
        return dirty
    bits = u64.array(hierarchy.directory)[line] & ~OWNED
    for bit in range(HOLDER_BITS):
        if (bits >> U(bit)) & U(1) == U(0):
            continue
        for holder in range(bit, hierarchy.nr_holders, HOLDER_BITS):
            if is_inside(hierarchy, cache_of(core, level), holder):
                state = change_copies(hierarchy, holder, line, True)
                dirty = dirty or state == LINE_MODIFIED
                if state != U(0):
                    forget(hierarchy, holder, line)
    return dirty


@hot
def hold_level(core, level, line):
    """The cache of a level has got a line: its holder has it."""
    hold(hierarchy_of(core), core.holder if level < core.nr_private else cache_of(core, level).holder, line)


@hot
def take_dirty(core, level, line):
    """A cache takes a dirty line from the level above; what makes room, or 0. A line that it has keeps its age."""
    hierarchy, cache = hierarchy_of(core), cache_of(core, level)
    bank = bank_of(hierarchy, line)
    note_owned(hierarchy, line, True)
    if set_state(cache, line, LINE_MODIFIED) != U(0):
        return U(0)
    hold_level(core, level, line)
    return put_line(core, cache, bank, line, LINE_MODIFIED)[1]


@kernel("void(cpu_t*, core_t*, i64, u64)")
def evict(cpu, core, level, tag):
    """What becomes of a line that has made room in a level: a dirty one goes to the next, where another may make room."""
    while tag != U(0):
        line, dirty = line_of(tag), state_of(tag) == LINE_MODIFIED
        if level > 0 and cache_of(core, level).inclusive != 0 and drop_inner(core, level, line):
            dirty = True
        leave_level(core, level, line)
        if not dirty:
            return
        core.write_backs[level] += 1
        level += 1
        if level == core.nr_levels:
            write_back_line(cpu, line << core.line_shift)
            return
        tag = take_dirty(core, level, line)


@hot
def write_back_shared(cpu, core, holder, line):
    """A holder's dirty line is written back as far as the first cache that it and this CPU both use, or to memory."""
    other = first_core_of(hierarchy_of(core), holder)
    for level in range(core.nr_private, core.nr_levels):
        cache = cache_of(core, level)
        if cache.first_core <= other < cache.first_core + cache.nr_cores:
            core.write_backs[level - 1] += 1
            evict(cpu, core, level, take_dirty(core, level, line))
            return
    core.write_backs[core.nr_levels - 1] += 1
    write_back_line(cpu, line << core.line_shift)


@kernel("void(cpu_t*, core_t*, i64, u64, bool)")
def ask_holder(cpu, core, holder, line, write):
    """A holder that is not on the CPU's way gives its copy up, or shares it: what that costs, and whether it had it dirty."""
    hierarchy = hierarchy_of(core)
    state = change_copies(hierarchy, holder, line, write)
    if state == U(0):
        return
    ns = i64.array(hierarchy.cache_to_cache)[core.node * hierarchy.nr_nodes + node_of_holder(hierarchy, holder)]
    if state == LINE_MODIFIED and core.served_ns == 0:
        core.served_ns = ns
        core.transfers += 1
        hand_over_line(cpu, node_of_holder(hierarchy, holder))
        if not write:
            write_back_shared(cpu, core, holder, line)
    if write:
        core.invalidations += 1
        core.gone_ns = max(core.gone_ns, ns)
        forget(hierarchy, holder, line)
    else:
        core.shared = 1


@kernel("void(cpu_t*, core_t*, u64, bool)")
def ask_others(cpu, core, line, write):
    """Before a CPU takes a line: the copies of others. Fills served_ns (0: nobody had it dirty), gone_ns, shared."""
    hierarchy = hierarchy_of(core)
    bits = copies_of_others(hierarchy, core, line)
    if bits == U(0):
        return
    owned = u64.array(hierarchy.directory)[line] & OWNED != U(0)
    if not write and not owned:
        core.shared = 1
        return
    for bit in range(HOLDER_BITS):
        if (bits >> U(bit)) & U(1) != U(0):
            for holder in range(bit, hierarchy.nr_holders, HOLDER_BITS):
                if not is_on_way(hierarchy, core, holder):
                    ask_holder(cpu, core, holder, line, write)
    if core.shared != 0:  # only a cache on our way may be dirty now
        owned = False
        for level in range(core.nr_private, core.nr_levels):
            at = find_line(cache_of(core, level), line)
            owned = owned or (at >= 0 and state_of(u64.array(cache_of(core, level).tags)[at]) == LINE_MODIFIED)
        note_owned(hierarchy, line, owned)


@hot
def leaves_traces(core, level, tag):
    """False for a line that makes room and is just gone: nobody has to be told."""
    if tag == U(0):
        return False
    has_directory = hierarchy_of(core).directory != U(0)
    return has_directory or state_of(tag) == LINE_MODIFIED or cache_of(core, level).inclusive != 0


@hot
def fill(cpu, core, at, last, line, flags):
    """Bring a line into the levels from above `at` up to `last`, which gets the flags."""
    bank = bank_of(hierarchy_of(core), line)
    for step in range(at - last):
        level = at - 1 - step
        given = flags if level == last else flags & STATE_MASK
        if level >= core.nr_private:
            given = (given & ~STATE_MASK) | LINE_SHARED
        elif level > 0 and given & STATE_MASK == LINE_MODIFIED:
            given = (given & ~STATE_MASK) | LINE_EXCLUSIVE
        hold_level(core, level, line)
        place, tag = put_line(core, cache_of(core, level), bank, line, given)
        if level == 0:
            core.hint[np.int64(line & HINT_MASK)] = place
        if leaves_traces(core, level, tag):
            evict(cpu, core, level, tag)


@hot
def look_up_line(core, line):
    """The innermost level that has a line, which is used by that; the number of levels where none has it. Counts. Fills
    `core.state`: the state in which the CPU has it for itself, or 0.
    """
    bank, core.state = bank_of(hierarchy_of(core), line), U(0)
    for level in range(core.nr_levels):
        cache = cache_of(core, level)
        tags, number = u64.array(cache.tags), set_number(cache, line)
        at = find_in_set(cache, number, line)
        if at >= 0:
            core.hits[level] += 1
            use_way(core, cache, bank, number, at - number * cache.ways)
            if level == 0:
                core.hint[np.int64(line & HINT_MASK)] = at
            if level < core.nr_private:
                core.state = state_of(tags[at])
            if tags[at] & LINE_PREFETCHED != U(0):
                core.prefetch_hits += 1
                tags[at] = tags[at] & ~LINE_PREFETCHED
            return level
        core.misses[level] += 1
    return core.nr_levels


@hot
def innermost(core, line):
    """The innermost level that has a line, or the number of levels; nothing is counted."""
    for level in range(core.nr_levels):
        if find_line(cache_of(core, level), line) >= 0:
            return level
    return core.nr_levels


@hot
def access_with_lock(cpu, core, line, write):
    """An access with the bank's lock: the ns that it takes; the level where it hit stands in `core.at`."""
    hierarchy = hierarchy_of(core)
    at = look_up_line(core, line)
    state, core.at = core.state, at
    core.served_ns, core.gone_ns, core.shared = 0, 0, 0
    settled = state >= LINE_EXCLUSIVE or (state == LINE_SHARED and not write)
    if not settled and hierarchy.directory != U(0):
        ask_others(cpu, core, line, write)
    if core.served_ns > 0:
        ns = core.served_ns
        at = innermost(core, line)  # it may have come into a cache that both use
    elif at < core.nr_levels:
        ns = cache_of(core, at).latency_ns
    else:
        ns = fetch_line(cpu, line << core.line_shift, write)
    if not settled:
        state = LINE_SHARED if core.shared != 0 else LINE_EXCLUSIVE
        if write:
            for level in range(at, core.nr_private):
                if find_line(cache_of(core, level), line) >= 0:
                    set_state(cache_of(core, level), line, LINE_EXCLUSIVE)
    if write:
        state = LINE_MODIFIED
        if at == 0:
            set_state(cache_of(core, 0), line, LINE_MODIFIED)
    elif state == LINE_MODIFIED:
        state = LINE_EXCLUSIVE  # a level above one that has it dirty
    fill(cpu, core, at, 0, line, state)
    if state >= LINE_EXCLUSIVE and hierarchy.directory != U(0):
        note_owned(hierarchy, line, True)
    return max(ns, core.gone_ns)


@kernel("i64(cpu_t*, core_t*, u64, bool)")
def access_line(cpu, core, physical, write):
    """An access that `hit_first_level` has not served: the ns that it takes."""
    hierarchy, line = hierarchy_of(core), physical >> core.line_shift
    core.at = 0
    if hierarchy.directory != U(0):
        at = find_line(cache_of(core, 0), line)
        if at >= 0:
            core.hint[np.int64(line & HINT_MASK)] = at
            if hit_first_level(core, physical, write):
                return core.l1_latency_ns
    lock_bank(hierarchy, line)
    ns = access_with_lock(cpu, core, line, write)
    unlock_bank(hierarchy, line)
    return ns


@hot
def ask_for_words(core, physical):
    """Ask the host for the words that an access to an address will want, if it misses the first level."""
    hierarchy, line = hierarchy_of(core), physical >> core.line_shift
    for level in range(1, core.nr_levels):
        cache = cache_of(core, level)
        if cache.sets * cache.ways >= FAR_LINES:
            ask_for_set(cache, line)
    if hierarchy.directory != U(0):
        prefetch(hierarchy.directory + (line << U(3)))

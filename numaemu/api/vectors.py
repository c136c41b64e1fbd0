"""Loads and stores of many addresses at once, for `task.load` and `task.store`.

    load_many_u64(cpu, addresses, values, n)

A run of accesses to one page is one look-up and as many counted accesses. Where each access is timed (hardware/timing.py), so is
each of the run; the loops of other machines know nothing of that.
"""

import numpy as np

from numaemu.api.access import count_access, hinted_slot, load, serve_event, store, translate_slow
from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import prefetch
from numaemu.compiler.pointer import u8, u16, u32, u64
from numaemu.errors import SegmentationFault
from numaemu.hardware.bandwidth import LINE_SHIFT
from numaemu.hardware.cache import MAX_LEVELS, core_t
from numaemu.hardware.controller import KEPT_PS, begin_overlap, end_overlap
from numaemu.hardware.hierarchy import ask_for_words
from numaemu.hardware.paging import PAGE_MASK, PTE_PFN_MASK
from numaemu.hardware.processor import LEAF_SHIFT, READ, TAG_VALID, WRITE, cpu_t, level_shift
from numaemu.hardware.timing import line_at_hand, timed_behind
from numaemu.hardware.walk import lowest_table, peek
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE, TABLE_HINTS

U = np.uint64
ENTRY_LEVELS = 2  # of the caches, where a page-table entry is likely to be; assumed
RUN = 8  # accesses that the host is asked for at once; measured


@hot
def expected_entry(cpu, address):
    """Where the host has the entry for a page, as far as the page table that was remembered for its region tells, or 0. Counts
    nothing. A table that was freed behind this CPU's last flush would mislead the host's cache only.
    """
    region = address >> U(21)
    hint, key = cpu.table_hint[np.int64(region & U(TABLE_HINTS - 1))], region ^ cpu.cr3 ^ (cpu.walks_forgotten << U(48))
    if hint.region != key or hint.table == U(0):
        hint.region, hint.table = key, lowest_table(cpu, address)
    return hint.table + (((address >> U(PAGE_SHIFT)) & U(511)) << U(3)) if hint.table != U(0) else U(0)


@hot
def expected_place(cpu, address):
    """Where the host has an address, by `expected_entry` or else by a look into the tables, or 0."""
    where = expected_entry(cpu, address)
    if where != U(0):
        return cpu.memory + (u64.array(where)[0] & PTE_PFN_MASK) + (address & ~PAGE_MASK)
    entry = peek(cpu, address)
    if entry == U(0):
        return U(0)
    size = U(1) << level_shift(cpu, np.int64((entry >> LEAF_SHIFT) & U(7)))
    return cpu.memory + (entry & PTE_PFN_MASK & ~(size - U(1))) + (address & (size - U(1)))


@hot
def prefetch_entry(cpu, address):
    """Ask the host for the entry that the walk to an address will load, and for what the caches will look at then."""
    entry = expected_entry(cpu, address)
    if entry != U(0):
        prefetch(entry)
        if cpu.caches != U(0):
            ask_for_words(core_t.at(cpu.caches), entry - cpu.memory, ENTRY_LEVELS)


@hot
def prefetch_words(cpu, address):
    """Ask the host for what the caches will look at when an address is accessed."""
    place = expected_place(cpu, address)
    if place != U(0):
        ask_for_words(core_t.at(cpu.caches), place - cpu.memory, MAX_LEVELS)


@kernel("void(cpu_t*, u64*, i64, i64, bool)")
def prefetch_run(cpu, addresses, begin, end, walks):
    """Ask the host for what a run of accesses will want, soon after each other, so that it translates many addresses at once; and,
    while walks go on, for the page-table entries of the next run. `end` is the end of the vector.
    """
    if walks:
        for i in range(begin + RUN, min(begin + 2 * RUN, end)):
            prefetch_entry(cpu, addresses[i])
    end = min(begin + RUN, end)
    for i in range(begin, end):
        prefetch(expected_place(cpu, addresses[i]))
    if cpu.caches != U(0):
        for i in range(begin, end):
            prefetch_words(cpu, addresses[i])


@hot
def begins_run(addresses, i, n):
    """True where the host is to be asked for the run behind one: not among many accesses to the same page."""
    return i % RUN == 0 and i + RUN < n and addresses[i + RUN] & PAGE_MASK != addresses[i] & PAGE_MASK


@hot
def look_up_in_vector(cpu, addresses, i, n, aligned, write):
    """look_up for a vector loop: while hints miss, what later accesses will want is asked for."""
    serve_event(cpu)
    address = addresses[i]
    slot = hinted_slot(cpu, address)
    tag = cpu.l1[slot].wtag if write else cpu.l1[slot].tag
    if tag != (address & aligned) | TAG_VALID:
        walks = cpu.walks
        slot = translate_slow(cpu, address, WRITE if write else READ)
        if slot < 0:
            raise SegmentationFault
        if begins_run(addresses, i, n):
            prefetch_run(cpu, addresses, i + RUN, n, cpu.walks != walks)
    return slot


@hot
def load_vector(cpu, addresses, values, n, kind):
    """values[i] = the `kind` at addresses[i], for n of them, all given as pointers (arrays would be reference-counted at
    every call). A run of accesses to one page is one look-up and as many counted accesses.
    """
    i = 0
    aligned, last = PAGE_MASK | U(kind.nbytes - 1), U(PAGE_SIZE - kind.nbytes)
    while i < n:
        address = addresses[i]
        if address & ~PAGE_MASK > last:
            values[i] = load(cpu, address, kind)
            i += 1
            continue
        slot = look_up_in_vector(cpu, addresses, i, n, aligned, False)
        frame, page, start = cpu.l1[slot].host & PAGE_MASK, address & PAGE_MASK, i
        while True:
            values[i] = kind.array(frame | (address & ~PAGE_MASK))[0]
            i += 1
            if i == n or load_acquire(cpu, "event_at") <= cpu.tick:
                break
            address = addresses[i]
            if address & aligned != page:
                break
        count_access(cpu, slot, False, i - start)


@hot
def store_vector(cpu, addresses, values, n, step, kind):
    """The `kind` at addresses[i] = values[i * step], for n of them: step 0 stores one value everywhere."""
    i = 0
    aligned, last = PAGE_MASK | U(kind.nbytes - 1), U(PAGE_SIZE - kind.nbytes)
    while i < n:
        address = addresses[i]
        if address & ~PAGE_MASK > last:
            store(cpu, address, values[i * step], kind)
            i += 1
            continue
        slot = look_up_in_vector(cpu, addresses, i, n, aligned, True)
        frame, page, start = cpu.l1[slot].host & PAGE_MASK, address & PAGE_MASK, i
        while True:
            kind.array(frame | (address & ~PAGE_MASK))[0] = values[i * step]
            i += 1
            if i == n or load_acquire(cpu, "event_at") <= cpu.tick:
                break
            address = addresses[i]
            if address & aligned != page:
                break
        count_access(cpu, slot, True, i - start)


@hot
def next_in_page(cpu, address, aligned, page, done):
    """True if a vector's next access goes to the page of so many before it, and nothing is due."""
    return load_acquire(cpu, "event_at") > cpu.tick + done and address & aligned == page


@hot
def nr_missed(cpu):
    """Accesses that have missed the first level of a CPU's caches, if it has any."""
    return core_t.at(cpu.caches).misses[0] if cpu.caches != U(0) else 0


@hot
def look_up_timed(cpu, addresses, i, n, access):
    """look_up_in_vector where each access is timed: none finds its page by the hint."""
    serve_event(cpu)
    walks, missed = cpu.walks, nr_missed(cpu)
    slot = translate_slow(cpu, addresses[i], access)
    if slot < 0:
        raise SegmentationFault
    if begins_run(addresses, i, n) and (cpu.walks != walks or nr_missed(cpu) != missed):
        prefetch_run(cpu, addresses, i + RUN, n, True)
    return slot


@hot
def load_vector_timed(cpu, addresses, values, n, kind):
    """load_vector where each access is timed."""
    i, aligned, last = 0, PAGE_MASK | U(kind.nbytes - 1), U(PAGE_SIZE - kind.nbytes)
    begin_overlap(cpu)
    while i < n:
        address = addresses[i]
        if address & ~PAGE_MASK > last:
            values[i] = load(cpu, address, kind)
            i += 1
            continue
        slot = look_up_timed(cpu, addresses, i, n, READ)
        frame, page, start = cpu.l1[slot].host & PAGE_MASK, address & PAGE_MASK, i
        values[i] = kind.array(frame | (address & ~PAGE_MASK))[0]
        i += 1
        found, line = 0, line_at_hand(cpu, (frame | (address & ~PAGE_MASK)) - cpu.memory)
        while i < n and next_in_page(cpu, addresses[i], aligned, page, i - start):
            place = frame | (addresses[i] & ~PAGE_MASK)
            if (place - cpu.memory) >> U(LINE_SHIFT) == line:
                found += 1
            else:
                timed_behind(cpu, place - cpu.memory, False, found)
                found, line = 0, line_at_hand(cpu, place - cpu.memory)
            values[i] = kind.array(place)[0]
            i += 1
        cpu.memory_ps += found * KEPT_PS
        count_access(cpu, slot, False, i - start)
    end_overlap(cpu)


@hot
def store_vector_timed(cpu, addresses, values, n, step, kind):
    """store_vector where each access is timed."""
    i, aligned, last = 0, PAGE_MASK | U(kind.nbytes - 1), U(PAGE_SIZE - kind.nbytes)
    begin_overlap(cpu)
    while i < n:
        address = addresses[i]
        if address & ~PAGE_MASK > last:
            store(cpu, address, values[i * step], kind)
            i += 1
            continue
        slot = look_up_timed(cpu, addresses, i, n, WRITE)
        frame, page, start = cpu.l1[slot].host & PAGE_MASK, address & PAGE_MASK, i
        kind.array(frame | (address & ~PAGE_MASK))[0] = values[i * step]
        i += 1
        found, line = 0, line_at_hand(cpu, (frame | (address & ~PAGE_MASK)) - cpu.memory)
        while i < n and next_in_page(cpu, addresses[i], aligned, page, i - start):
            place = frame | (addresses[i] & ~PAGE_MASK)
            if (place - cpu.memory) >> U(LINE_SHIFT) == line:
                found += 1
            else:
                timed_behind(cpu, place - cpu.memory, True, found)
                found, line = 0, line_at_hand(cpu, place - cpu.memory)
            kind.array(place)[0] = values[i * step]
            i += 1
        cpu.memory_ps += found * KEPT_PS
        count_access(cpu, slot, True, i - start)
    end_overlap(cpu)


@hot
def load_many(cpu, addresses, values, n, kind):
    if cpu.timed != U(0):
        load_vector_timed(cpu, addresses, values, n, kind)
    else:
        load_vector(cpu, addresses, values, n, kind)


@hot
def store_many(cpu, addresses, values, n, step, kind):
    """Either of store_vector's loops."""
    if cpu.timed != U(0):
        store_vector_timed(cpu, addresses, values, n, step, kind)
    else:
        store_vector(cpu, addresses, values, n, step, kind)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u8(cpu_address, addresses, values, n):
    load_many(cpu_t.at(cpu_address), u64.array(addresses), u8.array(values), n, u8)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u8(cpu_address, addresses, values, n, step):
    store_many(cpu_t.at(cpu_address), u64.array(addresses), u8.array(values), n, step, u8)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u16(cpu_address, addresses, values, n):
    load_many(cpu_t.at(cpu_address), u64.array(addresses), u16.array(values), n, u16)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u16(cpu_address, addresses, values, n, step):
    store_many(cpu_t.at(cpu_address), u64.array(addresses), u16.array(values), n, step, u16)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u32(cpu_address, addresses, values, n):
    load_many(cpu_t.at(cpu_address), u64.array(addresses), u32.array(values), n, u32)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u32(cpu_address, addresses, values, n, step):
    store_many(cpu_t.at(cpu_address), u64.array(addresses), u32.array(values), n, step, u32)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u64(cpu_address, addresses, values, n):
    load_many(cpu_t.at(cpu_address), u64.array(addresses), u64.array(values), n, u64)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u64(cpu_address, addresses, values, n, step):
    store_many(cpu_t.at(cpu_address), u64.array(addresses), u64.array(values), n, step, u64)


# cpu, host address of the addresses, host address of the values, how many (stores: step): by size in bytes
LOAD_MANY = {1: load_many_u8, 2: load_many_u16, 4: load_many_u32, 8: load_many_u64}
STORE_MANY = {1: store_many_u8, 2: store_many_u16, 4: store_many_u32, 8: store_many_u64}

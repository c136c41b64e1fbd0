"""Loads and stores of many addresses at once, for `task.load` and `task.store`.

    load_many_u64(cpu, addresses, values, n)

A run of accesses to one page is one look-up and as many counted accesses. Where each access is timed (hardware/timing.py), so is
each of the run; the loops of other machines know nothing of that (`loops_of`).
"""

import numpy as np

from numaemu.api.access import count_access, hinted_slot, load, serve_event, store, translate_slow, translate_untimed
from numaemu.compiler.atomic import exchange, load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import prefetch
from numaemu.compiler.pointer import u8, u16, u32, u64
from numaemu.errors import SegmentationFault
from numaemu.hardware.bandwidth import LINE_BYTES, LINE_SHIFT, passage_of, rates_of, wait_for_slot
from numaemu.hardware.cache import core_t
from numaemu.hardware.controller import (
    KEPT_PS,
    LONG_PS,
    PS,
    begin_overlap,
    begins_stream,
    end_overlap,
    end_stream,
    now_ps,
)
from numaemu.hardware.hierarchy import ask_for_words
from numaemu.hardware.paging import PAGE_MASK, PTE_PFN_MASK
from numaemu.hardware.processor import LEAF_SHIFT, READ, TAG_VALID, WRITE, cpu_t, level_shift
from numaemu.hardware.timing import timed_again
from numaemu.hardware.walk import lowest_table, peek
from numaemu.mmu import timed_slot
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE, RUN, TABLE_HINTS

U = np.uint64
LINE_MASK = ~U(LINE_BYTES - 1)


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
    """Ask the host for the entry that the walk to an address will load."""
    entry = expected_entry(cpu, address)
    if entry != U(0):
        prefetch(entry)


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
        place = expected_place(cpu, addresses[i])
        cpu.run_places[i - begin] = place
        prefetch(place)
    if cpu.caches != U(0):
        for i in range(end - begin):
            if cpu.run_places[i] != U(0):
                ask_for_words(core_t.at(cpu.caches), cpu.run_places[i] - cpu.memory)


@hot
def ask_ahead(cpu, addresses, i, n, asked, walks):
    """Behind access i of a vector, which has missed: unless it has been asked for already, ask the host for a run of later ones.
    Not among many accesses to the same page. Up to where it has been asked, and the walks that were done by then.
    """
    if asked > i + RUN or i + RUN >= n or addresses[i + RUN] & PAGE_MASK == addresses[i] & PAGE_MASK:
        return asked, walks
    begin = max(asked, i + 1)
    prefetch_run(cpu, addresses, begin, n, cpu.walks != walks)
    return begin + RUN, cpu.walks


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
def look_up_timed(cpu, address, access):
    """The L1 slot of an access that its loop times itself. None finds its page by the first half of the hints."""
    serve_event(cpu)
    slot = timed_slot(cpu, address, access)
    if slot < 0:
        slot = translate_untimed(cpu, address, access)
        if slot < 0:
            raise SegmentationFault
    return slot


@hot
def move_word(kind, place, values, at, write):
    """Load values[at] from a host address, or store it there."""
    if write:
        kind.array(place)[0] = values[at]
    else:
        values[at] = kind.array(place)[0]


@hot
def run_end(cpu, vector, i, done):
    """Up to where a vector may go on without a look at what is due, and not so long that a request of another CPU had to wait; i or
    less: something is due. `done`: so many accesses have not been counted yet.
    """
    return i + min(vector[2] - i, min(LINE_BYTES, load_acquire(cpu, "event_at") - cpu.tick - done))


@hot
def end_of_line(vector, i, end, frame, kind, write):
    """Access i of a vector, which has been timed, and those behind it, up to `end`, in the same line: the first one after them."""
    addresses, values, _, step = vector
    address, elsewhere = addresses[i], LINE_MASK | U(kind.nbytes - 1)
    place = frame | (address & ~PAGE_MASK)
    move_word(kind, place, values, i * step, write)
    i += 1
    while i < end and (addresses[i] ^ address) & elsewhere == U(0):
        move_word(kind, place ^ (addresses[i] ^ address), values, i * step, write)
        i += 1
    return i


@hot
def is_line_behind(address, before, kind):
    """True for an aligned address in the line behind that of another, in the same page."""
    aligned, page = address & U(kind.nbytes - 1) == U(0), (address ^ before) & PAGE_MASK == U(0)
    return aligned and page and (address >> U(LINE_SHIFT)) == (before >> U(LINE_SHIFT)) + U(1)


@hot
def end_of_stream(cpu, vector, i, done, frame, kind, write):
    """The accesses of a vector from i on, as far as their lines are a stream (controller.py): the first one after them."""
    rates, passage, latency_ps = rates_of(cpu), passage_of(cpu, cpu.node), cpu.latency_ns[cpu.node] * PS
    addresses, begin, lines, first = vector[0], now_ps(cpu), 0, i
    now, end = begin, max(run_end(cpu, vector, i, done), i + 1)
    while True:
        address = addresses[i]
        waited = wait_for_slot(rates, passage, now)
        if waited > LONG_PS:
            exchange(cpu, "event_at", 0)
            end = i + 1
        behind = end_of_line(vector, i, end, frame, kind, write)
        now += waited + latency_ps + (behind - i - 1) * KEPT_PS
        lines, i = lines + 1, behind
        if i >= end:
            end = run_end(cpu, vector, i, done + i - first)
            if end <= i:
                break
        if not is_line_behind(addresses[i], address, kind):
            break
    end_stream(cpu, (frame | (address & ~PAGE_MASK)) - cpu.memory, lines, write, now - begin)
    return i


@hot
def end_of_page(cpu, vector, i, slot, kind, write):
    """The accesses of a vector from i on that go to the page of an L1 entry, until something is due: the first one after them."""
    addresses, n, start = vector[0], vector[2], i
    frame, page, aligned = cpu.l1[slot].host & PAGE_MASK, addresses[i] & PAGE_MASK, PAGE_MASK | U(kind.nbytes - 1)
    while True:
        address = addresses[i]
        physical = (frame | (address & ~PAGE_MASK)) - cpu.memory
        timed_again(cpu, physical, write)
        end = run_end(cpu, vector, i, i - start) if cpu.keeps_lines != U(0) else 0
        behind = end_of_line(vector, i, end, frame, kind, write)
        cpu.memory_ps += (behind - i - 1) * KEPT_PS
        i = behind
        if i == n or not next_in_page(cpu, addresses[i], aligned, page, i - start):
            return i
        if is_line_behind(addresses[i], address, kind) and begins_stream(cpu, physical):
            i = end_of_stream(cpu, vector, i, i - start, frame, kind, write)
            if i == n or not next_in_page(cpu, addresses[i], aligned, page, i - start):
                return i


@hot
def vector_timed(cpu, vector, kind, write):
    """load_vector or store_vector where each access is timed."""
    addresses, values, n, step = vector
    i, asked, walks, missed = 0, 0, cpu.walks, nr_missed(cpu)
    begin_overlap(cpu)
    while i < n:
        start, address = i, addresses[i]
        if address & ~PAGE_MASK > U(PAGE_SIZE - kind.nbytes):
            if write:
                store(cpu, address, values[i * step], kind)
            else:
                values[i] = load(cpu, address, kind)
            i += 1
            continue
        slot = look_up_timed(cpu, address, WRITE if write else READ)
        i = end_of_page(cpu, vector, i, slot, kind, write)
        count_access(cpu, slot, write, i - start)
        if cpu.walks != walks or nr_missed(cpu) != missed:
            asked, walks = ask_ahead(cpu, addresses, start, n, asked, walks)
            missed = nr_missed(cpu)
    end_overlap(cpu)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u8(cpu_address, addresses, values, n):
    load_vector(cpu_t.at(cpu_address), u64.array(addresses), u8.array(values), n, u8)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u8(cpu_address, addresses, values, n, step):
    store_vector(cpu_t.at(cpu_address), u64.array(addresses), u8.array(values), n, step, u8)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u16(cpu_address, addresses, values, n):
    load_vector(cpu_t.at(cpu_address), u64.array(addresses), u16.array(values), n, u16)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u16(cpu_address, addresses, values, n, step):
    store_vector(cpu_t.at(cpu_address), u64.array(addresses), u16.array(values), n, step, u16)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u32(cpu_address, addresses, values, n):
    load_vector(cpu_t.at(cpu_address), u64.array(addresses), u32.array(values), n, u32)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u32(cpu_address, addresses, values, n, step):
    store_vector(cpu_t.at(cpu_address), u64.array(addresses), u32.array(values), n, step, u32)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_many_u64(cpu_address, addresses, values, n):
    load_vector(cpu_t.at(cpu_address), u64.array(addresses), u64.array(values), n, u64)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_many_u64(cpu_address, addresses, values, n, step):
    store_vector(cpu_t.at(cpu_address), u64.array(addresses), u64.array(values), n, step, u64)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_timed_u8(cpu_address, addresses, values, n):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u8.array(values), n, 1), u8, False)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_timed_u8(cpu_address, addresses, values, n, step):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u8.array(values), n, step), u8, True)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_timed_u16(cpu_address, addresses, values, n):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u16.array(values), n, 1), u16, False)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_timed_u16(cpu_address, addresses, values, n, step):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u16.array(values), n, step), u16, True)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_timed_u32(cpu_address, addresses, values, n):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u32.array(values), n, 1), u32, False)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_timed_u32(cpu_address, addresses, values, n, step):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u32.array(values), n, step), u32, True)


@entry("void(u64, u64, u64, i64)", nogil=True)
def load_timed_u64(cpu_address, addresses, values, n):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u64.array(values), n, 1), u64, False)


@entry("void(u64, u64, u64, i64, i64)", nogil=True)
def store_timed_u64(cpu_address, addresses, values, n, step):
    vector_timed(cpu_t.at(cpu_address), (u64.array(addresses), u64.array(values), n, step), u64, True)


# cpu, host address of the addresses, host address of the values, how many (stores: step): by size in bytes
LOAD_MANY = {1: load_many_u8, 2: load_many_u16, 4: load_many_u32, 8: load_many_u64}
STORE_MANY = {1: store_many_u8, 2: store_many_u16, 4: store_many_u32, 8: store_many_u64}
LOAD_TIMED = {1: load_timed_u8, 2: load_timed_u16, 4: load_timed_u32, 8: load_timed_u64}
STORE_TIMED = {1: store_timed_u8, 2: store_timed_u16, 4: store_timed_u32, 8: store_timed_u64}


def loops_of(cpu):
    """The loops for loads and for stores of a CPU, by size in bytes."""
    return (LOAD_TIMED, STORE_TIMED) if cpu.timed else (LOAD_MANY, STORE_MANY)

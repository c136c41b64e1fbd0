"""Loads and stores at virtual addresses: translate, on a fault enter the kernel, retry.

    load_u64(cpu, address)                     in compiled code of a user: one access; likewise u8 … f64

Before every access the CPU compares `event_at` with its count of accesses: a shootdown may be pending, or the task's time
slice over (kernel/core/sched.py). A translation is used for the access it was made for; the vector loops (vectors.py) use it
again only for a following access to the same page with nothing pending, which would have hit the same L1 entry, and count it so.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, fetch_and, fetch_or, load_acquire
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import call_address, clear_bytes, copy_bytes
from numaemu.compiler.pointer import bits_of, f32, f64, i32, i64, u8, u16, u32, u64, value_of
from numaemu.errors import KernelBug, SegmentationFault
from numaemu.hardware.controller import begin_overlap, drain, end_overlap
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import (
    EXEC,
    KERNEL_READ,
    KERNEL_WRITE,
    NODE_MASK,
    PF_UNALIGNED,
    READ,
    TAG_VALID,
    WRITE,
    cpu_t,
)
from numaemu.hardware.timing import timed_access, timed_rest
from numaemu.mmu import allows, find_or_refill, tag_of, timed_slot, tlb_refill
from numaemu.spec.param import L1_HINTS, PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import SIGSEGV

U = np.uint64
SERVED = U(1)  # kernel/arch/fault.py's answer
HINT_MASK = U(L1_HINTS - 1)


@hot
def serve_event(cpu):
    """Before an access: answer a shootdown or give the turn up, if either is due."""
    if load_acquire(cpu, "event_at") <= cpu.tick:
        call_address(cpu.on_event, cpu.address, U(0), U(0))


@hot
def hinted_slot(cpu, address):
    """The L1 slot where the page of an address was last seen."""
    return np.int64(cpu.l1_hint[(address >> U(PAGE_SHIFT)) & HINT_MASK])


@hot
def place_of(host, address):
    """Where the host has an address, from the `host` word of its page's entry."""
    return (host & PAGE_MASK) | (address & ~PAGE_MASK)


@hot
def rest_of_page(address):
    """Bytes from an address to the end of its page."""
    return np.int64(U(PAGE_SIZE) - (address & ~PAGE_MASK))


@hot
def translate(cpu, address, access):
    """The L1 slot of `address`: TLBs, walk, page fault, retry; -1 where the kernel says no."""
    while True:
        serve_event(cpu)
        slot = tlb_refill(cpu, address, access)
        if slot >= 0:
            return slot
        if call_address(cpu.on_fault, cpu.address, address, access) != SERVED:
            end_overlap(cpu)
            return -1


@kernel("i64(cpu_t*, u64, u64)")
def translate_slow(cpu, address, access):
    """The L1 slot of `address` behind a missed hint, and what the access waits for; -1 where the kernel says no. The
    caller has served what is due before the access.
    """
    slot = timed_slot(cpu, address, access) if cpu.timed != U(0) else -1  # there nobody has looked at the hint yet
    if slot < 0:
        slot = translate(cpu, address, access)
    if slot >= 0 and cpu.timed != U(0):
        timed_access(cpu, slot, address, access)
    return slot


@kernel("i64(cpu_t*, u64, u64)")
def translate_untimed(cpu, address, access):
    """`translate`, for vectors, which time the access themselves."""
    return translate(cpu, address, access)


@hot
def look_up(cpu, address, aligned, write):
    """The L1 slot of an access; `aligned` masks the page and the bits that must be 0 in a naturally aligned address."""
    serve_event(cpu)
    slot = hinted_slot(cpu, address)
    tag = cpu.l1[slot].wtag if write else cpu.l1[slot].tag
    if tag != (address & aligned) | TAG_VALID:
        slot = translate_slow(cpu, address, WRITE if write else READ)
        if slot < 0:
            raise SegmentationFault
    return slot


@hot
def count_access(cpu, slot, write, n):
    """n accesses through an L1 entry; the entry's `host` word."""
    entry = cpu.l1[slot]
    cpu.tick += n
    entry.age = cpu.tick
    host = entry.host
    cpu.accesses[np.int64(host & NODE_MASK)] += n
    if write:
        cpu.stores += n
    return host


@hot
def count_range(cpu, slot, write, address, nbytes):
    """The accesses of a range in one page, one per 8 bytes, of which the first has been looked up; the entry's `host` word."""
    host = count_access(cpu, slot, write, (nbytes + 7) // 8)
    if cpu.timed != U(0):
        timed_rest(cpu, place_of(host, address), nbytes, write)
    return host


@hot
def look_up_split(cpu, address, border, write):
    """The `host` words of both pages of an access across a page border: two accesses, as hardware splits it.

    Neither is used before both are there. The second is looked for without serving an event or a fault, so the first is
    still what it was; after a fault both are looked up anew.
    """
    while True:
        slot = look_up(cpu, address, PAGE_MASK, write)
        host = cpu.l1[slot].host
        cpu.l1[slot].age = cpu.tick + 1  # used just now: the other one takes another's place
        other = find_or_refill(cpu, border, WRITE if write else READ)
        if other >= 0:
            if cpu.timed != U(0):
                timed_access(cpu, other, border, WRITE if write else READ)
            cpu.tick += 1
            cpu.accesses[np.int64(host & NODE_MASK)] += 1
            if write:
                cpu.stores += 1
            return host, count_access(cpu, other, write, 1)
        if call_address(cpu.on_fault, cpu.address, border, WRITE if write else READ) != SERVED:
            end_overlap(cpu)
            raise SegmentationFault


@hot
def access_split(cpu, address, word, nbytes, write):
    """An access of `nbytes` bytes across a page border: stores those of `word`, or answers with what it loads."""
    first, loaded = rest_of_page(address), U(0)
    low, high = look_up_split(cpu, address, address + U(first), write)
    for i in range(nbytes):
        byte = u8.array(place_of(low if i < first else high, address + U(i)))
        if write:
            byte[0] = (word >> U(8 * i)) & U(0xFF)
        else:
            loaded |= U(byte[0]) << U(8 * i)
    return loaded


@hot
def load(cpu, address, kind):
    """One load of a `kind` (u8 … f64) at virtual `address`."""
    address = U(address)
    serve_event(cpu)
    slot = hinted_slot(cpu, address)
    if cpu.l1[slot].tag != (address & (PAGE_MASK | U(kind.nbytes - 1))) | TAG_VALID:
        if address & ~PAGE_MASK > U(PAGE_SIZE - kind.nbytes):
            return value_of(kind, access_split(cpu, address, U(0), kind.nbytes, False))
        slot = translate_slow(cpu, address, READ)
        if slot < 0:
            raise SegmentationFault
    host = count_access(cpu, slot, False, 1)
    return kind.array(place_of(host, address))[0]


@hot
def store(cpu, address, value, kind):
    """One store of a `kind` at virtual `address`."""
    address = U(address)
    serve_event(cpu)
    slot = hinted_slot(cpu, address)
    if cpu.l1[slot].wtag != (address & (PAGE_MASK | U(kind.nbytes - 1))) | TAG_VALID:
        if address & ~PAGE_MASK > U(PAGE_SIZE - kind.nbytes):
            access_split(cpu, address, bits_of(kind, value), kind.nbytes, True)
            return
        slot = translate_slow(cpu, address, WRITE)
        if slot < 0:
            raise SegmentationFault
    host = count_access(cpu, slot, True, 1)
    kind.array(place_of(host, address))[0] = value


@hot
def load_u8(cpu, address):
    return load(cpu, address, u8)


@hot
def store_u8(cpu, address, value):
    store(cpu, address, value, u8)


@hot
def load_u16(cpu, address):
    return load(cpu, address, u16)


@hot
def store_u16(cpu, address, value):
    store(cpu, address, value, u16)


@hot
def load_u32(cpu, address):
    return load(cpu, address, u32)


@hot
def store_u32(cpu, address, value):
    store(cpu, address, value, u32)


@hot
def load_u64(cpu, address):
    return load(cpu, address, u64)


@hot
def store_u64(cpu, address, value):
    store(cpu, address, value, u64)


@hot
def load_i32(cpu, address):
    return load(cpu, address, i32)


@hot
def store_i32(cpu, address, value):
    store(cpu, address, value, i32)


@hot
def load_i64(cpu, address):
    return load(cpu, address, i64)


@hot
def store_i64(cpu, address, value):
    store(cpu, address, value, i64)


@hot
def load_f32(cpu, address):
    return load(cpu, address, f32)


@hot
def store_f32(cpu, address, value):
    store(cpu, address, value, f32)


@hot
def load_f64(cpu, address):
    return load(cpu, address, f64)


@hot
def store_f64(cpu, address, value):
    store(cpu, address, value, f64)


# -- aligned words: for libraries in user mode, which lay out their own memory and so never meet a page border -----


@kernel("i64(cpu_t*, u64, u64)")
def refuse_unaligned(cpu, address, access):
    """No access: -1, with the reason left in the CPU's words, as a fault leaves it."""
    cpu.cr2, cpu.error_code, cpu.signal = address, access | PF_UNALIGNED, SIGSEGV
    return -1


@hot
def look_up_aligned(cpu, address, kind, write):
    """The L1 slot of an access to an aligned address; SegmentationFault also for one that is not."""
    serve_event(cpu)
    slot = hinted_slot(cpu, address)
    tag = cpu.l1[slot].wtag if write else cpu.l1[slot].tag
    if tag != (address & (PAGE_MASK | U(kind.nbytes - 1))) | TAG_VALID:
        if address & U(kind.nbytes - 1) == U(0):
            slot = translate_slow(cpu, address, WRITE if write else READ)
        else:
            slot = refuse_unaligned(cpu, address, WRITE if write else READ)
        if slot < 0:
            raise SegmentationFault
    return slot


@hot
def get_u32(cpu, address):
    """The 32-bit word at an aligned address, as an i64."""
    slot = look_up_aligned(cpu, U(address), u32, False)
    return np.int64(u32.array(place_of(count_access(cpu, slot, False, 1), U(address)))[0])


@hot
def put_u32(cpu, address, value):
    """Store a 32-bit word at an aligned address."""
    slot = look_up_aligned(cpu, U(address), u32, True)
    u32.array(place_of(count_access(cpu, slot, True, 1), U(address)))[0] = value


@hot
def get(cpu, address):
    """The word at an aligned address."""
    slot = look_up_aligned(cpu, U(address), i64, False)
    return i64.array(place_of(count_access(cpu, slot, False, 1), U(address)))[0]


@hot
def put(cpu, address, value):
    """Store a word at an aligned address."""
    slot = look_up_aligned(cpu, U(address), i64, True)
    i64.array(place_of(count_access(cpu, slot, True, 1), U(address)))[0] = value


# -- atomic words and copies in compiled code of a user --------------------------------------------------------


@hot
def word_to_change(cpu, address):
    """The word at an aligned virtual address, for an instruction that locks the bus: it counts as one store."""
    address = U(address)
    slot = look_up(cpu, address, PAGE_MASK, True)
    drain(cpu)
    return i64.array(place_of(count_access(cpu, slot, True, 1), address))


@hot
def cmpxchg_i64(cpu, address, old, new):
    """Store `new` if the word is `old`; the word before, so success is `== old`. One store, as `lock cmpxchg`."""
    return compare_exchange(word_to_change(cpu, address), 0, old, new)


@hot
def xadd_i64(cpu, address, n):
    """Add to the word; the word before. One store, as `lock xadd`."""
    return fetch_add(word_to_change(cpu, address), 0, n)


@hot
def or_i64(cpu, address, bits):
    """Set bits of the word; the word before. One store, as `lock or`."""
    return fetch_or(word_to_change(cpu, address), 0, bits)


@hot
def and_i64(cpu, address, bits):
    """Keep bits of the word; the word before. One store, as `lock and`."""
    return fetch_and(word_to_change(cpu, address), 0, bits)


@hot
def memcpy(cpu, target, source, nbytes):
    """Copy bytes that do not overlap. Counted as a load and a store for each 8 bytes."""
    done = 0
    begin_overlap(cpu)
    while done < nbytes:
        to, of = U(target) + U(done), U(source) + U(done)
        n = min(nbytes - done, min(rest_of_page(to), rest_of_page(of)))
        slot = look_up(cpu, of, PAGE_MASK, False)
        host = cpu.l1[slot].host
        cpu.l1[slot].age = cpu.tick + 1  # used just now: the other one takes another's place
        other = find_or_refill(cpu, to, WRITE)  # serves no event and no fault, so that `host` is still what it was
        if other >= 0:
            if cpu.timed != U(0):
                timed_access(cpu, other, to, WRITE)
                timed_rest(cpu, place_of(host, of), n, False)
                timed_rest(cpu, place_of(cpu.l1[other].host, to), n, True)
            words = (n + 7) // 8
            cpu.tick += words
            cpu.accesses[np.int64(host & NODE_MASK)] += words
            copy_bytes(place_of(count_access(cpu, other, True, words), to), place_of(host, of), n)
            done += n
        elif call_address(cpu.on_fault, cpu.address, to, WRITE) != SERVED:
            end_overlap(cpu)
            raise SegmentationFault
    end_overlap(cpu)


@hot
def memclear(cpu, target, nbytes):
    """Store zeros: memset(target, 0, nbytes). Counted as a store for each 8 bytes."""
    done = 0
    begin_overlap(cpu)
    while done < nbytes:
        to = U(target) + U(done)
        n = min(nbytes - done, rest_of_page(to))
        slot = look_up(cpu, to, PAGE_MASK, True)
        clear_bytes(place_of(count_range(cpu, slot, True, to, n), to), n)
        done += n
    end_overlap(cpu)


# -- instruction fetches, and accesses in kernel mode ---------------------------------------------------------


@kernel("i64(cpu_t*, u64, u64)")
def look_up_slowly(cpu, address, access):
    """The L1 slot of an access of any kind; -1 where the kernel says no."""
    serve_event(cpu)
    if access == KERNEL_READ or access == KERNEL_WRITE:
        slot = hinted_slot(cpu, address)
        entry = cpu.l1[slot]
        if entry.tag == tag_of(cpu, address, 0, access) and allows(entry, access):
            return slot
    return translate_slow(cpu, address, access)


@entry("void(u64, u64)", nogil=True)
def execute_at(cpu_address, address):
    """One instruction fetch."""
    cpu = cpu_t.at(cpu_address)
    slot = look_up_slowly(cpu, address, EXEC)
    if slot < 0:
        raise SegmentationFault
    count_access(cpu, slot, False, 1)


@hot
def kernel_load(cpu, address, kind):
    """One load of a `kind` in kernel mode, naturally aligned."""
    address = U(address)
    slot = look_up_slowly(cpu, address, KERNEL_READ)
    if slot < 0:
        raise KernelBug
    host = count_access(cpu, slot, False, 1)
    return kind.array(place_of(host, address))[0]


@hot
def kernel_store(cpu, address, value, kind):
    """One store of a `kind` in kernel mode, naturally aligned."""
    address = U(address)
    slot = look_up_slowly(cpu, address, KERNEL_WRITE)
    if slot < 0:
        raise KernelBug
    host = count_access(cpu, slot, True, 1)
    kind.array(place_of(host, address))[0] = value


@hot
def kernel_load_u64(cpu, address):
    return kernel_load(cpu, address, u64)


@hot
def kernel_store_u64(cpu, address, value):
    kernel_store(cpu, address, value, u64)


@hot
def copy_part(place, buffer, nbytes, write):
    """Copy within a page: from `buffer` to `place`, or (not `write`) the other way."""
    if write:
        copy_bytes(place, buffer, nbytes)
    else:
        copy_bytes(buffer, place, nbytes)


@entry("void(u64, u64, u64, i64, bool)", nogil=True)
def kernel_copy_range(cpu_address, address, buffer, nbytes, write):
    """copy_range in kernel mode: between a kernel (or user) address and host memory at `buffer`."""
    cpu, done = cpu_t.at(cpu_address), 0
    begin_overlap(cpu)
    while done < nbytes:
        at = address + U(done)
        n = min(nbytes - done, rest_of_page(at))
        slot = look_up_slowly(cpu, at, KERNEL_WRITE if write else KERNEL_READ)
        if slot < 0:
            raise KernelBug
        copy_part(place_of(count_range(cpu, slot, write, at, n), at), buffer + U(done), n, write)
        done += n
    end_overlap(cpu)


# -- ranges ------------------------------------------------------------------------------------------------


@entry("void(u64, u64, u64, u64, bool)", nogil=True)
def touch_range(cpu_address, start, end, stride, write):
    """One access per `stride` bytes in [start, end); a writing touch leaves the contents as they are."""
    cpu, address = cpu_t.at(cpu_address), start
    begin_overlap(cpu)
    while address < end:
        host = count_access(cpu, look_up(cpu, address, PAGE_MASK, write), write, 1)
        word = u64.array((host & PAGE_MASK) | (address & ~PAGE_MASK & ~U(7)))
        if write:
            compare_exchange(word, 0, U(0), U(0))  # a store that keeps the contents, also against other CPUs
        else:
            load_acquire(word, 0)
        address += stride
    end_overlap(cpu)


@entry("void(u64, u64, u64, i64, bool)", nogil=True)
def copy_range(cpu_address, address, buffer, nbytes, write):
    """Copy between emulated memory at `address` and host memory at `buffer`, counted as one access per 8 bytes."""
    cpu, done = cpu_t.at(cpu_address), 0
    begin_overlap(cpu)
    while done < nbytes:
        at = address + U(done)
        n = min(nbytes - done, rest_of_page(at))
        slot = look_up(cpu, at, PAGE_MASK, write)
        copy_part(place_of(count_range(cpu, slot, write, at, n), at), buffer + U(done), n, write)
        done += n
    end_overlap(cpu)

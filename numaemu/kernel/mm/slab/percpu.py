"""Memory that every CPU has a copy of, on its own node, and writes without atomics: Linux's mm/percpu.c.

A chunk has one unit a CPU, all cut alike, by one allocation map. What is given out is a handle, the place in a unit:

    handle = chunk << UNIT_SHIFT | offset          address on a CPU = address of the CPU's unit + offset

    unit of CPU 0   | static variables | area | area |      |          chunk 1
    unit of CPU 1   | static variables | area | area |      |
    unit of CPU 0   | area |    | area |                    |          chunk 2
    unit of CPU 1   | area |    | area |                    |

Linux maps units page by page into one range of vmalloc addresses; here a unit is one block of 32 kB, its smallest size.
The map has a byte for each 4 bytes of a unit: free, the start of an area, or its continuation.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire, store_release
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import clear_bytes
from numaemu.compiler.pointer import Struct, address_of, i64, u8
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of, relax, spin_lock, spin_unlock
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mm_types import PG_buddy, PG_pcp, cpu_present
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.page_alloc.page_alloc import __free_pages, alloc_pages
from numaemu.kernel.mm.slab.slab import host_of, page_address
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
UNIT_SHIFT = 15
UNIT_SIZE = 1 << UNIT_SHIFT  # PCPU_MIN_UNIT_SIZE
UNIT_ORDER = UNIT_SHIFT - PAGE_SHIFT
PCPU_MIN_ALLOC_SIZE = 4
UNIT_SLOTS = UNIT_SIZE // PCPU_MIN_ALLOC_SIZE
STATIC_SIZE = 4096  # of the first chunk: DEFINE_PER_CPU; assumed
MAX_CHUNKS = 256  # assumed; number 0 is none
MAX_PER_CPU_VARS, VAR_NAME_BYTES = 128, 32
FREE, START, REST = range(3)  # a byte of a chunk's map
CHUNK_NONE, CHUNK_MAKING, CHUNK_LIVE = range(3)

# Shared words of pcpu_chunk_t: the word | its writer | why a reader may trust it.
# - map | Any CPU under pcpu_lock; a chunk in the making is its maker's. | Under the lock.
# - per-CPU copies | Their CPU, inside its turn, without atomics. preempt_count (Operations) keeps the turn between
#   operations until put_cpu_var; a kill waits. | Others may read single words; a sum over CPUs is as old as its
#   first word.
# fmt: off
pcpu_chunk_t = Struct("pcpu_chunk_t", [
    ("state", i64),                  # from none by compare-exchange, to live and back under pcpu_lock
    # under pcpu_lock
    ("free_slots", i64),
    ("first_free", i64),             # no slot before it is free
    ("contig_hint", i64),            # no free range is longer
    ("map", u8, UNIT_SLOTS),
])

per_cpu_var_t = Struct("per_cpu_var_t", [    # under pcpu_lock, but for `handle`, written last
    ("handle", i64), ("nbytes", i64), ("name", u8, VAR_NAME_BYTES),
])
# fmt: on


@hot
def chunk_of(machine, number):
    return pcpu_chunk_t.array(machine.pcpu_chunks)[number]


@hot
def unit_pfn(machine, number, cpu_number):
    """Where the pfn of a CPU's unit stands."""
    return i64.array(machine.pcpu_units + U((number * machine.nr_cpus + cpu_number) * 8))


@hot
def per_cpu_ptr(cpu, handle, cpu_number):
    """The kernel address of CPU `cpu_number`'s copy."""
    machine = machine_of(cpu)
    pfn = unit_pfn(machine, handle >> UNIT_SHIFT, cpu_number)[0]
    return page_address(machine, pfn) + U(handle & (UNIT_SIZE - 1))


@hot
def this_cpu_ptr(cpu, handle):
    """This process sees this CPU's copy there."""
    return i64.array(host_of(cpu, per_cpu_ptr(cpu, handle, cpu.id)))


@hot
def this_cpu_add(cpu, handle, n):
    """Add to this CPU's copy, a signed word: nobody else writes it, so it is a plain load and store."""
    this_cpu_ptr(cpu, handle)[0] += n


@hot
def this_cpu_read(cpu, handle):
    return this_cpu_ptr(cpu, handle)[0]


@hot
def clear_copies(cpu, handle, nbytes):
    """Zeros in every CPU's copy."""
    machine = machine_of(cpu)
    for owner in range(machine.nr_cpus):
        if cpu_present(machine, owner):
            clear_bytes(host_of(cpu, per_cpu_ptr(cpu, handle, owner)), nbytes)


# -- chunks --------------------------------------------------------------------------------------------------


@hot
def free_units(cpu, number, count):
    """Give the units of the CPUs before number `count` back."""
    machine = machine_of(cpu)
    for owner in range(count):
        if cpu_present(machine, owner):
            __free_pages(cpu, unit_pfn(machine, number, owner)[0], UNIT_ORDER)


@kernel("bool(cpu_t*, i64, i64)")
def populate_chunk(cpu, number, gfp):
    """Units for a chunk that we are making, each on its CPU's node if that has memory."""
    machine = machine_of(cpu)
    for owner in range(machine.nr_cpus):
        if not cpu_present(machine, owner):
            continue
        nid = cpu_t.array(machine.cpus)[owner].node
        pfn = alloc_pages(cpu, gfp, UNIT_ORDER, nid, machine.node_mask)
        if pfn == 0:
            free_units(cpu, number, owner)
            return False
        unit_pfn(machine, number, owner)[0] = pfn
    return True


@kernel("bool(cpu_t*, i64)")
def pcpu_create_chunk(cpu, gfp):
    """One more chunk; the first has the static variables at its start. False: no memory, or no number."""
    machine, number = machine_of(cpu), 1
    while (
        number < MAX_CHUNKS
        and compare_exchange(chunk_of(machine, number), "state", CHUNK_NONE, CHUNK_MAKING) != CHUNK_NONE
    ):
        number += 1
    if number == MAX_CHUNKS:
        return False
    chunk = chunk_of(machine, number)
    if not populate_chunk(cpu, number, gfp):
        store_release(chunk, "state", CHUNK_NONE)
        return False
    static = STATIC_SIZE // PCPU_MIN_ALLOC_SIZE if number == 1 else 0
    for i in range(UNIT_SLOTS):
        chunk.map[i] = (START if i == 0 else REST) if i < static else FREE
    chunk.first_free, chunk.free_slots, chunk.contig_hint = static, UNIT_SLOTS - static, UNIT_SLOTS - static
    clear_copies(cpu, number << UNIT_SHIFT, static * PCPU_MIN_ALLOC_SIZE)
    lock = address_of(machine, "pcpu_lock")
    spin_lock(cpu, lock)
    chunk.state = CHUNK_LIVE
    spin_unlock(lock)
    return True


# -- areas ---------------------------------------------------------------------------------------------------


@kernel("i64(pcpu_chunk_t*, i64, i64)")
def pcpu_find_area(chunk, slots, align):
    """The first place in a chunk for so many slots, or -1. Under the lock."""
    at = -(-chunk.first_free // align) * align
    end = at
    while at + slots <= UNIT_SLOTS:
        while end < at + slots and chunk.map[end] == FREE:
            end += 1
        if end == at + slots:
            return at
        at = -(-(end + 1) // align) * align
        end = at
    if align == 1:
        chunk.contig_hint = min(chunk.contig_hint, slots - 1)
    return -1


@kernel("i64(cpu_t*, i64, i64)")
def pcpu_alloc_area(cpu, slots, align):
    """A place in the first chunk that has one, as a handle; 0: none has."""
    machine, handle = machine_of(cpu), 0
    lock = address_of(machine, "pcpu_lock")
    spin_lock(cpu, lock)
    for number in range(1, MAX_CHUNKS):
        chunk = chunk_of(machine, number)
        if chunk.state != CHUNK_LIVE or chunk.contig_hint < slots or chunk.free_slots < slots:
            continue
        at = pcpu_find_area(chunk, slots, align)
        if at >= 0:
            for i in range(slots):
                chunk.map[at + i] = START if i == 0 else REST
            chunk.free_slots -= slots
            if at == chunk.first_free:
                chunk.first_free = at + slots
            handle = number << UNIT_SHIFT | at * PCPU_MIN_ALLOC_SIZE
            break
    spin_unlock(lock)
    return handle


@kernel("i64(cpu_t*, i64, i64, i64)")
def alloc_percpu(cpu, size, align, gfp):
    """`size` zero bytes for each CPU: a handle, or 0. Mirrors pcpu_alloc."""
    if size < 1 or size > UNIT_SIZE or align < 1 or align > PAGE_SIZE or align & (align - 1) != 0:
        return 0
    slots = (size + PCPU_MIN_ALLOC_SIZE - 1) // PCPU_MIN_ALLOC_SIZE
    handle = 0
    while handle == 0:
        handle = pcpu_alloc_area(cpu, slots, max(align // PCPU_MIN_ALLOC_SIZE, 1))
        if handle == 0 and not pcpu_create_chunk(cpu, gfp):
            return 0
    clear_copies(cpu, handle, slots * PCPU_MIN_ALLOC_SIZE)
    return handle


@hot
def area_slots(machine, handle):
    """Slots of the area that begins at a handle; 0: none does. Under the lock, or by who owns the area."""
    number, at = handle >> UNIT_SHIFT, (handle & (UNIT_SIZE - 1)) // PCPU_MIN_ALLOC_SIZE
    if number < 1 or number >= MAX_CHUNKS or handle % PCPU_MIN_ALLOC_SIZE != 0:
        return 0
    chunk = chunk_of(machine, number)
    if chunk.state != CHUNK_LIVE or chunk.map[at] != START:
        return 0
    slots = 1
    while at + slots < UNIT_SLOTS and chunk.map[at + slots] == REST:
        slots += 1
    return slots


@hot
def spare_chunk(machine, number):
    """True if a chunk is empty, and another is too: one is kept, as in pcpu_balance_free. Under the lock."""
    if number == 1 or chunk_of(machine, number).free_slots < UNIT_SLOTS:
        return False
    for other in range(2, MAX_CHUNKS):
        chunk = chunk_of(machine, other)
        if other != number and chunk.state == CHUNK_LIVE and chunk.free_slots == UNIT_SLOTS:
            return True
    return False


@kernel("bool(cpu_t*, i64)")
def free_percpu(cpu, handle):
    """Give an area back; False: there is none (static variables stay)."""
    machine, number = machine_of(cpu), handle >> UNIT_SHIFT
    at = (handle & (UNIT_SIZE - 1)) // PCPU_MIN_ALLOC_SIZE
    lock = address_of(machine, "pcpu_lock")
    spin_lock(cpu, lock)
    slots, spare = area_slots(machine, handle), False
    valid = slots > 0 and handle != 1 << UNIT_SHIFT
    if valid:
        chunk = chunk_of(machine, number)
        for i in range(slots):
            chunk.map[at + i] = FREE
        chunk.free_slots += slots
        chunk.first_free, chunk.contig_hint = min(chunk.first_free, at), chunk.free_slots
        spare = spare_chunk(machine, number)
        if spare:
            chunk.state = CHUNK_MAKING  # nobody finds it any more
    spin_unlock(lock)
    if spare:
        free_units(cpu, number, machine.nr_cpus)
        store_release(chunk_of(machine, number), "state", CHUNK_NONE)
    return valid


@kernel("bool(cpu_t*)")
def first_chunk(cpu):
    """See that the chunk of the static variables is there (Linux makes it at boot)."""
    chunk, tries = chunk_of(machine_of(cpu), 1), 0
    while load_acquire(chunk, "state") != CHUNK_LIVE:
        if chunk.state == CHUNK_MAKING:
            tries += 1
            relax(cpu, tries)
        elif not pcpu_create_chunk(cpu, GFP_KERNEL):
            return False
    return True


# -- seen from outside ---------------------------------------------------------------------------------------


@entry("i64(u64, i64[])")
def validate_percpu(machine_cpu, counts):
    """0, or the number of a chunk whose map is wrong; counts: live chunks, areas, slots in use. Nothing runs."""
    cpu = cpu_t.at(machine_cpu)
    machine = machine_of(cpu)
    for number in range(1, MAX_CHUNKS):
        chunk = chunk_of(machine, number)
        if chunk.state == CHUNK_NONE:
            continue
        used, first = 0, UNIT_SLOTS
        for i in range(UNIT_SLOTS):
            kind = chunk.map[i]
            used += 1 if kind != FREE else 0
            first = min(first, i) if kind == FREE else first
            counts[1] += 1 if kind == START else 0
            if kind > REST or kind == REST and (i == 0 or chunk.map[i - 1] == FREE):
                return number
        if chunk.state != CHUNK_LIVE or chunk.free_slots != UNIT_SLOTS - used or chunk.first_free > first:
            return number
        for owner in range(machine.nr_cpus):
            pfn = unit_pfn(machine, number, owner)[0]
            if cpu_present(machine, owner) and page_of(machine, pfn).flags & U(PG_buddy | PG_pcp) != U(0):
                return number
        counts[0] += 1
        counts[2] += used
    return 0


def pcpu_nr_pages(machine):
    """Pages of all units."""
    states = pcpu_chunk_t.array(machine.pcpu_chunks).as_numpy(MAX_CHUNKS)["state"]
    return int((states[1:] == CHUNK_LIVE).sum()) * machine.nr_present_cpus << UNIT_ORDER


def var_name(variable):
    return bytes(variable.name.as_numpy()).rstrip(b"\0").decode()


def define_per_cpu(machine, name, size, align):
    """The handle of a static variable, made if there is none of this name. Under pcpu_lock; the first chunk is there.

    In Linux the linker lays them out.
    """
    end = 0
    for i in range(MAX_PER_CPU_VARS):
        variable = per_cpu_var_t.array(machine.per_cpu_vars)[i]
        if variable.handle == 0:
            break
        if var_name(variable) == name:
            if variable.nbytes != size:
                raise ValueError(f"per-CPU variable {name} has {variable.nbytes} bytes, not {size}")
            return variable.handle
        end = (variable.handle & (UNIT_SIZE - 1)) + variable.nbytes
    else:
        raise ValueError(f"per-CPU variable {name}: at most {MAX_PER_CPU_VARS} are there")
    start = -(-end // align) * align
    if start + size > STATIC_SIZE:
        raise ValueError(f"per-CPU variable {name}: {size} bytes at {start}, the static area has {STATIC_SIZE}")
    for i, byte in enumerate(name.encode().ljust(VAR_NAME_BYTES, b"\0")):
        variable.name[i] = byte
    variable.nbytes = size
    variable.handle = 1 << UNIT_SHIFT | start
    return variable.handle


def percpu_blocks(topology):
    """The blocks of shared memory that the allocator needs: (name, bytes)."""
    return (
        ("pcpu_chunks", MAX_CHUNKS * pcpu_chunk_t.nbytes),
        ("pcpu_units", MAX_CHUNKS * topology.nr_cpu_ids * 8),
        ("per_cpu_vars", MAX_PER_CPU_VARS * per_cpu_var_t.nbytes),
    )

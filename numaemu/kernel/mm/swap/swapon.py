"""Swap areas come and go, and what /proc says about them: the outer half of Linux's mm/swapfile.c.

Areas are made by the coordinator. They are partitions of their own, MAX_SWAPFILES at most; one of kind zram keeps its
pages compressed in memory.
"""

import errno
import string
import time

import numpy as np

from numaemu.compiler.atomic import compare_exchange, fetch_add, fetch_and, fetch_or, load_acquire, store_release
from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import is_swap_entry, mm_of, next_pte, pte_offset, pte_pfn, pte_to_swp_entry, ptep_get
from numaemu.kernel.core.fork import mmget_not_zero, mmput
from numaemu.kernel.core.lockstep import spin_strand
from numaemu.kernel.core.smp import let_others_run, machine_of, read_lock, read_trylock, read_unlock
from numaemu.kernel.core.xarray import MAX_INDEX, xa_find, xa_is_value, xa_load
from numaemu.kernel.fs.inode import inode_name, inode_of
from numaemu.kernel.include.internal import PF_OOM_ORIGIN
from numaemu.kernel.include.mm_types import SHMEM, VM_FAULT_OOM, PG_swapcache, pool_t
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.cache.shmem import release_mapping, try_hold_mapping
from numaemu.kernel.mm.cache.shmem_file import shmem_read_folio
from numaemu.kernel.mm.fault.memory import handle_mm_fault
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.lru import folio_lock, folio_test, folio_unlock
from numaemu.kernel.mm.space.vma_index import find_vma, vma_index, vma_of
from numaemu.kernel.mm.swap.swapfile import (
    MAX_SWAPFILES,
    SWAP_DISK,
    SWAP_NAME_BYTES,
    SWAP_ZRAM,
    SWP_OFFSET_BITS,
    SWP_SYNCHRONOUS_IO,
    SWP_USED,
    SWP_WRITEOK,
    folio_free_swap,
    swap_cache_get_folio,
    swap_count,
    swap_map,
    swap_of,
    swp_type,
)
from numaemu.spec.param import PAGE_SIZE

U = np.uint64
KINDS = ("disk", "zram")
MOST_PRIORITY = 32767  # SWAP_FLAG_PRIO_MASK
SWP_OOM_ORIGIN, SWP_OOM_KILLED = 1 << 30, 1 << 31  # of an area: swapoff empties it; it shall give up


def area_name(info):
    return bytes(info.name.as_numpy()).rstrip(b"\0").decode()


def areas(machine):
    """The areas in use, in the order of their numbers."""
    swap = swap_of(machine)
    return [swap.info[kind] for kind in range(MAX_SWAPFILES) if swap.info[kind].flags & SWP_USED]


def free_name(machine, kind):
    """The next device of a kind that is no swap area yet: /dev/vdb to /dev/vdz, as the first disk is vda; /dev/zram0 and so on."""
    names = (
        [f"/dev/zram{n}" for n in range(MAX_SWAPFILES)]
        if kind == "zram"
        else [f"/dev/vd{c}" for c in string.ascii_lowercase[1:]]
    )
    used = {area_name(info) for info in areas(machine)}
    return next((name for name in names if name not in used), f"/dev/vda{len(used)}")


def exists(machine, name):
    """True if a file, or the machine's first disk, has a name."""
    inodes = (inode_of(machine, n) for n in range(1, pool_t.at(machine.inode_pool).used + 1))
    return name == "/dev/vda" or any(inode.nlink and inode_name(inode) == name for inode in inodes)


def swapon(machine, name, nbytes, priority=None, kind="disk"):
    """Add an area of `nbytes`, header page included; those without a priority come after all others, in their order.

    Without a name it is the next device of its kind. The area's name.
    """
    swap, pages = swap_of(machine), nbytes // PAGE_SIZE
    if kind not in KINDS:
        raise ValueError(f"swapon {name}: kind {kind!r} is not one of {', '.join(KINDS)}")
    name = free_name(machine, kind) if name is None else name
    if not isinstance(name, str):
        raise TypeError(f"swapon: name must be text, not {name!r}")
    if priority is not None and (not isinstance(priority, int) or not -1 <= priority <= MOST_PRIORITY):
        raise OSError(errno.EINVAL, f"swapon: priority {priority!r} must be 0 to {MOST_PRIORITY}, or -1 for none", name)
    if not 2 <= pages <= 1 << SWP_OFFSET_BITS:
        raise ValueError(f"swapon {name}: {nbytes} bytes, must be 8 KiB to {PAGE_SIZE << SWP_OFFSET_BITS >> 30} GiB")
    if not 0 < len(name.encode()) < SWAP_NAME_BYTES:
        raise ValueError(f"swapon: name {name!r} must have 1 to {SWAP_NAME_BYTES - 1} bytes")
    if any(area_name(info) == name for info in areas(machine)):
        raise OSError(errno.EBUSY, "swapon: swap area in use", name)
    free = [swap.info[n] for n in range(MAX_SWAPFILES) if not swap.info[n].flags & SWP_USED]
    if not free:
        raise OSError(errno.EPERM, f"swapon: at most {MAX_SWAPFILES} swap areas", name)
    info = free[0]
    raw = name.encode().ljust(SWAP_NAME_BYTES, b"\0")
    for i, byte in enumerate(raw):
        info.name[i] = byte
    lowest = min([info.prio for info in areas(machine)] + [-1])
    info.prio = lowest - 1 if priority is None or priority < 0 else priority
    info.kind = SWAP_ZRAM if kind == "zram" else SWAP_DISK
    info.max, info.inuse_pages, info.cluster_next = pages, 0, 1
    info.nr_reads = info.nr_writes = 0
    swap.nr_rotate_swap += rotates(machine, info)
    fetch_add(machine, "total_swap_pages", pages - 1)
    fetch_add(machine, "nr_swap_pages", pages - 1)
    store_release(info, "flags", SWP_USED | SWP_WRITEOK | (SWP_SYNCHRONOUS_IO if kind == "zram" else 0))
    return name


def rotates(machine, info):
    """1 if an area lies on a disk that rotates, else 0."""
    return int(info.kind == SWAP_DISK and machine.disk_rotational)


def locked(machine, info):
    """Take an area's lock from Python; CPUs hold it for moments only."""
    while compare_exchange(info, "lock", U(0), U(1)) != U(0):
        if machine.lockstep:
            spin_strand(int(machine.lockstep))
        else:
            time.sleep(0)


def swapoff_begin(machine, name):
    """No new slots of the area from now on; its number."""
    for info in areas(machine):
        if area_name(info) == name and info.flags & SWP_WRITEOK:
            locked(machine, info)
            info.flags &= ~SWP_WRITEOK
            fetch_add(machine, "total_swap_pages", 1 - info.max)
            fetch_add(machine, "nr_swap_pages", info.inuse_pages + 1 - info.max)
            store_release(info, "lock", U(0))
            return info.type
    if not exists(machine, name):
        there = ", ".join(area_name(info) for info in areas(machine)) or "none"
        raise OSError(
            errno.ENOENT, f"swapoff: no file or device has this name (swap areas: {there}), it is not a swap area", name
        )
    raise OSError(errno.EINVAL, "swapoff: not a swap area", name)


def swapoff_end(machine, kind):
    """Nothing is in the area any more, or some is: then it goes on as before."""
    swap = swap_of(machine)
    info = swap.info[kind]
    if load_acquire(info, "inuse_pages") == 0:
        info.flags = 0
        swap.nr_rotate_swap -= rotates(machine, info)
        return
    locked(machine, info)
    info.flags |= SWP_WRITEOK
    fetch_add(machine, "total_swap_pages", info.max - 1)
    fetch_add(machine, "nr_swap_pages", info.max - 1 - info.inuse_pages)
    store_release(info, "lock", U(0))
    raise OSError(errno.ENOMEM, f"{info.inuse_pages} pages do not fit into memory", area_name(info))


@hot
def swapoff_killed(machine, kind):
    """True if the OOM killer has chosen who empties the area."""
    return load_acquire(swap_of(machine).info[kind], "flags") & SWP_OOM_KILLED != 0


def kill_swapoff(machine):
    """The OOM killer's first victim is who brings pages back from swap (oom_task_origin), if anybody does: True. It gives up then."""
    for info in areas(machine):
        if load_acquire(info, "flags") & SWP_OOM_ORIGIN:
            fetch_or(info, "flags", SWP_OOM_KILLED)
            return True
    return False


@kernel("void(cpu_t*, i64, u64, i64)")
def unuse_sharers(cpu, own, address, entry):
    """Bring the page of a swap entry back in all other address spaces as well that have the entry at this address, as processes
    that have forked do: only then the slot is free. Linux goes through one address space after the other, while reclaim may
    put what the first one has back into the area; with less memory than the area holds it then reads the same pages for ever.
    """
    machine = machine_of(cpu)
    for number in range(1, pool_t.at(machine.mm_pool).used + 1):
        if swap_count(machine, entry) == 0:
            return
        if number == own or not mmget_not_zero(cpu, number):
            continue
        mm = mm_of(machine, number)
        lock = address_of(mm, "mmap_lock")
        if read_trylock(lock):  # its holder may wait for ours: the next round finds what this one leaves
            vma_number = find_vma(machine, number, address)
            ptep = pte_offset(machine, mm, address) if vma_number != 0 else U(0)
            pte = ptep_get(ptep) if ptep != U(0) else U(0)
            if is_swap_entry(pte) and pte_to_swp_entry(pte) == entry:
                handle_mm_fault(cpu, mm, vma_number, address, False)
            read_unlock(lock)
        mmput(cpu, number)


@kernel("bool(cpu_t*, i64, i64)")
def unuse_mm(cpu, mm_number, kind):
    """Bring every page of an address space that is in the area back; False: no memory."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    for position in range(mm.map_count):
        number = vma_index(machine, mm_number)[position]
        vma = vma_of(machine, number)
        address, ptep = next_pte(machine, mm, vma.start, vma.end)
        while ptep != U(0):
            pte = ptep_get(ptep)
            if is_swap_entry(pte) and swp_type(pte_to_swp_entry(pte)) == kind:
                if swapoff_killed(machine, kind) or handle_mm_fault(cpu, mm, number, address, False) == VM_FAULT_OOM:
                    return False
                unuse_sharers(cpu, mm_number, address, pte_to_swp_entry(pte))
            address, ptep = next_pte(machine, mm, address + U(PAGE_SIZE), vma.end)
    return True


@kernel("bool(cpu_t*, i64, i64)")
def shmem_unuse_inode(cpu, number, kind):
    """Bring every page of a shared object that is in the area back; False: no memory. The caller holds the object."""
    machine = machine_of(cpu)
    mapping, index = mapping_of(machine, number), 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            return True
        value = xa_load(machine, mapping, index)
        if xa_is_value(value) and swp_type(pte_pfn(value)) == kind:
            if swapoff_killed(machine, kind):
                return False
            pfn = shmem_read_folio(cpu, number, index)  # it may be cut off meanwhile: nothing new is made there
            if pfn < 0:
                return False
            if pfn != 0:
                put_page(cpu, pfn)
        index += 1


@hot
def may_be_swapped(mapping):
    """True for shared memory and tmpfs files."""
    return mapping.shared == SHMEM and (mapping.host == 0 or mapping.tmpfs != 0)


@kernel("bool(cpu_t*, i64)")
def shmem_unuse(cpu, kind):
    """The same for all shared objects."""
    machine, fits = machine_of(cpu), True
    for number in range(1, pool_t.at(machine.mapping_pool).used + 1):
        mapping = mapping_of(machine, number)
        if not fits or not may_be_swapped(mapping) or not try_hold_mapping(mapping):
            continue
        if mapping.host != 0 and mapping.tmpfs == 0:  # a disk file's by now, which its inode frees
            release_mapping(cpu, number)
            continue
        if may_be_swapped(mapping):
            fits = shmem_unuse_inode(cpu, number, kind)
        release_mapping(cpu, number)
    return fits


@kernel("void(cpu_t*, i64)")
def unuse_cache(cpu, kind):
    """Pages that are in memory give their slots of the area up."""
    machine = machine_of(cpu)
    first = kind << SWP_OFFSET_BITS
    for slot in range(first + 1, first + swap_of(machine).info[kind].max):
        pfn = swap_cache_get_folio(cpu, slot) if load_acquire(swap_map(machine), slot) != 0 else 0
        if pfn != 0:
            page = page_of(machine, pfn)
            folio_lock(cpu, page)
            if folio_test(page, PG_swapcache) and page.private == slot:
                folio_free_swap(cpu, pfn)
            folio_unlock(page)
            put_page(cpu, pfn)


@kernel("bool(cpu_t*, i64)")
def unuse_all(cpu, kind):
    """One round: shared objects, address spaces, what the swap cache still holds. False: no memory."""
    machine = machine_of(cpu)
    fits = shmem_unuse(cpu, kind)
    for number in range(1, pool_t.at(machine.mm_pool).used + 1):
        if fits and mmget_not_zero(cpu, number):
            lock = address_of(mm_of(machine, number), "mmap_lock")
            read_lock(cpu, lock)
            fits = unuse_mm(cpu, number, kind)
            read_unlock(lock)
            mmput(cpu, number)
    if fits:
        unuse_cache(cpu, kind)
    return fits


@entry("void(u64, i64)", nogil=True)
def try_to_unuse(cpu_address, kind):
    """Empty a swap area, on a CPU between two operations. What forks, exits and reclaim have carried past one round is found
    by the next one: until nothing is in the area, or there is no memory.
    """
    cpu = cpu_t.at(cpu_address)
    machine = machine_of(cpu)
    info, fits = swap_of(machine).info[kind], True
    cpu.task, before = 0, cpu.flags  # nobody's policy, nobody's faults
    cpu.flags = before | PF_OOM_ORIGIN
    fetch_or(info, "flags", SWP_OOM_ORIGIN)
    while fits and load_acquire(info, "inuse_pages") > 0:
        fits = unuse_all(cpu, kind)
        if fits and load_acquire(info, "inuse_pages") > 0:
            let_others_run(cpu)
    fetch_and(info, "flags", ~(SWP_OOM_ORIGIN | SWP_OOM_KILLED))
    cpu.flags = before


# -- /proc ------------------------------------------------------------------------------------------


def swaps(system):
    """/proc/swaps: swap_show"""
    lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"]
    for info in areas(system.machine):
        size, used = (info.max - 1) * 4, info.inuse_pages * 4
        lines.append(
            f"{area_name(info):<40}partition\t{size}\t{'' if size >= 10000000 else chr(9)}{used}\t"
            f"{'' if used >= 10000000 else chr(9)}{info.prio}"
        )
    return "\n".join(lines) + "\n"


FILES = {"/proc/swaps": (swaps, None)}

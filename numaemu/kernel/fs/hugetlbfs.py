"""Files of huge pages, which memfd_create(2) makes with MFD_HUGETLB: Linux's fs/hugetlbfs/inode.c.

A file's pages are those of a shared object, as a shared mapping without a file has one, which the inode holds. All VMAs that
map the file, private ones too, are linked in it, as are those of other files. The file's reservation map has room for twice as
many huge pages as the machine has memory. The map's `size` is the file's end, which faults look at under the page's fault mutex.
What mmap has reserved stays so until the file is cut or gone.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, fetch_or, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes, copy_bytes
from numaemu.compiler.pointer import address_of, u64
from numaemu.kernel.arch.pgalloc import hugetlb_walk
from numaemu.kernel.arch.pgtable import mm_of, pte_pfn
from numaemu.kernel.arch.tlb import dec_tlb_flush_pending, inc_tlb_flush_pending
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock, spin_lock, spin_unlock, write_lock, write_unlock
from numaemu.kernel.core.xarray import MAX_INDEX, entry_is_page, xa_find, xa_load, xa_slot
from numaemu.kernel.fs.inode import ENFILE, destroy_inode, file_of, inode_of, new_inode, put_inode
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import HUGETLB, VM_NORESERVE, VM_SHARED, VM_WRITE
from numaemu.kernel.include.mmzone import charge_copy_buffer, page_of
from numaemu.kernel.mm.fault.rmap import mapping_of, new_mapping, next_vma_of
from numaemu.kernel.mm.huge.hugetlb import (
    hugetlb_acct_memory,
    hugetlb_evict,
    hugetlb_reserve_pages,
    resv_map_alloc,
    resv_map_release,
    return_unused_surplus_pages,
    vma_hugecache_offset,
)
from numaemu.kernel.mm.huge.hugetlb_fault import (
    fault_mutex_at,
    filemap_get_hugetlb_folio,
    flush_hugetlb_tlb_range,
    hugetlb_zap,
)
from numaemu.kernel.mm.huge.hugetlb_pool import (
    NR_FAULT_MUTEXES,
    hstate_at,
    hstate_vma,
    huge_page_shift,
    huge_page_size,
    region_count,
    resv_bits,
    resv_map_t,
    resv_set,
)
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.space.vma_index import vma_of
from numaemu.spec.param import PAGE_SHIFT
from numaemu.uapi import errno

U = np.uint64
ENOMEM, EINVAL, EFBIG = errno.ENOMEM, errno.EINVAL, errno.EFBIG


@hot
def is_hugetlbfs(machine, inode):
    """True if a file has huge pages."""
    return inode.object != 0 and mapping_of(machine, inode.object).shared == HUGETLB


@kernel("i64(machine_t*, i64)")
def hstate_file(machine, file):
    """Number of the pool of an open file, -1: it has small pages."""
    inode = inode_of(machine, file_of(machine, file).inode)
    return mapping_of(machine, inode.object).hstate if is_hugetlbfs(machine, inode) else -1


@kernel("i64(cpu_t*, i64)")
def hugetlbfs_get_inode(cpu, hstate):
    """A new empty file of a pool's pages without a name, held; -ENFILE or -ENOMEM."""
    machine = machine_of(cpu)
    room = max(1024, 2 * machine.total_ram_pages >> hstate_at(machine, hstate).order)
    where = resv_map_alloc(cpu, 0, room)
    if where == U(0):
        return -ENOMEM
    number = new_inode(cpu)
    object_number = new_mapping(cpu, HUGETLB) if number > 0 else 0
    if object_number == 0:
        if number > 0:
            put_inode(cpu, number)
            destroy_inode(cpu, number)
        resv_map_release(cpu, where)
        return -ENFILE
    mapping, resv_map_t.at(where).size = mapping_of(machine, object_number), 0
    mapping.host, mapping.hstate, mapping.resv_map = number, hstate, where
    store_release(mapping, "users", 1)
    inode_of(machine, number).object = object_number
    return number


@hot
def set_end(machine, inode, end):
    """The file ends with a huge page from now on."""
    mapping = mapping_of(machine, inode.object)
    store_release(inode, "i_size", end << (hstate_at(machine, mapping.hstate).order + PAGE_SHIFT))
    store_release(resv_map_t.at(mapping.resv_map), "size", end)


# -- mmap -----------------------------------------------------------------------------------------------------------


@kernel("bool(cpu_t*, hstate_t*, u64, i64, i64)")
def reserve_range(cpu, h, where, first, end):
    """Reserve what is neither there nor reserved of [first, end); False: there is not as much. Under i_rwsem.

    A fault without a reservation may bring a page meanwhile: then there was one too many.
    """
    missing, got = end - first - region_count(where, first, end), 0
    if missing > 0 and not hugetlb_acct_memory(cpu, h, missing):
        return False
    for index in range(first, end):
        bit = U(1) << U(index % 64)
        if fetch_or(resv_bits(where), index // 64, bit) & bit == U(0):
            got += 1
    if missing > got:
        return_unused_surplus_pages(cpu, h, missing - got)
    return True


@kernel("i64(cpu_t*, i64)")
def hugetlbfs_file_mmap(cpu, vma_number):
    """A new VMA maps a file of huge pages: what is promised to it, and the file as long as it: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    inode, h = inode_of(machine, file_of(machine, vma.file).inode), hstate_vma(machine, vma)
    where = mapping_of(machine, inode.object).resv_map
    first, end = vma_hugecache_offset(h, vma, vma.start), vma_hugecache_offset(h, vma, vma.end)
    if end > resv_map_t.at(where).pages:
        return -ENOMEM
    lock = address_of(inode, "i_rwsem")
    write_lock(cpu, lock)
    if vma.flags & VM_SHARED:
        promised = vma.flags & VM_NORESERVE != 0 or reserve_range(cpu, h, where, first, end)
    else:
        promised = hugetlb_reserve_pages(cpu, vma_number) == 0  # its own, for its copies
    if promised and vma.flags & VM_WRITE and resv_map_t.at(where).size < end:
        set_end(machine, inode, end)
    write_unlock(lock)
    return 0 if promised else -ENOMEM


# -- read, truncate -------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64, u64, i64)")
def hugetlbfs_read(cpu, number, pos, buffer, nbytes):
    """read(2) into host memory: how many bytes. Holes are zeros and stay holes."""
    machine, done = machine_of(cpu), 0
    inode = inode_of(machine, number)
    mapping, lock = mapping_of(machine, inode.object), address_of(inode, "i_rwsem")
    shift = hstate_at(machine, mapping.hstate).order + PAGE_SHIFT
    read_lock(cpu, lock)
    while done < nbytes and pos + done < inode.i_size:
        index, offset = (pos + done) >> shift, (pos + done) & ((1 << shift) - 1)
        n = min(nbytes - done, inode.i_size - pos - done, (1 << shift) - offset)
        pfn = filemap_get_hugetlb_folio(cpu, inode.object, index)
        if pfn != 0:
            copy_bytes(buffer + U(done), frame_of(machine, pfn) + U(offset), n)
            charge_copy_buffer(machine, cpu, pfn, n)
            put_page(cpu, pfn)
        else:
            clear_bytes(buffer + U(done), n)
            cpu.clock_base_ns += machine.copy_page_ns * n >> PAGE_SHIFT
        done += n
    read_unlock(lock)
    return done


@kernel("void(cpu_t*, vma_t*, u64, u64)")
def unmap_hugepage_range(cpu, vma, start, end):
    """Take the huge pages of [start, end) out of one VMA. Who finds an entry gone flushes too (see zap_page_range)."""
    machine = machine_of(cpu)
    h, mm, address = hstate_vma(machine, vma), mm_of(machine, vma.mm), start
    inc_tlb_flush_pending(mm)
    while address < end:
        where = hugetlb_walk(machine, mm, address, huge_page_shift(h))
        pfn = hugetlb_zap(cpu, mm, vma, address, where) if where != U(0) else 0
        if pfn != 0:
            flush_hugetlb_tlb_range(cpu, h, vma.mm, address, address + huge_page_size(h))
            put_page(cpu, pfn)
        address += huge_page_size(h)
    dec_tlb_flush_pending(mm)


@kernel("void(cpu_t*, i64, i64, i64)")
def hugetlb_vmdelete_list(cpu, number, first, end):
    """Take the huge pages [first, end) of an object out of every address space, private copies of them too."""
    machine = machine_of(cpu)
    mapping = mapping_of(machine, number)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    vma_number = mapping.first_vma
    while vma_number != 0:
        vma = vma_of(machine, vma_number)
        h = hstate_vma(machine, vma)
        begin = vma_hugecache_offset(h, vma, vma.start)
        low, high = max(first - begin, 0), min(end, vma_hugecache_offset(h, vma, vma.end)) - begin
        if low < high:
            shift = huge_page_shift(h)
            unmap_hugepage_range(cpu, vma, vma.start + (U(low) << shift), vma.start + (U(high) << shift))
        vma_number = next_vma_of(mapping, vma)
    spin_unlock(lock)


@kernel("void(cpu_t*, i64, i64, i64)")
def remove_inode_hugepages(cpu, number, first, end):
    """Drop the huge pages [first, end) of an object, each under its fault mutex; what was reserved for them goes along."""
    machine = machine_of(cpu)
    mapping, index = mapping_of(machine, number), first
    h = hstate_at(machine, mapping.hstate)
    hugetlb_vmdelete_list(cpu, number, first, end)
    while True:
        index = xa_find(machine, mapping, index, end)
        if index < 0:
            return
        mutex = fault_mutex_at(h, (number * 7 + index) % NR_FAULT_MUTEXES)
        spin_lock(cpu, mutex)
        entry = xa_load(machine, mapping, index)
        if entry_is_page(entry):
            page = page_of(machine, pte_pfn(entry))
            if load_acquire(page, "mapcount") > 0:  # faulted in again, or just being moved
                hugetlb_vmdelete_list(cpu, number, index, index + 1)
            store_release(u64.array(xa_slot(machine, mapping, index)), 0, U(0))
            fetch_add(mapping, "nr_pages", -1)
            resv_set(mapping.resv_map, index, False)
            page.mapping = 0
            put_page(cpu, pte_pfn(entry))
        spin_unlock(mutex)
        index += 1


@kernel("void(cpu_t*, i64, i64)")
def hugetlb_vmtruncate(cpu, number, first):
    """Drop huge page `first` of an object and all behind it, and what was reserved there. The end is before them already.

    Who was in a fault when the end moved has its mutex: after each of these was free once, nobody brings such a page.
    """
    machine = machine_of(cpu)
    mapping = mapping_of(machine, number)
    h, where = hstate_at(machine, mapping.hstate), mapping.resv_map
    for which in range(NR_FAULT_MUTEXES):
        spin_lock(cpu, fault_mutex_at(h, which))
        spin_unlock(fault_mutex_at(h, which))
    remove_inode_hugepages(cpu, number, first, MAX_INDEX)
    pages = resv_map_t.at(where).pages
    reserved = region_count(where, first, pages)
    for index in range(first, pages):
        resv_set(where, index, False)
    return_unused_surplus_pages(cpu, h, reserved)


@kernel("void(cpu_t*, i64, i64, i64)")
def hugetlbfs_zero_partial_page(cpu, number, start, end):
    """Clear the bytes [start, end) of an object, within one huge page, if it is there."""
    machine = machine_of(cpu)
    shift = hstate_at(machine, mapping_of(machine, number).hstate).order + PAGE_SHIFT
    pfn = filemap_get_hugetlb_folio(cpu, number, start >> shift)
    if pfn != 0:
        clear_bytes(frame_of(machine, pfn) + U(start & ((1 << shift) - 1)), end - start)
        put_page(cpu, pfn)


@kernel("void(cpu_t*, i64, i64, i64)")
def hugetlbfs_punch_hole(cpu, number, start, end):
    """Drop the huge pages that lie wholly in the bytes [start, end) of an object, and clear the others' part of it."""
    machine = machine_of(cpu)
    mapping = mapping_of(machine, number)
    shift, lock = hstate_at(machine, mapping.hstate).order + PAGE_SHIFT, U(0)
    first, last = (start + (1 << shift) - 1) >> shift, end >> shift
    if mapping.host != 0:
        lock = address_of(inode_of(machine, mapping.host), "i_rwsem")
        write_lock(cpu, lock)
    if start < first << shift:
        hugetlbfs_zero_partial_page(cpu, number, start, min(end, first << shift))
    if first < last:
        remove_inode_hugepages(cpu, number, first, last)
    if end > last << shift and end > first << shift:
        hugetlbfs_zero_partial_page(cpu, number, last << shift, end)
    if lock != U(0):
        write_unlock(lock)


@kernel("i64(cpu_t*, i64, i64)")
def hugetlbfs_setattr(cpu, number, size):
    """truncate(2): by whole huge pages; 0 or -errno."""
    machine = machine_of(cpu)
    inode = inode_of(machine, number)
    mapping = mapping_of(machine, inode.object)
    shift = hstate_at(machine, mapping.hstate).order + PAGE_SHIFT
    end = size >> shift
    if size & ((1 << shift) - 1) != 0:
        return -EINVAL
    if end > resv_map_t.at(mapping.resv_map).pages:
        return -EFBIG
    lock = address_of(inode, "i_rwsem")
    write_lock(cpu, lock)
    smaller = end < resv_map_t.at(mapping.resv_map).size
    set_end(machine, inode, end)
    if smaller:
        hugetlb_vmtruncate(cpu, inode.object, end)
    write_unlock(lock)
    return 0


@kernel("void(cpu_t*, i64)")
def hugetlbfs_evict_inode(cpu, number):
    """The inode goes: its object with it, unless somebody still maps it."""
    mapping = mapping_of(machine_of(cpu), number)
    if fetch_add(mapping, "users", -1) == 1:
        hugetlb_evict(cpu, number)

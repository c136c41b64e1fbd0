"""Address spaces: mmap, munmap, brk and the growth of stacks. Linux's mm/mmap.c and the unmapping part of mm/vma.c."""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.hardware.paging import PAGE_MASK
from numaemu.kernel.arch.pgtable import mm_of, users_end
from numaemu.kernel.arch.tlb import mm_tlb_flush_pending
from numaemu.kernel.core.pool import pool_put
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.hugetlbfs import hstate_file, hugetlbfs_file_mmap
from numaemu.kernel.fs.inode import file_of, get_file, inode_of
from numaemu.kernel.include.mm import page_align, vma_pages
from numaemu.kernel.include.mm_types import (
    HUGETLB,
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SHARED,
    VM_SOFTDIRTY,
)
from numaemu.kernel.mm.cache.filemap import MAX_FILE_BYTES
from numaemu.kernel.mm.cache.shmem import shmem_evict
from numaemu.kernel.mm.cache.truncate import fput
from numaemu.kernel.mm.fault.mmu_gather import CLEARED_DIRTY, gather_of, tlb_flush_mmu
from numaemu.kernel.mm.fault.rmap import (
    link_file_vma,
    link_vma,
    mapping_of,
    mapping_put,
    new_mapping,
    unlink_file_vma,
    unlink_vma,
)
from numaemu.kernel.mm.fault.zap import free_pgd_range, unmap_page_range
from numaemu.kernel.mm.huge.hugetlb import hugetlb_evict, hugetlb_reserve_pages, hugetlb_vm_op_close
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at, hstate_sizelog, huge_page_size, pages_per_huge_page
from numaemu.kernel.mm.space.get_unmapped_area import MMAP_MIN_ADDR, place_mapping
from numaemu.kernel.mm.space.util import (
    accountable_mapping,
    can_do_mlock,
    may_expand_vm,
    mlock_future_ok,
    rlimit,
    vm_acct_memory,
    vm_enough_memory,
    vm_stat_account,
)
from numaemu.kernel.mm.space.vma import (
    anon_vma_prepare,
    merge_at,
    mlock_vma_pages_range,
    move_start,
    new_vma,
    split_for_munmap,
)
from numaemu.kernel.mm.space.vma_index import (
    STACK_GUARD_GAP,
    find_position,
    find_vma_intersection,
    insert_at,
    map_count,
    pages_between,
    remove_at,
    vm_start_gap,
    vma_at,
    vma_index,
    vma_of,
)
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import (
    MAP_32BIT,
    MAP_ABOVE4G,
    MAP_ANONYMOUS,
    MAP_DENYWRITE,
    MAP_EXECUTABLE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_HUGE_1GB,
    MAP_HUGE_2MB,
    MAP_HUGETLB,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_TYPE,
    MAP_UNINITIALIZED,
    O_ACCMODE,
    O_RDWR,
    O_WRONLY,
    OVERCOMMIT_NEVER,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    RLIMIT_DATA,
    RLIMIT_STACK,
    errno,
)

U = np.uint64
EINVAL, ENOMEM, EEXIST, EPERM, EAGAIN = errno.EINVAL, errno.ENOMEM, errno.EEXIST, errno.EPERM, errno.EAGAIN
EOPNOTSUPP, EOVERFLOW, EACCES = errno.EOPNOTSUPP, errno.EOVERFLOW, errno.EACCES
# what a mapping of a file may say with MAP_SHARED_VALIDATE; MAP_SYNC needs a file system that lies in memory itself
# fmt: off
LEGACY_MAP_MASK = (MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE | MAP_EXECUTABLE | MAP_UNINITIALIZED |
                   MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB |
                   MAP_32BIT | MAP_ABOVE4G | MAP_HUGE_2MB | MAP_HUGE_1GB)
# fmt: on


@hot
def wraps(start, nbytes):
    """True if a range goes beyond the last address that a word holds."""
    return nbytes > ~start


# -- munmap --------------------------------------------------------------------------------------------------


@hot
def get_mm_rss(mm):
    """Pages that an address space maps."""
    return mm.rss[MM_ANONPAGES] + mm.rss[MM_FILEPAGES] + mm.rss[MM_SHMEMPAGES]


@hot
def update_hiwater(mm):
    """Before memory goes: remember how much there was. update_hiwater_rss, update_hiwater_vm"""
    mm.hiwater_rss = max(mm.hiwater_rss, get_mm_rss(mm))
    mm.hiwater_vm = max(mm.hiwater_vm, mm.total_vm)


@kernel("void(cpu_t*, i64)")
def free_vma(cpu, vma_number):
    """A VMA that is in no index any more: out of its family, whose last member takes the mapping along."""
    machine = machine_of(cpu)
    mapping, file = vma_of(machine, vma_number).mapping, vma_of(machine, vma_number).file
    if file != 0:
        if vma_of(machine, vma_number).i_mapping != 0:
            unlink_file_vma(cpu, vma_number)
        fput(cpu, file)
    hugetlb_vm_op_close(cpu, vma_of(machine, vma_number))
    if mapping != 0 and unlink_vma(cpu, vma_number):
        if mapping_of(machine, mapping).shared == HUGETLB:
            hugetlb_evict(cpu, mapping)
        elif mapping_of(machine, mapping).shared:
            shmem_evict(cpu, mapping)
        else:
            mapping_put(cpu, mapping)
    pool_put(cpu, machine.vma_pool, vma_number)


@kernel("bool(cpu_t*, mm_t*, i64, vma_t*)")
def unmap_vma(cpu, mm, mm_number, vma):
    """Take out a VMA's pages and what it was charged with; True if entries changed."""
    if vma.flags & VM_LOCKED:
        vma.flags &= ~VM_LOCKED_MASK
        mm.locked_vm -= vma_pages(vma)
        mlock_vma_pages_range(cpu, vma, vma.start, vma.end)
    changed = unmap_page_range(cpu, mm_number, vma.start, vma.end)
    vm_stat_account(mm, vma.flags, -vma_pages(vma))
    if vma.flags & VM_ACCOUNT:
        vm_acct_memory(machine_of(cpu), -vma_pages(vma))
    return changed


@kernel("void(cpu_t*, i64, i64, i64)")
def unmap_region(cpu, mm_number, first, last):
    """Unmap the VMAs at positions [first, last): pages, then tables that nobody else needs, one flush for all."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    start, end = vma_at(machine, mm_number, first).start, vma_at(machine, mm_number, last - 1).end
    floor = vma_at(machine, mm_number, first - 1).end if first > 0 else U(0)
    ceiling = vma_at(machine, mm_number, last).start if last < mm.map_count else users_end(machine)
    gather_of(machine, cpu)[0] = 0
    changed = False
    update_hiwater(mm)
    for position in range(first, last):
        if unmap_vma(cpu, mm, mm_number, vma_at(machine, mm_number, position)):
            changed = True
    if cpu.cleared & CLEARED_DIRTY:  # the files that these pages are of may go with their VMAs
        tlb_flush_mmu(cpu, mm_number, start, end)
        changed = False
    for _ in range(first, last):
        number = vma_index(machine, mm_number)[first]
        remove_at(machine, mm_number, first)
        free_vma(cpu, number)
    if free_pgd_range(cpu, mm_number, start, end, floor, ceiling):
        changed = True
    if changed or mm_tlb_flush_pending(mm):
        tlb_flush_mmu(cpu, mm_number, start, end)


@kernel("i64(cpu_t*, i64, u64, u64)")
def do_munmap(cpu, mm_number, start, length):
    """munmap(2): 0 or a negative errno. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    length = page_align(length)
    limit = machine.paging.task_size
    if start & ~PAGE_MASK != U(0) or length == U(0) or start > limit or length > limit - start:
        return -EINVAL
    error = split_for_munmap(cpu, mm_number, start, start + length)
    if error != 0:
        return error
    first = find_position(machine, mm_number, start)
    last = find_position(machine, mm_number, start + length - U(1))
    if last < map_count(machine, mm_number) and vma_at(machine, mm_number, last).start < start + length:
        last += 1
    if last > first:
        unmap_region(cpu, mm_number, first, last)
    return 0


# -- mmap ----------------------------------------------------------------------------------------------------


@hot
def calc_vm_flags(prot, flags):
    """The VM_* flags of a mapping for PROT_* and MAP_*. Mirrors calc_vm_prot_bits and calc_vm_flag_bits."""
    vm_flags = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | (prot & (PROT_READ | PROT_WRITE | PROT_EXEC))
    if flags & MAP_GROWSDOWN:
        vm_flags |= VM_GROWSDOWN
    if flags & MAP_LOCKED:
        vm_flags |= VM_LOCKED
    return vm_flags | VM_SHARED | VM_MAYSHARE if flags & MAP_SHARED else vm_flags


@kernel("i64(cpu_t*, i64, i64)")
def shmem_zero_setup(cpu, vma_number, charge):
    """A shared mapping of nothing gets an object of its own, as long as it, which is charged whole: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    mapping = new_mapping(cpu, 1)
    if mapping == 0:
        return -ENOMEM
    mapping_of(machine, mapping).acct = charge
    mapping_of(machine, mapping).size = vma_pages(vma_of(machine, vma_number))
    vma_of(machine, vma_number).mapping = mapping
    link_vma(cpu, mapping, vma_number)
    return 0


@kernel("void(cpu_t*, i64, i64)")
def map_file(cpu, vma_number, file):
    """A VMA maps an open file from now on, and holds it (call_mmap, vma_link_file)."""
    machine = machine_of(cpu)
    vma, inode = vma_of(machine, vma_number), inode_of(machine, file_of(machine, file).inode)
    get_file(machine, file)
    vma.file = file
    vma.i_mapping = inode.object if inode.object != 0 else inode.mapping
    link_file_vma(cpu, vma_number, 0)


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64, i64, i64)")
def insert_region(cpu, mm_number, address, length, vm_flags, file, pgoff, hstate):
    """The VMA of mmap_region, charged already, melted with equal neighbours: 0 or -ENOMEM."""
    machine = machine_of(cpu)
    shared, pages = vm_flags & VM_SHARED != 0 and file == 0, np.int64(length >> U(PAGE_SHIFT))
    huge = vm_flags & VM_HUGETLB != 0
    if file == 0:
        pgoff = 0 if shared or huge else np.int64(address >> U(PAGE_SHIFT))
    number = new_vma(cpu, mm_number, address, address + length, vm_flags, pgoff)
    if number == 0:
        return -ENOMEM
    if file != 0:
        map_file(cpu, number, file)
    vma_of(machine, number).hstate = hstate
    if huge and file != 0 and hugetlbfs_file_mmap(cpu, number) != 0:
        free_vma(cpu, number)
        return -ENOMEM
    if huge and file == 0 and hugetlb_reserve_pages(cpu, number) != 0:
        pool_put(cpu, machine.vma_pool, number)
        return -ENOMEM
    if shared and not huge and shmem_zero_setup(cpu, number, 0 if vm_flags & VM_NORESERVE else pages) != 0:
        pool_put(cpu, machine.vma_pool, number)
        return -ENOMEM
    position = find_position(machine, mm_number, address)
    insert_at(machine, mm_number, position, number)
    vm_stat_account(mm_of(machine, mm_number), vm_flags, pages)
    if vm_flags & VM_LOCKED:
        mm_of(machine, mm_number).locked_vm += pages
    merge_at(cpu, mm_number, position, True)
    return 0


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64, i64, i64)")
def mmap_region(cpu, mm_number, address, length, vm_flags, file, pgoff, hstate):
    """Put a new VMA in the place of what is there: the address or a negative errno.

    Whatever can be refused is, before the old mappings go (MAP_FIXED); what these were charged with counts for the new one.
    `file` is an open file, 0 for none; `pgoff` the page of it that the VMA begins with; `hstate` the pool of huge pages.
    """
    machine = machine_of(cpu)
    pages, end = np.int64(length >> U(PAGE_SHIFT)), address + length
    replaced, accounted = pages_between(machine, mm_number, address, end, 0), 0
    if not may_expand_vm(cpu, mm_of(machine, mm_number), vm_flags, pages - replaced):
        return -ENOMEM
    if replaced > 0:
        error = split_for_munmap(cpu, mm_number, address, end)
        if error != 0:
            return error
        accounted = pages_between(machine, mm_number, address, end, VM_ACCOUNT)
    vm_flags |= VM_SOFTDIRTY
    charge = 0
    if vm_flags & VM_HUGETLB:  # the pool accounts for it
        pass
    elif accountable_mapping(vm_flags):
        charge, vm_flags = pages, vm_flags | VM_ACCOUNT
    elif vm_flags & VM_SHARED and vm_flags & VM_NORESERVE == 0 and file == 0:
        charge, accounted = pages, 0  # the object's own, which is charged whole
    else:
        accounted = 0
    if charge != accounted and vm_enough_memory(cpu, mm_number, charge - accounted) != 0:
        return -ENOMEM
    if replaced > 0:  # from here on nothing brings the old mapping back
        do_munmap(cpu, mm_number, address, length)
        vm_acct_memory(machine, accounted)  # which the new one takes over
    if insert_region(cpu, mm_number, address, length, vm_flags, file, pgoff, hstate) != 0:
        vm_acct_memory(machine, -charge)
        return -ENOMEM
    return np.int64(address)


@kernel("i64(machine_t*, i64, i64, i64)")
def hstate_of_mmap(machine, flags, file, pgoff):
    """Number of the pool that a mapping's pages come from, -1: small pages; or -EINVAL."""
    if file == 0:
        return hstate_sizelog(machine, flags) if flags & MAP_HUGETLB else -1
    hstate = hstate_file(machine, file)
    if hstate < 0:
        return -EINVAL if flags & MAP_HUGETLB else -1
    return hstate if pgoff & (pages_per_huge_page(hstate_at(machine, hstate)) - 1) == 0 else -EINVAL


@kernel("i64(machine_t*, i64, i64, i64, u64, i64)")
def check_mapping_type(machine, prot, flags, file, length, pgoff):
    """What do_mmap asks of MAP_TYPE, and of the file that is mapped: 0 or a negative errno."""
    kind, shared, grows = flags & MAP_TYPE, flags & MAP_TYPE != MAP_PRIVATE, flags & MAP_GROWSDOWN != 0
    if file == 0:
        return 0 if kind == MAP_PRIVATE or (kind == MAP_SHARED and not grows) else -EINVAL
    mode = file_of(machine, file).flags & O_ACCMODE
    if length > U(MAX_FILE_BYTES) or U(pgoff) > (U(MAX_FILE_BYTES) - length) >> U(PAGE_SHIFT):
        return -EOVERFLOW  # file_mmap_ok
    if kind == MAP_SHARED_VALIDATE and flags & ~LEGACY_MAP_MASK:
        return -EOPNOTSUPP
    if shared and kind != MAP_SHARED and kind != MAP_SHARED_VALIDATE:
        return -EINVAL
    if mode == O_WRONLY or (shared and prot & PROT_WRITE and mode != O_RDWR):
        return -EACCES
    return -EINVAL if grows else 0


@kernel("i64(cpu_t*, i64, u64, u64, i64, i64, i64, i64)")
def do_mmap(cpu, mm_number, hint, length, prot, flags, file, pgoff):
    """mmap(2) of anonymous memory, or of an open file from page `pgoff` on: the address, or a negative errno.

    The mmap_lock is held for writing.
    """
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    hstate = hstate_of_mmap(machine, flags, file, pgoff)
    if hstate < -1 or length == U(0):
        return hstate if hstate < -1 else -EINVAL
    huge = hstate >= 0
    if huge:
        size = huge_page_size(hstate_at(machine, hstate))
        length = (length + size - U(1)) & ~(size - U(1)) if length <= ~size else U(0)
    length = page_align(length)
    if length == U(0) or mm.map_count > machine.max_map_count:
        return -ENOMEM
    address = place_mapping(cpu, mm_number, hint, length, flags, file, pgoff, hstate)
    if address < 0:
        return address
    vm_flags = calc_vm_flags(prot, flags) | mm.def_flags
    if file != 0 and flags & MAP_SHARED and file_of(machine, file).flags & O_ACCMODE != O_RDWR:
        vm_flags &= ~(VM_MAYWRITE if huge else VM_MAYWRITE | VM_SHARED)  # never written through: nothing is shared
    if flags & MAP_LOCKED and not can_do_mlock(cpu):
        return -EPERM
    if not mlock_future_ok(cpu, mm, vm_flags, length):
        return -EAGAIN
    error = check_mapping_type(machine, prot, flags, file, length, pgoff)
    if error != 0:
        return error
    if flags & MAP_NORESERVE and machine.overcommit_memory != OVERCOMMIT_NEVER:
        vm_flags |= VM_NORESERVE
    if huge:
        vm_flags = (vm_flags & ~VM_LOCKED_MASK) | VM_HUGETLB | VM_DONTEXPAND
        if flags & MAP_NORESERVE:
            vm_flags |= VM_NORESERVE
    return mmap_region(cpu, mm_number, U(address), length, vm_flags, file, pgoff, max(hstate, 0))


# -- stacks --------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, mm_t*, vma_t*, u64)")
def acct_stack_growth(cpu, mm, vma, start):
    """Whether a stack may grow down to `start`, which is charged then: 0 or -ENOMEM."""
    grow = vma.start - start
    if (
        not may_expand_vm(cpu, mm, vma.flags, np.int64(grow >> U(PAGE_SHIFT)))
        or vma.end - start > rlimit(cpu, RLIMIT_STACK)
        or not mlock_future_ok(cpu, mm, vma.flags, grow)
    ):
        return -ENOMEM
    return vm_enough_memory(cpu, vma.mm, np.int64(grow >> U(PAGE_SHIFT)))


@kernel("i64(cpu_t*, i64, u64)")
def expand_downwards(cpu, vma_number, address):
    """Let a VM_GROWSDOWN mapping grow down to `address`: 0 or -ENOMEM. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    vma, start = vma_of(machine, vma_number), address & PAGE_MASK
    mm = mm_of(machine, vma.mm)
    if start < MMAP_MIN_ADDR:
        return -EPERM
    position = find_position(machine, vma.mm, vma.start)
    if position > 0:
        below = vma_at(machine, vma.mm, position - 1)
        if below.flags & VM_GROWSDOWN == 0 and below.flags & VM_ACCESS_FLAGS and start - below.end < STACK_GUARD_GAP:
            return -ENOMEM
        if below.end > start:
            return -ENOMEM
    grow = np.int64((vma.start - start) >> U(PAGE_SHIFT))
    if vma.mapping == 0 and not anon_vma_prepare(cpu, vma_number):
        return -ENOMEM
    if grow > vma.pgoff or acct_stack_growth(cpu, mm, vma, start) != 0:
        return -ENOMEM
    if vma.flags & VM_LOCKED:
        mm.locked_vm += grow
    vm_stat_account(mm, vma.flags, grow)
    move_start(cpu, vma, start, vma.pgoff - grow)
    return 0


# -- brk -----------------------------------------------------------------------------------------------------


@kernel("bool(cpu_t*, i64, u64, u64)")
def grow_brk(cpu, mm_number, old, new):
    """do_brk_flags, after the checks of brk(2); success."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    flags, pages = (
        calc_vm_flags(PROT_READ | PROT_WRITE, MAP_PRIVATE) | VM_ACCOUNT | VM_SOFTDIRTY | mm.def_flags,
        np.int64((new - old) >> U(PAGE_SHIFT)),
    )
    if new > machine.paging.task_size or not mlock_future_ok(cpu, mm, mm.def_flags, new - old):
        return False
    if not may_expand_vm(cpu, mm, flags, pages) or mm.map_count > machine.max_map_count:
        return False
    if find_vma_intersection(machine, mm_number, old, new) != 0:
        return False
    position = find_position(machine, mm_number, old)
    if position < mm.map_count and vm_start_gap(vma_at(machine, mm_number, position)) < new + U(PAGE_SIZE):
        return False
    if vm_enough_memory(cpu, mm_number, pages) != 0:
        return False
    if insert_region(cpu, mm_number, old, new - old, flags, 0, 0, 0) != 0:
        vm_acct_memory(machine, -pages)
        return False
    return True


@kernel("i64(cpu_t*, i64, u64)")
def do_brk(cpu, mm_number, brk):
    """brk(2): the new end of the heap, or the old one if that cannot be. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if brk < mm.start_brk or brk > machine.paging.task_size or brk - mm.start_brk > rlimit(cpu, RLIMIT_DATA):
        return np.int64(mm.brk)
    new, old = page_align(brk), page_align(mm.brk)
    if new < old:
        if find_vma_intersection(machine, mm_number, new, old) == 0 or do_munmap(cpu, mm_number, new, old - new) != 0:
            return np.int64(mm.brk)
    elif new > old and not grow_brk(cpu, mm_number, old, new):
        return np.int64(mm.brk)
    mm.brk = brk
    return np.int64(brk)

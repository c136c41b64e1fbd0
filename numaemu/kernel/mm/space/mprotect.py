"""mprotect(2): Linux's mm/mprotect.c."""

import numpy as np

from numaemu.compiler.decorators import kernel
from numaemu.hardware.paging import _PAGE_NX, _PAGE_RW, _PAGE_USER, PAGE_MASK
from numaemu.kernel.arch.pgalloc import covers_huge, huge_entry_offset
from numaemu.kernel.arch.pgtable import (
    _PAGE_SPECIAL,
    is_migration_entry,
    mm_of,
    pte_offset,
    pte_pfn,
    pte_present,
    ptep_cmpxchg,
    ptep_get,
    skip_missing,
    vm_page_nx,
)
from numaemu.kernel.arch.tlb import flush_tlb_mm_range, mm_tlb_flush_pending
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm import page_align
from numaemu.kernel.include.mm_types import (
    VM_ACCESS_FLAGS,
    VM_ACCOUNT,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGETLB,
    VM_NORESERVE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    PG_anon,
    PG_anon_exclusive,
)
from numaemu.kernel.include.mmzone import page_of
from numaemu.kernel.mm.huge.huge_memory import change_huge_pmd
from numaemu.kernel.mm.huge.hugetlb_fault import hugetlb_change_protection
from numaemu.kernel.mm.huge.split import split_huge_pmd
from numaemu.kernel.mm.reclaim.lru import folio_test
from numaemu.kernel.mm.space.mmap import wraps
from numaemu.kernel.mm.space.util import may_expand_vm, vm_acct_memory, vm_enough_memory, vm_stat_account
from numaemu.kernel.mm.space.vma import vma_is_anonymous, vma_modify_flags
from numaemu.kernel.mm.space.vma_index import find_position, map_count, vma_at
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import PROT_EXEC, PROT_GROWSDOWN, PROT_GROWSUP, PROT_READ, PROT_SEM, PROT_WRITE, errno

U = np.uint64
EINVAL, ENOMEM, EACCES = errno.EINVAL, errno.ENOMEM, errno.EACCES
_GROWS = PROT_GROWSDOWN | PROT_GROWSUP


@kernel("bool(machine_t*, u64)")
def can_change_pte_writable(machine, pte):
    """mprotect may allow writing at once where the page is ours alone."""
    if pte & _PAGE_SPECIAL != U(0):
        return False
    page = page_of(machine, pte_pfn(pte))
    return folio_test(page, PG_anon) and folio_test(page, PG_anon_exclusive)


@kernel("void(cpu_t*, vma_t*, u64, u64)")
def change_protection(cpu, vma, start, end):
    """mprotect's work on the entries of [start, end): take permission away, or give it where nothing is to be copied."""
    machine = machine_of(cpu)
    if vma.flags & VM_HUGETLB:
        hugetlb_change_protection(cpu, vma, start, end)
        return
    mm, nx, flags = mm_of(machine, vma.mm), vm_page_nx(machine, vma), vma.flags
    writable, private = flags & VM_WRITE != 0, flags & VM_SHARED == 0
    accessible = flags & (VM_READ | VM_WRITE | VM_EXEC) != 0
    address, changed = start, False
    while address < end:
        ptep = pte_offset(machine, mm, address)
        if ptep == U(0):
            where = huge_entry_offset(machine, mm, address)
            if where != U(0) and not covers_huge(machine, address, end):
                split_huge_pmd(cpu, where)
                changed = True
                continue
            if where != U(0) and change_huge_pmd(cpu, vma, where):
                changed = True
            address = skip_missing(machine, mm, address)
            continue
        pte = ptep_get(ptep)
        wanted = pte
        if pte_present(pte) or is_migration_entry(pte):
            if not writable:
                wanted &= ~_PAGE_RW
            wanted = wanted | _PAGE_USER if accessible else wanted & ~_PAGE_USER
            wanted = (wanted & ~_PAGE_NX) | nx
        if pte_present(pte):
            if writable and private and can_change_pte_writable(machine, pte):
                wanted |= _PAGE_RW
        if wanted != pte:
            if not ptep_cmpxchg(ptep, pte, wanted):
                continue
            changed = True
        address += U(PAGE_SIZE)
    if changed or mm_tlb_flush_pending(mm):
        flush_tlb_mm_range(cpu, vma.mm, start, end)


@kernel("i64(cpu_t*, i64, vma_t*, i64, i64)")
def charge_change(cpu, mm_number, vma, new_flags, pages):
    """What VM_ACCOUNT becomes with new permissions: the flags, charged if need be, or -ENOMEM."""
    mm, old = mm_of(machine_of(cpu), mm_number), vma.flags
    if new_flags & VM_WRITE:
        if not may_expand_vm(cpu, mm, new_flags, pages) and may_expand_vm(cpu, mm, old, pages):
            return -ENOMEM
        if old & (VM_ACCOUNT | VM_WRITE | VM_HUGETLB | VM_SHARED | VM_NORESERVE) == 0:
            if vm_enough_memory(cpu, mm_number, pages) != 0:
                return -ENOMEM
            return new_flags | VM_ACCOUNT
    elif old & VM_ACCOUNT and vma_is_anonymous(vma) and vma.anon_vma == 0:
        return new_flags & ~VM_ACCOUNT  # never touched: nothing is promised any more
    return new_flags


@kernel("i64(cpu_t*, i64, i64, u64, u64, i64)")
def mprotect_fixup(cpu, mm_number, position, start, end, prot):
    """Change [start, end) of one VMA: the position it has then, or a negative errno."""
    machine = machine_of(cpu)
    mm, vma, pages = (
        mm_of(machine, mm_number),
        vma_at(machine, mm_number, position),
        np.int64((end - start) >> U(PAGE_SHIFT)),
    )
    old = vma.flags
    flags = (old & ~(VM_READ | VM_WRITE | VM_EXEC)) | prot
    if flags & ~(flags >> 4) & VM_ACCESS_FLAGS:
        return -EACCES
    if flags == old:
        return position
    flags = charge_change(cpu, mm_number, vma, flags, pages)
    if flags < 0:
        return flags
    position = vma_modify_flags(cpu, mm_number, position, start, end, flags)
    if position < 0:
        if flags & ~old & VM_ACCOUNT:
            vm_acct_memory(machine, -pages)
        return position
    if old & ~flags & VM_ACCOUNT:
        vm_acct_memory(machine, -pages)
    change_protection(cpu, vma_at(machine, mm_number, position), start, end)
    vm_stat_account(mm, old, -pages)
    vm_stat_account(mm, flags, pages)
    return position


@kernel("i64(cpu_t*, i64, u64, u64, i64)")
def do_mprotect(cpu, mm_number, start, length, prot):
    """mprotect(2): 0 or a negative errno; what lies before the first hole is changed. The mmap_lock is held for writing."""
    machine = machine_of(cpu)
    nbytes, grows, prot = page_align(length), prot & _GROWS, prot & ~_GROWS
    if start & ~PAGE_MASK != U(0) or grows == _GROWS:
        return -EINVAL
    if length == U(0):
        return 0
    if nbytes == U(0) or wraps(start, nbytes):
        return -ENOMEM
    end = start + nbytes
    if prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM) != 0:
        return -EINVAL
    position = find_position(machine, mm_number, start)
    if grows != 0:
        if position >= map_count(machine, mm_number) or vma_at(machine, mm_number, position).start >= end:
            return -ENOMEM
        if grows == PROT_GROWSUP or vma_at(machine, mm_number, position).flags & VM_GROWSDOWN == 0:
            return -EINVAL  # nothing grows upwards here
        start = vma_at(machine, mm_number, position).start
    prot, at = prot & ~PROT_SEM, start
    while at < end:
        if position >= map_count(machine, mm_number) or vma_at(machine, mm_number, position).start > at:
            return -ENOMEM
        until = min(vma_at(machine, mm_number, position).end, end)
        position = mprotect_fixup(cpu, mm_number, position, at, until, prot)
        if position < 0:
            return position
        at = until
        position = find_position(machine, mm_number, at)
    return 0

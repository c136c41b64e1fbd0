"""Reverse mapping: from a page to every page-table entry that maps it. Linux's mm/rmap.c and anon_vma.

A *mapping* (mapping_t) is the family of VMAs that may map the same pages: an anonymous VMA gets one at its first
fault and its forked copies join it; a shared object has one from its start. A page knows its mapping and its index
in it, so its address in a member VMA is vma.start + (index - vma.pgoff) * 4096. The list is guarded by the mapping's
spin lock; a VMA leaves it before its page tables are freed, so a walker under the lock may look into them.
"""
import numpy as np

from numaemu.atomic import compare_exchange, fetch_add, load_acquire
from numaemu.compile import hot, kernel
from numaemu.kernel.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, PG_anon, PG_swapbacked, mapping_t, vma_t
from numaemu.kernel.mmdebug import VM_BUG_ON_PAGE
from numaemu.kernel.mmzone import page_of, page_to_nid
from numaemu.kernel.pool import pool_get, pool_put
from numaemu.kernel.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.vmstat import NR_ANON_MAPPED, NR_FILE_MAPPED, mod_node_page_state
from numaemu.pointer import address_of

U = np.uint64


@hot
def vma_of(machine, number):
    return vma_t.array(machine.vmas)[number]


@hot
def mapping_of(machine, number):
    return mapping_t.array(machine.mappings)[number]


@kernel("i64(cpu_t*, i64)")
def new_mapping(cpu, shared):
    """An empty family; its number or 0."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.mapping_pool)
    if number != 0:
        mapping = mapping_of(machine, number)
        mapping.lock, mapping.users, mapping.first_vma, mapping.shared = U(0), 0, 0, shared
        mapping.root, mapping.nr_pages, mapping.host = U(0), 0, 0
    return number


@kernel("void(cpu_t*, i64, i64)")
def link_vma(cpu, mapping_number, vma_number):
    """Let a VMA join a family."""
    machine = machine_of(cpu)
    mapping, vma = mapping_of(machine, mapping_number), vma_of(machine, vma_number)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    vma.family_prev, vma.family_next = 0, mapping.first_vma
    if mapping.first_vma != 0:
        vma_of(machine, mapping.first_vma).family_prev = vma_number
    mapping.first_vma = vma_number
    fetch_add(mapping, "users", 1)
    spin_unlock(lock)


@kernel("bool(cpu_t*, i64)")
def unlink_vma(cpu, vma_number):
    """Let a VMA leave its family; True if it was the last one (the caller frees the mapping and its pages)."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    mapping = mapping_of(machine, vma.mapping)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    if vma.family_prev != 0:
        vma_of(machine, vma.family_prev).family_next = vma.family_next
    else:
        mapping.first_vma = vma.family_next
    if vma.family_next != 0:
        vma_of(machine, vma.family_next).family_prev = vma.family_prev
    last = fetch_add(mapping, "users", -1) == 1
    spin_unlock(lock)
    return last


@kernel("void(cpu_t*, i64)")
def link_file_vma(cpu, vma_number):
    """Let a VMA join those that map its file (__vma_link_file)."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    mapping = mapping_of(machine, vma.i_mapping)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    vma.file_prev, vma.file_next = 0, mapping.first_vma
    if mapping.first_vma != 0:
        vma_of(machine, mapping.first_vma).file_prev = vma_number
    mapping.first_vma = vma_number
    fetch_add(mapping, "users", 1)
    spin_unlock(lock)


@kernel("void(cpu_t*, i64)")
def unlink_file_vma(cpu, vma_number):
    """Let a VMA leave those that map its file; the file's inode keeps the mapping."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    mapping = mapping_of(machine, vma.i_mapping)
    lock = address_of(mapping, "lock")
    spin_lock(cpu, lock)
    if vma.file_prev != 0:
        vma_of(machine, vma.file_prev).file_next = vma.file_next
    else:
        mapping.first_vma = vma.file_next
    if vma.file_next != 0:
        vma_of(machine, vma.file_next).file_prev = vma.file_prev
    fetch_add(mapping, "users", -1)
    spin_unlock(lock)


@hot
def next_vma_of(mapping, vma):
    """The next VMA of a mapping's list, for walks from mapping.first_vma under its lock: a file's has links of its own."""
    return vma.file_next if mapping.host != 0 else vma.family_next


@kernel("bool(cpu_t*, i64)")
def anon_vma_prepare(cpu, vma_number):
    """Give an anonymous VMA its family before its first page; several threads may come at once. False: table full."""
    machine = machine_of(cpu)
    vma = vma_of(machine, vma_number)
    lock = address_of(machine, "anon_vma_lock")
    spin_lock(cpu, lock)
    if vma.mapping == 0:
        number = new_mapping(cpu, 0)
        if number != 0:
            link_vma(cpu, number, vma_number)
            compare_exchange(vma, "mapping", 0, number)
    spin_unlock(lock)
    return load_acquire(vma, "mapping") != 0


@kernel("u64(page_t*, vma_t*)")
def page_address_in_vma(page, vma):
    """Where a page of the family would lie in this VMA; 0 if outside."""
    offset = page.index - vma.pgoff
    if offset < 0:
        return U(0)
    address = vma.start + (U(offset) << U(12))
    return address if address < vma.end else U(0)


@hot
def folio_add_anon_rmap(machine, cpu, page, pfn, vma, address):
    """A new anonymous page gets its first page-table entry (folio_add_new_anon_rmap)."""
    page.mapping = vma.mapping
    page.index = vma.pgoff + np.int64((address - vma.start) >> U(12))
    page.mapcount = 1
    page.flags |= U(PG_anon | PG_swapbacked)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_MAPPED, 1)


@kernel("void(machine_t*, cpu_t*, i64)")
def folio_dup_rmap(machine, cpu, pfn):
    """One more page-table entry maps the page; its reference is the caller's to take before (get_page, try_get_page)."""
    page = page_of(machine, pfn)
    if fetch_add(page, "mapcount", 1) == 0:
        anon = page.flags & U(PG_anon) != U(0)
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_MAPPED if anon else NR_FILE_MAPPED, 1)


@kernel("void(machine_t*, cpu_t*, i64)")
def folio_remove_rmap(machine, cpu, pfn):
    """A page-table entry that mapped the page is gone (its reference is not dropped here)."""
    page = page_of(machine, pfn)
    before = fetch_add(page, "mapcount", -1)
    VM_BUG_ON_PAGE(before <= 0, page)
    if before == 1:
        anon = page.flags & U(PG_anon) != U(0)
        mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_ANON_MAPPED if anon else NR_FILE_MAPPED, -1)


@hot
def rss_counter(page):
    """Which of an address space's counters the page belongs to."""
    if page.flags & U(PG_anon) != U(0):
        return MM_ANONPAGES
    return MM_SHMEMPAGES if page.flags & U(PG_swapbacked) != U(0) else MM_FILEPAGES


@kernel("void(cpu_t*, i64)")
def mapping_put(cpu, number):
    """Free a family's number (nobody is in it any more)."""
    pool_put(cpu, machine_of(cpu).mapping_pool, number)

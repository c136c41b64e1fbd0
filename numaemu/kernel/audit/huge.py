"""The audit of huge pages from the pool: its counts, its free lists, what is reserved. Raises on the first mismatch."""

import numpy as np

from numaemu.errors import MachineCheck
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.audit.files import live_inodes
from numaemu.kernel.fs.hugetlbfs import is_hugetlbfs
from numaemu.kernel.fs.inode import inode_of
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm_types import (
    VM_HUGETLB,
    VM_SHARED,
    PG_anon,
    PG_head,
    PG_hugetlb,
    mapping_t,
    page_t,
    task_t,
)
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, page_of, zone_of
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.huge.hugetlb import vma_hugecache_offset
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at, hstate_vma, hugetlb_object, region_count, resv_map_t
from numaemu.kernel.mm.space.vma_index import vma_index, vma_of

U = np.uint64


def pool_pages(machine, h, node):
    """(pages of a pool on a node, those without a reference), by their page structs."""
    total = free = 0
    for kind in range(MAX_NR_ZONES):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.present_pages:
            pages = page_t.array(page_of(machine, zone.start_pfn).address).as_numpy(zone.virgin_pfn - zone.start_pfn)
            pages = pages[(pages["flags"] & U(PG_hugetlb) != 0) & (pages["order"] == h.order)]
            total, free = total + len(pages), free + int((pages["refcount"] == 0).sum())
    return total, free


def freelist_length(machine, h, node):
    pfn, n = h.freelist[node], 0
    while pfn and n <= h.nr_huge_pages:
        pfn, n = page_of(machine, pfn).lru_next, n + 1
    return n


def reserved_pages(machine):
    """What all VMAs and shared objects have reserved and not used, of each pool."""
    totals, objects, tasks = [0] * machine.nr_hstates, set(), task_t.array(machine.tasks)
    for number in sorted({tasks[n].mm for n in task_numbers(machine)} - {0}):
        for position in range(mm_of(machine, number).map_count):
            vma = vma_of(machine, vma_index(machine, number)[position])
            if vma.flags & VM_HUGETLB and vma.flags & VM_SHARED:
                objects.add(hugetlb_object(vma))
            elif vma.flags & VM_HUGETLB and vma.resv_map:
                h = hstate_vma(machine, vma)
                start, end = (int(vma_hugecache_offset(h, vma, edge)) for edge in (vma.start, vma.end))
                totals[vma.hstate] += end - start - int(region_count(vma.resv_map, start, end))
    inodes = [inode_of(machine, number) for number in live_inodes(machine)]
    objects |= {inode.object for inode in inodes if is_hugetlbfs(machine, inode)}
    for number in objects:
        mapping = mapping_t.array(machine.mappings)[number]
        reserved = int(region_count(mapping.resv_map, 0, resv_map_t.at(mapping.resv_map).pages))
        totals[mapping.hstate] += reserved - mapping.nr_pages
    return totals


def audit_hugetlb(machine):
    """Every pool against the page structs, its lists and the reservations."""
    reserved = reserved_pages(machine)
    for number in range(machine.nr_hstates):
        audit_hstate(machine, hstate_at(machine, number), reserved[number])


def audit_hstate(machine, h, reserved):
    """A pool's counts by node and in sum, against its pages, its free lists and the `reserved` pages of mappings."""
    for node in range(machine.nr_nodes):
        total, free = pool_pages(machine, h, node)
        if (total, free, free) != (h.nr_node[node], h.free_node[node], freelist_length(machine, h, node)):
            raise MachineCheck(
                f"node {node}: {total} huge pages in the pool, {free} free, "
                f"{freelist_length(machine, h, node)} on its list; counted {h.nr_node[node]}, "
                f"{h.free_node[node]}"
            )
    sums = [sum(field[node] for node in range(machine.nr_nodes)) for field in (h.nr_node, h.free_node, h.surplus_node)]
    if sums != [h.nr_huge_pages, h.free_huge_pages, h.surplus_huge_pages]:
        raise MachineCheck(
            f"huge pages of all nodes, free, surplus: {sums}, counted {h.nr_huge_pages}, "
            f"{h.free_huge_pages}, {h.surplus_huge_pages}"
        )
    if reserved != h.resv_huge_pages:
        raise MachineCheck(f"resv_huge_pages is {h.resv_huge_pages}, mappings have reserved {reserved}")


def audit_huge_entries(machine, entries):
    """The huge entries of anonymous memory that were found, against what their first pages and the nodes have counted."""
    total = 0
    for node in range(machine.nr_nodes):
        heads = 0
        for kind in range(MAX_NR_ZONES):
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            if zone.present_pages:
                pages = page_t.array(page_of(machine, zone.start_pfn).address).as_numpy(
                    zone.virgin_pfn - zone.start_pfn
                )
                orders = pages["order"][(pages["flags"] & U(PG_anon | PG_head) == PG_anon) & (pages["refcount"] > 0)]
                heads, total = heads + int((orders > 0).sum()), total + int(orders.sum())
        counted = fold_node(machine, node)["nr_anon_transparent_hugepages"]
        if heads != counted:
            raise MachineCheck(
                f"node {node}: nr_anon_transparent_hugepages is {counted}, {heads} pages begin a huge mapping"
            )
    if total != entries:
        raise MachineCheck(f"{entries} huge entries of anonymous memory, their pages have counted {total}")

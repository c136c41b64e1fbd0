"""The page cache's part of the audit: every page of a file in its place, with the right counts, dirty ones added up."""

import collections

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.errors import MachineCheck
from numaemu.kernel.arch.pgtable import mm_of, pte_pfn
from numaemu.kernel.core.xarray import MAX_INDEX, entry_is_page, xa_find, xa_load, xa_slot
from numaemu.kernel.fs.disk import disk_space
from numaemu.kernel.fs.file import FILE, files_of
from numaemu.kernel.fs.hugetlbfs import is_hugetlbfs
from numaemu.kernel.fs.inode import I_LIVE, file_of, inode_name, inode_of, inode_t
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm_types import (
    VM_HUGETLB,
    VM_SHARED,
    PG_buddy,
    PG_dirty,
    PG_locked,
    PG_pcp,
    PG_swapbacked,
    PG_uptodate,
    PG_writeback,
    machine_t,
    pool_t,
    task_t,
    vma_t,
)
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.vmstat import fold_node
from numaemu.kernel.mm.fault.rmap import mapping_of, next_vma_of
from numaemu.kernel.mm.space.vma_index import vma_index, vma_of
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
PAGES, DIRTY = range(2)
IDLE_FLAGS = PG_locked | PG_writeback | PG_swapbacked | PG_buddy | PG_pcp  # of no cached page while all stands still


@entry("i64(u64, i64, i64[], i64[])")
def validate_cache(machine_address, number, counts, by_node):
    """Walk a file's pages: 0, or the pfn of one that does not fit. counts: pages, dirty ones; by_node: the same by node."""
    machine = machine_t.at(machine_address)
    inode = inode_of(machine, number)
    mapping, index = mapping_of(machine, inode.mapping), 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            return 0
        entry = xa_load(machine, mapping, index)
        if entry_is_page(entry):
            pfn = pte_pfn(entry)
            page, node = page_of(machine, pfn), page_to_nid(machine, pfn)
            if (
                page.mapping != inode.mapping
                or page.index != index
                or page.flags & U(IDLE_FLAGS) != U(0)
                or page.flags & U(PG_uptodate) == U(0)
                or page.refcount != page.mapcount + 1
            ):
                return pfn
            counts[PAGES] += 1
            by_node[2 * node + PAGES] += 1
            if page.flags & U(PG_dirty) != U(0):
                counts[DIRTY] += 1
                by_node[2 * node + DIRTY] += 1
        index += 1


@entry("void(u64, i64, i64[])")
def count_shadow_nodes(machine_address, number, by_node):
    """Leaves of a file's tree that hold nothing but shadows, by node."""
    machine = machine_t.at(machine_address)
    mapping, index = mapping_of(machine, inode_of(machine, number).mapping), 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            return
        shadows_only, end = True, (index | 511) + 1
        slot = xa_slot(machine, mapping, index)
        while 0 <= index < end:
            if entry_is_page(xa_load(machine, mapping, index)):
                shadows_only = False
            index = xa_find(machine, mapping, index + 1, end)
        if shadows_only:
            by_node[page_to_nid(machine, np.int64((slot - machine.memory) >> U(PAGE_SHIFT)))] += 1
        index = end


def count_vmas(machine, mapping):
    """VMAs in a file's list."""
    n, number = 0, mapping.first_vma
    while number:
        vma = vma_of(machine, number)
        n, number = n + 1, next_vma_of(mapping, vma)
    return n


def audit_inode(machine, number, by_node):
    """A file's pages, its counts of pages and dirty pages, and the list of mappings of it. MachineCheck shows both
    sides.
    """
    inode, counts = inode_of(machine, number), np.zeros(2, np.int64)
    mapping = mapping_of(machine, inode.mapping)
    bad = validate_cache(int(machine.address), number, counts, by_node)
    if bad:
        page = page_of(machine, bad)
        raise MachineCheck(
            f"{inode_name(inode)}: inconsistent at pfn {bad}: flags {int(page.flags):#x}, refcount "
            f"{page.refcount}, mapcount {page.mapcount}, mapping {page.mapping}, index {page.index}"
        )
    said = mapping.nr_pages, inode.nr_dirty
    if said != tuple(counts):
        raise MachineCheck(f"{inode_name(inode)}: {said} pages, dirty ones counted, {counts.tolist()} found")
    if count_vmas(machine, mapping) != mapping.users - 1:  # its own
        raise MachineCheck(
            f"{inode_name(inode)}: {mapping.users - 1} mappings counted, {count_vmas(machine, mapping)} in its list"
        )


def audit_disk(machine):
    """Every page of the disk is free or belongs to one extent."""
    space, used = disk_space(machine), []
    for number in live_inodes(machine):
        inode = inode_of(machine, number)
        used += [(inode.extent_disk[i], inode.extent_pages[i], inode_name(inode)) for i in range(inode.nr_extents)]
    free = [(space.start[i], space.pages[i], "free space") for i in range(space.nr_free)]
    end, before = 0, "its beginning"
    for start, pages, name in sorted(used + free):
        if start < end:
            raise MachineCheck(f"disk: page {start} belongs to {before} and to {name}")
        end, before = start + pages, name


def live_inodes(machine):
    used = pool_t.at(machine.inode_pool).used
    return [n for n in range(1, used + 1) if inode_t.array(machine.inodes)[n].state == I_LIVE]


@entry("i64(u64, i64)")
def count_object(machine_address, number):
    """Pages of a tmpfs file's object, in memory or swapped out."""
    machine = machine_t.at(machine_address)
    mapping, index, found = mapping_of(machine, number), 0, 0
    while True:
        index = xa_find(machine, mapping, index, MAX_INDEX)
        if index < 0:
            return found
        found += 1
        index += 1


def shared_objects(machine):
    """The objects whose pages are shared memory: those of mappings that are shared, and of tmpfs files."""
    tasks, objects = task_t.array(machine.tasks), set()
    table = vma_t.array(machine.vmas).as_numpy(pool_t.at(machine.vma_pool).used + 1)
    for mm_number in {tasks[n].mm for n in task_numbers(machine)} - {0}:
        vmas = table[vma_index(machine, mm_number).as_numpy(mm_of(machine, mm_number).map_count)]
        shared = vmas["flags"] & (VM_SHARED | VM_HUGETLB) == VM_SHARED
        objects |= set(vmas["mapping"][shared].tolist())
    return (objects | {inode_of(machine, number).object for number in live_inodes(machine)}) - {0}


def audit_tmpfs(machine):
    """What the objects of tmpfs files are charged is what is in them."""
    total = 0
    for number in live_inodes(machine):
        inode = inode_of(machine, number)
        if inode.object and not is_hugetlbfs(machine, inode):
            charged, found = mapping_of(machine, inode.object).acct, count_object(int(machine.address), inode.object)
            if charged != found:
                raise MachineCheck(f"{inode_name(inode)}: charged {charged} pages, has {found}")
            total += found
            users = mapping_of(machine, inode.object).users - 1  # its own
            if users != (vmas := count_vmas(machine, mapping_of(machine, inode.object))):
                raise MachineCheck(f"{inode_name(inode)}: {users} mappings counted, {vmas} in its list")
    if total != machine.tmpfs_pages:
        raise MachineCheck(f"tmpfs_pages is {machine.tmpfs_pages}, all files together have {total}")


def audit_open_files(machine):
    """Every table has as many users as tasks name it, every open file as descriptors and VMAs do."""
    tasks, numbers = task_t.array(machine.tasks), [n for n in task_numbers(machine)]
    sharers = collections.Counter(tasks[n].files for n in numbers if tasks[n].files)
    users = collections.Counter()
    for number, nr in sharers.items():
        files = files_of(machine, number)
        if files.count != nr or files.lock:
            raise MachineCheck(
                f"descriptor table {number}: count is {files.count}, {nr} tasks have it, lock {int(files.lock)}"
            )
        users.update(word & FILE for word in files.fd.as_numpy()[: files.nr].tolist() if word)
    table = vma_t.array(machine.vmas).as_numpy(pool_t.at(machine.vma_pool).used + 1)
    for mm_number in {tasks[n].mm for n in numbers} - {0}:
        vmas = table[vma_index(machine, mm_number).as_numpy(mm_of(machine, mm_number).map_count)]
        users.update(vmas["file"][vmas["file"] != 0].tolist())
    for number in range(1, pool_t.at(machine.file_pool).used + 1):
        file = file_of(machine, number)
        if file.count != users[number]:
            raise MachineCheck(
                f"open file {number} of {inode_name(inode_of(machine, file.inode))}: count is {file.count}, "
                f"{users[number]} descriptors and mappings have it"
            )


def audit_files(machine):
    """Every file's cached pages, and the nodes' counters against them."""
    by_node, shadows = np.zeros(2 * machine.nr_nodes, np.int64), np.zeros(machine.nr_nodes, np.int64)
    for number in live_inodes(machine):
        audit_inode(machine, number, by_node)
        count_shadow_nodes(int(machine.address), number, shadows)
    for node in range(machine.nr_nodes):
        counted = fold_node(machine, node)
        said = counted["nr_file_pages"] - counted["nr_shmem"] - counted["nr_swapcached"], counted["nr_dirty"]
        if said != tuple(by_node[2 * node : 2 * node + 2]) or counted["nr_writeback"] != 0:
            raise MachineCheck(
                f"node {node}: {said} pages of files and dirty ones counted, "
                f"{by_node[2 * node : 2 * node + 2].tolist()} found, {counted['nr_writeback']} being written"
            )
        if counted["workingset_nodes"] != shadows[node]:
            raise MachineCheck(
                f"node {node}: workingset_nodes is {counted['workingset_nodes']}, {shadows[node]} leaves "
                f"hold only shadows"
            )
    audit_disk(machine)
    audit_tmpfs(machine)
    audit_open_files(machine)

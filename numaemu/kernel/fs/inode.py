"""Files: their names, their place on the disk, who has them open. Linux's fs/inode.c, fs/file_table.c and a file system
that is a flat directory of names.

An inode lives as long as it has a name or somebody has it open; its pages stay in the page cache that long. A file made
with a seed is full of that seed's pattern without a byte of it on the disk: a page that was never written is made up
when it is read.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.hardware.controller import charge_dma, home_node
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.fs.disk import disk_alloc, disk_free, disk_page_written, disk_read_page, pattern
from numaemu.kernel.include.mm import PFN_UP
from numaemu.kernel.include.mm_types import pool_t
from numaemu.kernel.include.task_io_accounting_ops import task_io_account_read
from numaemu.kernel.include.vmstat import PGPGIN, count_vm_events
from numaemu.kernel.mm.fault.rmap import mapping_of, mapping_put, new_mapping
from numaemu.spec.param import MAX_EXTENTS, PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import errno

U = np.uint64
ENOENT, ENOSPC, ENFILE, EEXIST, EFBIG = errno.ENOENT, errno.ENOSPC, errno.ENFILE, errno.EEXIST, errno.EFBIG
NAME_WORDS = 33  # a name has at most 263 bytes
TMPFS_WORD = U(int.from_bytes(b"/dev/shm", "little"))  # where tmpfs is mounted
I_FREE, I_LIVE, I_FREEING = range(3)
FIRST_EXTENT = 16  # pages of the first extent of a file that grows; then it doubles; assumed

# Shared words of inode_t: the word | its writer | why a reader may trust it.
# - names, counts, state | Under inode_lock. | Held by a count.
# - size, extents | Under i_rwsem. | Single words; nr_extents is written last.
# - the VMAs that map the file (vma_t.next) | Under the spin lock of the file's mapping. | As of the other
#   families.
# fmt: off
inode_t = Struct("inode_t", [
    # under machine.inode_lock
    ("state", i64), ("nlink", i64), ("count", i64),      # I_*; names (0 or 1); open files and other holders
    ("name", u64, NAME_WORDS),
    # by the holder of i_rwsem (for writing), read as single words
    ("i_size", i64),                     # bytes
    ("nr_extents", i64),                 # written last (release)
    ("extent_index", i64, MAX_EXTENTS), ("extent_disk", i64, MAX_EXTENTS), ("extent_pages", i64, MAX_EXTENTS),
    ("seed", u64), ("seed_bytes", i64),  # what was never written below seed_bytes is the seed's pattern; 0: zeros
    # locks held over allocations, as the mmap_lock is
    ("i_rwsem", i64),                    # who writes or truncates
    ("invalidate_lock", i64),            # for reading: who adds pages to the cache; for writing: who truncates
    # set when it is made
    ("mapping", i64),
    ("object", i64),                     # tmpfs: the shared object that has its pages, instead of `mapping`; 0: a file of the disk
    # atomically
    ("nr_dirty", i64),                   # dirty pages
    ("dirtied_when", i64),               # emulated time when it became dirty, on the clock of who did it
    ("writeback_index", i64),            # where background writing goes on
])
# fmt: on

RA_PAGES = 32  # VM_READAHEAD_PAGES: 128 KiB
FMODE_RANDOM = 1  # file_t.f_mode

# Shared words of file_t: the word | its writer | why a reader may trust it.
# - the count of an open file | Atomic add; from 0 only when its number is given out anew. | A context that got a
#   count from a descriptor that means another file by then gives it back.
# fmt: off
file_t = Struct("file_t", [              # struct file
    ("inode", i64), ("count", i64),      # atomically: each descriptor, each VMA, each system call under way
    ("flags", i64),                      # O_*
    ("f_pos_lock", i64), ("f_pos", i64),
    # struct file_ra_state: by who reads, torn or lost updates only cost a guess
    ("ra_pages", i64),                   # the largest window; posix_fadvise(2) sets it
    ("f_mode", i64),                     # FMODE_RANDOM, by posix_fadvise(2)
    ("start", i64), ("size", i64), ("async_size", i64),      # pages: the window that was last read ahead
    ("prev_pos", i64),                   # byte where the last read ended
    ("mmap_miss", i64),                  # faults that found nothing in the cache, less those that did
    ("busy_ns", i64),                    # when the last request of this file will be done
])
# fmt: on


@hot
def inode_of(machine, number):
    return inode_t.array(machine.inodes)[number]


@hot
def file_of(machine, number):
    return file_t.array(machine.files)[number]


@hot
def host_of(machine, mapping_number):
    """The inode whose pages a mapping holds."""
    return inode_of(machine, mapping_of(machine, mapping_number).host)


@hot
def i_pages(inode):
    """Pages of a file, the last one perhaps in part."""
    return PFN_UP(load_acquire(inode, "i_size"))


# -- names ---------------------------------------------------------------------------------------------------


def inode_name(inode):
    """The name as text; that of a file that is still open but has none any more ends as /proc shows it."""
    return inode.name.as_numpy().tobytes().rstrip(b"\0").decode() + ("" if inode.nlink else " (deleted)")


@kernel("bool(inode_t*, u64)")
def has_name(inode, name):
    for i in range(NAME_WORDS):
        if inode.name[i] != u64.array(name)[i]:
            return False
    return True


@kernel("i64(machine_t*, u64)")
def find_inode(machine, name):
    """The file with the name at host address `name`, or 0. Under inode_lock."""
    for number in range(1, pool_t.at(machine.inode_pool).used + 1):
        inode = inode_of(machine, number)
        if inode.state == I_LIVE and inode.nlink > 0 and has_name(inode, name):
            return number
    return 0


@kernel("bool(cpu_t*, i64)")
def igrab(cpu, number):
    """Hold an inode that may be going; False: it is."""
    machine = machine_of(cpu)
    inode, lock = inode_of(machine, number), address_of(machine, "inode_lock")
    spin_lock(cpu, lock)
    live = inode.state == I_LIVE
    if live:
        inode.count += 1
    spin_unlock(lock)
    return live


@kernel("i64(cpu_t*, u64)")
def lookup(cpu, name):
    """The file of this name, held; or -ENOENT."""
    machine = machine_of(cpu)
    lock = address_of(machine, "inode_lock")
    spin_lock(cpu, lock)
    number = find_inode(machine, name)
    if number != 0:
        inode_of(machine, number).count += 1
    spin_unlock(lock)
    return number if number != 0 else -ENOENT


@kernel("void(inode_t*, i64)")
def init_inode(inode, mapping):
    """An empty file without a name."""
    inode.nlink, inode.count, inode.i_size, inode.nr_extents = 0, 1, 0, 0
    inode.seed, inode.seed_bytes, inode.i_rwsem, inode.invalidate_lock = U(0), 0, 0, 0
    inode.object = 0
    inode.mapping, inode.nr_dirty, inode.dirtied_when, inode.writeback_index = mapping, 0, 0, 0
    inode.state = I_LIVE


@kernel("i64(cpu_t*)")
def new_inode(cpu):
    """A new empty file without a name, held; -ENFILE if the table is full."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.inode_pool)
    mapping = new_mapping(cpu, 1) if number != 0 else 0
    if mapping == 0:
        if number != 0:
            pool_put(cpu, machine.inode_pool, number)
        return -ENFILE
    inode, lock = inode_of(machine, number), address_of(machine, "inode_lock")
    mapping_of(machine, mapping).host, mapping_of(machine, mapping).users = number, 1
    spin_lock(cpu, lock)
    init_inode(inode, mapping)
    spin_unlock(lock)
    return number


@kernel("i64(cpu_t*, i64, u64)")
def link_inode(cpu, number, name):
    """Give a file its name (d_instantiate): 0, or -EEXIST if there is another of this name."""
    machine = machine_of(cpu)
    inode, lock = inode_of(machine, number), address_of(machine, "inode_lock")
    spin_lock(cpu, lock)
    there = find_inode(machine, name)
    if there == 0:
        for i in range(NAME_WORDS):
            inode.name[i] = u64.array(name)[i]
        inode.nlink = 1
    spin_unlock(lock)
    return 0 if there == 0 else -EEXIST


@kernel("bool(cpu_t*, i64)")
def put_inode(cpu, number):
    """Let an inode go; True if that was the last holder of one without a name: the caller evicts it."""
    machine = machine_of(cpu)
    inode, lock = inode_of(machine, number), address_of(machine, "inode_lock")
    spin_lock(cpu, lock)
    inode.count -= 1
    last = inode.count == 0 and inode.nlink == 0
    if last:
        inode.state = I_FREEING
    spin_unlock(lock)
    return last


@kernel("void(cpu_t*, i64)")
def destroy_inode(cpu, number):
    """Free the place of an inode whose pages and extents are gone; its mapping goes with who holds that last (shmem.py)."""
    machine = machine_of(cpu)
    inode = inode_of(machine, number)
    mapping, inode.state = inode.mapping, I_FREE
    if fetch_add(mapping_of(machine, mapping), "users", -1) == 1:
        pool_put(cpu, machine.mapping_pool, mapping)
    pool_put(cpu, machine.inode_pool, number)


@kernel("i64(cpu_t*)")
def shmem_get_inode(cpu):
    """A new empty tmpfs file without a name, held; -ENFILE if a table is full."""
    machine = machine_of(cpu)
    number = new_inode(cpu)
    object_number = new_mapping(cpu, 1) if number > 0 else 0
    if object_number == 0:
        if number > 0:
            put_inode(cpu, number)
            destroy_inode(cpu, number)
        return -ENFILE
    mapping = mapping_of(machine, object_number)
    mapping.tmpfs, mapping.host = 1, number
    store_release(mapping, "users", 1)  # last: swapoff, which looks through all objects, may hold it from now on
    inode_of(machine, number).object = object_number
    return number


@hot
def is_tmpfs(name):
    """True if the name at a host address begins with /dev/shm/."""
    words = u64.array(name)
    return words[0] == TMPFS_WORD and words[1] & U(0xFF) == U(0x2F)


@kernel("i64(cpu_t*, u64)")
def create(cpu, name):
    """A new empty file, held; -EEXIST if there is one of this name, -ENFILE if the table is full."""
    number = shmem_get_inode(cpu) if is_tmpfs(name) else new_inode(cpu)
    if number > 0 and link_inode(cpu, number, name) != 0:
        there = inode_of(machine_of(cpu), number).object
        if there != 0 and fetch_add(mapping_of(machine_of(cpu), there), "users", -1) == 1:
            mapping_put(cpu, there)
        put_inode(cpu, number)
        destroy_inode(cpu, number)
        return -EEXIST
    return number


# -- place on the disk ---------------------------------------------------------------------------------------


@kernel("i64(inode_t*, i64)")
def bmap(inode, index):
    """The disk page of page `index` of a file, or -1."""
    for i in range(load_acquire(inode, "nr_extents")):
        offset = index - inode.extent_index[i]
        if offset >= 0 and offset < inode.extent_pages[i]:
            return inode.extent_disk[i] + offset
    return -1


@kernel("i64(inode_t*)")
def disk_pages(inode):
    """Pages that a file has on the disk; its extents follow one another."""
    n = inode.nr_extents
    return inode.extent_index[n - 1] + inode.extent_pages[n - 1] if n > 0 else 0


@kernel("i64(cpu_t*, inode_t*, i64, bool)")
def extend(cpu, inode, pages, exact):
    """Give a file room for `pages` pages, or (unless `exact`) more: 0 or -ENOSPC, -EFBIG. Under i_rwsem."""
    have, n = disk_pages(inode), inode.nr_extents
    if pages <= have:
        return 0
    if n == MAX_EXTENTS:
        return -EFBIG
    size = pages - have if exact else max(pages - have, have, FIRST_EXTENT)
    first = disk_alloc(cpu, size)
    if first < 0 and size > pages - have:
        size = pages - have
        first = disk_alloc(cpu, size)
    if first < 0:
        return -ENOSPC
    inode.extent_index[n], inode.extent_disk[n], inode.extent_pages[n] = have, first, size
    store_release(inode, "nr_extents", n + 1)
    return 0


@kernel("void(cpu_t*, inode_t*, i64)")
def shrink_extents(cpu, inode, pages):
    """Give back the extents behind page `pages`, and forget what the rest of the last one holds. No page is cached there."""
    while inode.nr_extents > 0:
        n = inode.nr_extents - 1
        first, size, keep = inode.extent_disk[n], inode.extent_pages[n], pages - inode.extent_index[n]
        if keep >= size:
            return
        if keep > 0:
            inode.extent_pages[n] = keep
            disk_free(cpu, first + keep, size - keep)
            return
        store_release(inode, "nr_extents", n)
        disk_free(cpu, first, size)


@kernel("void(cpu_t*, inode_t*, i64, u64)")
def read_block(cpu, inode, index, target):
    """Page `index` of a file from the disk to host address `target`; time is the caller's affair."""
    machine = machine_of(cpu)
    page, seeded = bmap(inode, index), inode.seed_bytes - (index << PAGE_SHIFT)
    if page < 0:
        clear_bytes(target, PAGE_SIZE)  # nothing was ever written there
    elif seeded <= 0 or disk_page_written(machine, page):
        disk_read_page(cpu, page, target)
    else:
        pattern(target, inode.seed, index << 9, 512)
        if seeded < PAGE_SIZE:
            clear_bytes(target + U(seeded), PAGE_SIZE - seeded)
        count_vm_events(machine, cpu.id, PGPGIN, 4)
        task_io_account_read(cpu)
    if page >= 0:
        charge_dma(cpu, home_node(cpu, target - machine.memory), PAGE_SIZE)


# -- open files ----------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64, i64)")
def alloc_file(cpu, inode, flags):
    """An open file that takes over the caller's hold of the inode: its number, or -ENFILE."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.file_pool)
    if number == 0:
        return -ENFILE
    file = file_of(machine, number)
    file.inode, file.flags, file.f_pos_lock, file.f_pos = inode, flags, 0, 0
    file.ra_pages, file.f_mode = RA_PAGES, 0
    file.start, file.size, file.async_size, file.prev_pos, file.mmap_miss, file.busy_ns = 0, 0, 0, -1, 0, 0
    store_release(file, "count", 1)
    return number


@hot
def get_file(machine, number):
    fetch_add(file_of(machine, number), "count", 1)

"""The machine's disk: its space, its contents, the time it takes. Linux's block layer, cut down to what mm/ needs.

Contents lie in one sparse shared segment, page by page. A page that was never written reads as zeros, or as its file's
pattern (inode.py). A request takes the disk's latency and its bytes the bandwidth, in emulated time; who waits for it
pays. Space is handed out in extents, by anybody, under a spin lock.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_and, fetch_or, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes, copy_bytes, punch
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.hardware.controller import charge_dma, home_node
from numaemu.kernel.core.psi import account_iowait, psi_note_sleep
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.include.mmdebug import VM_BUG_ON
from numaemu.kernel.include.task_io_accounting_ops import task_io_account_read
from numaemu.kernel.include.vmstat import PGPGIN, PGPGOUT, count_vm_events
from numaemu.mmu import clock_ns
from numaemu.spec.param import MAX_EXTENTS, MAX_INODES, PAGE_SHIFT, PAGE_SIZE

U = np.uint64
KIB_PER_PAGE = 4
SECTOR_SHIFT = 9  # a sector has 512 bytes in all that Linux counts
GOLDEN, MIX_1, MIX_2 = U(0x9E3779B97F4A7C15), U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)  # splitmix64
LOW = U(0xFFFF_FFFF)
_FREE_EXTENTS = MAX_INODES * MAX_EXTENTS + 256  # free pieces lie between used ones: never more of them

# Shared words of disk_space_t: the word | its writer | why a reader may trust it.
# - all | Under its spin lock. | Under the lock.
# fmt: off
disk_space_t = Struct("disk_space_t", [      # under its lock
    ("lock", u64),
    ("nr_pages", i64),                       # of the whole disk
    ("nr_free", i64),                        # free extents
    ("start", i64, _FREE_EXTENTS), ("pages", i64, _FREE_EXTENTS),      # by their place on the disk
])
# fmt: on


@hot
def disk_space(machine):
    return disk_space_t.at(machine.disk_space)


@hot
def disk_time(machine, nbytes, write):
    """Emulated ns of one request."""
    latency = machine.disk_write_ns if write else machine.disk_read_ns
    return latency + nbytes * 1_000_000_000 // machine.disk_bandwidth


@hot
def count_request(cpu, nbytes, write):
    """A request for a file's bytes goes to the disk (blk_account_io_done); the emulated ns that it takes."""
    ns, kind = disk_time(machine_of(cpu), nbytes, write), 1 if write else 0
    cpu.disk_ios[kind] += 1
    cpu.disk_sectors[kind] += nbytes >> SECTOR_SHIFT
    cpu.disk_ns[kind] += ns
    return ns


@hot
def io_wait(cpu, ns):
    """What the running task has asked for takes the disk so long, from when it is done with what was asked before.

    Its CPU's clock moves on, or, in a fault while others want the CPU, the task sleeps when the fault is over (sched.py).
    """
    if cpu.io_defer != 0:
        cpu.io_until_ns = max(cpu.io_until_ns, clock_ns(cpu)) + ns
        psi_note_sleep(cpu)
    else:
        account_iowait(cpu, ns)


@hot
def io_wait_until(cpu, until_ns):
    """The same until a time that is known already."""
    if until_ns > clock_ns(cpu):
        if cpu.io_defer != 0:
            cpu.io_until_ns = max(cpu.io_until_ns, until_ns)
            psi_note_sleep(cpu)
        else:
            account_iowait(cpu, until_ns - clock_ns(cpu))


# -- space ---------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64)")
def disk_alloc(cpu, pages):
    """An extent of so many pages, the first that is large enough: its first disk page, or -1."""
    space, found = disk_space(machine_of(cpu)), -1
    lock = address_of(space, "lock")
    spin_lock(cpu, lock)
    for i in range(space.nr_free):
        if space.pages[i] >= pages:
            found = space.start[i]
            space.start[i] += pages
            space.pages[i] -= pages
            if space.pages[i] == 0:
                space.nr_free -= 1
                for j in range(i, space.nr_free):
                    space.start[j], space.pages[j] = space.start[j + 1], space.pages[j + 1]
            break
    spin_unlock(lock)
    return found


@kernel("void(disk_space_t*, i64, i64)")
def insert_free(space, first, pages):
    """An extent becomes free and melts with free neighbours."""
    i = 0
    while i < space.nr_free and space.start[i] < first:
        i += 1
    before = i > 0 and space.start[i - 1] + space.pages[i - 1] == first
    after = i < space.nr_free and first + pages == space.start[i]
    if before:
        space.pages[i - 1] += pages
        if after:
            space.pages[i - 1] += space.pages[i]
            space.nr_free -= 1
            for j in range(i, space.nr_free):
                space.start[j], space.pages[j] = space.start[j + 1], space.pages[j + 1]
    elif after:
        space.start[i] = first
        space.pages[i] += pages
    else:
        VM_BUG_ON(space.nr_free >= _FREE_EXTENTS)
        for j in range(space.nr_free, i, -1):
            space.start[j], space.pages[j] = space.start[j - 1], space.pages[j - 1]
        space.start[i], space.pages[i] = first, pages
        space.nr_free += 1


@kernel("void(machine_t*, i64, i64)")
def disk_forget(machine, first, pages):
    """Nobody needs these pages any more: they were never written."""
    words, page, end = u64.array(machine.disk_written), first, first + pages
    while page < end:
        if page & 63 == 0 and end - page >= 64:
            words[page >> 6] = U(0)
            page += 64
        else:
            fetch_and(words, page >> 6, ~(U(1) << U(page & 63)))
            page += 1
    punch(machine.disk + (U(first) << U(PAGE_SHIFT)), pages << PAGE_SHIFT)


@kernel("void(cpu_t*, i64, i64)")
def disk_free(cpu, first, pages):
    """Give an extent, or a part of one, back."""
    machine = machine_of(cpu)
    space = disk_space(machine)
    disk_forget(machine, first, pages)
    lock = address_of(space, "lock")
    spin_lock(cpu, lock)
    insert_free(space, first, pages)
    spin_unlock(lock)


# -- contents ------------------------------------------------------------------------------------------------


@hot
def disk_page_written(machine, page):
    return load_acquire(u64.array(machine.disk_written), page >> 6) >> U(page & 63) & U(1) != U(0)


@hot
def multiply(a, b):
    """The low 64 bits of a product, by halves: with the JIT off a product that does not fit is an error."""
    low = (a & LOW) * (b & LOW)
    cross = (((a >> U(32)) * (b & LOW)) & LOW) + (((a & LOW) * (b >> U(32))) & LOW) + (low >> U(32))
    return (low & LOW) | (cross << U(32))


@hot
def pattern_word(seed, place):
    """A word of the endless pattern of a seed: splitmix64 of seed and place."""
    z = multiply(seed + U(place + 1), GOLDEN)
    z = multiply(z ^ (z >> U(30)), MIX_1)
    z = multiply(z ^ (z >> U(27)), MIX_2)
    return z ^ (z >> U(31))


@kernel("void(u64, u64, i64, i64)")
def pattern(target, seed, first, words):
    """Words `first` and on of the pattern of a seed, to host address `target`."""
    for i in range(words):
        u64.array(target)[i] = pattern_word(seed, first + i)


@kernel("void(cpu_t*, i64, u64)")
def disk_read_page(cpu, page, target):
    """Copy a page of the disk to host address `target`; time is the caller's affair."""
    machine = machine_of(cpu)
    if disk_page_written(machine, page):
        copy_bytes(target, machine.disk + (U(page) << U(PAGE_SHIFT)), PAGE_SIZE)
    else:
        clear_bytes(target, PAGE_SIZE)
    count_vm_events(machine, cpu.id, PGPGIN, KIB_PER_PAGE)
    task_io_account_read(cpu)


@kernel("void(machine_t*, i64, u64)")
def disk_store_page(machine, page, source):
    """A page's contents as if they had always been there: nothing is counted."""
    copy_bytes(machine.disk + (U(page) << U(PAGE_SHIFT)), source, PAGE_SIZE)
    fetch_or(u64.array(machine.disk_written), page >> 6, U(1) << U(page & 63))


@kernel("void(cpu_t*, i64, u64)")
def disk_write_page(cpu, page, source):
    """Copy a page at host address `source` to the disk; time is the caller's affair."""
    disk_store_page(machine_of(cpu), page, source)
    charge_dma(cpu, home_node(cpu, source - machine_of(cpu).memory), PAGE_SIZE)
    count_vm_events(machine_of(cpu), cpu.id, PGPGOUT, KIB_PER_PAGE)

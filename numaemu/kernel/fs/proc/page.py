"""/proc/kpagecount, /proc/kpageflags and /proc/kpagecgroup: Linux's fs/proc/page.c. A word for each frame, read by ranges."""

import errno

import numpy as np

from numaemu.kernel.include.mm_types import (
    PG_active,
    PG_anon,
    PG_buddy,
    PG_dirty,
    PG_head,
    PG_hugetlb,
    PG_idle,
    PG_locked,
    PG_lru,
    PG_mlocked,
    PG_reclaim,
    PG_referenced,
    PG_swapbacked,
    PG_swapcache,
    PG_table,
    PG_tail,
    PG_unevictable,
    PG_uptodate,
    PG_writeback,
    page_t,
)
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, zone_of
from numaemu.kernel.mm.slab.memcontrol import MEMCG_MASK, MEMCG_SHIFT
from numaemu.kernel.mm.slab.slab import PG_slab
from numaemu.spec.param import MAX_ORDER

U = np.uint64
KPM_SIZE = 8  # bytes of a word
ROOT_INO = 1  # the inode number of the root of all control groups
# include/uapi/linux/kernel-page-flags.h
KPF_MMAP, KPF_COMPOUND_HEAD, KPF_NOPAGE, KPF_THP, KPF_ZERO_PAGE, KPF_BUDDY = 11, 15, 20, 22, 24, 10
KPF = {
    0: PG_locked,
    2: PG_referenced,
    3: PG_uptodate,
    4: PG_dirty,
    5: PG_lru,
    6: PG_active,
    7: PG_slab,
    8: PG_writeback,
    9: PG_reclaim,
    KPF_BUDDY: PG_buddy,
    12: PG_anon,
    13: PG_swapcache,
    14: PG_swapbacked,
    KPF_COMPOUND_HEAD: PG_head,
    16: PG_tail,
    17: PG_hugetlb,
    18: PG_unevictable,
    25: PG_idle,
    26: PG_table,
    33: PG_mlocked,
}


def pages_at(machine, first, n):
    """The page structs of frames [first, first + n)."""
    return page_t.array(int(page_t.array(machine.mem_map)[first].address)).as_numpy(n)


def zones(machine):
    found = (zone_of(machine, number) for number in range(machine.nr_nodes * MAX_NR_ZONES))
    return [zone for zone in found if zone.present_pages]


def used_ranges(machine, first, n):
    """(from, to) of each part of [first, first + n) that is in a zone and whose structs say something."""
    for zone in zones(machine):
        low, high = max(first, int(zone.start_pfn)), min(first + n, int(zone.virgin_pfn))
        if low < high:
            yield low, high


def count_words(machine, first, n):
    """How many page-table entries map each frame: page_mapcount."""
    words = np.zeros(n, U)
    for low, high in used_ranges(machine, first, n):
        words[low - first : high - first] = pages_at(machine, low, high - low)["mapcount"]
    return words


def flag_words(machine, first, n):
    """stable_page_flags of each frame; KPF_NOPAGE where there is no memory.

    Memory that was never used has no structs yet: it is free, in the largest blocks that fit.
    """
    words = np.full(n, 1 << KPF_NOPAGE, U)
    for zone in zones(machine):
        start, end = int(zone.start_pfn), int(zone.start_pfn + zone.spanned_pages)
        low, high = max(first, start), min(first + n, end)
        if low >= high:
            continue
        words[low - first : high - first] = 0
        pfns = np.arange(max(low, int(zone.virgin_pfn)), high)
        heads = pfns[(pfns & (1 << MAX_ORDER) - 1 == 0) | (pfns == zone.virgin_pfn)]
        words[heads - first] = 1 << KPF_BUDDY
    for low, high in used_ranges(machine, first, n):
        pages, found = pages_at(machine, low, high - low), np.zeros(high - low, U)
        flags = pages["flags"]
        for bit, flag in KPF.items():
            found |= ((flags & U(flag)) != 0).astype(U) << U(bit)
        found |= (pages["mapcount"] > 0).astype(U) << U(KPF_MMAP)
        huge = (flags & U(PG_head) != 0) & (flags & U(PG_anon) != 0) & (flags & U(PG_hugetlb) == 0)
        words[low - first : high - first] = found | huge.astype(U) << U(KPF_THP)
    if first <= machine.zero_pfn < first + n:
        words[int(machine.zero_pfn) - first] |= U(1 << KPF_ZERO_PAGE)
    return words


def cgroup_words(machine, first, n):
    """page_cgroup_ino of each frame: its control group's number + 1. Memory of tasks and files is the root's; kernel memory that no group
    is charged for, slabs, whose objects are charged one by one, and free frames have 0.
    """
    words = np.zeros(n, U)
    for low, high in used_ranges(machine, first, n):
        flags = pages_at(machine, low, high - low)["flags"]
        memcg = (flags & MEMCG_MASK) >> MEMCG_SHIFT
        of_root = (flags & U(PG_lru | PG_anon | PG_swapbacked | PG_unevictable) != 0) | (memcg > 0)
        words[low - first : high - first] = np.where(of_root & (flags & U(PG_slab) == 0), memcg + U(ROOT_INO), U(0))
    return words


def words_of(make):
    """A reader of ranges: (system, offset, nbytes) to bytes."""

    def read(system, offset, nbytes):
        if offset % KPM_SIZE or nbytes % KPM_SIZE:
            raise OSError(errno.EINVAL, f"a word has {KPM_SIZE} bytes; offset {offset}, size {nbytes}")
        first, end = offset // KPM_SIZE, min((offset + nbytes) // KPM_SIZE, int(system.machine.max_pfn))
        return make(system.machine, first, end - first).astype("<u8").tobytes() if first < end else b""

    return read


RANGES = {
    "/proc/kpagecount": words_of(count_words),
    "/proc/kpageflags": words_of(flag_words),
    "/proc/kpagecgroup": words_of(cgroup_words),
}

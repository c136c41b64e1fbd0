"""/proc/<pid>/smaps, smaps_rollup and pagemap: the part of Linux's fs/proc/task_mmu.c that looks at every page."""

import errno

import numpy as np

from numaemu.kernel.arch.pgtable import mm_of, pmd_size
from numaemu.kernel.fs.proc.pagewalk import (
    ANON_THP,
    ANONYMOUS,
    LAZYFREE,
    NR_SMAPS,
    PM_SOFT_DIRTY,
    PRIVATE_CLEAN,
    PRIVATE_DIRTY,
    PRIVATE_HUGETLB,
    PSS,
    PSS_ANON,
    PSS_DIRTY,
    PSS_FILE,
    PSS_SHIFT,
    PSS_SHMEM,
    REFERENCED,
    RSS,
    SHARED_CLEAN,
    SHARED_DIRTY,
    SHARED_HUGETLB,
    SWAP,
    SWAP_PSS,
    pagemap_read,
    shmem_swap_holes,
    shmem_swap_usage,
    walk_page_range,
)
from numaemu.kernel.fs.proc.task import NAME_COLUMN, copy_vmas, gone, number_of_pid, show_map_vma
from numaemu.kernel.include.mm_types import (
    VM_ACCOUNT,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_HUGETLB,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYEXEC,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_WIPEONFORK,
    VM_WRITE,
    task_t,
)
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.huge.huge_memory import THP_ALWAYS, THP_MADVISE
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

# fmt: off
FLAG_NAMES = ((VM_READ, "rd"), (VM_WRITE, "wr"), (VM_EXEC, "ex"), (VM_SHARED, "sh"), (VM_MAYREAD, "mr"), (VM_MAYWRITE, "mw"),
              (VM_MAYEXEC, "me"), (VM_MAYSHARE, "ms"), (VM_GROWSDOWN, "gd"), (VM_LOCKED, "lo"), (VM_SEQ_READ, "sr"),
              (VM_RAND_READ, "rr"), (VM_DONTCOPY, "dc"), (VM_DONTEXPAND, "de"), (VM_LOCKONFAULT, "lf"),
              (VM_ACCOUNT, "ac"), (VM_NORESERVE, "nr"), (VM_HUGETLB, "ht"), (VM_WIPEONFORK, "wf"), (VM_DONTDUMP, "dd"),
              (VM_SOFTDIRTY, "sd"), (VM_HUGEPAGE, "hg"), (VM_NOHUGEPAGE, "nh"))       # show_smap_vma_flags, by bit
COUNTED = {"Shared_Clean": SHARED_CLEAN, "Shared_Dirty": SHARED_DIRTY, "Private_Clean": PRIVATE_CLEAN,
           "Private_Dirty": PRIVATE_DIRTY, "Referenced": REFERENCED, "Anonymous": ANONYMOUS}
HUGE = {"AnonHugePages": ANON_THP, "ShmemPmdMapped": None, "FilePmdMapped": None, "Shared_Hugetlb": SHARED_HUGETLB,
        "Private_Hugetlb": PRIVATE_HUGETLB}        # None: not there
# fmt: on

PM_ENTRY_BYTES = 8  # of a word of pagemap


def line(name, nbytes):
    return f"{name + ':':<16}{nbytes >> 10:8d} kB\n"


def shmem_swapped(machine, mm_number, vma):
    """Bytes of a VMA's shared object that are swapped out. Where a private VMA may have pages of its own in their place
    only those behind addresses at which nothing is mapped count (smaps_pte_hole).
    """
    number = vma["i_mapping"] or (vma["mapping"] if vma["flags"] & VM_SHARED else 0)
    if not number or vma["i_mapping"] and not mapping_of(machine, int(number)).tmpfs:
        return 0
    base, pages = int(machine.address), (int(vma["end"]) - int(vma["start"])) // PAGE_SIZE
    swapped = shmem_swap_usage(base, number, vma["pgoff"], pages)
    if swapped and not vma["flags"] & VM_SHARED and vma["flags"] & VM_WRITE:
        return shmem_swap_holes(base, mm_number, number, vma["pgoff"], vma["start"], pages)
    return swapped


def gather(system, mm_number, vma):
    """What a VMA's pages come to: (counts, bytes of the share that is locked)."""
    counts = np.zeros(NR_SMAPS, np.int64)
    machine = int(system.machine.address)
    walk_page_range(machine, mm_number, vma["start"], vma["end"], counts, 1)
    counts[SWAP] += shmem_swapped(system.machine, mm_number, vma)
    return counts, int(counts[PSS]) if vma["flags"] & VM_LOCKED else 0


def show_smap(counts, locked, rollup):
    """__show_smap: the lines that smaps and smaps_rollup have in common."""
    shares = {"Pss": PSS, "Pss_Dirty": PSS_DIRTY}
    if rollup:
        shares |= {"Pss_Anon": PSS_ANON, "Pss_File": PSS_FILE, "Pss_Shmem": PSS_SHMEM}
    text = line("Rss", int(counts[RSS]))
    text += "".join(line(name, int(counts[i]) >> PSS_SHIFT) for name, i in shares.items())
    text += "".join(line(name, int(counts[i])) for name, i in COUNTED.items()) + line("KSM", 0)
    text += line("LazyFree", int(counts[LAZYFREE])) + "".join(
        line(name, int(counts[i]) if i is not None else 0) for name, i in HUGE.items()
    )
    text += line("Swap", int(counts[SWAP])) + line("SwapPss", int(counts[SWAP_PSS]) >> PSS_SHIFT)
    return text + line("Locked", locked >> PSS_SHIFT)


def thp_eligible(machine, vma):
    """thp_vma_allowable_orders: 1 if the VMA may get huge pages, and has room for one."""
    size = int(pmd_size(machine))
    room = -(-int(vma["start"]) // size) * size + size <= vma["end"]
    private = not vma["flags"] & (VM_SHARED | VM_HUGETLB | VM_NOHUGEPAGE) and not vma["file"]
    asked = machine.thp_enabled == THP_ALWAYS or machine.thp_enabled == THP_MADVISE and vma["flags"] & VM_HUGEPAGE
    return int(bool(private and room and asked))


def smaps(system, _number, mm_number):
    """/proc/<pid>/smaps"""
    mm, text = mm_of(system.machine, mm_number), []
    for vma in copy_vmas(system.machine, mm_number):
        counts, locked = gather(system, mm_number, vma)
        flags = "".join(name + " " for bit, name in FLAG_NAMES if vma["flags"] & bit)
        page = (
            PAGE_SIZE << int(hstate_at(system.machine, int(vma["hstate"])).order)
            if vma["flags"] & VM_HUGETLB
            else PAGE_SIZE
        )
        text.append(
            show_map_vma(system.machine, mm, vma)
            + line("Size", int(vma["end"] - vma["start"]))
            + line("KernelPageSize", page)
            + line("MMUPageSize", page)
            + show_smap(counts, locked, False)
            + f"THPeligible:    {thp_eligible(system.machine, vma):8d}\n"
            f"VmFlags: {flags}\n"
        )
    return "".join(text)


def smaps_rollup(system, _number, mm_number):
    """/proc/<pid>/smaps_rollup"""
    vmas = copy_vmas(system.machine, mm_number)
    total, locked = np.zeros(NR_SMAPS, np.int64), 0
    for vma in vmas:
        counts, more = gather(system, mm_number, vma)
        total, locked = total + counts, locked + more
    start, end = (int(vmas["start"][0]), int(vmas["end"][-1])) if len(vmas) else (0, 0)
    head = f"{start:08x}-{end:08x} ---p 00000000 00:00 0 ".ljust(NAME_COLUMN)
    return head + "[rollup]\n" + show_smap(total, locked, True)


def pagemap(system, pid, address, nbytes):
    """The words of /proc/<pid>/pagemap for [addr, addr + nbytes)."""
    number = number_of_pid(system.machine, pid)
    if number == 0:
        raise gone(f"/proc/{pid}/pagemap")
    start, end = address & -PAGE_SIZE, min(address + nbytes, int(system.machine.paging.task_size))
    words = np.zeros(max(-(-(end - start) // PAGE_SIZE), 0), np.uint64)
    mm_number = task_t.array(system.machine.tasks)[number].mm
    pagemap_read(int(system.machine.address), mm_number, start, words)
    for vma in copy_vmas(system.machine, mm_number):
        if vma["flags"] & VM_SOFTDIRTY:
            first, last = (max(int(vma[edge]) - start, 0) >> PAGE_SHIFT for edge in ("start", "end"))
            words[first:last] |= PM_SOFT_DIRTY
    return words


def whole_pagemap(system, number, _mm_number):
    """/proc/<pid>/pagemap has a word for each page of the address space, 256 GiB with four levels: only ranges are read."""
    pid = int(task_t.array(system.machine.tasks)[number].pid)
    raise OSError(
        errno.EFBIG,
        f"machine.pagemap({pid}, addr, nbytes) reads a range of it, all of it is too large",
        f"/proc/{pid}/pagemap",
    )


def pread_pagemap(system, pid, nbytes, offset):
    """Bytes of /proc/<pid>/pagemap: pagemap_read."""
    if offset % PM_ENTRY_BYTES or nbytes % PM_ENTRY_BYTES:
        raise OSError(errno.EINVAL, f"a word has {PM_ENTRY_BYTES} bytes; offset {offset}, size {nbytes}")
    first, pages = offset // PM_ENTRY_BYTES, nbytes // PM_ENTRY_BYTES
    return pagemap(system, pid, first << PAGE_SHIFT, pages << PAGE_SHIFT).astype("<u8").tobytes()


PID_FILES = {"smaps": smaps, "smaps_rollup": smaps_rollup, "pagemap": whole_pagemap}

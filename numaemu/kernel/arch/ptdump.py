"""Page tables as they stand, for who looks at them: a part of Linux's mm/ptdump.c and arch/x86/mm/dump_pagetables.c.

Entries are shown as they lie in memory, and their bits by the names of the common form (paging.py).
"""

import numpy as np

from numaemu.compiler.decorators import entry
from numaemu.compiler.pointer import address_of
from numaemu.hardware.paging import _PAGE_PRESENT, _PAGE_PSE, FORMAT_MASK, PTE_SHIFT, encode, entry_at, entry_load
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of, pgd_of, pte_pfn, table_at
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock
from numaemu.spec.formats import LEVEL_NAMES

U = np.uint64
# bit: name, as the manual of x86 has them (Intel SDM vol. 3A, 4.5)
PTE_BITS = {0: "P", 1: "R/W", 2: "U/S", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G", 63: "NX"}


@entry("i64(u64, i64, u64, u64[])")
def ptdump_walk(cpu_address, mm_number, address, found):
    """Follow the tables for `address`. `found`: physical address of the table, index, word in memory and entry of each level
    that is there, whose number is returned. The mmap_lock, shared, keeps the tables where they are.
    """
    cpu = cpu_t.at(cpu_address)
    machine = machine_of(cpu)
    mm, paging = mm_of(machine, mm_number), machine.paging
    lock = address_of(mm, "mmap_lock")
    read_lock(cpu, lock)
    table, shift, level = pgd_of(machine, mm), paging.pgdir_shift, 0
    while shift >= PTE_SHIFT:
        where = entry_at(paging, table, address, shift)
        entry = entry_load(where)
        found[4 * level], found[4 * level + 1] = table - machine.memory, (address >> shift) & paging.table_mask
        found[4 * level + 2], found[4 * level + 3] = (
            encode(entry, where) if where & FORMAT_MASK != U(0) else entry,
            entry,
        )
        level += 1
        if entry & (_PAGE_PRESENT | (_PAGE_PSE if shift > PTE_SHIFT else U(0))) != _PAGE_PRESENT:
            break
        table = table_at(machine, entry)
        shift -= paging.table_bits
    read_unlock(lock)
    return level


def entry_text(word):
    """An entry in words: its frame and the names of its bits."""
    if not word & 1:
        return f"{word:#x} (not present)" if word else "none"
    bits = " ".join(name for bit, name in PTE_BITS.items() if word >> bit & 1)
    return f"pfn {int(pte_pfn(U(word))):#x} {bits}"


def walk(cpu_address, mm_number, address, paging):
    """From the top to the first entry that leads nowhere further, each {level, table: its physical address, index, entry:
    the word, text: the same in words, pfn: where it leads, or None, writable}.
    """
    names = LEVEL_NAMES[paging]
    found = np.zeros(4 * len(names), np.uint64)
    n = ptdump_walk(cpu_address, mm_number, address, found)
    rows = found[: 4 * n].reshape(-1, 4).tolist()
    return [
        {
            "level": names[i],
            "table": table,
            "index": index,
            "entry": word,
            "text": entry_text(entry),
            "pfn": int(pte_pfn(U(entry))) if entry & 1 else None,
            "writable": entry & 3 == 3,
        }
        for i, (table, index, word, entry) in enumerate(rows)
    ]

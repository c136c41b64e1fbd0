"""Page tables as they stand, for who looks at them: a part of Linux's mm/ptdump.c and arch/x86/mm/dump_pagetables.c.

`PAGING` says what the levels of each format are called and which bits of an address they take; nothing else here knows.
"""
import numpy as np

from numaemu.atomic import load_acquire
from numaemu.compile import entry
from numaemu.kernel.pgtable import mm_of, pte_pfn, pte_present, table_at
from numaemu.kernel.smp import machine_of, read_lock, read_unlock
from numaemu.mmu import cpu_t
from numaemu.pointer import address_of, u64

U = np.uint64
# (name, lowest bit of the index, bits of it), from the top
PAGING = {"x86-64-4level": (("pgd", 39, 9), ("pud", 30, 9), ("pmd", 21, 9), ("pte", 12, 9))}
# bit: name, as the manual of x86 has them (Intel SDM vol. 3A, 4.5)
PTE_BITS = {0: "P", 1: "R/W", 2: "U/S", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G", 63: "NX"}


@entry("i64(u64, i64, u64, i64[], u64[])")
def ptdump_walk(cpu_address, mm_number, address, shape, found):
    """Follow the tables for `address`. `shape`: lowest bit and bits of each level's index; `found`: physical address of
    the table, index and entry of each level that is there, whose number is returned. The mmap_lock, shared, keeps the
    tables where they are.
    """
    cpu = cpu_t.at(cpu_address)
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    lock = address_of(mm, "mmap_lock")
    read_lock(cpu, lock)
    table, level = machine.memory + mm.pgd, 0
    while level < len(shape) // 2:
        index = np.int64((address >> U(shape[2 * level])) & ((U(1) << U(shape[2 * level + 1])) - U(1)))
        word = load_acquire(u64.array(table), index)
        found[3 * level], found[3 * level + 1], found[3 * level + 2] = table - machine.memory, U(index), word
        level += 1
        if not pte_present(word):
            break
        table = table_at(machine, word)
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
    levels = PAGING[paging]
    shape = np.array([number for _, *numbers in levels for number in numbers], np.int64)
    found = np.zeros(3 * len(levels), np.uint64)
    n = ptdump_walk(cpu_address, mm_number, address, shape, found)
    rows = found[:3 * n].reshape(-1, 3).tolist()
    return [{"level": levels[i][0], "table": table, "index": index, "entry": word, "text": entry_text(word),
             "pfn": int(pte_pfn(U(word))) if word & 1 else None, "writable": word & 3 == 3}
            for i, (table, index, word) in enumerate(rows)]

"""The life of a page fault, step by step, as the machine's own tables tell it.

A task maps memory and touches one page of it: a load, a store, a store again, then the page is swapped out and comes
back, and at last an address behind the mapping. For each access: what the hardware reports (CR2, the error code), the
region the kernel finds, the entry of every level before and after, the frame, its node and list, and what it cost.
Look for:
  - mmap changes no table; the first load hangs in the tables that are missing and maps the shared page of zeros;
  - the store faults although the page is there (P in the error code, R/W missing in the entry) and gets a frame of its own;
  - the second store is no fault: the hardware finds the translation in the TLB;
  - a page that is swapped out leaves its slot in the entry, but stays in memory, in the swap cache, until somebody needs
    the frame; from then on an access is a major fault, and takes the disk's time;
  - outside of every region the kernel has nothing to install: SIGSEGV.
"""

import numpy as np

from numaemu import MADV_PAGEOUT, SegmentationFault
from numaemu.kernel.boot import ZERO_PFN

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
ERROR_BITS = {
    0: ("page not present", "protection"),
    1: ("read", "write"),
    2: ("kernel", "user"),
    4: ("", "instruction"),
}
PAGE_FLAGS = {6: "lru", 7: "active", 8: "referenced", 11: "dirty", 13: "swapcache", 2: "swapbacked", 3: "anon"}


def error_text(code):
    return ", ".join(words[code >> bit & 1] for bit, words in ERROR_BITS.items() if words[code >> bit & 1])


def region_of(machine, task, addr):
    """The line of /proc/<pid>/maps that holds an address."""
    for line in machine.read(f"/proc/{task.pid}/maps").splitlines():
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if start <= addr < end:
            return line.strip()
    return "none"


def show_tables(before, after):
    """The entry of each level, before and after."""
    for i, level in enumerate(after):
        old, new = before[i]["text"] if i < len(before) else "no table", level["text"]
        where = f"{level['level']}[{level['index']}]"
        print(f"    {where:10} in the table at {level['table']:#9x}:  {old}" + (f"  ->  {new}" if new != old else ""))


def show_page(machine, task, addr):
    """The frame behind an address, if there is one."""
    (word,) = machine.pagemap(task.pid, addr & ~0xFFF, 4096)
    if not int(word) >> 63:
        return
    page = task.kernel.page(int(word) & ((1 << 55) - 1))
    if page["pfn"] == ZERO_PFN:
        print(f"    page       the shared page of zeros (pfn {ZERO_PFN:#x})")
        return
    flags = " ".join(name for bit, name in PAGE_FLAGS.items() if page["flags"] >> bit & 1)
    print(
        f"    page       pfn {page['pfn']:#x} on node {page['node']}, refcount {page['refcount']}, mapcount {page['mapcount']}, "
        f"flags: {flags}" + ("" if "lru" in flags.split() else " (on its way to a list, in this CPU's batch)")
    )


def step(machine, task, what, addr, action, is_access):
    """Do something, and tell what became of an address; a row of the table at the end."""
    before, counted = task.walk(addr), task.counters()
    start, killed = task.clock_ns, ""
    try:
        action()
    except SegmentationFault as error:
        killed = str(error)
    cost, after = task.clock_ns - start, task.counters()
    minor, major = (after[name] - counted[name] for name in ("task_minor_faults", "task_major_faults"))
    print(f"{what}, {addr:#x}")
    if minor or major or killed:
        cr2, code = task.last_fault()
        print(f"    exception  CR2 {cr2:#x}, error code {code:#x} ({error_text(code)})")
        print(f"    region     {region_of(machine, task, addr)}")
    elif is_access:
        print(
            "    no fault   "
            + ("the tables had it" if after["page_walks"] > counted["page_walks"] else "the TLB had it")
        )
    show_tables(before, task.walk(addr))
    show_page(machine, task, addr)
    print(f"    {'SIGSEGV    ' + killed if killed else 'cost'}".ljust(14) + ("" if killed else f" {cost:,} ns"))
    return {"minor": minor, "major": major, "SIGSEGV": "yes" if killed else "no", "cost ns": cost}


def fill(machine):
    other = machine.task(cpu=0, name="other")
    other.mmap(next(node.memory_bytes for node in machine.nodes if node.memory_bytes)).touch()
    other.exit()


def main(machine):
    machine.swapon("64MiB")
    task = machine.task(cpu=0, name="story")
    memory, rows = task.mmap("64KiB"), {}
    addr = memory.addr + 3 * 4096 + 8

    def tell(name, what, where, action, is_access=True):
        rows[name] = step(machine, task, what, where, action, is_access)

    print(f"after mmap, before any access, {addr:#x}")
    print(f"    region     {region_of(machine, task, addr)}")
    show_tables(task.walk(addr), task.walk(addr))
    tell("load", "a load", addr, lambda: task.load([addr]))
    tell("store", "a store", addr, lambda: task.store([addr], np.uint64(7)))
    tell("store again", "the same store again", addr, lambda: task.store([addr], np.uint64(8)))
    tell(
        "pageout",
        "madvise(MADV_PAGEOUT) writes it to the swap device",
        addr,
        lambda: task.madvise(memory.addr, memory.nbytes, MADV_PAGEOUT),
        False,
    )
    tell(
        "pressure",
        "another task wants all memory: the page leaves the swap cache, too",
        addr,
        lambda: fill(machine),
        False,
    )
    tell("load from swap", "a load of the page that was swapped out", addr, lambda: task.load([addr]))
    tell(
        "outside",
        "a load behind the mapping",
        memory.addr + memory.nbytes,
        lambda: task.load([memory.addr + memory.nbytes]),
    )
    task.exit()
    return rows

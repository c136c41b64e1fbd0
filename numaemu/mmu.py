"""The hardware of one CPU: page-table entry bits, two TLB levels, the page walk. Answers with a code, never calls up.

An x86-64 page-table entry, as the hardware lays it out (Intel SDM vol. 3A, 4.5):

    63  62..52  51..12             11..9     8  7   6  5  4    3    2    1    0
    NX  --      frame address      software  G  PS  D  A  PCD  PWT  U/S  R/W  P

A virtual address of 48 bits:   47..39 pgd   38..30 pud   29..21 pmd   20..12 pte   11..0 offset

TLB entries are true LRU by age: the CPU's `tick`, which counts its accesses. A *hint* per low page number tells where
the page was last put; it is a short cut only, the entry's tag decides, so that figures do not depend on it.
Counted here: accesses by memory node, L2 hits, walks, walk loads by node. Derived (identities, see `counters`):
loads = tick - stores, L1 hits = tick - L2 hits - walks, and the clock is the sum of what each access costs.
"""
import numpy as np

from numaemu.atomic import compare_exchange
from numaemu.compile import hot, kernel
from numaemu.param import CONTEXT_WORDS, CPU_WORDS, L1_ENTRIES_MAX, L1_HINTS, L2_ENTRIES_MAX, L2_HINTS, MAX_NODES
from numaemu.pointer import Struct, i64, u8, u16, u64

U = np.uint64

_PAGE_PRESENT, _PAGE_RW, _PAGE_USER, _PAGE_PWT, _PAGE_PCD = U(1 << 0), U(1 << 1), U(1 << 2), U(1 << 3), U(1 << 4)
_PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PSE, _PAGE_GLOBAL = U(1 << 5), U(1 << 6), U(1 << 7), U(1 << 8)
_PAGE_NX = U(1 << 63)
PTE_PFN_MASK = U(0x000F_FFFF_FFFF_F000)

PAGE_MASK, OFFSET_MASK = U(0xFFFF_FFFF_FFFF_F000), U(0xFFF)
TAG_VALID = U(0x800)             # in a tag, beside the page address: an entry of zeros matches nothing
TASK_SIZE = U(0x7FFF_FFFF_F000)  # user addresses lie below
NODE_MASK = U(0xFF)              # the memory node, in the low bits of `host`

READ, WRITE = U(0), U(1)

# what a translation may end with, besides a slot; the error code bits are those of the page-fault exception
X86_PF_PROT, X86_PF_WRITE, X86_PF_USER, X86_PF_INSTR = U(1), U(2), U(4), U(16)

tlb_entry_t = Struct("tlb_entry_t", [
    ("tag", u64),       # page address | TAG_VALID
    ("wtag", u64),      # the same if a store needs no walk (writable, D already set), else 0
    ("host", u64),      # where the frame lies in this process | the node that owns it
    ("age", i64),       # number of the access that used it last, from 1; 0: empty
], nbytes=32)

cpu_t = Struct("cpu_t", [
    # written by the coordinator (set) and this CPU (cleared), atomically; a cache line of their own
    ("ipi_pending", u64), ("ipi_from", u64, CONTEXT_WORDS), ("event_at", i64), ("_pad0", u64, 1),
    # the answer to this CPU's one outstanding request: written by who serves it, then `reply_seq` (release)
    ("reply_value", i64), ("reply_seq", i64), ("waiting", u64), ("_pad2", u64, 5),
    # the shootdown this CPU initiates: written by it, read by its targets until `acks` is 0 (they subtract)
    ("flush_mm", i64), ("flush_start", u64), ("flush_end", u64), ("flush_gen", i64), ("flush_acks", i64),
    ("flush_mask", u64, CPU_WORDS), ("_pad3", u64, 7),
    # written by this CPU, read by the coordinator
    ("inside", u64),            # 1 while inside emulated accesses
    ("mm", i64), ("mm_id", i64),        # number and id of the loaded address space, 0 = none
    ("tlb_gen", i64),           # generation of that address space up to which the TLB is flushed
    ("clock_base_ns", i64),     # charged by the kernel: faults, messages, waiting (accesses are added by identity)
    ("_pad1", u64, 3),
    # set at boot
    ("id", i64), ("node", i64),
    ("machine", u64),           # address of machine_t
    ("memory", u64),            # host address of physical address 0
    ("block_node", u64),        # u8 per 2 MiB of physical memory: the node that owns it
    ("on_fault", u64), ("on_ipi", u64), ("on_event", u64),      # callbacks: the kernel's entries
    ("l1_sets", u64), ("l1_ways", i64), ("l1_latency_ns", i64), ("l1_mask", u64),
    ("l2_sets", u64), ("l2_ways", i64), ("l2_latency_ns", i64), ("l2_mask", u64),
    ("latency_ns", i64, MAX_NODES),
    # written by this CPU only
    ("cr3", u64),               # host address of the loaded top-level table
    ("tick", i64),              # accesses so far, loads and stores
    ("stores", i64),
    ("l2_hits", i64), ("walks", i64), ("assists", i64), ("shootdowns_received", i64),
    ("accesses", i64, MAX_NODES), ("walk_loads", i64, MAX_NODES),    # by the node whose memory was accessed
    ("cr2", u64), ("error_code", u64), ("signal", i64),              # the last fault that could not be served
    ("task", i64),              # number of the task that runs
    ("flags", i64),             # PF_*
    # of kernel/sched.py; `nr_waiting`, tasks that wait for this CPU, by its process under the run queue's mutex
    ("nr_switches", i64), ("exec_start_ns", i64), ("slice_start_ns", i64), ("preempted", i64), ("nr_waiting", i64),
    ("trail", i64),             # 1: the page allocator notes its steps
    ("policy", u64, 3),         # a mempolicy on its way to a range
    ("scratch", u64),           # a word on its way through an unaligned access
    ("l1_hint", u16, L1_HINTS), ("l2_hint", u16, L2_HINTS),
    ("l1", tlb_entry_t, L1_ENTRIES_MAX), ("l2", tlb_entry_t, L2_ENTRIES_MAX),
])


@hot
def set_index(page_number, sets, mask):
    """The set of a page: a mask where the number of sets is a power of two, a remainder elsewhere."""
    return np.int64(page_number & mask) if mask != U(0) or sets == U(1) else np.int64(page_number % sets)


@hot
def l1_victim(cpu, page_number):
    """Index of the least recently used L1 entry of the page's set."""
    ways = cpu.l1_ways
    first = set_index(page_number, cpu.l1_sets, cpu.l1_mask) * ways
    victim, oldest = first, cpu.l1[first].age
    for slot in range(first + 1, first + ways):
        age = cpu.l1[slot].age
        if age < oldest:
            victim, oldest = slot, age
    return victim


@hot
def l1_find(cpu, page_number, tag):
    """Index of the L1 entry with this tag, or -1."""
    first = set_index(page_number, cpu.l1_sets, cpu.l1_mask) * cpu.l1_ways
    for slot in range(first, first + cpu.l1_ways):
        if cpu.l1[slot].tag == tag:
            return slot
    return -1


@hot
def l2_find(cpu, page_number, tag):
    """Index of the L2 entry with this tag, or -1."""
    slot = np.int64(cpu.l2_hint[page_number & U(L2_HINTS - 1)])
    if cpu.l2[slot].tag == tag:
        return slot
    first = set_index(page_number, cpu.l2_sets, cpu.l2_mask) * cpu.l2_ways
    for slot in range(first, first + cpu.l2_ways):
        if cpu.l2[slot].tag == tag:
            return slot
    return -1


@hot
def l2_victim(cpu, page_number):
    """Index of the least recently used L2 entry of the page's set."""
    ways = cpu.l2_ways
    first = set_index(page_number, cpu.l2_sets, cpu.l2_mask) * ways
    victim, oldest = first, cpu.l2[first].age
    for slot in range(first + 1, first + ways):
        age = cpu.l2[slot].age
        if age < oldest:
            victim, oldest = slot, age
    return victim


@hot
def fill_l1(cpu, page_number, tag, wtag, host):
    """Put a translation into the L1 TLB in place of the set's oldest; its slot."""
    slot = l1_victim(cpu, page_number)
    entry = cpu.l1[slot]
    entry.tag, entry.wtag, entry.host, entry.age = tag, wtag, host, cpu.tick + 1
    cpu.l1_hint[page_number & U(L1_HINTS - 1)] = slot
    return slot


@hot
def table_entry(cpu, table, index):
    """One load of the walk: entry `index` of the table at host address `table`, charged where the table lies."""
    node = u8.array(cpu.block_node)[np.int64((table - cpu.memory) >> U(21))]
    cpu.walk_loads[node] += 1
    return u64.array(table)[index]


@kernel("u64(cpu_t*, u64, bool)")
def walk(cpu, address, write):
    """Walk the four levels for `address`; the leaf entry with A (and D) set, or 0: not present or not allowed.

    A and D are set where missing by compare-exchange of the whole entry, as hardware does: other CPUs change the same
    words, and bits must not land in an entry that has just been cleared.
    """
    table = cpu.cr3
    shift = U(39)
    writable = True
    while True:
        index = np.int64((address >> shift) & U(511))
        entry = table_entry(cpu, table, index)
        if (entry & (_PAGE_PRESENT | _PAGE_USER)) != _PAGE_PRESENT | _PAGE_USER:
            return U(0)
        writable = writable and (entry & _PAGE_RW) != U(0)
        leaf = shift == U(12)
        if leaf and write and not writable:
            return U(0)
        wanted = entry | _PAGE_ACCESSED | (_PAGE_DIRTY if leaf and write else U(0))
        if entry != wanted and compare_exchange(u64.array(table), index, entry, wanted) != entry:
            continue            # it changed under our hands: load it again
        if leaf:
            return wanted if writable else wanted & ~_PAGE_RW
        table = cpu.memory + (entry & PTE_PFN_MASK)
        shift -= U(9)


@kernel("i64(cpu_t*, u64, bool, i64, i64)")
def tlb_walk(cpu, address, write, slot, slot2):
    """Walk and put the result into both levels; `slot` and `slot2` are where the page already stands, or -1.

    A hit that may not be stored to yet (D is clear) walks too: it is counted as an assist, not as a walk.
    """
    tag = (address & PAGE_MASK) | TAG_VALID
    page_number = address >> U(12)
    entry = walk(cpu, address, write)
    if entry == U(0):
        return -1
    if slot >= 0 or slot2 >= 0:
        cpu.assists += 1
    if slot < 0:
        if slot2 >= 0:
            cpu.l2_hits += 1
        else:
            cpu.walks += 1
    frame = cpu.memory + (entry & PTE_PFN_MASK)
    node = U(u8.array(cpu.block_node)[np.int64((entry & PTE_PFN_MASK) >> U(21))])
    dirty = _PAGE_DIRTY | _PAGE_RW
    wtag = tag if (entry & dirty) == dirty else U(0)
    if slot2 < 0:
        slot2 = l2_victim(cpu, page_number)
        cpu.l2_hint[page_number & U(L2_HINTS - 1)] = slot2
    two = cpu.l2[slot2]
    two.tag, two.wtag, two.host, two.age = tag, wtag, frame | node, cpu.tick + 1
    if slot < 0:
        return fill_l1(cpu, page_number, tag, wtag, frame | node)
    one = cpu.l1[slot]
    one.wtag, one.host = wtag, frame | node
    return slot


@kernel("i64(cpu_t*, u64, bool)")
def tlb_refill(cpu, address, write):
    """Behind an L1 miss (or a store to a page not yet dirty): search both levels, walk; an L1 slot, or -1: fault."""
    tag = (address & PAGE_MASK) | TAG_VALID
    page_number = address >> U(12)
    slot = l1_find(cpu, page_number, tag)
    if slot >= 0 and not (write and cpu.l1[slot].wtag != tag):
        cpu.l1_hint[page_number & U(L1_HINTS - 1)] = slot
        return slot
    slot2 = l2_find(cpu, page_number, tag)
    if slot < 0 and slot2 >= 0 and not (write and cpu.l2[slot2].wtag != tag):
        entry = cpu.l2[slot2]
        entry.age = cpu.tick + 1
        cpu.l2_hits += 1
        return fill_l1(cpu, page_number, tag, entry.wtag, entry.host)
    return tlb_walk(cpu, address, write, slot, slot2)


@kernel("void(cpu_t*)")
def tlb_flush_all(cpu):
    """Forget every translation."""
    for slot in range(np.int64(cpu.l1_sets) * cpu.l1_ways):
        cpu.l1[slot].tag = U(0)
        cpu.l1[slot].wtag = U(0)
        cpu.l1[slot].age = 0
    for slot in range(np.int64(cpu.l2_sets) * cpu.l2_ways):
        cpu.l2[slot].tag = U(0)
        cpu.l2[slot].wtag = U(0)
        cpu.l2[slot].age = 0


@kernel("void(cpu_t*, u64)")
def tlb_flush_page(cpu, address):
    """Forget one page's translation (INVLPG)."""
    tag = (address & PAGE_MASK) | TAG_VALID
    page_number = address >> U(12)
    slot = l1_find(cpu, page_number, tag)
    if slot >= 0:
        cpu.l1[slot].tag, cpu.l1[slot].wtag, cpu.l1[slot].age = U(0), U(0), 0
    slot = l2_find(cpu, page_number, tag)
    if slot >= 0:
        cpu.l2[slot].tag, cpu.l2[slot].wtag, cpu.l2[slot].age = U(0), U(0), 0


@kernel("i64(cpu_t*)")
def clock_ns(cpu):
    """The CPU's emulated time: what the kernel charged, each access and walk load at its node's latency, each TLB look-up."""
    total = cpu.clock_base_ns + cpu.tick * cpu.l1_latency_ns
    total += (cpu.l2_hits + cpu.walks + cpu.assists) * cpu.l2_latency_ns
    for node in range(MAX_NODES):
        total += (cpu.accesses[node] + cpu.walk_loads[node]) * cpu.latency_ns[node]
    return total

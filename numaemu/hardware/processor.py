"""What a CPU holds: `cpu_t`, its TLB and page-walk cache entries, the words it shares with others. The hardware's state.

A tag's low bits say whose an entry is: TAG_KERNEL entries match only accesses in kernel mode, entries without TAG_VALID
belong to another address space (its ASID stands in the low bits) and wait for it to come back.
"""

import numpy as np

from numaemu.compiler.decorators import hot
from numaemu.compiler.pointer import Struct, i64, u16, u64
from numaemu.hardware.marks import WORD_MARKS
from numaemu.hardware.paging import PTE_SHIFT, paging_t
from numaemu.spec.param import (
    CONTEXT_WORDS,
    CPU_WORDS,
    KEPT_LINES,
    L1_ENTRIES_MAX,
    L1_HINTS,
    L1_VIEWS,
    L2_ENTRIES_MAX,
    L2_HINTS,
    L2_ORDERS,
    MAX_NODES,
    MAX_OUTSTANDING,
    NR_ASIDS,
    RUN,
    TABLE_HINTS,
    WALK_CACHE_MAX,
)

U = np.uint64

# in a tag, beside the page address; an entry of zeros matches nothing
TAG_VALID = U(0x800)  # of the address space that is loaded, or the kernel's
TAG_SIZE = U(0x600)  # 0: 4 KiB; 1 << 9, 2 << 9: mapped one, two levels higher up
TAG_KERNEL = U(0x100)  # only for accesses in kernel mode
TAG_ASID = U(0xFF)  # of an entry without TAG_VALID: whose it is
# in `host`, beside the host address of the frame
NODE_MASK = U(0xFF)  # the memory node
HOST_GLOBAL, HOST_NX = U(0x100), U(0x200)  # _PAGE_GLOBAL: survives a change of address space; _PAGE_NX >> 54

# what a translation may end with, besides a slot; the bits of the page-fault exception's error code
X86_PF_PROT, X86_PF_WRITE, X86_PF_USER, X86_PF_RSVD, X86_PF_INSTR = U(1), U(2), U(4), U(8), U(16)
PF_UNALIGNED = U(1 << 32)  # ours, above those: an access of a library in user mode to an address that is not aligned
READ, WRITE, EXEC = X86_PF_USER, X86_PF_USER | X86_PF_WRITE, X86_PF_USER | X86_PF_INSTR  # a user's accesses
KERNEL_READ, KERNEL_WRITE, KERNEL_EXEC = U(0), X86_PF_WRITE, X86_PF_INSTR
LEAF_SHIFT = U(52)  # walk() answers with the leaf entry, and in these bits how many levels it stands up

# fmt: off
tlb_entry_t = Struct("tlb_entry_t", [
    ("tag", u64),       # page address | TAG_VALID
    ("wtag", u64),      # the same if a store needs no walk (writable, D already set), else 0
    ("host", u64),      # where the frame lies in this process | the node that owns it | HOST_*
    ("age", i64),       # number of the access that used it last, from 1; 0: empty
], nbytes=32)

walk_cache_t = Struct("walk_cache_t", [      # a paging-structure cache: an upper entry that was walked through
    ("tag", u64),       # the address bits that led there | levels above the lowest table, 0: empty
    ("table", u64),     # host address of the table it points to
    ("rights", u64),    # _PAGE_RW, _PAGE_USER as all entries on the way allow, _PAGE_NX as any forbids
    ("age", i64),
], nbytes=32)

table_hint_t = Struct("table_hint_t", [
    ("region", u64),    # address >> 21, mixed with the top table's address
    ("table", u64),     # host address of the lowest page table there; may be of the past
], nbytes=16)

# Shared words of cpu_t: the word | its writer | why a reader may trust it.
# - inside | Its CPU, before it looks at tlb_gen and ipi_pending. | The coordinator posts before it looks at inside.
#   Both are sequentially consistent, so one sees the other.
# - waiting (and mailbox.asleep) | The context that waits sets it, then looks; the waker changes the state, then
#   looks. | Both are sequentially consistent: one sees the other.
# - wait_bell (and mailbox.bell) | At boot, before the others are forked. | They never change.
# - event_at | A context that posts something to the CPU: 0, after what it posts. The CPU: exchange with the access
#   of its next look. | The CPU exchanges first, then looks at what is posted: a 0 that it overwrites was stored
#   after what it sees.
# - ipi_from | The coordinator sets bits. Whoever clears a bit (atomic AND, exchange) acknowledges. | Each target
#   acknowledges once.
# - nr_waiting, wake_at_ns | The CPU's process, under its run queue's mutex, then event_at. | The CPU inside
#   accesses: as event_at.
# - io_defer, io_until_ns | The fault under way on the CPU; the event check takes the word out before others run. |
#   The CPU only.
# - preempted, nr_switches, slice_start_ns | The CPU, in its turn. | Single words.
# - wb_until_ns | Its CPU, by its own clock. | The CPU only.
# - numa_at_ns | Its CPU, in its turn. | The CPU only.
# - copied | Its CPU, in a write fault that copies. | The CPU only: a hint what to ask the host for.
cpu_t = Struct("cpu_t", [
    # written by the coordinator (set) and this CPU (cleared), atomically; cache lines of their own
    ("ipi_pending", u64), ("event_at", i64), ("ipi_from", u64, CONTEXT_WORDS), ("_pad0", u64, 5),
    # the answer to this CPU's one outstanding request: written by who serves it, then `reply_seq` (release)
    ("reply_value", i64), ("reply_seq", i64), ("waiting", u64), ("_pad2", u64, 5),
    # the shootdown this CPU initiates: written by it, read by its targets until `acks` is 0 (they subtract)
    ("flush_mm", i64), ("flush_start", u64), ("flush_end", u64), ("flush_gen", i64), ("flush_acks", i64),
    ("flush_shift", u64),       # log2 of how far apart its translations lie at least
    ("flush_mask", u64, CPU_WORDS), ("_pad3", u64, 2),
    # written by this CPU, read by the coordinator
    ("inside", u64),            # 1 while inside emulated accesses
    ("mm", i64), ("mm_id", i64),        # number and id of the loaded address space, 0 = none
    ("tlb_gen", i64),           # generation of that address space up to which the TLB is flushed
    ("kernel_tlb_gen", i64),    # likewise of the kernel's mappings
    ("clock_base_ns", i64),     # charged by the kernel: faults, messages, waiting (accesses are added by identity)
    ("_pad1", u64, 2),
    # set at boot
    ("id", i64), ("node", i64),
    ("paging", paging_t),
    ("kernel_table", u64),      # host address of the kernel's own top-level table (swapper_pg_dir)
    ("walk_cache_entries", i64),
    ("asids", i64),             # address spaces whose entries the TLB can keep apart, 0 or 1: only the loaded one's
    ("machine", u64),           # address of machine_t
    ("memory", u64),            # host address of physical address 0
    ("block_node", u64),        # u8 per 2 MiB of physical memory: the node that owns it
    ("on_fault", u64), ("on_ipi", u64), ("on_event", u64),      # callbacks: the kernel's entries
    ("l1_sets", u64), ("l1_ways", i64), ("l1_latency_ns", i64), ("l1_mask", u64),
    ("l2_sets", u64), ("l2_ways", i64), ("l2_latency_ns", i64), ("l2_mask", u64),
    ("latency_ns", i64, MAX_NODES),
    ("wait_bell", u64),         # its sem_t (smp.ring)
    ("timed", u64),             # 1: hardware/timing.py says what an access costs
    ("hint_base", i64),         # where in `l1_hint` pages are noted: 0, or where `timed` L1_HINTS
    ("nr_nodes", i64),          # that memory may lie on
    ("caches", u64),            # address of its core_t (cache.py), 0: it has none
    ("rates", u64), ("passages", u64),             # rates_t (0: nothing has a rate); passage_t by server: bandwidth.py
    ("outstanding", i64),       # misses that may be under way
    ("keeps_lines", u64),       # 1: no caches; lines just used are at hand: controller.py
    ("l2_ordered", u64),        # 1: sets of the second-level TLB have orders and marks (tlb_sets.py)
    ("_pad5", u64, 6),
    # written by this CPU only; `tick` begins a cache line, and so do the TLBs
    ("huge_entries", u64),      # bit n: an entry n levels up has been put into the TLB since it was last empty
    ("cr3", u64),               # host address of the loaded top-level table
    ("cleared", i64),           # CLEARED_*: what it has unmapped since its last flush (kernel/mm/fault/zap.py)
    ("tick", i64),              # accesses so far, loads and stores
    ("stores", i64),
    ("l2_hits", i64), ("walks", i64), ("assists", i64), ("shootdowns_received", i64),
    ("accesses", i64, MAX_NODES), ("walk_loads", i64, MAX_NODES),    # by the node whose memory was accessed
    ("cr2", u64), ("error_code", u64), ("signal", i64),              # the last fault that could not be served
    ("task", i64),              # number of the task that runs
    ("flags", i64),             # PF_*
    # of kernel/core/sched.py; `nr_waiting`, tasks that wait for this CPU, by its process under the run queue's mutex
    ("nr_switches", i64), ("exec_start_ns", i64), ("slice_start_ns", i64), ("preempted", i64), ("nr_waiting", i64),
    ("io_defer", i64), ("io_until_ns", i64),       # 1: in a fault whose task may sleep; when the disk is done (disk.py), or 0
    ("wake_at_ns", i64),        # when the first of those that sleep is to wake, or 0: as `nr_waiting`
    ("trail", i64),             # 1: the page allocator notes its steps
    ("copied", u64),            # number of the virtual page that was copied last because of a write (memory.py)
    ("wb_until_ns", i64),       # when the disk is done with what flushers on this CPU gave it, by its clock (page_writeback.py)
    # emulated time of which nothing was done: no task wanted the CPU; its task waited for the disk (both in `clock_base_ns`)
    ("idle_ns", i64), ("iowait_ns", i64),
    ("disk_ios", i64, 2), ("disk_sectors", i64, 2), ("disk_ns", i64, 2),       # of requests for files: read, written (disk.py)
    ("numa_at_ns", i64),        # when NUMA balancing is to look at the running task next, by its clock (sched.py)
    ("memory_ns", i64),         # emulated time of its accesses, where `timed`
    ("l1_hint", u16, 2 * L1_HINTS), ("l2_hint", u16, L2_HINTS),      # `l1_hint`, second half: see `hint_base`
    # behind the entries and the views one that matches nothing, and one to fill the line
    ("l1", tlb_entry_t, L1_ENTRIES_MAX + L1_VIEWS + 2), ("l2", tlb_entry_t, L2_ENTRIES_MAX),
    ("next_view", i64),         # the view to be overwritten next
    ("view_of", i64, L1_VIEWS),                      # the L1 entry each belongs to
    ("walk_cache", walk_cache_t, WALK_CACHE_MAX), ("walk_cache_hits", i64),
    ("asid", i64), ("asid_next", i64),               # of the loaded address space; the one to be given away next
    ("asid_mm_id", i64, NR_ASIDS), ("asid_gen", i64, NR_ASIDS),      # whose each is, and flushed up to where
    ("table_hint", table_hint_t, TABLE_HINTS),
    # of controller.py
    ("memory_ps", i64),         # emulated time of accesses, beside `memory_ns`
    ("overlap", i64), ("loaded_ps", i64), ("chain_ps", i64),         # of the vector operation that goes on
    ("under_way_ps", i64, MAX_OUTSTANDING),        # when each of the last lines is there
    # lines at hand: of data, of upper page tables, of lowest ones; (line + 1) << 1 | stored to
    ("kept", u64, 3 * KEPT_LINES), ("kept_marks", u64, 3), ("kept_next", i64, 3),
    # of tlb_sets.py: the order of each set of the L2 and its marks; of walk.py: marks
    ("l2_order", u64, L2_ORDERS), ("l2_marks", u64, L2_ORDERS), ("walk_marks", u64, WALK_CACHE_MAX // WORD_MARKS),
    ("walks_forgotten", u64),   # times that the page-walk cache was emptied, and with it the table hints
    ("run_places", u64, RUN),   # where the host is asked for a run of accesses (api/vectors.py)
    ("_pad4", u64, 3),
])
# fmt: on


@hot
def level_shift(cpu, up):
    """Address bits that an entry `up` levels above the lowest translates: 12, 21, 30; on 32 bits 12, 22."""
    return PTE_SHIFT + U(up) * cpu.paging.table_bits

"""The central structures, as Linux's include/linux/mm_types.h and sched.h have them.

Frame numbers (pfn), counts and indices are signed, bit words and addresses unsigned. Links between structures are
numbers: a page is named by its pfn, an address space, a VMA, a task by its place in its table; 0 is 'none'.
"""

import numpy as np

from numaemu.compiler.decorators import hot
from numaemu.compiler.pointer import Struct, i32, i64, u8, u64
from numaemu.hardware.paging import paging_t
from numaemu.spec.param import CPU_WORDS, MAX_NODES
from numaemu.uapi import RLIM_NLIMITS

U = np.uint64

# page->flags: Linux's names; the order is ours (Linux's differs between configurations)
PG_buddy, PG_table, PG_swapbacked, PG_anon, PG_reserved, PG_locked = (1 << i for i in range(6))
# fmt: off
(PG_lru, PG_active, PG_referenced, PG_unevictable, PG_workingset, PG_dirty, PG_writeback, PG_swapcache, PG_reclaim,
 PG_mlocked) = (1 << i for i in range(6, 16))
# fmt: on
PG_uptodate, PG_anon_exclusive, PG_readahead, PG_private = 1 << 18, 1 << 19, 1 << 20, 1 << 23
PG_head, PG_tail = 1 << 21, 1 << 22  # of a compound page; a tail's lru_next is its head (Linux: compound_head)
PG_young, PG_idle = 1 << 24, 1 << 25  # page_idle.py: counts as used for reclaim; nobody has used it since it was marked
PG_hugetlb, PG_restore_reserve = 1 << 26, 1 << 27  # of a head: it belongs to the pool; its reservation comes back
PG_used = 1 << 16  # the emulator's own: the frame has been given out before (its host memory may hold data)
PG_pcp = 1 << 17  # the emulator's own: on a per-CPU list or on its way to one

# Shared words of page_t: the word | its writer | why a reader may trust it.
# - refcount, mapcount | Any context, by atomic add. They are stored only over a 0: as 1 where a frame is given out,
#   or as what they were by the context that froze the page there (compare-exchange to 0: reclaim, migration). |
#   try_get_page never revives a 0. It may come late, to a frame that has been given out anew. So from the first 1
#   on everything is added, and what a page says of itself (flags, counts, contents) counts only with a reference,
#   with a lock that keeps its entry, or with its own lock, and after a second look at the entry, slot or word that
#   named it.
# - PG_lru, and lru_next, lru_prev of a page on an LRU list | The context whose atomic AND clears PG_lru owns the
#   links. | A page on a list holds PG_lru, and is not freed before it is taken off. Compaction takes its first
#   reference under the lru_lock, where PG_lru is set: a page leaves its list under that lock before it is freed, so
#   it is no other page by then.
# - PG_dirty of a file's page | Set by the context that holds the page's lock or maps the page; cleared under its
#   lock. The context that changes it also counts. | A page-table entry is writable only while the bit is set.
# - PG_anon_exclusive | Set where a page has one owner: before other contexts know it, or by a context that holds a
#   reference and PG_locked (for the pages of a huge entry: pmd_lock), has looked at the entry again, and counts no
#   other reference. fork clears it, and the write permission that goes with it, under the mmap_lock for writing and
#   the mapping's spin lock, before the copy is visible. | A write fault uses the page again only while it is set.
#   Reclaim and migration put it into special entries; they hold PG_locked and that spin lock, so they see it with
#   the child's entry, or without both.
# - last_cpupid (the bits from LAST_CPUPID_PGSHIFT on) | Compare-exchange of the whole word, by hinting faults, the
#   scanner and migration. | Who used the page last, or when it was scanned: a hint.
# - PG_mlocked | Atomic OR and AND; the context that changes it counts nr_mlock. | It is set after the page is
#   mapped, and looked at after mapcount has gone to 0. So one of the two sides sees the other.
# - PG_swapcache, and private of a swapped page | The holder of PG_locked. | A reader takes a reference, locks the
#   page and looks again.
# - mapping, index of a file's page | The holder of PG_locked. | Under PG_locked, or with an entry that maps the
#   page; elsewhere they are a hint.
# - private of a file's page | The CPU that asked the disk for it. While the page is read: the context that reads
#   it, which holds its lock, first stores the next page of the request, then the time when the disk is done, then
#   sets PG_uptodate. Its buffer head changes under PG_locked. | Only with PG_uptodate is it a time; before that
#   other contexts leave it alone. Only the CPU that asked waits for that time, since the clocks of two CPUs cannot
#   be compared.
# - private of a leaf page of a file's tree | Atomic add of pages and of shadows, after the slot has changed. | One
#   word holds both counts, so that each change from and to 'only shadows' is seen by one CPU.
# - private of the head page of a slab (its state) | Any CPU, by compare-exchange; where the slab enters or leaves
#   the partial list also under the node's list_lock. | A CPU takes all free objects of its slab at once, and others
#   only push: there is no ABA.
# - index of the head page of a slab (obj_exts, beside the colour) | Once, by compare-exchange, by the CPU that owns
#   (froze) the slab; with debug flags, when no CPU owns it, by any CPU that has an object of it. It goes back with
#   the slab. | A CPU that frees by the fast path owns the slab, and knew of no array when it froze the slab: only
#   this CPU could have added one, and then it forgot the bounds (base, end) by which that path goes. All others
#   free by put_object, which looks; an array that it does not see yet has nothing about its object.
# - order of the first page of a huge mapping: huge entries that map it | Atomic add, under the pmd_lock of the
#   entry that comes or goes. | The context that adds the first entry or takes the last counts
#   nr_anon_transparent_hugepages.
# - refcount of a pool's page | 0 from the buddy system on, until the page is handed out. Then the context that took
#   it off the list, or made it, stores 1. | Nobody who looks the page up late can have it. A fault on a mapped page
#   takes a reference and looks at the entry again, since threads unmap without the fault mutex.
# - lru_next of the table that a huge entry stands in: tables laid by for a split | Under the table's pmd_lock (a
#   word of the table that the entry stands in). | As many tables are laid by as huge entries of anonymous memory
#   stand in the table.
# - isolated free pages | The node takes them off its lists. From the reply on they are the context's; unused ones
#   come back over zone.returned. | Request and reply order the two sides.
# fmt: off
page_t = Struct("page_t", [
    # by whoever owns the page at that moment: its node while free, the CPU that allocated it, then atomically
    ("flags", u64),
    ("lru_next", i64), ("lru_prev", i64),    # list links (pfn): free list, per-CPU list, LRU list
    ("mapping", i64),                        # number of the mapping_t (rmap family), 0 = not mapped
    ("index", i64),                          # page number within the mapping (for anonymous memory: address / 4096)
    ("private", i64),                        # buddy: the order of the free block; else free for the owner's use
    ("refcount", i32), ("mapcount", i32),    # atomically; mapcount counts page-table entries (Linux's value + 1)
    ("migratetype", i32), ("order", i32),    # of an allocated block: the free list it goes back to
], nbytes=64)
# fmt: on

# vma->vm_flags
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC, VM_MAYSHARE = 0x10, 0x20, 0x40, 0x80
VM_SEQ_READ, VM_RAND_READ = 0x8000, 0x10000
VM_GROWSDOWN, VM_STACK, VM_HEAP = 0x100, 0x100, 1 << 40
VM_LOCKED, VM_SEQ_READ, VM_RAND_READ, VM_DONTCOPY, VM_DONTEXPAND = 0x2000, 0x8000, 0x10000, 0x20000, 0x40000
VM_LOCKONFAULT, VM_ACCOUNT, VM_NORESERVE, VM_WIPEONFORK, VM_DONTDUMP = 0x80000, 0x100000, 0x200000, 0x2000000, 0x4000000
VM_HUGETLB = 0x400000
VM_SOFTDIRTY, VM_HUGEPAGE, VM_NOHUGEPAGE = 0x8000000, 0x20000000, 0x40000000
VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT

# fmt: off
policy_t = Struct("policy_t", [     # struct mempolicy; mode 0 (MPOL_DEFAULT) = none of its own
    ("mode", i64), ("flags", i64), ("nodes", u64),
    ("user_nodes", u64),            # w: with static or relative nodes those asked for, else those the cpuset allowed then
])

BY_FAMILY, BY_FILE = range(2)  # the lists of mappings that a VMA is on

# Shared words of vma_numab_state_t: the word | its writer | why a reader may trust it.
# - all | The task that scans the address space, under the mmap_lock held for reading (one scans at a time:
#   mm.numa_next_scan_ns); pids_active also by hinting faults, atomic OR. | Hints which parts to scan.
vma_numab_state_t = Struct("vma_numab_state_t", [      # struct vma_numab_state; all 0: the VMA was not scanned yet
    ("there", i64),                 # 1 from the first scan on
    ("next_scan_ns", i64), ("pids_active_reset_ns", i64),      # emulated time: not before the first; when to forget the older pids
    ("pids_active", u64, 2),        # a bit for each pid (hashed) that took a hinting fault here: before and in this window
    ("start_scan_seq", i64), ("prev_scan_seq", i64),           # mm.numa_scan_seq at the first scan; of the last whole one
])

# Shared words of vma_t: the word | its writer | why a reader may trust it.
# - all fields, and the index of VMAs | Under the mmap_lock held for writing. | Under the mmap_lock held for
#   reading.
# - anon_vma, mapping | Once from 0, under anon_vma_lock, mapping last; else with the VMA. | A fault reads mapping
#   with acquire.
# - next, prev | Under the spin lock of the mapping. | A VMA leaves its family
#   before its tables go.
# - start, pgoff, and leaf entries of a family's member while mremap moves it | Under the mmap_lock for writing and
#   the mapping's spin lock. | A walk over the family holds that lock, so it finds a page at its old place or at its
#   new one. The flush lies between, under the lock, and nobody allocates there.
vma_t = Struct("vma_t", [           # written under the mmap_lock of its mm, held for writing
    ("start", u64), ("end", u64),   # [start, end)
    ("flags", i64),
    ("pgoff", i64),                 # page number of `start` in the mapping (anonymous: its address / 4096)
    ("mm", i64),
    ("mapping", i64),               # rmap family (anon_vma) or shared object; 0 until the first fault
    ("file", i64),                  # number of the open file it maps, which it holds; 0: none
    ("i_mapping", i64),             # the mapping of that file's pages (`mapping` is then only the anon_vma); 0: no file
    ("anon_vma", i64),              # whose pages a private VMA has, 0 until the first fault: VMAs with equal ones may merge
    ("chained", i64),               # 1: forked, so its anon_vma_chain in Linux has more than one member
    ("policy", policy_t),
    ("resv_map", u64), ("resv_unmapped", i64),     # hugetlb: the reservation it owns; 1: pages were taken away
    ("hstate", i64),                # hugetlb: number of the pool that its pages come from
    ("swap_readahead_info", u64),   # by faults, a hint: the last one's address, the window it read, hits since; 0: none yet
    ("numab", vma_numab_state_t),   # NUMA balancing: mm/numa/
    ("next", i64, 2), ("prev", i64, 2),            # the other VMAs of `mapping` (BY_FAMILY) and of `i_mapping` (BY_FILE); under that one's lock
])
# fmt: on

# Shared words of mapping_t: the word | its writer | why a reader may trust it.
# - users | Atomic add; from 0 never again. VMAs, the inode of a file, and contexts that move or look at a page hold
#   one each (folio_hold_mapping: only while it is not 0, then the page is looked at again). | The context that
#   brings it to 0 frees the mapping, since nobody else can reach it. So a file's mapping stays while its inode
#   does. Compaction has no mmap_lock: with a hold the family and the object's tree stay.
# - root, tables of the tree | Once, by compare-exchange; freed with the object. | Nobody holds the object any more
#   when they go.
# - a slot of the tree | 0 or a value to a page by compare-exchange; back by the holder of the page's lock. | A
#   reader takes a reference and looks again.
# - size of shared anonymous memory | The context that makes it, before it is mapped. | It never changes.
# - holes | Atomic add by MADV_REMOVE, after pages have left the tree and before it unmaps once more. | A fault
#   reads it before it looks a page up and after it has mapped the page. Either the second unmapping finds the
#   entry, or the fault finds the new count and takes out what is no longer the object's.
# - first_policy and its sp_node_t | Under policy_lock, by mbind; freed with the object. | An allocation copies the
#   policy that it finds, under the lock, into its CPU's own word (mpols), so none may go while it is used. That
#   there is none is seen without the lock.
# - acct of a tmpfs file's object | Atomic add, with the page that is charged or gone. | The limit is looked at
#   after the addition, as with vm_committed_as.
# - a tmpfs page in the tree | The holder of PG_locked takes it out, under the invalidate_lock for writing. | A
#   fault holds that lock for reading: it sees the old end or the new one.
mapping_t = Struct(
    "mapping_t",
    [  # struct anon_vma / struct address_space: who maps these pages
        ("lock", u64),  # spin lock; guards the list
        ("users", i64),  # VMAs in the list, the inode, other holders, atomically; the last one frees it
        ("first_vma", i64),  # under the lock
        ("shared", i64),  # SHMEM: pages of its own, a shared object or a file; HUGETLB: of huge pages
        ("host", i64),  # number of the file's inode; 0: no file
        ("root", u64),  # the tree of its pages (xarray.py), 0 = none yet
        ("nr_pages", i64),  # pages in it, atomically
        ("size", i64),  # shared anonymous memory: pages, as it was made (i_size)
        ("acct", i64),  # shmem: pages charged against the commit limit
        ("holes", i64),  # shared anonymous memory: how often pages were cut out (MADV_REMOVE), atomically
        ("tmpfs", i64),  # 1: a file's object, charged page by page (atomically then); its inode is a user
        ("resv_map", u64),  # hugetlb: the host address of its reservations
        ("hstate", i64),  # hugetlb: number of its pool
        ("policy_lock", u64),  # spin lock of the list below
        ("first_policy", i64),  # shmem: the memory policies of parts of it (sp_node_t); 0: none
    ],
)

# fmt: off
sp_node_t = Struct("sp_node_t", [   # struct sp_node: a policy of the pages [start, end) of a shared object; under its policy_lock
    ("start", i64), ("end", i64), ("next", i64), ("policy", policy_t),
])
# fmt: on
SHMEM, HUGETLB = 1, 2

VM_FAULT_OK, VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_FAULT_SIGSEGV, VM_FAULT_RETRY, VM_FAULT_MAJOR = range(6)
VM_FAULT_NUMA, VM_FAULT_HUGE_NUMA = 6, 7  # a hinting fault: do_user_addr_fault serves it (mm/numa/numa_fault.py)
FAULT_AROUND_BYTES = 64 << 10  # fault_around_pages

OOM_NONE, OOM_VICTIM, OOM_REAPING, OOM_REAPED, OOM_SKIP = range(5)  # mm->oom_state; Linux: MMF_OOM_*

# mm->rss[]
MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES, NR_MM_COUNTERS = range(5)

AT_VECTOR_SIZE = 2 * (22 + 3 + 1)  # words: AT_VECTOR_SIZE_BASE, x86's AT_VECTOR_SIZE_ARCH, the end

# Shared words of mm_t: the word | its writer | why a reader may trust it.
# - mmap_lock (and i_rwsem, invalidate_lock of inodes): one word with the readers, those that wait, and the phase |
#   Compare-exchange and atomic add. A reader leaves by one atomic add. A writer that leaves gives the lock to all
#   readers that wait and turns the phase, in the same compare-exchange. | A reader that waits has the lock when the
#   phase has turned: no writer can turn it again before that reader has left.
# - users | 0 as long as the number is in the pool; 1 with release when the address space is complete; then counted.
#   | khugepaged, swapoff and the reports hold it unless it is 0.
# - tlb_gen | Atomic add, after entries have changed. | A CPU that goes inside later sees it and flushes.
# - tlb_flush_pending | Atomic add, by a context that changes entries without the mmap_lock for writing and flushes
#   later: raised before the first entry changes, lowered after the flush. So do reclaim and migration (once for
#   each batch and address space), cleaning for writeback, the zap of a range, MADV_FREE, truncation, and the taking
#   of pool pages from other tasks. It outlives the address space: the number's next address space finds a count
#   that will be lowered. | A context that finds an entry changed finds the count as well, or the flush is over.
#   docs/internals/shared-words.md has the table of flushes to come.
# - a page-table leaf | Any context, by compare-exchange or exchange of the whole entry. | The walker sets A and D
#   so as well, so an entry that was cleared stays cleared.
# - the D bit of an entry that migration takes out | Goes to PG_dirty at once, as in reclaim: the migration entry
#   has it too, but may be unmapped. | Reclaim drops a shared page only if neither says that it was written to.
# - a page-table upper entry | 0 to a table once, by compare-exchange; back to 0 under the write lock. The table is
#   freed after a flush. | A walker finishes between two accesses, before its CPU acknowledges.
# - the kernel's half of a task's top-level table (x86) | Copied when the table is made. On 32 bits also 0 to the
#   kernel's entry, by compare-exchange, in the fault that misses it. | An entry of the kernel's table never changes
#   once it is there.
# - a huge entry of anonymous memory; 0, a table or huge pages in its place | Under pmd_lock (a word of the table it
#   stands in), by exchange or compare-exchange. A and D by any walker. | A fault looks at it once, and again under
#   the lock. A fault hangs a table in without the lock, by compare-exchange from 0.
# - small entries that become a huge one; a huge page that moves | Under the mmap_lock for writing. The table or
#   entry goes under the family's lock and, if it is (still) huge, pmd_lock; then comes a flush. A table is back, or
#   all its pages are locked, before the family's lock is let go. | No fault can find the place empty. A walk over
#   the family finds the table with its entries, or pages that nobody else can have isolated: no migration entry is
#   missed.
# - oom_state | The coordinator stores NONE to VICTIM, and SKIP. REAPING and REAPED are stored by the CPU whose
#   compare-exchange won. SKIP is final. | The coordinator chooses another victim only when this one is gone.
# - start_code to env_end, saved_auxv | The program's CPU, in execve, when nobody else has the address space yet. |
#   Single words for /proc.
# - hiwater_rss | The program's CPU, before memory goes; clear_refs (5) sets it back. | A single word that only
#   reports read: of two contexts that come at once, one leaves its value.
# - numa_next_scan_ns | The task whose compare-exchange wins scans. numa_scan_offset, numa_scan_seq: that task, under
#   the mmap_lock for reading. | Hints for sampling, as on Linux.
# - memory of another task (access_remote_vm), A of its entries, PG_referenced of their pages (clear_refs) | A CPU,
#   never the coordinator, under that mmap_lock for reading; the bits by compare-exchange and atomic AND. | Each
#   page is held by a reference while it is copied. A and PG_referenced are hints, as everywhere, and nothing is
#   flushed.
# fmt: off
mm_t = Struct("mm_t", [
    # atomically, by any CPU
    ("mmap_lock", i64),             # readers, or -1: one writer
    ("users", i64),                 # tasks that share it
    ("tlb_gen", i64),               # grows with every flush
    ("cpumask", u64, CPU_WORDS),    # CPUs whose TLB may hold entries of it
    ("rss", i64, NR_MM_COUNTERS),   # pages
    ("pgtables", i64),              # page-table pages below the top level
    ("tlb_flush_pending", i64),     # CPUs that are taking entries out and have not flushed yet
    ("oom_state", i64),             # OOM_*: NONE, VICTIM by the coordinator, the others by who reaps
    ("hugetlb_usage", i64),         # pages of the pools that are mapped, in small pages
    # NUMA balancing: when to scan next (emulated time, compare-exchange), where it goes on, how often it has come around
    ("numa_next_scan_ns", i64), ("numa_scan_offset", u64), ("numa_scan_seq", i64),
    # under mmap_lock held for writing
    ("pgd", u64),                   # physical address of the top-level table
    ("map_count", i64),             # VMAs
    ("total_vm", i64),              # pages mapped; of these:
    ("data_vm", i64), ("stack_vm", i64), ("exec_vm", i64), ("locked_vm", i64),
    ("hiwater_vm", i64), ("def_flags", i64),       # the largest total_vm; flags of new VMAs (mlockall)
    ("mmap_base", u64), ("start_brk", u64), ("brk", u64), ("start_stack", u64),
    ("hiwater_rss", i64),
    # of the program it runs (execve), likewise; all 0 if none: [start, end) in bytes
    ("start_code", u64), ("end_code", u64), ("start_data", u64), ("end_data", u64),
    ("arg_start", u64), ("arg_end", u64), ("env_start", u64), ("env_end", u64),
    ("saved_auxv", u64, AT_VECTOR_SIZE),           # pairs, ended by 0
    ("id", i64),                    # unlike its number, never used twice
])
# fmt: on

TASK_NAME_BYTES = 16  # TASK_COMM_LEN
OOM_TEXT_BYTES = 512
TASK_DEAD, TASK_RUNNING, TASK_ZOMBIE = range(3)  # zombie: OOM-killed, its function does not know yet

# Shared words of task_t: the word | its writer | why a reader may trust it.
# - nvcsw, nivcsw, sum_exec_runtime | The CPU, in its turn. | Single words. A task that leaves a CPU is switched
#   away from before it is on another one.
# - preempted | Its CPU, around the time that other tasks have the CPU in the middle of this task's accesses. | Read
#   in the CPU's turn; a signal waits until it is over. A victim of the OOM killer is ended all the same: its next
#   access finds no address space and fails.
# - mm | Its CPU; at execve the new one with release, before the old one's count goes down. | A context that wants
#   to hold it counts it up unless it is 0, and looks at task.mm again.
# - stack | The context that makes the task; 0 by the one that ends it. | Only the task itself uses its stack.
# - files | Its CPU. | Nobody else reads it.
# - rlim, uid | A thread of the process, one word each. | As on Linux: another thread meets the old limit or the new
#   one.
# - cgroup, mems_allowed, and policies when a cpuset changes | The CPU that the task is on, between two of its
#   operations, asked by the coordinator. | They are the running task's own. Others (reports, the OOM killer) read
#   those of an earlier moment. A child copies both in its parent's operation.
# - live, holders of a process's first task | Atomic add: up by the thread that clones, which holds one itself; down
#   by the task that ends. | The task that brings live to 0 leaves the record for the parent. The task that brings
#   holders to 0 gives the number back, so nobody meets another process under it.
# - state of a new task | Stored last, with release. | A task that is found has all its other words.
# - oom_victim | The coordinator, with the pid, before pages are taken away. | CPUs look before and after they
#   install an entry: one of the two sides sees the other.
# fmt: off
task_t = Struct("task_t", [
    # by the CPU the task is on
    ("pid", i64), ("tgid", i64), ("ppid", i64), ("mm", i64), ("cpu", i64), ("state", i64),
    ("policy", policy_t),
    ("il_prev", i64), ("il_weight", i64),     # next node of task interleaving: the last one, what is left of its weight
    ("min_flt", i64), ("maj_flt", i64),
    ("nr_dirtied", i64),                      # pages of files made dirty since the last look at the limits
    ("ioac", i64, 7), ("signal_ioac", i64, 7),      # task_io_accounting_ops.py; of a first task: of its ended threads, atomically
    ("exit_signal", i64), ("exit_code", i64), ("oom_score_adj", i64), ("clock_ns", i64),
    ("comm", u8, TASK_NAME_BYTES),
    ("rlim", u64, 2 * RLIM_NLIMITS),          # soft, hard; the same in every thread of a process
    ("nvcsw", i64), ("nivcsw", i64), ("sum_exec_runtime", i64),      # switches away from it; ns of emulated time on CPUs
    ("uid", i64),                             # 0 has every capability, any other none
    ("cgroup", i64), ("mems_allowed", u64),   # number of its control group, the nodes that its cpuset allows
    ("preempted", i64),                       # 1: in the middle of accesses, while another task has its CPU
    ("files", i64),                           # its process's descriptors: file.py
    ("start_time_ns", i64),                   # when it was made, on the clock of the CPU that made it
    ("leader", i64),                          # number of its process's first task, which stays that one's while a thread lives
    ("live", i64), ("holders", i64),          # of a first task, atomically: tasks of its process that live; that have their number
    ("stack", u64),                           # lowest address of its kernel stack, 0: it has ended
    # NUMA balancing (mm/numa/): runtime (ns) at the last look; the scan that its statistics are of; periods (ms)
    ("node_stamp", i64), ("numa_scan_seq", i64), ("numa_scan_period", i64), ("numa_scan_period_max", i64),
    ("numa_preferred_nid", i64), ("numa_migrate_retry_ns", i64), ("numa_pages_migrated", i64),
    ("numa_faults", i64),                     # 1: its row of machine.numa_faults is in use
    ("total_numa_faults", i64), ("numa_faults_locality", i64, 3),      # remote, local, failed to migrate
    ("last_task_numa_placement_ns", i64), ("last_sum_exec_runtime", i64),
    ("numa_group", i64),                      # number of its numa_group_t, 0: none
    ("cpus_mask", u64, CPU_WORDS),            # the CPUs that sched_setaffinity allows it; all 0: the one it is on
    ("numa_migrate_to", i64),                 # the CPU that NUMA balancing wants it on after this operation, + 1; 0: none
    # by the coordinator, when it chooses a victim
    ("oom_victim", i64),                      # its pid: SIGKILL is pending; else the mark means nothing
    ("oom_rss", i64), ("oom_nodes", u64), ("oom_asker", i64),       # pages at the kill, the nodes asked, who asked (pid)
    ("oom_text", u8, OOM_TEXT_BYTES),         # why no node could serve
])

# Shared words of numa_group_t: the word | its writer | why a reader may trust it.
# - faults, total_faults, nr_tasks, active_nodes, max_faults_cpu | Under the group's spin lock. | Statistics: single
#   words, an old one is an earlier moment's.
# - refcount | Atomic add; a task that joins takes one unless it is 0. | The task that brings it to 0 gives the number
#   back.
NR_NUMA_HINT_FAULT_TYPES, NUMA_MEM, NUMA_CPU, NUMA_MEMBUF, NUMA_CPUBUF = 2, 0, 1, 2, 3
NR_NUMA_HINT_FAULT_STATS = 2 * NR_NUMA_HINT_FAULT_TYPES  # of memory and of CPUs, shared and private
numa_group_t = Struct("numa_group_t", [       # tasks that share memory
    ("lock", u64), ("refcount", i64), ("nr_tasks", i64), ("gid", i64), ("active_nodes", i64), ("max_faults_cpu", i64),
    ("total_faults", i64), ("faults", i64, NR_NUMA_HINT_FAULT_STATS * MAX_NODES),
])
numa_faults_t = Struct("numa_faults_t", [     # task->numa_faults: averages (NUMA_MEM, NUMA_CPU), then this window's
    ("faults", i64, 2 * NR_NUMA_HINT_FAULT_STATS * MAX_NODES),
])

# Shared words of cgroup_t: the word | its writer | why a reader may trust it.
# - cpus, memcg; machine.cpusets_enabled, alloc_hooks | The coordinator. | Single words. A task that reads an old one is told
#   afterwards.
# - kernel_pages | Atomic add. | The context that charged a page wrote the group's number into the page's flags
#   before anyone else knew the page.
# - slab_reclaimable, slab_unreclaimable, large_kmalloc | Atomic add, when an object is charged and before it is
#   free again. | They are exact at every moment: nothing is charged ahead, so there is nothing to drain.
# - an object's word in its slab's obj_exts | The owner of the object: the context that was given it, then the
#   context that frees it. | The object is handed from one to the other. The context that frees it clears the word
#   before others can have the object.
cgroup_t = Struct("cgroup_t", [     # a control group, by its number; 0 is the root
    # by the coordinator
    ("cpus", u64, CPU_WORDS),       # cpuset.cpus.effective
    ("memcg", i64),                 # the nearest group upward with a memory controller; 0: the root
    # atomically
    ("kernel_pages", i64),          # charged with __GFP_ACCOUNT, to this group itself; of these:
    ("large_kmalloc", i64),         # pages of kmalloc that come from no slab
    ("slab_reclaimable", i64), ("slab_unreclaimable", i64),      # charged for objects of slabs, in bytes
])

# Shared words of exit_t: the word | its writer | why a reader may trust it.
# - all | The task that ends stores pid 0, the rest, then pid with release. | A parent takes a record by
#   compare-exchange of pid to 0: each once.
exit_t = Struct("exit_t", [         # a process that has ended, until its parent has waited for it
    ("pid", i64),                   # last by who ends, with release; 0 again by compare-exchange by who has waited
    ("ppid", i64), ("status", i64), # as wait4(2) gives it
    ("clock_ns", i64),              # of the CPU on which it has ended
], nbytes=32)

pool_t = Struct("pool_t", [         # a table of structs handed out by number, from 1
    ("lock", u64),
    ("used", i64), ("nr_returned", i64),    # under the lock: highest number so far; numbers on the stack
    ("capacity", i64),
    ("returned", u64),              # address of the stack of returned numbers (i64)
    ("_pad", u64, 3),
], nbytes=64)

# Shared words of machine_t: the word | its writer | why a reader may trust it.
# - kernel_tlb_gen | Atomic add, after entries of the kernel have changed. | As mm.tlb_gen: a CPU that goes inside
#   later sees it and flushes everything.
# - kernel_table: upper entries | 0 to a table once, by compare-exchange, never back. | As in an address space, and
#   nothing is freed.
# - kernel_table: leaf entries | Direct map: boot only. vmalloc: the context that holds the area. pkmap: under its
#   lock. fixmap: the slot's CPU. | An address is used again only after every CPU has forgotten it.
# - cached_stacks | 0 to a stack by compare-exchange, by any CPU; back by exchange, by their CPU. | The context that
#   exchanges owns the stack.
# - vm_committed_as | Atomic add first, then the look at the limit. | Two tasks that come at once cannot both take
#   the last pages.
# - tmpfs_pages | Atomic add, with the page that is charged or gone. | The limit is looked at after the addition.
# - pseudo_vmas, mpols | Their CPU, inside its turn. | Nobody else reads them.
# - random_drawn | Atomic add. | Each draw is one word of the seed's pattern.
# - wb_lock | Compare-exchange: one flusher at a time. Reclaim writes beside it (wb_start_all), page by page under
#   PG_locked, and waits for nobody: its caller may hold what a flusher waits for. | A task that finds it taken
#   above the dirty limit waits, outside, until fewer pages are dirty or it is free.
# - dirty_poll_interval | Any CPU at its look at the limits; 1 by the coordinator with new limits. | A hint how soon
#   to look again.
# - vm_dirty_*, dirty_*_ns; overcommit settings; node_reclaim_mode; lumpy_reclaim; zswap_* and zram's settings;
#   thp_*, khugepaged_* settings | The coordinator. | Single words: an old value is an earlier moment's.
# - every_at_ns | The coordinator; then event_at of every CPU. A CPU takes it, 0 instead, by compare-exchange. | A CPU that
#   sees an old value looks again soon.
# - numa_*, demotion_enabled | The coordinator; then event_at of every CPU. | Single words: an old value is an earlier
#   moment's.
# - kcompactd_timer_ns | The CPU whose clock has passed it, by compare-exchange. | One CPU wakes each kcompactd that
#   is due. Clocks differ, so it is the first CPU that has come so far.
# - stats_flush_ns | The CPU whose clock has passed it, by compare-exchange, every 2 s; before the first time also a
#   context that reclaims. | See lruvec_t.state.
# - khugepaged_mm, khugepaged_address | Node 0's kernel thread. | Nobody else reads them.
# - khugepaged_next_ns | Node 0's kernel thread by compare-exchange, once before a round and once after it; 0 by the
#   coordinator for a new sleep, before it wakes the thread. | A 0 is never overwritten unseen. Others read it as a
#   hint when to wake the thread.
# - disk, disk_written | The holder of the page's lock; bits atomically. | Under the page's lock.
# - block_type (pageblock type) | The node that owns the block. MIGRATE_ISOLATE too, asked by the context that wants
#   the range (MSG_RANGE). | A CPU that frees a page: an old type is an old list, put right when the page comes
#   back. A page of an isolated block goes to its node; a CPU that has one on its list gives it back when it is
#   drained.
# - block_skip | Any context that compacts, without a lock. | A hint: a lost one costs a scan or saves one.
machine_t = Struct("machine_t", [
    # set at boot, read by all
    ("paging", paging_t),           # the page-table format
    ("kernel_table", u64),          # host address of the kernel's own top-level table (swapper_pg_dir): init_mm.py
    ("memory", u64), ("mem_map", u64), ("block_node", u64), ("block_zone", u64), ("block_type", u64),
    ("nr_nodes", i64), ("max_pfn", i64), ("nr_actors", i64),
    ("nr_cpus", i64),               # the highest CPU number and 1
    ("cpu_present", u64, CPU_WORDS), ("nr_present_cpus", i64),         # which of these numbers are CPUs, and how many
    ("nr_cpu_ids", i64),            # CPU numbers, and behind them one context for each node's kernel threads
    ("zones", u64), ("nodes", u64), ("cpus", u64), ("percpu", u64), ("pcps", u64), ("mailboxes", u64),
    ("mms", u64), ("vmas", u64), ("vma_index", u64), ("mappings", u64), ("tasks", u64),
    ("mm_pool", u64), ("vma_pool", u64), ("mapping_pool", u64), ("task_pool", u64),
    ("zonelists", u64),             # i64[nr_nodes][MAX_NODES]: nodes by distance, -1 ends
    ("distance", u64),              # u8[nr_nodes][nr_nodes]: node_distance
    ("node_mask", u64), ("memory_mask", u64),      # nodes that exist; nodes with memory
    ("reserved_pfn", i64),          # the first frame behind all zones that boot has not used for a table yet
    ("high_memory", i64),           # pfn: where the direct map ends
    ("direct_map", i64, 3),         # bytes of it by size of entry: 4 KiB, 2 MiB (4 MiB on 32 bits), 1 GiB
    ("vmap", u64), ("vmap_areas", u64),                # vmap_t, vmap_area_t[MAX_VMAP_AREAS]: vmap_area.py
    ("pkmap_base", u64), ("fixaddr_top", u64),         # 32 bits: where high memory is mapped; highmem.py
    ("pkmap", u64), ("pkmap_of", u64),                 # pkmap_t; u16[max_pfn]
    ("thread_size", i64),           # bytes of a kernel stack
    ("cached_stacks", u64), ("irq_stacks", u64),       # u64[nr_cpus][NR_CACHED_STACKS], u64[nr_cpus]: thread_stack.py
    ("on_ring", u64), ("on_wake", u64),            # callbacks: ring an actor, wake a CPU (its number, its bell)
    ("on_wait", u64),               # callback into Python: wait for this CPU's bell
    ("lockstep", u64),              # lockstep_t: who runs next, of kernel/core/lockstep.py; 0: everybody runs freely
    ("zero_pfn", i64),              # the shared page of zeros
    ("max_map_count", i64),         # sysctl vm.max_map_count
    ("fault_ns", i64), ("clear_page_ns", i64), ("copy_page_ns", i64), ("syscall_ns", i64),
    ("shootdown_ns", i64), ("ipi_ns", i64), ("message_ns", i64), ("context_switch_ns", i64),
    ("numa_scan_ns", i64), ("shootdown_target_ns", i64), ("flush_page_ns", i64), ("flush_all_ns", i64),
    ("fork_entry_ns", i64), ("fork_table_ns", i64), ("migrate_page_ns", i64), ("lock_handover_ns", i64),
    ("sched_base_slice_ns", i64),   # by the coordinator: base_slice_ns
    ("every_at_ns", i64),           # when the driver's functions are due, by any CPU's clock; 0: there are none, or they run
    ("on_schedule", u64),           # callback into Python: let the tasks that wait for this CPU run
    ("il_weights", i64, MAX_NODES), # /sys/kernel/mm/mempolicy/weighted_interleave/nodeN
    ("kernel_tlb_gen", i64),        # grows with every flush of the kernel's mappings, atomically
    ("anon_vma_lock", u64),         # spin lock: a VMA gets its first mapping
    ("next_pid", i64), ("next_mm_id", i64),        # atomically
    ("cgroups", u64),               # cgroup_t[MAX_CGROUPS]
    ("cpusets_enabled", i64),       # 1 from the first cpuset on: Linux's static key; by the coordinator
    ("alloc_hooks", i64),           # 0: alloc_pages need not look at cpusets and its tracepoint; page_alloc.set_alloc_hooks
    ("mpols", u64),                 # policy_t[2 * nr_cpu_ids]: a mempolicy on its way to a range; one found in an object
    ("sp_nodes", u64), ("sp_node_pool", u64),      # policies of shared objects: mempolicy.py
    ("migrate", u64),               # migrate_t[2 * nr_cpu_ids]: the second half for demotion
    ("on_oom", u64),                # the slow path's way up: oom_kill.alloc_pages_may_oom; 0: allocations fail
    ("on_reclaim", u64), ("on_compact", u64),      # likewise: try_to_free_pages, try_to_compact_pages; 0: not there
    ("on_node_reclaim", u64),       # likewise, of get_page_from_freelist: node_reclaim(cpu, pack_alloc, node)
    ("node_reclaim_mode", i64),     # sysctl vm.zone_reclaim_mode
    ("on_wake_kswapd", u64),        # likewise: wakeup_kswapd(cpu, pack_alloc, node)
    ("watermark_boost_factor", i64),               # sysctl vm.watermark_boost_factor
    ("page_group_by_mobility_disabled", i64), ("highmem", i64),       # set at boot: 0 or 1
    ("trails", u64), ("slowpaths", u64),           # trail_t[nr_cpu_ids], slowpath_t[nr_cpu_ids][2]
    ("oom_kills", i64),             # by the coordinator
    ("drained_ns", i64),            # emulated time when a CPU last collected pages from the others' lists; plain, a hint
    ("gather", u64),                # i64[nr_cpu_ids][GATHER_PAGES]: pages between unmapping and freeing
    ("kmem_caches", u64), ("kmem_cache_cpus", u64), ("kmem_cache_nodes", u64), ("kmem_cache_pool", u64),    # slub.py
    ("slab_bugs", u64),             # slab_bug_t[nr_cpu_ids]
    ("cpu_fbatches", u64),          # cpu_fbatches_t[nr_cpu_ids]: reclaim/lru_batches.py
    ("lruvecs", u64),               # lruvec_t[nr_nodes]
    ("swap", u64),                  # swap_t: swapfile.py
    ("nr_swap_pages", i64),         # free slots of all areas, atomically
    ("zentries", u64), ("zstat", u64), ("zbufs", u64),    # zentry_t by swap entry, zstat_t[2], a buffer per context: zram.py
    ("zs_pools", u64),              # zs_pool_t[2], of zswap and zram: zsmalloc.py
    ("zspages", u64), ("zspage_pool", u64),        # zspage_t by number
    ("zswap_lrus", u64),            # zswap_lru_t[nr_nodes]: zswap.py
    ("on_compress", u64), ("on_decompress", u64),         # callbacks into Python: a library's work
    ("zswap_enabled", i64), ("zswap_max_pool_percent", i64), ("zswap_accept_thr_percent", i64),     # by the coordinator
    ("tmpfs_pages", i64),           # pages of tmpfs files, atomically
    ("pseudo_vmas", u64),           # vma_t[nr_cpu_ids], each its CPU's: shmem_file.py
    ("randomize_va_space", i64),    # sysctl kernel.randomize_va_space
    ("random_seed", u64), ("random_drawn", i64),          # set at boot; words drawn so far, atomically
    ("compress_ns", i64), ("decompress_ns", i64),
    ("scan_controls", u64),         # scan_control_t[nr_cpu_ids]: vmscan.py
    ("swappiness", i64),            # sysctl vm.swappiness
    ("inodes", u64), ("files", u64), ("inode_pool", u64), ("file_pool", u64),    # inode.py
    ("files_structs", u64), ("files_struct_pool", u64),      # file.py
    ("bh_cachep", i64), ("bio_slab", i64),         # the slab caches of buffer heads and of bios
    ("bio_queues", u64),            # bio_queue_t[nr_cpu_ids]: bio.py
    ("inode_lock", u64),            # spin lock: names, link and open counts of inodes
    ("disk", u64),                  # host address of the disk's contents
    ("disk_space", u64), ("disk_written", u64),    # disk_space_t; a bit for each page ever written
    ("disk_read_ns", i64), ("disk_write_ns", i64), ("disk_bandwidth", i64),    # of a request; bytes a second
    ("disk_page_ns", i64),          # what a page of a request takes
    ("disk_rotational", i64),       # set at boot: 0 or 1
    # sysctl vm.dirty_*, written by the coordinator; expire and writeback in ns of emulated time
    ("vm_dirty_ratio", i64), ("dirty_background_ratio", i64), ("vm_dirty_bytes", i64), ("dirty_background_bytes", i64),
    ("dirty_expire_ns", i64), ("dirty_writeback_ns", i64),
    ("wb_lock", u64),               # by who writes back in the background, compare-exchange
    ("wb_last_ns", i64),            # emulated time of the last look for old dirty pages
    ("on_iput", u64),               # the way up to truncate.iput, for who writes back
    ("dirty_poll_interval", i64),   # pages a task may dirty between two looks at the limits; a hint, by any CPU
    ("slab_mutex", u64),            # spin lock: caches are made and destroyed
    ("on_ctor", u64),               # callback into Python: construct an object of a cache
    ("shrinkers", u64), ("list_lrus", u64),        # list_lru.py
    ("pcpu_lock", u64),             # spin lock: percpu.py
    ("pcpu_chunks", u64), ("pcpu_units", u64), ("per_cpu_vars", u64),      # pcpu_units: pfn, i64[MAX_CHUNKS][nr_cpus]
    ("exits", u64), ("next_exit", i64),            # exit_t[EXIT_RECORDS], a ring; atomically
    ("vm_committed_as", i64), ("next_anon_vma", i64),      # atomically
    ("total_ram_pages", i64), ("total_swap_pages", i64),          # the second atomically
    ("overcommit_memory", i64), ("overcommit_ratio", i64), ("overcommit_kbytes", i64),      # sysctl, by the coordinator
    ("admin_reserve_kbytes", i64), ("user_reserve_kbytes", i64),
    ("compact", u64),               # compact_control_t[nr_cpu_ids]: compact_control.py
    ("block_skip", u64),            # u8 per pageblock: compaction found nothing there (PB_migrate_skip)
    # transparent huge pages: the settings, by the coordinator; huge_memory.py has their values
    ("thp_enabled", i64), ("thp_defrag", i64), ("thp_use_zero_page", i64),
    ("thp_used", i64),              # 1 once there may be a huge entry of anonymous memory
    ("huge_zero_pfn", i64),         # from 0 once, by compare-exchange
    ("khugepaged_pages_to_scan", i64), ("khugepaged_max_ptes_none", i64), ("khugepaged_max_ptes_swap", i64),
    ("khugepaged_max_ptes_shared", i64), ("khugepaged_scan_sleep_ns", i64), ("khugepaged_alloc_sleep_ns", i64),
    ("khugepaged_defrag", i64),
    # by khugepaged
    ("khugepaged_next_ns", i64),    # emulated time of its next look; others read it as a hint
    ("khugepaged_pages_collapsed", i64), ("khugepaged_full_scans", i64),
    ("khugepaged_mm", i64), ("khugepaged_address", u64),         # where it goes on
    ("collapse_controls", u64),     # collapse_control_t[nr_cpu_ids]: khugepaged.py
    ("hstate", u64),                # hstate_t[HUGE_MAX_HSTATE]: hugetlb_pool.py
    ("nr_hstates", i64), ("default_hstate", i64),  # how many there are; the one of MAP_HUGETLB without a size
    ("extfrag_threshold", i64), ("compaction_proactiveness", i64), ("compact_unevictable_allowed", i64),     # sysctls
    ("kcompactd_timer_ns", i64),    # emulated time of the next look at fragmentation: timer.py, compare-exchange
    ("stats_flush_ns", i64),        # emulated time of the next flush of lruvec_t.state, 0: there was none yet; timer.py, compare-exchange
    ("psi", u64), ("psi_cpus", u64),               # psi_group_t; psi_group_cpu_t[nr_cpu_ids]: psi.py
    ("traces", u64),                # trace_t[nr_cpu_ids]: trace.py
    ("trace_events", u64),          # a bit for each tracepoint that is on; by the coordinator, as the three words below
    ("trace_pid", i64), ("trace_nodes", u64),      # the only process whose events are kept, 0: all; nodes whose CPUs' are
    ("trace_stop", i64),            # 1: a full ring takes no more; 0: it overwrites its oldest events
    ("lumpy_reclaim", i64),         # sysctl, our own: large blocks by eviction instead of compaction (lumpy.py)
    # NUMA balancing and memory tiers (mm/numa/): settings, by the coordinator
    ("numa_balancing", i64),        # sysctl_numa_balancing_mode: NUMA_BALANCING_*; 0: off
    ("numa_scan_delay_ms", i64), ("numa_scan_period_min_ms", i64), ("numa_scan_period_max_ms", i64),
    ("numa_scan_size_mb", i64), ("numa_hot_threshold_ms", i64), ("numa_promote_rate_limit", i64),       # the last in MB/s
    ("demotion_enabled", i64),      # /sys/kernel/mm/numa/demotion_enabled
    ("on_task_tick", u64),          # the scheduler's way up: task_numa.task_tick
    ("on_tiering", u64), ("tiering_samples", i64), ("tiering_interval_ns", i64),      # a policy of one's own: tiering.py
    ("page_samples", u64), ("tiering_moves", u64),     # page_sample_t and tiering_moves_t of each CPU, if there is such a policy
    ("numa_faults_table", u64), ("numa_groups", u64), ("numa_group_pool", u64),      # numa_faults_t by task number; numa_group_t
    ("numa_topology_type", i64), ("max_numa_distance", i64),        # how the nodes with CPUs lie to each other, set at boot: placement.py
])
# fmt: on


def present_cpus(machine):
    """The numbers of the machine's CPUs, for Python code."""
    return [number for number in range(machine.nr_cpus) if int(machine.cpu_present[number // 64]) >> number % 64 & 1]


@hot
def cpu_present(machine, number):
    """True if there is a CPU of this number."""
    return (machine.cpu_present[number // 64] >> U(number % 64)) & U(1) != U(0)


def task_name(task):
    """The name of a task_t as text: get_task_comm"""
    return bytes(task.comm.as_numpy()).rstrip(b"\0").decode(errors="replace")

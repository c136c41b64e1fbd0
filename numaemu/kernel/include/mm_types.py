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
PG_hugetlb, PG_restore_reserve = 1 << 26, 1 << 27  # of a head: it belongs to the pool; its reservation comes back
PG_used = 1 << 16  # the emulator's own: the frame has been given out before (its host memory may hold data)
PG_pcp = 1 << 17  # the emulator's own: on a per-CPU list or on its way to one

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
    ("family_next", i64), ("family_prev", i64),    # the other VMAs of `mapping`; under that mapping's lock
    ("file_next", i64), ("file_prev", i64),        # the other VMAs of `i_mapping`, likewise
])
# fmt: on

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
FAULT_AROUND_BYTES = 64 << 10  # fault_around_pages

OOM_NONE, OOM_VICTIM, OOM_REAPING, OOM_REAPED, OOM_SKIP = range(5)  # mm->oom_state; Linux: MMF_OOM_*

# mm->rss[]
MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES, NR_MM_COUNTERS = range(5)

AT_VECTOR_SIZE = 2 * (22 + 3 + 1)  # words: AT_VECTOR_SIZE_BASE, x86's AT_VECTOR_SIZE_ARCH, the end

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

# fmt: off
task_t = Struct("task_t", [
    # by the CPU the task is on
    ("pid", i64), ("tgid", i64), ("ppid", i64), ("mm", i64), ("cpu", i64), ("state", i64),
    ("policy", policy_t),
    ("il_prev", i64), ("il_weight", i64),     # next node of task interleaving: the last one, what is left of its weight
    ("min_flt", i64), ("maj_flt", i64),
    ("nr_dirtied", i64),                      # pages of files made dirty since the last look at the limits
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
    # by the coordinator, when it chooses a victim
    ("oom_victim", i64),                      # its pid: SIGKILL is pending; else the mark means nothing
    ("oom_rss", i64), ("oom_nodes", u64), ("oom_asker", i64),       # pages at the kill, the nodes asked, who asked (pid)
    ("oom_text", u8, OOM_TEXT_BYTES),         # why no node could serve
])

cgroup_t = Struct("cgroup_t", [     # a control group, by its number; 0 is the root
    # by the coordinator
    ("cpus", u64, CPU_WORDS),       # cpuset.cpus.effective
    ("memcg", i64),                 # the nearest group upward with a memory controller; 0: the root
    # atomically
    ("kernel_pages", i64),          # charged with __GFP_ACCOUNT, to this group itself; of these:
    ("large_kmalloc", i64),         # pages of kmalloc that come from no slab
    ("slab_reclaimable", i64), ("slab_unreclaimable", i64),      # charged for objects of slabs, in bytes
])

exit_t = Struct("exit_t", [         # a process that has ended, until its parent has waited for it
    ("pid", i64),                   # last by who ends, with release; 0 again by compare-exchange by who has waited
    ("ppid", i64), ("status", i64), # as wait4(2) gives it
], nbytes=24)

pool_t = Struct("pool_t", [         # a table of structs handed out by number, from 1
    ("lock", u64),
    ("used", i64), ("nr_returned", i64),    # under the lock: highest number so far; numbers on the stack
    ("capacity", i64),
    ("returned", u64),              # address of the stack of returned numbers (i64)
    ("_pad", u64, 3),
], nbytes=64)

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
    ("zero_pfn", i64),              # the shared page of zeros
    ("max_map_count", i64),         # sysctl vm.max_map_count
    ("fault_ns", i64), ("clear_page_ns", i64), ("copy_page_ns", i64), ("syscall_ns", i64),
    ("shootdown_ns", i64), ("ipi_ns", i64), ("message_ns", i64), ("context_switch_ns", i64),
    ("sched_base_slice_ns", i64),   # by the coordinator: base_slice_ns
    ("on_schedule", u64),           # callback into Python: let the tasks that wait for this CPU run
    ("il_weights", i64, MAX_NODES), # /sys/kernel/mm/mempolicy/weighted_interleave/nodeN
    ("kernel_tlb_gen", i64),        # grows with every flush of the kernel's mappings, atomically
    ("anon_vma_lock", u64),         # spin lock: a VMA gets its first mapping
    ("next_pid", i64), ("next_mm_id", i64),        # atomically
    ("cgroups", u64),               # cgroup_t[MAX_CGROUPS]
    ("cpusets_enabled", i64),       # 1 from the first cpuset on: Linux's static key; by the coordinator
    ("mpols", u64),                 # policy_t[2 * nr_cpu_ids]: a mempolicy on its way to a range; one found in an object
    ("sp_nodes", u64), ("sp_node_pool", u64),      # policies of shared objects: mempolicy.py
    ("migrate", u64),               # migrate_t[nr_cpu_ids]
    ("on_oom", u64),                # the slow path's way up: oom_kill.alloc_pages_may_oom; 0: allocations fail
    ("on_reclaim", u64), ("on_compact", u64),      # likewise: try_to_free_pages, try_to_compact_pages; 0: not there
    ("on_node_reclaim", u64),       # likewise, of get_page_from_freelist: node_reclaim(cpu, pack_alloc, node)
    ("node_reclaim_mode", i64),     # sysctl vm.zone_reclaim_mode
    ("on_wake_kswapd", u64),        # likewise: wakeup_kswapd(cpu, pack_alloc, node)
    ("watermark_boost_factor", i64),               # sysctl vm.watermark_boost_factor
    ("page_group_by_mobility_disabled", i64), ("highmem", i64),       # set at boot: 0 or 1
    ("trails", u64), ("slowpaths", u64),           # trail_t[nr_cpu_ids], slowpath_t[nr_cpu_ids][2]
    ("oom_kills", i64),             # by the coordinator
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
    ("bh_cachep", i64),             # the slab cache of buffer heads
    ("inode_lock", u64),            # spin lock: names, link and open counts of inodes
    ("disk", u64),                  # host address of the disk's contents
    ("disk_space", u64), ("disk_written", u64),    # disk_space_t; a bit for each page ever written
    ("disk_read_ns", i64), ("disk_write_ns", i64), ("disk_bandwidth", i64),    # of a request; bytes a second
    ("disk_page_ns", i64),          # what a page of a request takes
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
    ("lumpy_reclaim", i64),         # sysctl, our own: large blocks by eviction instead of compaction (lumpy.py)
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

"""All fixed sizes, with their meaning, a line each.

The address map of one machine process (coordinator, node or CPU; the same in each, since they fork from one):

    arena + 0                      control segment: machine_t, cpu_t[], node_t[], zone_t[], mm_t[], mailboxes, ...
    memory + pfn * 4096            frames: one segment per node, mapped at its physical addresses
    mem_map + pfn * 64             struct page: likewise
"""

PAGE_SHIFT = 12  # 4 KiB pages
PAGE_SIZE = 1 << PAGE_SHIFT  # bytes

MAX_CGROUPS = 256  # control groups that there may be at once, the root included; assumed
MAX_NODES = 64  # Linux's MAX_NUMNODES may be 1024; a nodemask is one 64-bit word here
MAX_CPUS = 1024  # Linux's NR_CPUS may be 8192; a cpumask is 16 64-bit words
CPU_WORDS = MAX_CPUS // 64  # words of a cpumask
CONTEXT_WORDS = (MAX_CPUS + MAX_NODES) // 64  # words of a mask of CPUs and nodes' kernel threads

MAX_ORDER = 10  # the largest buddy block is 2**10 pages, as in Linux 6
NR_ORDERS = MAX_ORDER + 1
PAGEBLOCK_ORDER = 9  # pages grouped by mobility: 2 MiB
PAGEBLOCK_PAGES = 1 << PAGEBLOCK_ORDER

L1_ENTRIES_MAX = 1024  # largest first-level TLB a machine file may ask for
L2_ENTRIES_MAX = 16384  # largest second-level TLB
L1_HINTS = 512  # where a page was last seen in the L1 TLB: a short cut, checked by the tag
L2_ORDERS = L2_ENTRIES_MAX // 4  # words for the marks of the L2 TLB's sets, and as many for their orders
L2_HINTS = 8192  # likewise for the L2 TLB
TABLE_HINTS = 256  # where the lowest page table of a region was last seen, for prefetching
L1_VIEWS = 16  # 4 KiB pages of huge TLB entries that accesses find at once
RUN = 8  # accesses of a vector that the host is asked for at once; measured
WALK_CACHE_MAX = 64  # largest page-walk cache
KEPT_LINES = 8  # a power of 2: at hand on a CPU without caches, of each kind; assumed
MAX_OUTSTANDING = 128  # misses of one CPU under way
NR_ASIDS = 7  # address-space ids of a CPU, 1 to 6, as Linux uses PCIDs (TLB_NR_DYN_ASIDS)

MAX_TASKS = 1 << 15  # tasks alive at once
MAX_STRANDS = 1 << 15  # threads of a machine's processes that take turns in lockstep: a multiple of 64
MAX_MMS = 1 << 13  # address spaces
MAX_VMAS = 1 << 20  # mappings of all address spaces together
MAX_MAP_COUNT = 65530  # mappings of one address space (Linux's default of vm.max_map_count)
VMA_INDEX_SLOTS = MAX_VMAS  # room for them in the sorted index of one address space, which may have all of them
MAX_INODES = 1 << 12  # files
MAX_SP_NODES = 1 << 16  # memory policies of parts of shared memory and tmpfs files
MAX_FILES = 1 << 13  # open files, mapped ones included
MAX_OPEN = 1024  # descriptors of one process (Linux's INR_OPEN_CUR, the soft limit that init has)
MAX_EXTENTS = 32  # pieces of the disk that one file may have
FOLIO_BATCH_SIZE = 31  # pages on their way to an LRU list, per CPU and kind (PAGEVEC_SIZE)
GATHER_PAGES = 8192  # pages unmapped between two flushes (Linux gathers up to about 10,000)
EXIT_RECORDS = 1 << 12  # ended processes that nobody has waited for; older ones are forgotten
OUTBOX_BYTES = 1 << 30  # bulk data one process may have on its way; sparse

"""The emulated hardware below the MMU (`numaemu/mmu.py`): page-table formats, the page walk, what a CPU holds, mailboxes; and what an
access costs (`timing`): caches, their coherence and prefetchers, memory controllers and links.

The MMU and the kernel use it; it knows neither. A new page-table format's entries go into `paging`, a new way to choose what
makes room in a set into `replacement`, a new prefetcher into `prefetch`.
"""

"""The emulated hardware below the MMU (`numaemu/mmu.py`): page-table formats, the page walk, what a CPU holds, mailboxes.

The MMU and the kernel use it; it knows neither. A new page-table format's entries go into `paging`.
"""

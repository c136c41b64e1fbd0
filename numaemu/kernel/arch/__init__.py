"""What depends on the processor: the page-fault exception, TLB shootdowns, page-table entries, kernel stacks. Linux's arch/x86.

A new page-table format concerns `pgtable` and `init_mm` (and hardware/paging).
"""

"""Page faults and page tables: handling a fault, unmapping, fork's copy, reverse mapping. Linux's mm/memory.c and rmap.c.

Faults of huge pages are in `huge`; the exception itself is arch/fault.
"""

"""Memory management, a folder for each part of Linux's mm/.

page_alloc, slab, vmalloc: allocators. space, fault: address spaces and their page tables. cache, swap, huge, migrate, reclaim: pages.
The parts know one another, as in Linux; the floors by file, which have no cycle, stand in .importlinter.
"""

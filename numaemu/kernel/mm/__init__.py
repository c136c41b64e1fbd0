"""Memory management, a folder for each part of Linux's mm/: page_alloc, slab, vmalloc, space, fault, cache, reclaim, swap, migrate, huge.

The parts know one another, as in Linux; the floors by file, which have no cycle, stand in .importlinter.
"""

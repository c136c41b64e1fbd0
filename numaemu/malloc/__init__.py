"""`malloc` in user mode, on a task's emulated memory: every header, link and object lies in emulated pages.

    heap = task.malloc_heap("implicit")         one of KINDS, each in a file of its own
    p = heap.malloc(100); heap.free(p)          and calloc, realloc, aligned_alloc, usable_size, trim
    malloc(cpu, heap, n); free(cpu, heap, p)    the same in user kernels, which get the heap as an argument

`control` is the page of words where a heap keeps its bounds and settings, with its lock (`lock`) and its growth by brk or mmap; `big` are blocks
with a mapping of their own. `tags` are blocks with boundary tags, for `implicit`, `explicit` and `segregated`. `buddy`, `dlmalloc` and
`ptmalloc` lay out their own. `calls` is what a user kernel calls, `heap` the object that a workload holds, `check` walks and draws a
heap, `trace` reads recorded traces, `rules` makes those that a rule describes and `replay` plays them. A new kind is one new file with
the functions that `kinds` lists.
"""

import importlib as _importlib

_LATER = {
    "Heap": "heap",
    "new_heap": "heap",
    "HeapError": "errors",
    "KINDS": "kinds",
    **{name: "calls" for name in ("malloc", "free", "calloc", "realloc", "aligned_alloc", "usable_size")},
}

__all__ = [*_LATER]


def __getattr__(name):
    if name in _LATER:
        return getattr(_importlib.import_module(f"numaemu.malloc.{_LATER[name]}"), name)
    raise AttributeError(f"module 'numaemu.malloc' has no attribute {name!r}")

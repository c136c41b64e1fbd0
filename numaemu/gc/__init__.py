"""Garbage collection in user mode, on a task's emulated memory: headers, fields, roots and what a collector keeps lie in emulated pages.

    heap = task.gc_heap("generational", "16MiB")       one of COLLECTORS, each in a file of its own
    mutator = heap.attach(task)                       a thread that allocates: its buffer (TLAB), its stack of roots
    node = mutator.new(refs=2, values=1)              a handle, which stays right when the object moves
    mutator.run(kernel, …)                            kernel(cpu, mutator, …), a user kernel that calls `new`, `get_ref`, `set_ref` …

`objects` is what an object looks like, `space` the heap's own words, with its threads, roots and safe points. `marking` is shared by
`mark_sweep`, `mark_compact`, `generational` and the backup tracer of `refcount`; `copying` needs none. `freelists` are for those that
do not move objects. `calls` is what a user kernel calls, `heap` what a workload holds, `log` shows collections as HotSpot does, and
`verify` compares the graph of reachable objects before and after. A new collector is one new file with the functions
that `collectors` lists.
"""

import importlib as _importlib

_LATER = {
    "new_heap": ("heap", "new_heap"),
    "Heap": ("heap", "Heap"),
    "Mutator": ("heap", "Mutator"),
    "COLLECTORS": ("collectors", "COLLECTORS"),
    "GcError": ("verify", "GcError"),
    **{
        name: ("calls", name)
        for name in (
            "new",
            "get_ref",
            "set_ref",
            "get_value",
            "set_value",
            "push_frame",
            "pop_frame",
            "get_root",
            "set_root",
            "poll",
            "collect",
        )
    },
}

__all__ = [*_LATER]


def __getattr__(name):
    if name in _LATER:
        module, thing = _LATER[name]
        return getattr(_importlib.import_module(f"numaemu.gc.{module}"), thing)
    raise AttributeError(f"module 'numaemu.gc' has no attribute {name!r}")

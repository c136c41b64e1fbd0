"""numaemu: an emulator of NUMA machines and of the Linux memory-management kernel that runs on them."""

import importlib as _importlib

from numaemu import uapi as _uapi
from numaemu.errors import BusError, ConfigError, KernelBug, MachineCheck, NumaemuError, OutOfMemory, SegmentationFault
from numaemu.kernel.include import gfp as _gfp
from numaemu.spec.units import GiB, KiB, MiB, TiB

__version__ = "0.1.0"

# Constants with Linux's names: PROT_READ, MAP_SHARED, MPOL_BIND, MADV_DONTNEED, GFP_KERNEL, …
# fmt: off
_constants = {name: value for module in (_uapi, _gfp) for name, value in vars(module).items()
              if name.isupper() and (name[0] != "_" or name.startswith("__GFP_"))}
# fmt: on
globals().update(_constants)

# What is imported when it is first used, so that a driver loads no compiled code that it does not need.
# fmt: off
_LATER = {"Machine": "machine", "Task": "api.task", "Handle": "api.task", "Mapping": "api.mapping", "table": "api.tables", "figures": "tools.study.figures",
          **{f"{how}_{kind}": "api.access" for how in ("load", "store")
             for kind in ("u8", "u16", "u32", "u64", "i32", "i64", "f32", "f64")},
          **{f"load_many_{kind}": "api.overlap" for kind in ("u8", "u16", "u32", "u64", "i32", "i64", "f32", "f64")},
          "work": "api.overlap",
          "HeapError": "malloc.errors", "GcError": "gc.verify",
          **dict.fromkeys(("cmpxchg_i64", "xadd_i64", "or_i64", "and_i64", "memcpy", "memclear"), "api.access"),
          "kernel_load_u64": "api.access", "kernel_store_u64": "api.access",
          "alloc_page": "kernel.mm.page_alloc.page_alloc", "free_page": "kernel.mm.page_alloc.page_alloc",
          "kmem_cache_alloc": "kernel.mm.slab.slub", "kmem_cache_free": "kernel.mm.slab.slub",
          "list_lru_add": "kernel.mm.reclaim.list_lru", "list_lru_del": "kernel.mm.reclaim.list_lru",
          "per_cpu_ptr": "kernel.mm.slab.percpu", "this_cpu_add": "kernel.mm.slab.percpu", "this_cpu_read": "kernel.mm.slab.percpu",
          **{f"SLAB_{name}": "kernel.mm.slab.slab"
             for name in ("CONSISTENCY_CHECKS", "RED_ZONE", "POISON", "STORE_USER", "HWCACHE_ALIGN", "CACHE_DMA",
                          "RECLAIM_ACCOUNT", "ACCOUNT")}}

__all__ = ["BusError", "ConfigError", "KernelBug", "MachineCheck", "NumaemuError", "OutOfMemory", "SegmentationFault",
           "KiB", "MiB", "GiB", "TiB", *_constants, *_LATER]
# fmt: on


def __getattr__(name):
    if name in _LATER:
        return getattr(_importlib.import_module(f"numaemu.{_LATER[name]}"), name)
    raise AttributeError(f"module 'numaemu' has no attribute {name!r}")

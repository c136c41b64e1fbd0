"""numaemu: an emulator of NUMA machines and of the Linux memory-management kernel that runs on them."""
import importlib as _importlib

from numaemu import uapi as _uapi
from numaemu.errors import BusError, ConfigError, KernelBug, MachineCheck, NumaemuError, OutOfMemory, SegmentationFault
from numaemu.kernel import gfp as _gfp
from numaemu.units import GiB, KiB, MiB, TiB

__version__ = "0.1.0"

# Constants with Linux's names: PROT_READ, MAP_SHARED, MPOL_BIND, MADV_DONTNEED, GFP_KERNEL, …
_constants = {name: value for module in (_uapi, _gfp) for name, value in vars(module).items()
              if name.isupper() and not name.startswith("___")}
globals().update(_constants)

# What is imported when it is first used, so that a driver loads no compiled code that it does not need.
_LATER = {"Machine": "machine", "Task": "task", "Handle": "task", "Mapping": "mapping",
          **{f"{how}_{kind}": "access" for how in ("load", "store")
             for kind in ("u8", "u16", "u32", "u64", "i32", "i64", "f32", "f64")},
          "kernel_load_u64": "access", "kernel_store_u64": "access",
          "alloc_page": "kernel.page_alloc", "free_page": "kernel.page_alloc",
          "kmem_cache_alloc": "kernel.slab", "kmem_cache_free": "kernel.slab",
          "list_lru_add": "kernel.list_lru", "list_lru_del": "kernel.list_lru",
          "per_cpu_ptr": "kernel.percpu", "this_cpu_add": "kernel.percpu", "this_cpu_read": "kernel.percpu",
          **{f"SLAB_{name}": "kernel.slab_types"
             for name in ("CONSISTENCY_CHECKS", "RED_ZONE", "POISON", "STORE_USER", "HWCACHE_ALIGN", "CACHE_DMA",
                          "RECLAIM_ACCOUNT", "ACCOUNT")}}

__all__ = ["BusError", "ConfigError", "KernelBug", "MachineCheck", "NumaemuError", "OutOfMemory", "SegmentationFault",
           "KiB", "MiB", "GiB", "TiB", *_constants, *_LATER]


def __getattr__(name):
    if name in _LATER:
        return getattr(_importlib.import_module(f"numaemu.{_LATER[name]}"), name)
    raise AttributeError(f"module 'numaemu' has no attribute {name!r}")

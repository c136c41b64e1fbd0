"""numaemu: an emulator of NUMA machines and of the Linux memory-management kernel that runs on them."""
__version__ = "0.1.0"

import importlib as _importlib

_HOME = {
    "Machine": "machine", "Task": "task", "Handle": "task",
    **dict.fromkeys(("NumaemuError", "ConfigError", "MachineCheck", "SegmentationFault", "BusError", "OutOfMemory"), "errors"),
    **dict.fromkeys(("KiB", "MiB", "GiB", "TiB"), "units"),
    **{f"{how}_{kind}": "access" for how in ("load", "store")
       for kind in ("u8", "u16", "u32", "u64", "i32", "i64", "f32", "f64")},
}


def __getattr__(name):
    """Import a name's module when it is first used, so that a driver loads no compiled code it does not need."""
    if name in _HOME:
        return getattr(_importlib.import_module(f"numaemu.{_HOME[name]}"), name)
    for module in ("uapi", "kernel.gfp"):
        found = getattr(_importlib.import_module(f"numaemu.{module}"), name, None)
        if found is not None and not name.startswith("___") and name.isupper() or name.startswith("__GFP"):
            return found
    raise AttributeError(f"module 'numaemu' has no attribute {name!r}")

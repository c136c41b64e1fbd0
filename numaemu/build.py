"""The flavour of the build, and a compile cache that notices a change anywhere in the package.

Numba's own disk cache stamps a function with its own file only, and would serve old code after a change to a callee
in another file. The locators below stamp every cached function (a user's kernels too) with a hash over all sources
of this package as well. They are installed when this module is imported, before any kernel is declared.

    NUMBA_DISABLE_JIT=1   every kernel is the plain Python function (slow, steppable)
    NUMAEMU_DEBUG=1       the debug build: array bounds of struct pointers and VM_BUG_ON are checked
"""
import functools
import hashlib
import os
import pathlib

import numba
from numba.core.caching import InTreeCacheLocator, IPythonCacheLocator, UserProvidedCacheLocator, UserWideCacheLocator

from numaemu.trust import usable
from numaemu.user_kernels import directory_of

PACKAGE = pathlib.Path(__file__).parent
DEBUG = os.environ.get("NUMAEMU_DEBUG", "") not in ("", "0")
JIT = not numba.config.DISABLE_JIT
# files above the floor of compiled code: no kernel and no constant of a kernel lies in them
UPPER_FLOORS = {
    "__main__.py",
    "actor.py",
    "arguments.py",
    "bench.py",
    "calls.py",
    "case_file.py",
    "cli.py",
    "compiler.py",
    "conform.py",
    "coordinator.py",
    "cpu.py",
    "forkserver.py",
    "host_memory.py",
    "judge.py",
    "kernel/huge_sysfs.py",
    "kernel/node_sysfs.py",
    "kernel/proc.py",
    "kernel/proc_meminfo.py",
    "kernel/proc_slabinfo.py",
    "kernel/proc_task.py",
    "kernel/proc_vmstat.py",
    "kernel/shortage.py",
    "kernel/stats.py",
    "kernel/sysctl.py",
    "kernel/thp_sysfs.py", "kernel/zswap_sysfs.py",
    "kernel_handles.py",
    "kernel_operations.py",
    "lifetime.py",
    "machine.py",
    "machine_file.py",
    "mapping.py",
    "node.py",
    "node_mask.py",
    "observe.py",
    "operations.py",
    "operations_fault.py",
    "payload.py",
    "precompile.py",
    "refusals.py",
    "replay.py",
    "replay_files.py", "replay_init.py",
    "replay_shell.py",
    "report.py",
    "screen.py",
    "stamp.py",
    "task.py",
    "threads.py",
    "topology.py",
    "trust.py",
    "units.py",
    "user_kernels.py",
    "where.py",
    "wire.py",
}


@functools.cache
def package_stamp():
    """Hash over every source file that compiled code may come from, and the build's flavour."""
    digest = hashlib.sha256(b"debug" if DEBUG else b"release")
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name not in UPPER_FLOORS:
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()


class _PackageStamp:
    """Mixed into each of Numba's locators: its own stamp and the package's; flavours side by side; only places that are trusted."""

    @classmethod
    def from_function(cls, function, file):
        found = super().from_function(function, file)
        return found if found is not None and usable(found.get_cache_path()) else None

    def get_source_stamp(self):
        return super().get_source_stamp(), package_stamp()

    def get_cache_path(self):
        path = super().get_cache_path()
        return os.path.join(path, "debug") if DEBUG else path


class InTree(_PackageStamp, InTreeCacheLocator):
    pass


class OfDriver(UserProvidedCacheLocator):
    """Of functions that no file holds (user_kernels.py)."""

    @classmethod
    def from_function(cls, function, file):
        return cls(function, file) if directory_of(function) else None

    def __init__(self, function, file):
        self._path = directory_of(function)

    def get_cache_path(self):
        return self._path

    def get_source_stamp(self):
        return self._path

    def get_disambiguator(self):
        return ""


class UserProvided(_PackageStamp, UserProvidedCacheLocator):
    @classmethod
    def from_function(cls, function, file):
        """Each file's cache is a directory in the one that NUMBA_CACHE_DIR names."""
        named = numba.config.CACHE_DIR
        return super().from_function(function, file) if named and usable(named) else None


class UserWide(_PackageStamp, UserWideCacheLocator):
    pass


class IPython(_PackageStamp, IPythonCacheLocator):
    pass


numba.config.CACHE_LOCATOR_CLASSES = ",".join(
    f"{__name__}.{cls.__name__}" for cls in (OfDriver, UserProvided, InTree, UserWide, IPython))

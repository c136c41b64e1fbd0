"""The flavour of the build, and a compile cache that notices a change anywhere in the package.

Numba's own disk cache stamps a function with its own file only, and would serve old code after a change to a callee
in another file. The locators below stamp every cached function (user kernels too) with a hash over all sources
of this package as well. They are installed when this module is imported, before any kernel is declared.

    NUMBA_DISABLE_JIT=1   every kernel is the plain Python function (slow, steppable)
    NUMAEMU_DEBUG=1       the debug build: array bounds of struct pointers and VM_BUG_ON are checked
"""

import functools
import hashlib
import os
import pathlib

import numba
from numba.core import caching
from numba.core.caching import InTreeCacheLocator, IPythonCacheLocator, UserProvidedCacheLocator, UserWideCacheLocator

from numaemu.compiler.stamp import sources_of_compiled_code
from numaemu.compiler.user_kernels import directory_of
from numaemu.host.trust import usable

PACKAGE = pathlib.Path(__file__).parents[1]
DEBUG = os.environ.get("NUMAEMU_DEBUG", "") not in ("", "0")
JIT = not numba.config.DISABLE_JIT


@functools.cache
def package_stamp():
    """Hash over every source file that compiled code may come from, and the build's flavour."""
    digest = hashlib.sha256(b"debug" if DEBUG else b"release")
    for module, text in sorted(sources_of_compiled_code(PACKAGE).items()):
        digest.update(module.encode() + text.encode())
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


class Index(caching.IndexDataCacheFile):
    """What a cache holds. One that names what is gone, a struct for instance, is of another version of the package: it holds nothing."""

    def _load_index(self):
        try:
            return super()._load_index()
        except (AttributeError, ImportError, KeyError):
            return {}


caching.IndexDataCacheFile = Index
numba.config.CACHE_LOCATOR_CLASSES = ",".join(
    f"{__name__}.{cls.__name__}" for cls in (OfDriver, UserProvided, InTree, UserWide, IPython)
)

"""Functions of libraries in user mode (memory allocators, garbage collectors): compiled by Numba when somebody calls them first.

    @library       as a workload's user kernel: it may raise, and lies in Numba's cache beside its file

The package's image holds none of them, so that a machine that never calls one pays nothing for it. Each process that needs one takes
it from the cache; where it is not there yet one process compiles it while the others wait. What the cache holds is out of date
when its own file changes, a library that this one imports, or the face of any other file below (stamp.py): a change inside a
function of the kernel is none of these.
"""

import contextlib
import fcntl
import functools
import hashlib
import os

import numba

from numaemu.compiler.build import DEBUG, JIT, PACKAGE
from numaemu.compiler.stamp import imported, reached, source_texts, split

MARK = "@library\n"


@functools.cache
def _package():
    """(texts, imports) of every file of the package."""
    texts = source_texts(PACKAGE)
    return texts, {module: imported(text, texts.keys()) for module, text in texts.items()}


def library_stamp(module, texts, imports):
    """What the machine code of a library's functions depends on, as a hash."""
    digest = hashlib.sha256(b"debug" if DEBUG else b"release")
    for name in sorted(reached(module, imports)):
        digest.update((texts[name] if MARK in texts[name] else split(texts[name])[0]).encode())
    return digest.hexdigest()


@functools.cache
def stamp_of(module):
    """The same of this package."""
    return library_stamp(module, *_package())


def library(function):
    """See the module's text. With the JIT off it is the plain function."""
    if not JIT:
        return function
    dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function)
    if not function.__module__.startswith("numaemu."):
        return dispatcher
    with contextlib.suppress(AttributeError):  # nothing can be kept
        dispatcher._cache._cache_file._source_stamp = stamp_of(function.__module__)
    compile_it = dispatcher.compile

    def compile_once(sig):
        if tuple(getattr(sig, "args", sig)) in dispatcher.overloads:
            return compile_it(sig)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, AttributeError):  # where nothing can be kept each compiles for itself
                place = dispatcher._cache._impl.locator.get_cache_path()
                os.makedirs(place, exist_ok=True)
                path = os.path.join(place, f"{function.__module__}.{function.__name__}.lock")
                fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
            return compile_it(sig)

    dispatcher.compile = compile_once
    return dispatcher

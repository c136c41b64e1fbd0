"""Functions of libraries in user mode (memory allocators, garbage collectors): compiled by Numba when somebody calls them first.

    @library       as a workload's user kernel: it may raise, and lies in Numba's cache beside its file

The package's image holds none of them, so that a machine that never calls one pays nothing for it. Each process that needs one takes
it from the cache; where it is not there yet one process compiles it while the others wait. What the cache holds is out of date when
any file changes that compiled code of the package comes from; a library is one of these if a file that holds an @overload imports it.
"""

import contextlib
import fcntl
import os

import numba

from numaemu.compiler.build import JIT


def library(function):
    """See the module's text. With the JIT off it is the plain function."""
    if not JIT:
        return function
    dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function)
    compile_it = dispatcher.compile

    def compile_once(sig):
        if tuple(getattr(sig, "args", sig)) in dispatcher.overloads:
            return compile_it(sig)
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, AttributeError):  # where nothing can be kept each compiles for itself
                place = dispatcher._cache._impl.locator.get_cache_path()
                os.makedirs(place, exist_ok=True)
                lock = stack.enter_context(
                    open(os.path.join(place, f"{function.__module__}.{function.__name__}.lock"), "w")
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            return compile_it(sig)

    dispatcher.compile = compile_once
    return dispatcher

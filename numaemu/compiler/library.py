"""Functions of libraries in user mode (memory allocators, garbage collectors): compiled by Numba when somebody calls them first.

    @library                     as a workload's user kernel: it may raise, and lies in Numba's cache beside its file
    @far("i64(cpu_t*, i64)")     the same, but its callers do not hold its machine code: they call it through a symbol

Numba puts the machine code of a function into each that calls it, and optimises all of that again. A `far` function ends this: its
callers know a name, behind which there is a jump that compiles the function, or takes it from the cache, when it is first taken.

The package's image holds none of them, so that a machine that never calls one pays nothing for it. Each process that needs one takes
it from the cache; where it is not there yet one process compiles it while the others wait. What the cache holds is out of date
when its own file changes, a library that this one imports, or the face of any other file below (stamp.py): a change inside a
function of the kernel is none of these.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import importlib
import os
import re
import sys
import threading
import traceback

import numba
from llvmlite import binding as llvm
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate
from numba.extending import lower_builtin, typeof_impl

from numaemu.compiler.build import DEBUG, JIT, PACKAGE
from numaemu.compiler.decorators import parse_signature
from numaemu.compiler.link import _STUB, LINKER
from numaemu.compiler.pipeline import Short, for_any_number
from numaemu.compiler.stamp import imported, reached, source_texts, split

MARK = re.compile(r"^@(library|far)\b", re.M)


@functools.cache
def _package():
    """(texts, imports) of every file of the package."""
    texts = source_texts(PACKAGE)
    return texts, {module: imported(text, texts.keys()) for module, text in texts.items()}


def library_stamp(module, texts, imports):
    """What the machine code of a library's functions depends on, as a hash."""
    digest = hashlib.sha256(b"debug" if DEBUG else b"release")
    for name in sorted(reached(module, imports)):
        digest.update((texts[name] if MARK.search(texts[name]) else split(texts[name])[0]).encode())
    return digest.hexdigest()


@functools.cache
def stamp_of(module):
    """The same of this package."""
    return library_stamp(module, *_package())


class Jumps:
    """Addresses that stand for far functions which nobody has called yet; link.py has the like for the kernel's functions."""

    def __init__(self):
        self.waiting, self.words, self.lock = [], [], threading.RLock()
        self.resolve = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self._resolve)

    def jump_to(self, function):
        """The address of a jump to a function."""
        number, word = len(self.waiting), ctypes.c_uint64()
        resolve = ctypes.cast(self.resolve, ctypes.c_void_p).value
        text = _STUB.replace("numaemu.stub", "numaemu.far").replace("numaemu.wait", "numaemu.far.wait")
        text = text.format(number=number, word=ctypes.addressof(word), resolve=resolve)
        engine = LINKER.engine
        engine.add_object_file(llvm.ObjectFileRef.from_data(LINKER.quick.emit_object(llvm.parse_assembly(text))))
        word.value = engine.get_function_address(f"numaemu.far.wait.{number}")
        self.waiting.append((function, word))
        self.words.append(word)
        return engine.get_function_address(f"numaemu.far.{number}")

    def _resolve(self, number):
        """Called by a jump that is taken for the first time: compile, and put the address into the jump's word."""
        try:
            function, word = self.waiting[number]
            with self.lock:
                word.value = function.compile()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)  # nobody can go on without what it has called


JUMPS = Jumps()


class Far:
    """A function that others call through its symbol. From Python it is called as any compiled function."""

    def __init__(self, function, signature):
        self.py_func, self.signature = function, parse_signature(signature)
        if signature.startswith("bool("):
            self.signature = self.signature.replace(return_type=types.boolean)
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__
        self.symbol, self.dispatcher = f"far {function.__module__}.{function.__name__}", library(function)
        llvm.add_symbol(self.symbol, JUMPS.jump_to(self))
        self.type = types.Function(
            type(f"{self.__name__}_call", (ConcreteTemplate,), {"key": self, "cases": [self.signature]})
        )
        lower_builtin(self, *self.signature.args)(self._call)

    def __call__(self, *args):
        return self.dispatcher(*args)

    def __reduce__(self):
        return _by_name, (self.__module__, self.__name__)

    def compile(self):
        """The address of its machine code, in Numba's calling convention."""
        self.dispatcher.compile(self.signature.args)
        result = self.dispatcher.overloads[self.signature.args]
        if result.signature.return_type != self.signature.return_type:
            raise TypeError(
                f"{self.symbol} returns {result.signature.return_type}, must be {self.signature.return_type}"
            )
        return result.library.get_pointer_to_function(result.fndesc.mangled_name)

    def _call(self, context, builder, sig, args):
        """Call it, and pass on what it raises."""
        convention = context.call_conv
        kind = convention.get_function_type(sig.return_type, sig.args)
        function = cgutils.get_or_insert_function(builder.module, kind, self.symbol)
        status, result = convention.call_function(builder, function, sig.return_type, sig.args, args)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return result


def _by_name(module, name):
    return getattr(importlib.import_module(module), name)


typeof_impl.register(Far)(lambda value, context: value.type)


def far(signature):
    """See the module's text. With the JIT off it is the plain function."""
    return lambda function: Far(function, signature) if JIT else function


def library(function):
    """See the module's text. With the JIT off it is the plain function."""
    if not JIT:
        return function
    options = dict(cache=True, nogil=True, error_model="numpy", boundscheck=False, no_cfunc_wrapper=True)
    if not function.__module__.startswith("numaemu."):
        return numba.njit(**options)(function)
    dispatcher = for_any_number(numba.njit(**options, pipeline_class=Short)(function))
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

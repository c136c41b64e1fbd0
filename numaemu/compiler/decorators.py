"""How functions are compiled. Every compiled function of the package is declared with one of these decorators.

    @kernel("i64(cpu_t*, i64, u64)")   compiled once, by itself; other compiled functions call it through its linker symbol, so
                                       that nothing is compiled twice. May not raise: it answers with a code.
    @hot                               a few lines of a hot path, inlined into every caller; may raise
    @entry("i64(u64, i64)")            called from Python
    @callback("u64(u64, u64, u64)")    called through its `.address`, from a struct

In a signature a struct's name with a star is a pointer to it (`i64*`: to
words), `u64` … `f64` and `void` are what they say, `bool` is 0 or
1 in an i64, and `u64[]` is a NumPy array. With the JIT off all of them are the plain Python functions, behind a
conversion of words to the kinds of the signature.
"""

import ctypes
import functools
import os
import sys
import traceback

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite.ir import CallInstr
from numba import types
from numba.core.ccallback import CFunc
from numba.core.cpu import CPUContext
from numba.extending import typeof_impl

from numaemu.compiler.build import JIT
from numaemu.compiler.image import Compiled
from numaemu.compiler.link import COMPILING, LINKER
from numaemu.compiler.native import PythonCallback
from numaemu.compiler.pipeline import Short, WithoutLoading, for_any_number
from numaemu.compiler.pointer import SCALARS, STRUCTS, ItemsType, PointerType

_OPTIONS = dict(error_model="numpy", boundscheck=False)
# fmt: off
_NAMES = {"u8": types.uint8, "u16": types.uint16, "u32": types.uint32, "u64": types.uint64, "i32": types.int32,
          "i64": types.int64, "f32": types.float32, "f64": types.float64, "bool": types.int64, "void": types.void}
# fmt: on

_CTYPES = {types.void: None, types.int64: ctypes.c_int64, types.uint64: ctypes.c_uint64, types.int32: ctypes.c_int32}

declared = {}  # in a compiler: {symbol: a function without arguments that compiles it}


def _type(text):
    text = text.strip()
    if text.endswith("*"):
        name = text[:-1]
        return PointerType(STRUCTS[name]) if name in STRUCTS else ItemsType(SCALARS[name])
    if text.endswith("[]"):
        return types.Array(_NAMES[text[:-2]], 1, "C")
    return _NAMES[text]


def parse_signature(text):
    """A Numba signature from "result(argument, …)"."""
    result, _, arguments = text.rstrip(")").partition("(")
    return _type(result)(*[_type(a) for a in arguments.split(",") if a.strip()])


_NOWHERE = ctypes.addressof(ctypes.c_uint64())  # what callers link to in a compiler, where nothing is called
_ENVIRONMENT = "_ZN08NumbaEnv"  # how the names of Numba's words for environments begin


def _symbol(function):
    return f"{function.__module__}.{function.__name__}"


def _in_image(function):
    """True for the package's functions; others, a test's or a user's, compile where they are declared."""
    return function.__module__.startswith("numaemu.")


def _declare(symbol, compile_it):
    if symbol in declared:
        raise AssertionError(f"{symbol} is declared twice")
    declared[symbol] = compile_it


def _for_image(result, name):
    """What an image keeps of a compiled function, which is called by `name`; the names of what it calls."""
    code, module = result.library.machine_code(), result.library._final_module
    words = [v.name for v in module.global_variables if v.name.startswith(_ENVIRONMENT)]
    compiled = Compiled(code, name, tuple(words), tuple(result.environment.consts))
    return compiled, [f.name for f in module.functions if f.is_declaration]


class _WrapperLibrary:
    """A Numba library to which a function's C wrapper is added. The function becomes part of the wrapper, which alone calls it:
    Numba forbids that, so that each call of a kernel would be two.
    """

    def __init__(self, library, function):
        self.library, self.function = library, function

    def add_ir_module(self, module):
        for instruction in (i for f in module.functions for block in f.blocks for i in block.instructions):
            if isinstance(instruction, CallInstr):
                instruction.attributes.discard("noinline")
        self.library.add_ir_module(module)
        self.library._final_module.get_function(self.function).linkage = "internal"


def _create_wrapper(context, library, fndesc, env, call_helper, _create=CPUContext.create_cfunc_wrapper):
    """CPUContext.create_cfunc_wrapper, in a compiler. Functions of Numba's own have wrappers, too, and others that call them."""
    if fndesc.modname.startswith("numaemu."):
        library = _WrapperLibrary(library, fndesc.llvm_func_name)
    return _create(context, library, fndesc, env, call_helper)


if COMPILING:
    CPUContext.create_cfunc_wrapper = _create_wrapper


class Kernel:
    """A function compiled by itself: callable from Python, and from compiled code through its symbol."""

    def __init__(self, function, signature):
        self.__name__, self.__doc__, self.py_func = function.__name__, function.__doc__, function
        self.symbol, self.signature = _symbol(function), signature
        if not _in_image(function):
            self.compiled = numba.cfunc(self.external.sig, **_OPTIONS, cache=True)(function)
            self.address = self.compiled.address
        elif COMPILING:
            _declare(self.symbol, self._compile)
            self.address = _NOWHERE
        else:
            self.address = LINKER.address(self.symbol, function)
        llvm.add_symbol(self.symbol, self.address)

    def _compile(self):
        signature = self.external.sig
        kinds = signature.args, signature.return_type
        result = CFunc(self.py_func, kinds, {}, _OPTIONS, pipeline_class=WithoutLoading)._compile_uncached()
        return _for_image(result, result.fndesc.llvm_cfunc_wrapper_name)

    @functools.cached_property
    def external(self):
        return types.ExternalFunction(self.symbol, parse_signature(self.signature))

    @functools.cached_property
    def _python(self):
        ctype = [_CTYPES.get(t, ctypes.c_uint64) for t in (self.external.sig.return_type, *self.external.sig.args)]
        return ctypes.PYFUNCTYPE(*ctype)(self.address)

    def __call__(self, *args):
        return self._python(*[getattr(a, "address", a) for a in args])


class Hot:
    """A function that is inlined into compiled callers. Python calls the plain function: a few lines are done sooner than Numba
    has looked at its arguments.
    """

    def __init__(self, function):
        self.__name__, self.__doc__, self.py_func = function.__name__, function.__doc__, function

    @functools.cached_property
    def inlined(self):
        options = dict(**_OPTIONS, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
        # Elsewhere it is loaded: Numba then knows what it raises with, also for the user kernel that it becomes a part of.
        pipeline = WithoutLoading if COMPILING else Short
        return for_any_number(numba.njit(**options, pipeline_class=pipeline)(self.py_func))

    def __call__(self, *args):
        return self.py_func(*args)


typeof_impl.register(Kernel)(lambda value, context: value.external)
typeof_impl.register(Hot)(lambda value, context: types.Dispatcher(value.inlined))

# fmt: off
_WORDS = {types.uint8: np.uint8, types.uint16: np.uint16, types.uint32: np.uint32, types.uint64: np.uint64,
          types.int32: int, types.int64: int, types.float32: float, types.float64: float}
# fmt: on


def twin(function, sig):
    """The plain function with the JIT off: words of arguments and result become what the signature says, as compiled."""
    names = [f"a{i}" for i in range(len(sig.args))]
    casts = {f"c{i}": cast for i, t in enumerate(sig.args) if (cast := _WORDS.get(t))}
    args = [f"({n} if {n}.__class__ is c{n[1:]} else c{n[1:]}({n}))" if f"c{n[1:]}" in casts else n for n in names]
    result = _WORDS.get(sig.return_type)
    answer = f"function({', '.join(args)})"
    body = f"result({answer})" if result else answer
    scope = {"function": function, "result": result, **casts}
    exec(f"def call({', '.join(names)}):\n    return {body}", scope)  # a plain call for each: no list, no loop
    return functools.wraps(function)(scope["call"])


def hot(function):
    """See the module's text."""
    return Hot(function) if JIT else function


def kernel(signature):
    """See the module's text."""

    def decorate(function):
        return Kernel(function, signature) if JIT else twin(function, parse_signature(signature))

    return decorate


def callback(signature):
    """See the module's text."""

    def decorate(function):
        return Kernel(function, signature) if JIT else PythonCallback(twin(function, parse_signature(signature)))

    return decorate


def entry(signature, nogil=False):
    """See the module's text. With `nogil` other Python threads of the process run meanwhile: for what may take long."""

    def decorate(function):
        if not JIT:
            return twin(function, parse_signature(signature))
        sig, options = parse_signature(signature), dict(**_OPTIONS, nogil=nogil, no_cfunc_wrapper=True)
        if not _in_image(function):
            return numba.njit(sig, **options, cache=True)(function)
        if not COMPILING:
            return LINKER.for_python(_symbol(function), function)

        def compile_it():
            (result,) = numba.njit(sig, **options, pipeline_class=WithoutLoading)(function).overloads.values()
            return _for_image(result, result.fndesc.llvm_cpython_wrapper_name)

        _declare(_symbol(function), compile_it)
        return function

    return decorate


def die_on_unraisable():
    """In emulator processes: an exception inside a kernel that cannot raise (a VM_BUG_ON, a bound) ends the process."""

    def hook(unraisable):
        traceback.print_exception(unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback)
        sys.stderr.flush()
        os._exit(70)

    sys.unraisablehook = hook

"""Raw host memory, and calls through an address.

Compiled code reaches what it must not link (the fault path of a user kernel) or what is Python (waiting for a message)
by calling an address that stands in a struct.
"""

import ctypes

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from numaemu.compiler.pointer import compiled_twin

_I64 = ir.IntType(64)
_python_callbacks = {}
_CALLBACK = ctypes.PYFUNCTYPE(*[ctypes.c_uint64] * 4)


class PythonCallback:
    """A Python function behind a number that stands for its address while the JIT is off, in this process and its forks."""

    def __init__(self, function):
        self.function, self.address = function, 1 + len(_python_callbacks)
        _python_callbacks[self.address] = function

    def __call__(self, *args):
        return self.function(*args)


def call_address(function, a, b, c):
    """Call a `callback` (or a ctypes function pointer) by its address: uint64 f(uint64, uint64, uint64).

    Compiled code reaches what it must not link (the fault path) or what is Python (waiting for a message) this way.
    """
    address = int(function)
    if address in _python_callbacks:
        return _python_callbacks[address](a, b, c)
    return np.uint64(_CALLBACK(address)(int(a), int(b), int(c)))


@compiled_twin(call_address)
def _(function, a, b, c):
    def codegen(context, builder, sig, args):
        words = [context.cast(builder, v, t, types.uint64) for v, t in zip(args, sig.args)]
        callee = builder.inttoptr(words[0], ir.FunctionType(_I64, [_I64] * 3).as_pointer())
        return builder.call(callee, words[1:])

    return types.uint64, codegen


def clear_bytes(address, nbytes):
    """memset(address, 0, nbytes)."""
    ctypes.memset(int(address), 0, int(nbytes))


def copy_bytes(target, source, nbytes):
    """memcpy(target, source, nbytes)."""
    ctypes.memmove(int(target), int(source), int(nbytes))


def copy_page(target, source):
    """memcpy(target, source, 4096) in place (on x86-64 by `rep movs`, as the host's kernel copies pages)."""
    copy_bytes(target, source, _PAGE_BYTES)


_PAGE_BYTES = 4096


@compiled_twin(copy_page)
def _(target, source):
    def codegen(context, builder, sig, args):
        byte = ir.IntType(8).as_pointer()
        to, of = (builder.inttoptr(context.cast(builder, a, t, types.uint64), byte) for a, t in zip(args, sig.args))
        kind = ir.FunctionType(ir.VoidType(), [byte, byte, _I64, ir.IntType(1)])
        callee = cgutils.get_or_insert_function(builder.module, kind, "llvm.memcpy.inline.p0.p0.i64")
        builder.call(callee, [to, of, _I64(_PAGE_BYTES), ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.none, codegen


@compiled_twin(clear_bytes)
def _(address, nbytes):
    def codegen(context, builder, sig, args):
        pointer = builder.inttoptr(
            context.cast(builder, args[0], sig.args[0], types.uint64), ir.IntType(8).as_pointer()
        )
        size = context.cast(builder, args[1], sig.args[1], types.int64)
        callee = builder.module.declare_intrinsic("llvm.memset", [ir.IntType(8).as_pointer(), _I64])
        builder.call(callee, [pointer, ir.Constant(ir.IntType(8), 0), size, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.none, codegen


@compiled_twin(copy_bytes)
def _(target, source, nbytes):
    def codegen(context, builder, sig, args):
        byte = ir.IntType(8).as_pointer()
        to, of = (builder.inttoptr(context.cast(builder, a, t, types.uint64), byte) for a, t in zip(args[:2], sig.args))
        size = context.cast(builder, args[2], sig.args[2], types.int64)
        callee = builder.module.declare_intrinsic("llvm.memcpy", [byte, byte, _I64])
        builder.call(callee, [to, of, size, ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.none, codegen


def prefetch(address):
    """Ask the host's cache for the line at `address`; does nothing else, and nothing at all in Python."""


def prefetch_l2(address):
    """The same for its second level, which can wait for more lines at once than the first."""


def _prefetch_twin(locality):
    def twin(address):
        def codegen(context, builder, sig, args):
            byte = ir.IntType(8).as_pointer()
            i32 = ir.IntType(32)
            pointer = builder.inttoptr(context.cast(builder, args[0], sig.args[0], types.uint64), byte)
            kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
            callee = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
            builder.call(callee, [pointer, i32(0), i32(locality), i32(1)])
            return context.get_dummy_value()

        return types.none, codegen

    return twin


compiled_twin(prefetch)(_prefetch_twin(3))
compiled_twin(prefetch_l2)(_prefetch_twin(2))


_MADV_POPULATE_WRITE = 23


_MADV_REMOVE = 9


def punch(address, nbytes):
    """Give the host back what lies in a range of a shared segment: it reads as zeros again."""
    ctypes.CDLL(None).madvise(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(nbytes)), _MADV_REMOVE)


@compiled_twin(punch)
def _(address, nbytes):
    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.IntType(32), [_I64, _I64, ir.IntType(32)])
        callee = cgutils.get_or_insert_function(builder.module, kind, "madvise")
        words = [context.cast(builder, v, t, types.uint64) for v, t in zip(args, sig.args)]
        builder.call(callee, [*words, ir.Constant(ir.IntType(32), _MADV_REMOVE)])
        return context.get_dummy_value()

    return types.none, codegen


def populate(address, nbytes):
    """Ask the host to make a range present (madvise); a host that cannot will do so at the first touch."""


@compiled_twin(populate)
def _(address, nbytes):
    def codegen(context, builder, sig, args):
        kind = ir.FunctionType(ir.IntType(32), [_I64, _I64, ir.IntType(32)])
        callee = cgutils.get_or_insert_function(builder.module, kind, "madvise")
        words = [context.cast(builder, v, t, types.uint64) for v, t in zip(args, sig.args)]
        builder.call(callee, [*words, ir.Constant(ir.IntType(32), _MADV_POPULATE_WRITE)])
        return context.get_dummy_value()

    return types.none, codegen


class Semaphore:
    """A sem_t of this process, for threads that hand over to each other (see `switch_thread`)."""

    def __init__(self):
        self._memory = ctypes.create_string_buffer(64)  # glibc's has 32 bytes
        self.address = ctypes.addressof(self._memory)
        _libc.sem_init(ctypes.c_void_p(self.address), 0, 0)

    def post(self):
        _libc.sem_post(ctypes.c_void_p(self.address))


_libc = ctypes.CDLL(None)


def sem_post(address):
    """sem_post(3)"""
    _libc.sem_post(ctypes.c_void_p(int(address)))


def sem_wait(address):
    """sem_wait(3): not 0 if a signal came instead."""
    return _libc.sem_wait(ctypes.c_void_p(int(address)))


def _semaphore_call(name):
    def twin(address):
        def codegen(context, builder, sig, args):
            callee = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), [_I64]), name)
            return builder.call(callee, [context.cast(builder, args[0], sig.args[0], types.uint64)])

        return types.int32, codegen

    return twin


compiled_twin(sem_post)(_semaphore_call("sem_post"))
compiled_twin(sem_wait)(_semaphore_call("sem_wait"))


def sem_init(address):
    """A sem_t of value 0 at an address that several processes share."""
    _libc.sem_init(ctypes.c_void_p(int(address)), 1, 0)


@compiled_twin(sem_init)
def _(address):
    def codegen(context, builder, sig, args):
        i32 = ir.IntType(32)
        callee = cgutils.get_or_insert_function(builder.module, ir.FunctionType(i32, [_I64, i32, i32]), "sem_init")
        builder.call(callee, [context.cast(builder, args[0], sig.args[0], types.uint64), i32(1), i32(0)])
        return context.get_dummy_value()

    return types.none, codegen


def let_host_run():
    """sched_yield(2): what this thread waits for may have to run on its processor."""
    _libc.sched_yield()


@compiled_twin(let_host_run)
def _():
    def codegen(context, builder, sig, args):
        callee = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        builder.call(callee, [])
        return context.get_dummy_value()

    return types.none, codegen


def release_gil():
    """Give Python's lock up if this thread has it: what `take_gil` takes it back with, or 0. Python code that waits
    in a library's call has given it up by itself.
    """
    return np.uint64(0)


def take_gil(state):
    """Take Python's lock again if `release_gil` gave it up."""


@compiled_twin(release_gil)
def _():
    def codegen(context, builder, sig, args):
        check = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "PyGILState_Check")
        save = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_I64, []), "PyEval_SaveThread")
        held = builder.icmp_unsigned("!=", builder.call(check, []), ir.IntType(32)(0))
        state = cgutils.alloca_once_value(builder, _I64(0))
        with builder.if_then(held):
            builder.store(builder.call(save, []), state)
        return builder.load(state)

    return types.uint64, codegen


@compiled_twin(take_gil)
def _(state):
    def codegen(context, builder, sig, args):
        restore = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [_I64]), "PyEval_RestoreThread"
        )
        word = context.cast(builder, args[0], sig.args[0], types.uint64)
        with builder.if_then(builder.icmp_unsigned("!=", word, _I64(0))):
            builder.call(restore, [word])
        return context.get_dummy_value()

    return types.none, codegen

"""Atomic words in shared memory, from compiled code and from Python.

Each works on a field of a struct (`fetch_add(page, "refcount", 1)`) or on an item of an array (`fetch_add(words, i, 1)`).
Orders: loads acquire, `store_release` releases, everything else is sequentially consistent. In compiled code each is one
instruction; in Python a few lines of IR, compiled when first used, run the same instruction.
"""

import ctypes
import platform

from llvmlite import binding as llvm
from numba import types

from numaemu.compiler.pointer import (
    ItemsType,
    Pointer,
    PointerType,
    compiled_twin,
    field_address,
    field_type,
    item_address,
    item_type,
    word_at,
)


def _atomic_kind(target, where):
    if isinstance(target, PointerType) and isinstance(where, types.StringLiteral):
        return field_type(target.struct, where.literal_value)
    if isinstance(target, ItemsType) and isinstance(where, types.Integer):
        return item_type(target.kind)
    return None


def _atomic_word(context, builder, sig, args, kind):
    target, where = sig.args[:2]
    if isinstance(target, PointerType):
        address = field_address(builder, target.struct, args[0], where.literal_value)
    else:
        address = item_address(context, builder, target, where, args[0], args[1])
    return word_at(context, builder, address, kind)


def _twin_source(bits):
    """IR text of the atomics on one width, for Python code."""
    t, align = f"i{bits}", bits // 8
    lines = [
        f"define {t} @load_{t}(ptr %p) {{ %v = load atomic {t}, ptr %p acquire, align {align}\n ret {t} %v }}",
        f"define void @store_{t}(ptr %p, {t} %v) {{ store atomic {t} %v, ptr %p seq_cst, align {align}\n ret void }}",
        f"define {t} @cas_{t}(ptr %p, {t} %a, {t} %b) {{ %r = cmpxchg ptr %p, {t} %a, {t} %b seq_cst seq_cst\n"
        f" %v = extractvalue {{ {t}, i1 }} %r, 0\n ret {t} %v }}",
    ]
    for op in ("add", "or", "and", "xchg"):
        lines.append(
            f"define {t} @{op}_{t}(ptr %p, {t} %v) {{ %r = atomicrmw {op} ptr %p, {t} %v seq_cst\n ret {t} %r }}"
        )
    return "\n".join(lines)


class _Twins:
    """The atomics for Python code: the same instructions, compiled from a few lines of IR when first used."""

    def __init__(self):
        self.engine, self.functions = None, {}

    def get(self, op, kind, nargs):
        key = op, kind.name
        if key not in self.functions:
            result = None if op == "store" else kind.ctype
            address = self._address(f"{op}_i{kind.nbytes * 8}")
            self.functions[key] = ctypes.CFUNCTYPE(result, ctypes.c_uint64, *[kind.ctype] * nargs)(address)
        return self.functions[key]

    def _address(self, name):
        if self.engine is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            module = llvm.parse_assembly("\n".join(_twin_source(bits) for bits in (32, 64)))
            machine = llvm.Target.from_default_triple().create_target_machine()
            self.engine = llvm.create_mcjit_compiler(module, machine)
            self.engine.finalize_object()
        return self.engine.get_function_address(name)


_twins = _Twins()
# Where every load acquires a plain one, which Python has, is the same instruction.
_LOADS_ACQUIRE = platform.machine() in ("x86_64", "AMD64")


def _atomic(op, target, where, *values):
    """The Python side of every atomic."""
    if op == "load" and _LOADS_ACQUIRE:
        return getattr(target, where) if where.__class__ is str else target[where]
    if isinstance(target, Pointer):
        address, kind = target.address + target.struct.offsets[where], target.struct.kinds[where]
    else:
        address, kind = target._at(where), target.kind
    result = _twins.get(op, kind, len(values))(address, *map(int, values))
    return result if result is None or kind.scalar is None else kind.scalar(result)


def load_acquire(target, where):
    """The word; whatever its writer did before its release store is visible."""
    return _atomic("load", target, where)


def store_release(target, where, value):
    """Write the word after everything written before."""
    _atomic("store", target, where, value)


def store_seq_cst(target, where, value):
    """Write the word, before any later load of this thread (a full fence)."""
    _atomic("store", target, where, value)


def fetch_add(target, where, value):
    """Add; the value before."""
    return _atomic("add", target, where, value)


def fetch_or(target, where, value):
    """Set bits; the value before."""
    return _atomic("or", target, where, value)


def fetch_and(target, where, value):
    """Keep bits; the value before."""
    return _atomic("and", target, where, value)


def exchange(target, where, value):
    """Write; the value before."""
    return _atomic("xchg", target, where, value)


def compare_exchange(target, where, old, new):
    """Write `new` if the word is `old`; the value before, so success is `== old`."""
    return _atomic("cas", target, where, old, new)


@compiled_twin(load_acquire)
def _(target, where):
    kind = _atomic_kind(target, where)

    def codegen(context, builder, sig, args):
        return builder.load_atomic(_atomic_word(context, builder, sig, args, kind), "acquire", align=kind.bitwidth // 8)

    return kind and (kind, codegen)


def _compiled_store(function, order):
    @compiled_twin(function)
    def _(target, where, value):
        kind = _atomic_kind(target, where)

        def codegen(context, builder, sig, args):
            new = context.cast(builder, args[2], sig.args[2], kind)
            builder.store_atomic(new, _atomic_word(context, builder, sig, args, kind), order, align=kind.bitwidth // 8)
            return context.get_dummy_value()

        return kind and (types.none, codegen)


def _compiled_rmw(function, operation):
    @compiled_twin(function)
    def _(target, where, value):
        kind = _atomic_kind(target, where)

        def codegen(context, builder, sig, args):
            new = context.cast(builder, args[2], sig.args[2], kind)
            return builder.atomic_rmw(operation, _atomic_word(context, builder, sig, args, kind), new, "seq_cst")

        return kind and (kind, codegen)


_compiled_store(store_release, "release")
_compiled_store(store_seq_cst, "seq_cst")
for _function, _operation in ((fetch_add, "add"), (fetch_or, "or"), (fetch_and, "and"), (exchange, "xchg")):
    _compiled_rmw(_function, _operation)


@compiled_twin(compare_exchange)
def _(target, where, old, new):
    kind = _atomic_kind(target, where)

    def codegen(context, builder, sig, args):
        expected = context.cast(builder, args[2], sig.args[2], kind)
        desired = context.cast(builder, args[3], sig.args[3], kind)
        pair = builder.cmpxchg(_atomic_word(context, builder, sig, args, kind), expected, desired, "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return kind and (kind, codegen)

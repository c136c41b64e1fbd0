"""Structs in shared memory, seen by compiled code as plain pointers and by Python as objects over the same bytes.

    page_t = Struct("page_t", [("flags", u64), ("lru", i64, 2), ...])

    page = page_t.at(address)          one struct           page.flags |= PG_dirty      page.lru[0]
    pages = page_t.array(address)      many, one after another                         pages[pfn].refcount
    fetch_add(page, "refcount", 1)     atomic words: load_acquire, store_release, fetch_add, fetch_or,
                                       fetch_and, exchange, compare_exchange, on a field or on words[i]

In compiled code each line above is one or two machine instructions: nothing is reference-counted, no array is
built. In Python (the JIT is off, or a process's own Python code) the same lines work on `Pointer` objects:
unsigned fields read as np.uint64, signed ones as int, atomics go through a few compiled instructions.

Unsigned words (`u8`..`u64`) are bit patterns and addresses; signed ones (`i32`, `i64`) are counts, frame numbers
and times; never both in one expression (Numba would make it a float or a signed number).
"""

import functools
import operator

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.imputils import lower_constant
from numba.core.typing.templates import (
    AbstractTemplate,
    AttributeTemplate,
    bound_function,
    infer_getattr,
    infer_global,
    signature,
)
from numba.extending import (
    NativeValue,
    box,
    lower_builtin,
    lower_getattr,
    lower_getattr_generic,
    lower_setattr_generic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numba.np import numpy_support

from numaemu.compiler.build import DEBUG
from numaemu.compiler.structs import (
    SCALARS,
    STRUCTS,
    Items,
    Pointer,
    Scalar,
    Struct,
    f32,
    f64,
    i32,
    i64,
    u8,
    u16,
    u32,
    u64,
)

# fmt: off
__all__ = [
    "SCALARS", "STRUCTS", "Items", "Pointer", "Scalar", "Struct", "f32", "f64", "i32", "i64", "u8", "u16", "u32", "u64",
    "ItemsType", "PointerType", "address_of", "bits_of", "compiled_twin", "field_address", "field_type", "item_address",
    "item_type", "value_of", "word_at",
]
# fmt: on
_I64 = ir.IntType(64)


# -- the compiled side: types --------------------------------------------------------------------------------


class StructType(types.Opaque):
    """The type of a Struct itself, as a constant in compiled code."""

    def __init__(self, struct):
        self.struct = struct
        super().__init__(name=f"struct({struct.name})")


class PointerType(types.Type):
    """One 64-bit address of one struct."""

    def __init__(self, struct):
        self.struct = struct
        super().__init__(name=f"{struct.name}*")


class ItemsType(types.Type):
    """One 64-bit address of the first of many structs or words."""

    def __init__(self, kind, length=None):
        self.kind, self.length = kind, length
        super().__init__(name=f"{kind.name}[{'' if length is None else length}]")


register_model(StructType)(models.OpaqueModel)


@register_model(PointerType)
@register_model(ItemsType)
class _AddressModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _I64)


typeof_impl.register(Struct)(lambda value, context: StructType(value))
typeof_impl.register(Scalar)(lambda value, context: StructType(value))
typeof_impl.register(Pointer)(lambda value, context: PointerType(value.struct))
typeof_impl.register(Items)(lambda value, context: ItemsType(value.kind))


@lower_constant(StructType)
def _(context, builder, typ, value):
    return context.get_dummy_value()


@unbox(StructType)
def _(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


@unbox(PointerType)
@unbox(ItemsType)
def _(typ, obj, c):
    address = c.pyapi.object_getattr_string(obj, "address")
    value = c.pyapi.long_as_ulonglong(address)
    c.pyapi.decref(address)
    return NativeValue(value)


def _box(constructor, address, c):
    """Call a Python constructor with an address."""
    make = c.pyapi.unserialize(c.pyapi.serialize_object(constructor))
    word = c.pyapi.long_from_ulonglong(address)
    made = c.pyapi.call_function_objargs(make, (word,))
    c.pyapi.decref(make)
    c.pyapi.decref(word)
    return made


@box(PointerType)
def _(typ, address, c):
    return _box(typ.struct.at, address, c)


@box(ItemsType)
def _(typ, address, c):
    return _box(functools.partial(_items, typ.kind, typ.length), address, c)


def _items(kind, length, address):
    return kind.items(address, kind, length)


def field_type(struct, name):
    kind, count = struct.kinds[name], struct.counts[name]
    if count:
        return ItemsType(kind, count)
    return item_type(kind)


def item_type(kind):
    return PointerType(kind) if isinstance(kind, Struct) else numpy_support.from_dtype(kind.dtype)


def word_at(context, builder, address, typ):
    return builder.inttoptr(address, context.get_value_type(typ).as_pointer())


def _load(context, builder, address, typ):
    """A nested struct or array is its address; a scalar is loaded."""
    if isinstance(typ, (PointerType, ItemsType)):
        return address
    return builder.load(word_at(context, builder, address, typ))


def field_address(builder, struct, pointer, name):
    return builder.add(pointer, ir.Constant(_I64, struct.offsets[name]))


def _check_bounds(context, builder, typ, index):
    """Debug build: an index outside the array raises IndexError instead of corrupting memory."""
    if DEBUG and typ.length is not None:
        outside = builder.icmp_unsigned(">=", index, ir.Constant(_I64, typ.length))
        with builder.if_then(outside, likely=False):
            context.call_conv.return_user_exc(builder, IndexError, (f"index outside of {typ.name}",))


def item_address(context, builder, typ, index_type, pointer, index):
    index = context.cast(builder, index, index_type, types.int64)
    _check_bounds(context, builder, typ, index)
    return builder.add(pointer, builder.mul(index, ir.Constant(_I64, typ.kind.nbytes)))


# -- the compiled side: fields and items ---------------------------------------------------------------------


@infer_getattr
class _Fields(AttributeTemplate):
    key = PointerType

    def generic_resolve(self, typ, name):
        if name in typ.struct.kinds:
            return field_type(typ.struct, name)
        if name == "address":
            return types.uint64


@infer_getattr
class _Address(AttributeTemplate):
    key = ItemsType

    def generic_resolve(self, typ, name):
        if name == "address":
            return types.uint64


@lower_getattr_generic(PointerType)
def _(context, builder, typ, pointer, name):
    if name == "address":
        return pointer
    return _load(context, builder, field_address(builder, typ.struct, pointer, name), field_type(typ.struct, name))


@lower_getattr_generic(ItemsType)
def _(context, builder, typ, pointer, name):
    return pointer


@lower_setattr_generic(PointerType)
def _(context, builder, sig, args, name):
    typ, given = sig.args
    kind = field_type(typ.struct, name)
    word = word_at(context, builder, field_address(builder, typ.struct, args[0], name), kind)
    builder.store(context.cast(builder, args[1], given, kind), word)


@infer_global(operator.getitem)
class _GetItem(AbstractTemplate):
    def generic(self, args, kws):
        if isinstance(args[0], ItemsType) and isinstance(args[1], types.Integer):
            return signature(item_type(args[0].kind), *args)


@infer_global(operator.setitem)
class _SetItem(AbstractTemplate):
    def generic(self, args, kws):
        if isinstance(args[0], ItemsType) and isinstance(args[1], types.Integer):
            return signature(types.none, args[0], args[1], item_type(args[0].kind))


@lower_builtin(operator.getitem, ItemsType, types.Integer)
def _(context, builder, sig, args):
    address = item_address(context, builder, sig.args[0], sig.args[1], *args)
    return _load(context, builder, address, sig.return_type)


@lower_builtin(operator.setitem, ItemsType, types.Integer, types.Any)
def _(context, builder, sig, args):
    address = item_address(context, builder, sig.args[0], sig.args[1], *args[:2])
    builder.store(args[2], word_at(context, builder, address, sig.args[2]))
    return context.get_dummy_value()


@infer_getattr
class _Methods(AttributeTemplate):
    """`page_t.at(address)`, `page_t.array(address)`, `page_t.nbytes` in compiled code."""

    key = StructType

    def resolve_nbytes(self, typ):
        return types.int64

    @bound_function("struct.at")
    def resolve_at(self, typ, args, kws):
        return signature(PointerType(typ.struct), *args)

    @bound_function("struct.array")
    def resolve_array(self, typ, args, kws):
        return signature(ItemsType(typ.struct), *args)


@lower_getattr(StructType, "nbytes")
def _(context, builder, typ, value):
    return ir.Constant(_I64, typ.struct.nbytes)


@lower_builtin("struct.at", StructType, types.Integer)
@lower_builtin("struct.array", StructType, types.Integer)
def _(context, builder, sig, args):
    return context.cast(builder, args[1], sig.args[1], types.uint64)


def compiled_twin(function):
    """Declare how a Python function compiles: the decorated `typer(*types)` returns (result type, codegen).

    `codegen(context, builder, sig, args)` emits the instructions. Lighter than numba's `overload` and `intrinsic`
    (nothing of its own to compile), and the Python function stays a plain function.
    """

    def decorate(typer):
        class Template(AbstractTemplate):
            key = function
            prefer_literal = True

            def generic(self, args, kws):
                answer = typer(*args)
                return answer and signature(answer[0], *args)

        infer_global(function)(Template)

        @lower_builtin(function, types.VarArg(types.Any))
        def _(context, builder, sig, args):
            return typer(*sig.args)[1](context, builder, sig, args)

        return typer

    return decorate


def address_of(pointer, field):
    """Host address of a field, for locks and other words that functions take by address."""
    return np.uint64(pointer.address + pointer.struct.offsets[field])


@compiled_twin(address_of)
def _(pointer, field):
    def codegen(context, builder, sig, args):
        return field_address(builder, pointer.struct, args[0], field.literal_value)

    if isinstance(pointer, PointerType) and isinstance(field, types.StringLiteral):
        return types.uint64, codegen


def bits_of(kind, value):
    """The bytes of a value as `kind.array(address)[0] = value` would store them, in a u64."""
    return np.uint64(int.from_bytes(bytes(kind.ctype(kind.convert(value))), "little"))


@compiled_twin(bits_of)
def _(kind, value):
    typ = item_type(kind.struct)

    def codegen(context, builder, sig, args):
        word = context.cast(builder, args[1], value, typ)
        if isinstance(typ, types.Float):
            word = builder.bitcast(word, ir.IntType(typ.bitwidth))
        return builder.zext(word, _I64) if typ.bitwidth < 64 else word

    return types.uint64, codegen


def value_of(kind, bits):
    """The value whose bytes stand in a u64, as `kind.array(address)[0]` would load it."""
    value = kind.ctype.from_buffer_copy(int(bits).to_bytes(8, "little")).value
    return kind.dtype.type(value) if kind.dtype.kind == "u" else value


@compiled_twin(value_of)
def _(kind, bits):
    typ = item_type(kind.struct)

    def codegen(context, builder, sig, args):
        word = args[1] if typ.bitwidth == 64 else builder.trunc(args[1], ir.IntType(typ.bitwidth))
        return builder.bitcast(word, context.get_value_type(typ)) if isinstance(typ, types.Float) else word

    return typ, codegen

"""Bits of a word, in one instruction each."""

from numba import types

from numaemu.compiler.pointer import compiled_twin


def lowest_bit(word):
    """The number of the lowest bit that is set; the word is not 0."""
    word = int(word)
    return (word & -word).bit_length() - 1


def highest_bit(word):
    """The number of the highest bit that is set; the word is positive."""
    return int(word).bit_length() - 1


@compiled_twin(lowest_bit)
def _(word):
    def codegen(context, builder, sig, args):
        value = context.cast(builder, args[0], sig.args[0], types.int64)
        return builder.cttz(value, context.get_constant(types.boolean, True))

    return types.int64, codegen


@compiled_twin(highest_bit)
def _(word):
    def codegen(context, builder, sig, args):
        value = context.cast(builder, args[0], sig.args[0], types.int64)
        zeros = builder.ctlz(value, context.get_constant(types.boolean, True))
        return builder.sub(context.get_constant(types.int64, 63), zeros)

    return types.int64, codegen

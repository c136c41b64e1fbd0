"""What makes room in a set of a cache: the words that remember how its ways were used.

`lru` with up to MAX_ORDERED ways has the order of use in one word, a way in four bits, the one used last in the lowest:

    63        4w-1 .. 4w-4         7 .. 4    3 .. 0
    0     ... used longest ago ... second    used last

`plru` has a binary tree's bits: each node points to the half that was not used last.
"""

import numpy as np

from numaemu.compiler.decorators import hot

U = np.uint64
MAX_ORDERED = 16
ONES = U(0x1111111111111111)
WAY_BITS = U(4)
WAY_MASK = U(15)


def first_order(ways):
    """The order of a set that nobody has used: way 0 makes room first."""
    return sum(ways - 1 - place << 4 * place for place in range(ways))


@hot
def place_of(order, way):
    """The lowest bit of the place where a way stands in an order."""
    x = order ^ (U(way) * ONES)  # 0 where it stands; behind the last place way 0 seems to, so the lowest counts
    x |= x >> U(1)
    x |= x >> U(2)
    found = ~x & ONES
    return found & (~found + U(1))


@hot
def to_front(order, way):
    """The order after a use of a way."""
    if order & WAY_MASK == U(way):
        return order
    low = place_of(order, way)
    before = low - U(1)
    return (order & ~(before | (low * WAY_MASK))) | ((order & before) << WAY_BITS) | U(way)


@hot
def to_back(order, way, ways):
    """The order after a way has become empty: it makes room next."""
    low = place_of(order, way)
    before = low - U(1)
    behind = order & ~(before | (low * WAY_MASK))
    return (order & before) | (behind >> WAY_BITS) | (U(way) << (WAY_BITS * U(ways - 1)))


@hot
def last_way(order, ways):
    """The way that makes room."""
    return np.int64((order >> (WAY_BITS * U(ways - 1))) & WAY_MASK)


@hot
def last_to_front(order, ways):
    """The order after a use of the way that made room."""
    used = WAY_BITS * U(ways - 1)
    return ((order & ((U(1) << used) - U(1))) << WAY_BITS) | ((order >> used) & WAY_MASK)


@hot
def point_away(bits, way, ways):
    """A tree's bits after a use of a way: each on its path points to the other half. Node n has the children 2n and 2n + 1."""
    node, half = 1, ways >> 1
    while half > 0:
        if way & half != 0:
            bits &= ~(U(1) << U(node))
            node = node * 2 + 1
        else:
            bits |= U(1) << U(node)
            node = node * 2
        half >>= 1
    return bits


@hot
def pointed_at(bits, ways):
    """The way that a tree's bits lead to."""
    node, way, half = 1, 0, ways >> 1
    while half > 0:
        if bits & (U(1) << U(node)) != U(0):
            way += half
            node = node * 2 + 1
        else:
            node = node * 2
        half >>= 1
    return way


@hot
def next_random(x):
    """xorshift64 (Marsaglia, 2003)."""
    x ^= x << U(13)
    x ^= x >> U(7)
    x ^= x << U(17)
    return x

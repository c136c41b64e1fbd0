"""The words that say what makes room in a set, against a list of ways."""

import random

import numpy as np
import pytest

from numaemu.hardware.replacement import first_order, last_way, next_random, point_away, pointed_at, to_back, to_front

pytestmark = pytest.mark.interpreted


def ways_of(order, ways):
    return [int(order) >> 4 * place & 15 for place in range(ways)]


@pytest.mark.parametrize("ways", [1, 2, 7, 11, 15, 16])
def test_an_order_is_the_list_of_ways_from_the_last_used_on(ways):
    rng, order, twin = random.Random(ways), np.uint64(first_order(ways)), list(reversed(range(ways)))
    for _ in range(300):
        assert ways_of(order, ways) == twin and int(order) >> 4 * ways == 0
        assert last_way(order, ways) == twin[-1]
        way, empty = rng.randrange(ways), rng.random() < 0.3
        twin.remove(way)
        twin.insert(len(twin) if empty else 0, way)
        order = to_back(order, way, ways) if empty else to_front(order, way)


class Tree:
    """A binary tree over ways: each node knows the half that was used last."""

    def __init__(self, ways):
        self.ways, self.used_right = ways, True
        self.halves = [Tree(ways // 2), Tree(ways // 2)] if ways > 1 else []

    def use(self, way):
        if self.halves:
            self.used_right = way >= self.ways // 2
            self.halves[self.used_right].use(way % (self.ways // 2))

    def victim(self):
        right = not self.used_right
        return self.halves[right].victim() + right * (self.ways // 2) if self.halves else 0


@pytest.mark.parametrize("ways", [1, 2, 4, 16, 64])
def test_a_trees_bits_lead_where_the_tree_does(ways):
    rng, bits, tree = random.Random(ways), np.uint64(0), Tree(ways)
    for _ in range(300):
        assert pointed_at(bits, ways) == tree.victim()
        way = rng.choice((rng.randrange(ways), tree.victim()))
        tree.use(way)
        bits = point_away(bits, way, ways)


def test_chance_has_a_long_period_and_no_favourites():
    x, counts = np.uint64(1), [0] * 8
    for _ in range(8000):
        x = next_random(x)
        counts[int(x) % 8] += 1
    assert all(900 < count < 1100 for count in counts)

"""[cache] of machine files: what it makes, and each bad setting in one line."""

import pytest

from numaemu.errors import ConfigError
from numaemu.spec.cache import CacheLevel
from numaemu.spec.topology import load_topology

pytestmark = pytest.mark.interpreted
ALL = {"l1d": {}, "l2": {"sharing": "cluster:2"}, "llc": {"size": "8MiB", "ways": 16, "inclusive": True}}


def test_without_caches_there_are_none():
    assert load_topology("two-socket").cache is None
    assert "cache" not in load_topology("two-socket").to_dict()


def test_what_is_not_given_has_its_default():
    assert load_topology(cache={"l1d": {}}).cache.levels == (
        CacheLevel("l1d", 32 << 10, 8, 64, 1, "cpu", "lru", False),
    )


def test_a_machine_file_holds_all_of_it(tmp_path):
    made = load_topology(
        nodes=2,
        cpus_per_node=3,
        cache=ALL | {"cache_to_cache": [[40, 90], [95, 45]], "prefetch": ["next-line", "stride"]},
    )
    assert made.cache.prefetch == ("stride", "next-line") and made.cache.cache_to_cache_ns == ((40, 90), (95, 45))
    assert [level.sets for level in made.cache.levels] == [64, 1024, 8192]
    nodes = [node.cpus for node in made.nodes]
    assert [level.groups(nodes) for level in made.cache.levels] == [
        [(0,), (1,), (2,), (3,), (4,), (5,)],
        [(0, 1), (2,), (3, 4), (5,)],
        [(0, 1, 2), (3, 4, 5)],
    ]
    (tmp_path / "machine.toml").write_text(made.to_toml())
    assert load_topology(tmp_path / "machine.toml").cache == made.cache
    assert load_topology(made) == made


def test_keywords_change_levels_and_nodes():
    made = load_topology(nodes=2, cache=ALL | {"cache_to_cache": [[40, 90], [95, 45]]})
    assert load_topology(made, nodes=3).cache.cache_to_cache_ns is None
    assert load_topology(made, memory_only_nodes=1).cache.cache_to_cache_ns == (
        (40, 90, 90),
        (95, 45, 95),
        (95, 45, 95),
    )
    changed = load_topology(made, cache={"l1d": {"ways": 4}, "prefetch": ["stride"]}).cache
    assert changed.levels[0].ways == 4 and changed.levels[1:] == made.cache.levels[1:]
    assert load_topology(made, cache={"cache_to_cache": 70}).cache.cache_to_cache_ns == ((70, 70), (70, 70))


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({}, "cache: l1d is missing, caches begin with it"),
        ({"l2": {}}, "cache: l1d is missing, caches begin with it"),
        ([], "cache is [], must be a table"),
        ({"l3": {}}, "cache: unknown key 'l3', must be one of l1d, l2, llc, cache_to_cache, prefetch"),
        ({"l1d": 3}, "cache: l1d is 3, must be a table"),
        ({"l1d": {"wys": 3}}, "cache: l1d: unknown key 'wys', did you mean 'ways'?"),
        ({"l1d": {"ways": 0}}, "cache: l1d: ways is 0, must be at least 1"),
        ({"l1d": {"ways": 2000}}, "cache: l1d: ways is 2000, must be at most 1024"),
        ({"l1d": {"size": "1000B"}}, "cache: l1d: size is 1000B, must be a multiple of 512B"),
        ({"l1d": {"size": "64B"}}, "cache: l1d: size is 64B, must be at least 512B"),
        ({"llc": {"size": "5GiB"}, "l1d": {}}, "cache: llc: size is 5GiB, must be at most 4GiB"),
        ({"l1d": {"line": 48}}, "cache: l1d: line is 48, must be one of 32, 64, 128, 256"),
        ({"l1d": {}, "l2": {"line": 128}}, "cache: l2: line is 128, must be 64 as that of l1d"),
        ({"l1d": {"latency_ns": -1}}, "cache: l1d: latency_ns is -1, must be at least 0"),
        ({"l1d": {"sharing": "node"}}, "cache: l1d: sharing is 'node', must be 'cpu'"),
        (
            {"l1d": {}, "l2": {"sharing": "cluster:0"}},
            "cache: l2: sharing is 'cluster:0', must be 'cpu', 'node' or 'cluster:N' with N CPUs",
        ),
        (
            {"l1d": {}, "l2": {"sharing": "cluster:4"}, "llc": {"sharing": "cluster:6"}},
            "cache: llc: sharing is 'cluster:6', must hold whole groups of l2, which has 'cluster:4'",
        ),
        (
            {"l1d": {}, "l2": {"sharing": "node"}, "llc": {"sharing": "cpu"}},
            "cache: llc: sharing is 'cpu', must hold whole groups of l2, which has 'node'",
        ),
        ({"l1d": {"replacement": "fifo"}}, "cache: l1d: replacement is 'fifo', must be 'lru' or 'plru' or 'random'"),
        (
            {"l1d": {"replacement": "plru", "size": "24KiB", "ways": 6}},
            "cache: l1d: ways is 6, must be a power of two up to 64 with replacement 'plru'",
        ),
        ({"l1d": {"inclusive": 1}}, "cache: l1d: inclusive is 1, must be true or false"),
        ({"l1d": {}, "cache_to_cache": 0}, "cache: cache_to_cache is 0 ns, must be at least 1"),
        ({"l1d": {}, "cache_to_cache": [[1, 2]]}, "cache: cache_to_cache has 1 entries, must be 2, one per node"),
        (
            {"l1d": {}, "cache_to_cache": [[1], [1, 2]]},
            "cache: cache_to_cache: row 0 has 1 entries, must be 2, one per node",
        ),
        (
            {"l1d": {}, "cache_to_cache": [[1, 2], [0, 1]]},
            "cache: cache_to_cache: node 1 from node 0 is 0 ns, must be at least 1",
        ),
        ({"l1d": {}, "prefetch": "stride"}, "cache: prefetch is 'stride', must be a list of stride and next-line"),
        ({"l1d": {}, "prefetch": ["streams"]}, "cache: prefetch is 'streams', must be 'stride' or 'next-line'"),
    ],
)
def test_a_bad_setting_is_one_clear_line(cache, said):
    node = {"memory": "64MiB", "cpus": 2}
    with pytest.raises(ConfigError) as error:
        load_topology({"node": [node, node], "cache": cache})
    assert str(error.value) == f"{said} (dict)"

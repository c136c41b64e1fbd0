"""Rates and overlap in machine files: what they make, and each bad setting in one line."""

import pytest

from numaemu.errors import ConfigError
from numaemu.spec.rates import Link, format_rate, parse_rate
from numaemu.spec.topology import load_topology

pytestmark = pytest.mark.interpreted


def names(topology):
    return [(link.a, link.b) for link in topology.rates.links]


@pytest.mark.parametrize(
    "text, rate, written",
    [
        ("200GB/s", 200 * 10**9, "200GB/s"),
        ("204.8 GB/s", 204_800_000_000, "204.8GB/s"),
        ("1.5GiB/s", 3 << 29, "1610612.736kB/s"),
        ("500mb/s", 5 * 10**8, "500MB/s"),
        (10**12, 10**12, "1TB/s"),
        ("1234567B/s", 1234567, "1234.567kB/s"),
    ],
)
def test_rates_are_read_and_written(text, rate, written):
    assert parse_rate(text, "rate", "here") == rate
    assert format_rate(rate) == written and parse_rate(written, "rate", "here") == rate


def test_without_rates_there_is_none():
    rates = load_topology("two-socket").rates
    assert (rates.node, rates.links, rates.outstanding) == ((None, None), (), 1)
    assert not rates.limited and not rates.timed
    assert load_topology(cpu={"outstanding": 2}).rates.timed


def test_a_machine_file_holds_all_of_it(tmp_path):
    links = [{"a": 1, "b": 0}, {"a": 1, "b": 2, "bandwidth": "20GB/s"}]
    made = load_topology(
        nodes=3, bandwidth_per_node="200GB/s", link={"bandwidth": "40GB/s", "links": links}, cpu={"outstanding": 12}
    )
    assert made.rates.links == (Link(0, 1, 40 * 10**9), Link(1, 2, 20 * 10**9))
    assert made.rates.node == (200 * 10**9,) * 3 and made.rates.outstanding == 12
    (tmp_path / "machine.toml").write_text(made.to_toml())
    assert load_topology(tmp_path / "machine.toml").rates == made.rates
    assert load_topology(made) == made


@pytest.mark.parametrize(
    "nodes, links, pairs",
    [
        (3, "pairs", [(0, 1), (0, 2), (1, 2)]),
        (4, "ring", [(0, 1), (0, 3), (1, 2), (2, 3)]),
        (2, "ring", [(0, 1)]),
        (6, "mesh 2x3", [(0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (4, 5)]),
        (1, "pairs", []),
    ],
)
def test_links_by_name(nodes, links, pairs):
    assert names(load_topology(nodes=nodes, link={"bandwidth": "40GB/s", "links": links})) == pairs


def test_a_path_is_the_shortest_and_of_these_the_one_through_lower_numbers():
    rates = load_topology(nodes=4, link={"bandwidth": "40GB/s", "links": "ring"}).rates
    assert rates.paths[0] == ((0,), (0, 1), (0, 1, 2), (0, 3))
    assert rates.paths[3][1] == (3, 0, 1)


def test_other_nodes_have_the_rate_of_the_first_and_no_list_of_links():
    listed = {"bandwidth": "40GB/s", "links": [{"a": 0, "b": 1}]}
    two = load_topology(nodes=2, bandwidth_per_node="100GB/s", link=listed)
    four = load_topology(two, nodes=4)
    assert four.rates.node == (100 * 10**9,) * 4 and four.rates.links == ()
    ring = load_topology(load_topology(nodes=2, link={"bandwidth": "1GB/s", "links": "ring"}), nodes=3)
    assert names(ring) == [(0, 1), (0, 2), (1, 2)]


LINKS = "must be 'pairs', 'ring', 'mesh RxC' or a list of { a, b, bandwidth }"


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"bandwidth_per_node": "fast"}, "bandwidth_per_node is 'fast', must be a rate such as '200GB/s' or '1.5GiB/s'"),
        ({"bandwidth_per_node": "200GB"}, "bandwidth_per_node is '200GB', must be a rate such as '200GB/s' or '1.5GiB/s'"),
        ({"bandwidth_per_node": 1.5}, "bandwidth_per_node is 1.5, must be a whole number"),
        ({"bandwidth_per_node": "0.3B/s"}, "bandwidth_per_node is a fraction of a byte a second, must be a whole number of them"),
        ({"bandwidth_per_node": 0}, "bandwidth_per_node is 0B/s, must be at least 1MB/s"),
        ({"bandwidth_per_node": "11TB/s"}, "bandwidth_per_node is 11TB/s, must be at most 10TB/s"),
        ({"link": {"bandwidth": "-1GB/s"}}, "link: bandwidth is '-1GB/s', must be a rate such as '200GB/s' or '1.5GiB/s'"),
        ({"link": {"links": "ring"}}, "link: bandwidth is missing"),
        ({"link": {"bandwidth": "1GB/s", "links": "star"}}, f"link: links is 'star', {LINKS}"),
        ({"link": {"bandwidth": "1GB/s", "links": []}}, f"link: links is [], {LINKS}"),
        ({"link": {"bandwidth": "1GB/s", "links": 3}}, f"link: links is 3, {LINKS}"),
        ({"link": {"bandwidth": "1GB/s", "links": "mesh 2x2"}},
         "link: links is 'mesh 2x2', which has 4 nodes, must be the machine's 2"),
        ({"link": {"links": [{"a": 0, "b": 1}]}}, "link 0: bandwidth is missing"),
        ({"link": {"links": [{"a": 0}]}}, "link 0: b is missing"),
        ({"link": {"links": [{"a": 0, "b": 2}]}}, "link 0: b is 2, must be at most 1"),
        ({"link": {"links": [{"a": 1, "b": 1}]}}, "link 0: a and b are both node 1, must be two nodes"),
        ({"link": {"bandwidth": "1GB/s", "links": [{"a": 0, "b": 1}, {"a": 1, "b": 0}]}},
         "link 1: nodes 0 and 1 are linked already"),
        ({"link": {"links": [{"a": 0, "b": 1, "rate": 1}]}}, "link 0: unknown key 'rate', must be one of a, b, bandwidth"),
        ({"nodes": 3, "link": {"links": [{"a": 0, "b": 1, "bandwidth": "1GB/s"}]}},
         "link: no path of links leads from node 0 to node 2"),
        ({"cpu": {"outstanding": 0}}, "cpu: outstanding is 0, must be at least 1"),
        ({"cpu": {"outstanding": 129}}, "cpu: outstanding is 129, must be at most 128"),
        ({"cpu": {"overlap": 2}}, "cpu: unknown key 'overlap', must be one of outstanding"),
        ({"bandwidth": [[100_000] * 2] * 2, "bandwidth_per_node": "50GB/s"},
         "node 0: bandwidth to node 0 is 100000 MB/s, must be at most 50000, the rate of node 0's controller"),
        ({"bandwidth": [[100_000] * 2] * 2, "bandwidth_per_node": "100GB/s", "link": {"bandwidth": "40GB/s"}},
         "node 0: bandwidth to node 1 is 100000 MB/s, must be at most 40000, the rate of link 0-1"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_in_one_line(keywords, message):
    with pytest.raises(ConfigError) as refused:
        load_topology(**keywords)
    assert str(refused.value) == f"{message} (keyword arguments)"

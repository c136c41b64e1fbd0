"""Machine descriptions: presets, machine files, keyword arguments, and what is refused.

No machine is booted here.
"""

import json
import math
import pickle
import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu import errors
from numaemu.errors import ConfigError
from numaemu.spec.formats import FORMATS
from numaemu.spec.machine_file import DEFAULT_COST, NodeSpec, TlbSpec
from numaemu.spec.topology import Topology, list_presets, load_topology, preset_path
from numaemu.spec.units import GiB, KiB, MiB, TiB, format_size, parse_size

PRESETS = {  # name: (nodes, CPUs, bytes, set of distances, set of latencies)
    "uma": (1, 4, GiB, {10}, {80}),
    "two-socket": (2, 4, GiB, {10, 21}, {80, 140}),
    "four-node-ring": (4, 8, GiB, {10, 16, 22}, {80, 128, 176}),
    "cxl": (3, 4, 2 * GiB, {10, 21, 31}, {80, 140, 250}),
    "three-tier": (3, 4, 1792 * MiB, {10, 20, 60}, {80, 250, 1200}),
    "eight-socket": (8, 32, 8 * GiB, {10, 21, 31}, {80, 140, 220}),
    "x86-32": (1, 2, 2 * GiB, {10}, {80}),
    "epyc-nps4": (4, 32, 192 * GiB, {10, 12}, {105, 106, 107, 113, 114, 115, 116, 118, 119}),
    "grace-hopper": (2, 72, 576 * GiB, {10, 80}, {207, 799}),
    "ice-lake": (2, 72, 256 * GiB, {10, 21}, {89, 143}),
    "knights-landing": (2, 64, 112 * GiB, {10, 31}, {147, 176}),
    "superdome-flex": (8, 224, 3072 * GiB, {10, 16, 50}, {81, 131, 350}),
    "xeon-cxl": (3, 64, 640 * GiB, {10, 21, 31}, {130, 231, 238, 266, 369}),
}

KNOWN_PAGING = "must be " + " or ".join(map(repr, FORMATS))

TWO_NODES = """
[[node]]
memory = "512MiB"
cpus = [0, 1]
[[node]]
memory = "512MiB"
cpus = [2, 3]
"""


# --- presets ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_its_shape(name):
    machine = load_topology(name)
    shape = (
        machine.nr_nodes,
        machine.nr_cpus,
        machine.memory_bytes,
        {value for row in machine.distance for value in row},
        {value for row in machine.latency_ns for value in row},
    )
    assert machine.name == name
    assert shape == PRESETS[name]


def test_presets_are_listed_with_what_they_resemble():
    presets = list_presets()
    assert set(presets) == set(PRESETS)
    for name, comment in presets.items():
        assert preset_path(name).read_text().startswith(f"# {comment}\n")


def test_eight_sockets_have_three_links_each_and_are_two_apart_at_most():
    links = np.array(load_topology("eight-socket").distance) == 21
    assert (links.sum(axis=0) == 3).all() and (links == links.T).all()
    assert (links | (links @ links) | np.eye(8, dtype=bool)).all()


# --- keyword arguments --------------------------------------------------------------------------
def test_default_machine():
    machine = load_topology()
    assert machine.nodes == (NodeSpec(0, 512 * MiB, (0, 1)), NodeSpec(1, 512 * MiB, (2, 3)))
    assert machine.distance == ((10, 21), (21, 10))
    assert machine.latency_ns == ((80, 168), (168, 80))
    assert (machine.l1, machine.l2) == (TlbSpec(64, 4, 0), TlbSpec(1536, 12, 3))
    assert (machine.l1.sets, machine.l2.sets) == (16, 128)
    assert (machine.page_size, machine.low_memory) == (4096, 3 * GiB)
    assert machine.cost == DEFAULT_COST and machine.sysctl == {}
    assert machine.cpus == (0, 1, 2, 3)
    assert [machine.node_of_cpu(cpu) for cpu in machine.cpus] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="cpu 4 does not exist, cpus are 0 to 3"):
        machine.node_of_cpu(4)


def test_keywords_build_a_machine():
    machine = load_topology(
        nodes=2,
        cpus_per_node=1,
        memory_per_node="64MiB",
        memory_only_nodes=1,
        page_size="4KiB",
        low_memory="256MiB",
        movablecore="32MiB",
        name="mine",
        l1={"entries": 48, "ways": 6},
        sysctl={"vm.lowmem_reserve_ratio": "256 32"},
        cost={"fault_ns": 1},
        kernelcore=None,
    )
    assert [node.cpus for node in machine.nodes] == [(0,), (1,), ()]
    assert {node.memory_bytes for node in machine.nodes} == {64 * MiB}
    assert machine.distance == ((10, 21, 21), (21, 10, 21), (21, 21, 10))
    assert machine.l1 == TlbSpec(entries=48, ways=6, latency_ns=0)
    assert machine.sysctl == {"vm.lowmem_reserve_ratio": (256, 32)}
    assert machine.cost == DEFAULT_COST | {"fault_ns": 1}
    assert (machine.name, machine.low_memory) == ("mine", 256 * MiB)
    assert (machine.kernelcore, machine.movablecore) == (None, 32 * MiB)


def test_latency_follows_a_given_distance():
    machine = load_topology(distance=np.array([[10, 31], [16, 10]]))
    assert machine.latency_ns == ((80, 248), (128, 80))


def test_keywords_override_a_preset():
    cxl = load_topology("cxl", cpus_per_node=3, memory_per_node="1GiB", latency=[[9] * 3] * 3)
    assert [node.cpus for node in cxl.nodes] == [(0, 1, 2), (3, 4, 5), ()]
    assert cxl.memory_bytes == 3 * GiB
    assert cxl.distance == load_topology("cxl").distance
    assert cxl.latency_ns == ((9, 9, 9),) * 3
    ring = load_topology("four-node-ring", nodes=3)
    assert ring.nodes[2] == NodeSpec(2, 256 * MiB, (4, 5))
    assert ring.latency_ns == load_topology(nodes=3).latency_ns


def test_memory_only_nodes_keep_the_matrices_of_the_source():
    machine = load_topology("two-socket", memory_only_nodes=1)
    assert machine.distance == ((10, 21, 21), (21, 10, 21), (21, 21, 10))
    assert machine.latency_ns == ((80, 140, 168), (140, 80, 168), (168, 168, 80))


def test_sources_are_not_changed():
    source = load_topology("cxl").to_dict()
    before = json.dumps(source)
    load_topology(source, nodes=2, sysctl={"vm.swappiness": 1}, cost={"ipi_ns": 1}, l1={"ways": 2})
    assert json.dumps(source) == before


def test_counts_number_on_after_the_highest_cpu():
    nodes = [
        {"memory": "4MiB", "cpus": 2},
        {"memory": "4MiB", "cpus": [4, 3, 2]},
        {"memory": "4MiB"},
        {"memory": "4MiB", "cpus": 1},
    ]
    machine = load_topology({"node": nodes})
    assert [node.cpus for node in machine.nodes] == [(0, 1), (2, 3, 4), (), (5,)]


# --- the physical address space -----------------------------------------------------------------
@pytest.mark.parametrize(
    "low_memory, expected",
    [  # sizes in MiB; three nodes of 512
        ("3GiB", [[(0, 512)], [(512, 512)], [(1024, 512)]]),
        ("1536MiB", [[(0, 512)], [(512, 512)], [(1024, 512)]]),
        ("768MiB", [[(0, 512)], [(512, 256), (4096, 256)], [(4352, 512)]]),
        ("512MiB", [[(0, 512)], [(4096, 512)], [(4608, 512)]]),
        ("256MiB", [[(0, 256), (4096, 256)], [(4352, 512)], [(4864, 512)]]),
    ],
)
def test_memory_beyond_low_memory_continues_at_4_gib(low_memory, expected):
    ranges = load_topology(nodes=3, low_memory=low_memory).physical_ranges()
    assert [[(start // MiB, size // MiB) for start, size in node] for node in ranges] == expected


@given(sizes=st.lists(st.integers(2, 4096), min_size=1, max_size=8), low=st.integers(1, 2048))
def test_physical_ranges_hold_all_memory_once(sizes, low):
    nodes = [{"memory": size * 2 * MiB, "cpus": 1} for size in sizes]
    machine = load_topology({"node": nodes, "low_memory": low * 2 * MiB})
    ranges = machine.physical_ranges()
    assert [sum(size for _, size in node) for node in ranges] == [2 * MiB * size for size in sizes]
    flat = [piece for node in ranges for piece in node]
    for (start, size), (following, _) in zip(flat, flat[1:]):
        assert following in (start + size, 4 * GiB) and following >= start + size
    assert all(start + size <= machine.low_memory or start >= 4 * GiB for start, size in flat)


# --- round trips --------------------------------------------------------------------------------
@st.composite
def machines(draw):
    nr_nodes = draw(st.integers(1, 5))
    matrix = st.lists(
        st.lists(st.integers(10, 255), min_size=nr_nodes, max_size=nr_nodes), min_size=nr_nodes, max_size=nr_nodes
    )
    distance = draw(matrix)
    for nid in range(nr_nodes):
        distance[nid][nid] = 10
    ways = draw(st.integers(1, 16))
    machine = {
        "name": draw(st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1)),
        "node": [
            {"memory": draw(st.integers(2, 10**6)) * 2 * MiB, "cpus": draw(st.integers(1, 9))} for _ in range(nr_nodes)
        ],
        "distance": {"matrix": distance},
        "latency": {"matrix": draw(matrix)},
        "tlb": {"l1": {"entries": ways * draw(st.integers(1, 64)), "ways": ways}},
        "cost": draw(st.dictionaries(st.sampled_from(list(DEFAULT_COST)), st.integers(0, 10**9))),
        "kernel": draw(st.sampled_from([{}, {"slab_debug": "FZ,kmalloc-*;u"}, {"thread_size": "4KiB"}])),
        "sysctl": draw(
            st.dictionaries(st.sampled_from(["vm.swappiness", "vm.watermark_scale_factor"]), st.integers(1, 200))
        ),
        "low_memory": draw(st.integers(1, 2048)) * 2 * MiB,
    }
    if draw(st.booleans()):
        machine["sysctl"]["vm.lowmem_reserve_ratio"] = draw(st.lists(st.integers(0, 999), min_size=1, max_size=5))
        machine["kernelcore"] = "2MiB"
    return machine


@given(machines())
def test_round_trip_through_dict_json_and_toml(machine):
    topology = Topology.from_dict(machine)
    assert Topology.from_dict(topology.to_dict()) == topology
    assert Topology.from_dict(json.loads(json.dumps(topology.to_dict()))) == topology
    assert Topology.from_dict(tomllib.loads(topology.to_toml())) == topology
    assert load_topology(topology) == topology
    assert pickle.loads(pickle.dumps(topology)) == topology


@pytest.mark.parametrize("name", PRESETS)
def test_preset_written_as_a_machine_file_loads_as_itself(name, tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text(load_topology(name).to_toml())
    assert load_topology(path) == load_topology(str(path)) == load_topology(name)


def test_a_file_without_a_name_is_called_as_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TWO_NODES)
    assert load_topology(path).name == "mine"
    assert load_topology(path, name="other").name == "other"


# --- what a machine file may not say ------------------------------------------------------------
def refusal(source=None, **keywords):
    with pytest.raises(ConfigError) as caught:
        load_topology(source, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "old, new, message",
    [
        # unknown keys
        ("[[node]]", "[[nodes]]", "machine: unknown key 'nodes', did you mean 'node'?"),
        ("memory", "memroy", "node 0: unknown key 'memroy', did you mean 'memory'?"),
        ("memory", "xyz", "node 0: unknown key 'xyz', must be one of memory, cpus, bandwidth"),
        ("", "[tlb]\nl3 = {}\n", "tlb: unknown key 'l3', must be one of l1, l2, asids, walk_cache"),
        ("", "[tlb.l1]\nway = 4\n", "l1: unknown key 'way', did you mean 'ways'?"),
        ("", "[cost]\nfault = 4\n", "cost: unknown key 'fault', did you mean 'fault_ns'?"),
        ("", "[distance]\nrows = []\n", "distance: unknown key 'rows', must be one of matrix"),
        ("", "[sysctl]\n'vm.swapiness' = 1\n", "sysctl: unknown key 'vm.swapiness', did you mean 'vm.swappiness'?"),
        ("", "[sysctl]\nvm.swappiness = 1\n", 'sysctl: vm.swappiness has a dot, quote it: "vm.swappiness" = …'),
        # nodes
        ("[[node]]", "[node]", "machine file is not valid toml: cannot overwrite a value"),
        ('memory = "512MiB"\n', "", "node 0: memory is missing"),
        ('"512MiB"', '"4KiB"', "node 0: memory is 4KiB, must be at least 4MiB, being the first that has any"),
        (TWO_NODES, "[[node]]\nmemory = 0\ncpus = 1", "machine has no memory, at least one node must have some"),
        ('"512MiB"', "-1", "node 0: memory is -1, must not be negative"),
        ('"512MiB"', '"5001KiB"', "node 0: memory is 5001KiB, must be a multiple of 4KiB"),
        ('"512MiB"', '"17TiB"', "node 0: memory is 17TiB, must be at most 16TiB"),
        ('"512MiB"', '"16TiB"', "machine has 16384.5GiB of memory, must be at most 16TiB"),
        ('"512MiB"', '"much"', "node 0: memory is 'much', must be a size such as '512MiB' or '1.5GiB'"),
        ('"512MiB"', "true", "node 0: memory is True, must be a size such as '512MiB' or '1.5GiB'"),
        ('"512MiB"', "nan", "node 0: memory is nan, must be a size such as '512MiB' or '1.5GiB'"),
        # CPUs
        ("[2, 3]", "[1, 2]", "node 1: cpu 1 is already in node 0"),
        ("[2, 3]", "[2, 2]", "node 1: cpu 2 is already in node 1"),
        ("[0, 1]", "[1]", "cpu 0 is in no node, a machine boots on it"),
        ("[2, 3]", "[-1]", "node 1: cpu number is -1, must be at least 0"),
        ("[2, 3]", "[1024]", "node 1: cpu number is 1024, must be at most 1023"),
        ("[2, 3]", "['2']", "node 1: cpu number is '2', must be a whole number"),
        (
            "[2, 3]",
            "'two'",
            "node 1: cpus is 'two', must be a whole number, a list of them, or text such as '0-3,8-11'",
        ),
        ("[2, 3]", "true", "node 1: cpus is True, must be a whole number"),
        ("[2, 3]", "-2", "node 1: cpus is -2, must be at least 0"),
        ("[2, 3]", "'8-11,3-2'", "node 1: cpus has '3-2', must not run down"),
        (
            "[2, 3]",
            "'8-11,,3'",
            "node 1: cpus is '8-11,,3', must be a whole number, a list of them, or text such as '0-3,8-11'",
        ),
        ("[2, 3]", "'1000-1024'", "node 1: cpu number is 1024, must be at most 1023"),
        ("[2, 3]", "'1-3'", "node 1: cpu 1 is already in node 0"),
        ("[0, 1]", "[1000]\n[[node]]\nmemory = 0\ncpus = 30", "cpu number is 1030, must be at most 1023"),
        ("[2, 3]", "1023", "machine has 1025 cpus, must be at most 1024"),
        # matrices
        ("", "[distance]\nmatrix = [[10, 21]]\n", "distance: matrix has 1 entries, must be 2, one per node"),
        ("", "[latency]\nmatrix = [[80, 140], [80]]\n", "latency: row 1 has 1 entries, must be 2, one per node"),
        ("", "[latency]\nmatrix = [80, 140]\n", "latency: row 0 is 80, must be a list"),
        ("", "[latency]\n", "latency: matrix has 0 entries, must be 2, one per node"),
        ("", "[distance]\nmatrix = [[10, 9], [9, 10]]\n", "node 0: distance to node 1 is 9, must be at least 10"),
        ("", "[distance]\nmatrix = [[10, 256], [21, 10]]\n", "node 0: distance to node 1 is 256, must be at most 255"),
        ("", "[distance]\nmatrix = [[10, 21], [21, 11]]\n", "node 1: distance to itself is 11, must be 10"),
        ("", "[latency]\nmatrix = [[80, 0], [140, 80]]\n", "node 0: latency to node 1 is 0 ns, must be at least 1"),
        (
            "",
            "[latency]\nmatrix = [[80, 140], [-140, 80]]\n",
            "node 1: latency to node 0 is -140 ns, must be at least 1",
        ),
        (
            "",
            "[latency]\nmatrix = [[80, 2000000], [140, 80]]\n",
            "node 0: latency to node 1 is 2000000 ns, must be at most 1000000",
        ),
        (
            "",
            "[latency]\nmatrix = [[80, 'far'], [140, 80]]\n",
            "node 0: latency to node 1 is 'far', must be a whole number",
        ),
        (
            "",
            "[latency]\nmatrix = [[80, inf], [140, 80]]\n",
            "node 0: latency to node 1 is inf, must be a whole number",
        ),
        (
            "",
            "[latency]\nmatrix = [[80, nan], [140, 80]]\n",
            "node 0: latency to node 1 is nan, must be a whole number",
        ),
        # TLBs
        ("", "[tlb]\nl1 = 64\n", "l1 is 64, must be a table"),
        ("", "[tlb.l1]\nentries = 0\n", "l1: entries is 0, must be at least 1"),
        ("", "[tlb.l1]\nentries = 2048\n", "l1: entries is 2048, must be at most 1024"),
        ("", "[tlb.l2]\nentries = 20000\n", "l2: entries is 20000, must be at most 16384"),
        ("", "[tlb.l1]\nentries = 50\n", "l1: entries is 50, must be a multiple of ways, 4"),
        ("", "[tlb.l1]\nways = 65\n", "l1: ways is 65, must be at most 64"),
        ("", "[tlb.l1]\nentries = '64'\n", "l1: entries is '64', must be a whole number"),
        ("", "[tlb.l2]\nlatency_ns = -3\n", "l2: latency_ns is -3, must be at least 0"),
        # sysctls and costs
        ("", "[sysctl]\n'vm.swappiness' = 201\n", "sysctl: vm.swappiness is 201, must be at most 200"),
        ("", "[sysctl]\n'kernel.numa_balancing' = 5\n", "sysctl: kernel.numa_balancing is 5, must be at most 4"),
        ("", "[sysctl]\n'vm.max_map_count' = '65530'\n", "sysctl: vm.max_map_count is '65530', must be a whole number"),
        (
            "",
            "[sysctl]\n'vm.lowmem_reserve_ratio' = '256 many'\n",
            "sysctl: vm.lowmem_reserve_ratio is 'many', must be a whole number",
        ),
        (
            "",
            "[sysctl]\n'vm.lowmem_reserve_ratio' = []\n",
            "sysctl: vm.lowmem_reserve_ratio is [], must be 1 to 5 whole numbers",
        ),
        ("", "[cost]\nipi_ns = 1.5\n", "cost: ipi_ns is 1.5, must be a whole number"),
        ("", "[cost]\nipi_ns = -1\n", "cost: ipi_ns is -1, must be at least 0"),
    ],
)
def test_machine_file_refused(tmp_path, monkeypatch, old, new, message):
    monkeypatch.chdir(tmp_path)
    text = TWO_NODES.replace(old, new, 1) if old else TWO_NODES + new
    (tmp_path / "machine.toml").write_text(text)
    refused = refusal("machine.toml")
    if "not valid toml" in message:
        assert refused.startswith(message) and refused.endswith(" (machine.toml)")
    else:
        assert refused == f"{message} (machine.toml)"


@pytest.mark.parametrize(
    "line, message",
    [
        ("paging = 'sparc'", f"paging is 'sparc', {KNOWN_PAGING}"),
        ("paging = []", f"paging is [], {KNOWN_PAGING}"),
        ("page_size = '64KiB'", "page_size is 65536, must be 4096 with paging 'x86-64-4level'"),
        ("name = ''", "name is '', must be a line of text"),
        ("name = 5", "name is 5, must be a line of text"),
        ('name = "two\\nlines"', "name is 'two\\nlines', must be a line of text"),
        ("low_memory = '5GiB'", "low_memory is 5GiB, must be at most 4GiB"),
        ("low_memory = 0", "low_memory is 0B, must be at least 2MiB"),
        ("kernelcore = '1MiB'", "kernelcore is 1MiB, must be at least 2MiB"),
        ("movablecore = '2GiB'", "movablecore is 2GiB, must be at most 1GiB"),
        ("kernelcore = '2MiB'\nmovablecore = '2MiB'", "kernelcore and movablecore are both given, must be one"),
        ("tlb = 5", "tlb is 5, must be a table"),
        ("distance = [[10, 21], [21, 10]]", "distance is [[10, 21], [21, 10]], must be a table"),
    ],
)
def test_top_line_of_a_machine_file_refused(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "machine.toml").write_text(f"{line}\n{TWO_NODES}")
    assert refusal("machine.toml") == f"{message} (machine.toml)"


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "node must be a list of tables, one [[node]] for each node"),
        (b"[node]\nmemory = 1", "node must be a list of tables, one [[node]] for each node"),
        (b"node = [5]", "node 0 is 5, must be a table"),
        (b"[[node]]\nmemory = '4MiB'", "machine has no cpus, at least one node must have one"),
        (b"[[node]]\nmemory = '4MiB'\n" * 65, "machine has 65 nodes, must be at most 64"),
        (b"a = 1\nb =", "machine file is not valid toml: invalid value (at end of document)"),
        (b"a = 1\nb = x", "machine file is not valid toml: invalid value (at line 2, column 5)"),
        (
            b"\xff",
            "machine file is not valid toml: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
    ],
)
def test_broken_machine_file_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "machine.toml").write_bytes(text)
    assert refusal("machine.toml") == f"{message} (machine.toml)"


def test_missing_sources_refused(tmp_path):
    presets = f"(presets: {', '.join(list_presets())}; a machine file ends in .toml)"
    assert refusal("tow-socket") == (f"unknown preset 'tow-socket', did you mean 'two-socket'? {presets}")
    assert refusal("xyz") == f"unknown preset 'xyz' {presets}"
    assert refusal("none.toml") == "machine file not found (none.toml)"
    assert refusal(tmp_path) == f"machine file cannot be read: is a directory ({tmp_path})"
    assert refusal(5) == "machine is 5, must be a preset, a .toml file or a dict"
    assert refusal({}) == "node must be a list of tables, one [[node]] for each node (dict)"


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"node": 3}, "machine: unknown key 'node', did you mean 'nodes'?"),
        ({"nodes": 0}, "nodes is 0, must be at least 1"),
        ({"nodes": 65}, "nodes is 65, must be at most 64"),
        ({"nodes": 2.0}, "nodes is 2.0, must be a whole number"),
        ({"nodes": True}, "nodes is True, must be a whole number"),
        ({"nodes": 64, "memory_only_nodes": 1}, "machine has 65 nodes, must be at most 64"),
        ({"cpus_per_node": 0}, "cpus_per_node is 0, must be at least 1"),
        ({"cpus_per_node": "two"}, "cpus_per_node is 'two', must be a whole number"),
        ({"memory_only_nodes": -1}, "memory_only_nodes is -1, must be at least 0"),
        ({"memory_per_node": 0}, "memory_per_node is 0B, must be at least 4MiB"),
        ({"memory_per_node": "3MiB"}, "memory_per_node is 3MiB, must be at least 4MiB"),
        ({"distance": 21}, "distance: matrix is 21, must be a list"),
        ({"distance": [[10]]}, "distance: matrix has 1 entries, must be 2, one per node"),
        ({"latency": np.eye(2)}, "node 0: latency to node 0 is 1.0, must be a whole number"),
        ({"latency": [[80, math.nan], [1, 1]]}, "node 0: latency to node 1 is nan, must be a whole number"),
        ({"l1": 64}, "l1 is 64, must be a table"),
        ({"l2": {"sets": 3}}, "l2: unknown key 'sets', must be one of entries, ways, latency_ns"),
        ({"sysctl": {"vm.swappiness": -1}}, "sysctl: vm.swappiness is -1, must be at least 0"),
        ({"cost": {"ipi": 1}}, "cost: unknown key 'ipi', did you mean 'ipi_ns'?"),
        ({"kernel": {"thread_size": "5KiB"}}, "kernel: thread_size is '5KiB', must be one of 4KiB, 8KiB, 16KiB"),
        ({"kernel": {"slab_debug": True}}, "kernel: slab_debug is True, must be text"),
        ({"kernel": {"random_seed": -1}}, "kernel: random_seed is -1, must be at least 0"),
        (
            {"kernel": {"slab_debug": "FZ,x;T"}},
            "kernel: slab_debug: option 'T', must be of FZPU-, then names of caches after a comma",
        ),
        ({"page_size": 65536}, "page_size is 65536, must be 4096 with paging 'x86-64-4level'"),
    ],
)
def test_keywords_refused(keywords, message):
    assert refusal("two-socket", **keywords) == f"{message} (keyword arguments)"
    assert refusal("two-socket", where="command line", **keywords) == f"{message} (command line)"


# --- sizes and errors ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text, nr_bytes",
    [
        (4096, 4096), ("4096", 4096), ("4096B", 4096), ("64K", 64 * KiB), ("64kB", 64 * KiB),
        ("512MiB", 512 * MiB), (" 512 mb ", 512 * MiB), ("1.5GiB", 1536 * MiB), ("2T", 2 * TiB),
        ("0.5KiB", 512), (np.int64(7), 7),
    ],
)  # fmt: skip
def test_parse_size(text, nr_bytes):
    assert parse_size(text) == nr_bytes


@pytest.mark.parametrize("text", ["", "MiB", "5iB", "-5MiB", "1e9", "1.MiB", "5XB", "٥", 1.5, None])
def test_bad_size_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_size(text, "memory", "here")
    hint = "must be a size such as '512MiB' or '1.5GiB' (here)"
    assert str(caught.value) == f"memory is {text!r}, {hint}"


def test_size_of_part_of_a_byte_refused():
    with pytest.raises(ConfigError, match="^size is '0.3KiB', must be a whole number of bytes$"):
        parse_size("0.3KiB")


@given(st.integers(0, 2**64))
def test_format_size_is_exact(nr_bytes):
    assert parse_size(format_size(nr_bytes)) == nr_bytes


@pytest.mark.parametrize(
    "nr_bytes, text", [(0, "0B"), (1023, "1023B"), (1536 * MiB, "1.5GiB"), (1026 * MiB, "1026MiB"), (TiB, "1TiB")]
)
def test_format_size(nr_bytes, text):
    assert format_size(nr_bytes) == text


@pytest.mark.parametrize("name", [name for name in vars(errors) if name[0].isupper()])
def test_errors_pickle(name):
    error = pickle.loads(pickle.dumps(getattr(errors, name)("what happened", 3)))
    assert type(error).__name__ == name and error.args == ("what happened", 3)
    assert isinstance(error, (errors.NumaemuError, errors.NumaemuWarning))


def test_the_disk_of_a_machine():
    default = load_topology()
    assert (default.disk.size, default.disk.read_latency_us, default.disk.bandwidth) == (64 << 30, 100, 500 << 20)
    fast = load_topology(disk={"read_latency_us": 10, "bandwidth": "2GB/s"})
    assert (fast.disk.read_latency_us, fast.disk.write_latency_us, fast.disk.bandwidth) == (10, 30, 2 << 30)
    assert load_topology(fast) == fast and 'bandwidth = "2GiB/s"' in fast.to_toml()
    assert not default.disk.rotational and load_topology(disk={"rotational": True}).disk.rotational


@pytest.mark.parametrize("disk, text", [
    ({"speed": 1}, "disk: unknown key 'speed'"),
    ({"size": "1KiB"}, "disk: size is 1KiB, must be at least 2MiB"),
    ({"bandwidth": "fast"}, "disk: bandwidth is 'fast', must be a size"),
    ({"bandwidth": 0}, "disk: bandwidth is 0B, must be at least 1B"),
    ({"rotational": 1}, "disk: rotational is 1, must be true or false"),
    ({"read_latency_us": -1}, "disk: read_latency_us is -1 us, must be at least 0")])  # fmt: skip
def test_a_wrong_disk_is_told_in_a_line(disk, text):
    with pytest.raises(ConfigError, match=text):
        load_topology(disk=disk)

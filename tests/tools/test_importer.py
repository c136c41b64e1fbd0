"""Machines of others: hwloc's XML, numactl, lscpu, mlc, trees of /proc and /sys; and files that are none of these."""

import pathlib
import subprocess

import pytest

from numaemu.spec.topology import Topology, load_topology
from numaemu.spec.units import GiB, MiB
from numaemu.tools import cli, drawing
from numaemu.tools.importer import source
from numaemu.tools.importer.source import import_machine

HWLOC = pathlib.Path(__file__).parent / "data" / "hwloc"
# of each file: memory in bytes and CPUs of every node
EXPECTED = {
    "16amd64-8n2c-cpusets": [(0, [0, 1]), (8 * GiB, [2, 3]), (8 * GiB, [5]), (8 * GiB, [6]), (8 * GiB, []), (8 * GiB, []),
                             (0, [12, 13]), (0, [14, 15])],
    "16em64t-4s2c2t": [(512 * MiB, list(range(16)))],
    "24em64t-2n6c2t-pci": [(19316633600, list(range(0, 24, 2))), (19327348736, list(range(1, 24, 2)))],
    "64intel64-heteromem": [(GiB, [i + 16 * j + 4 * n for j in range(4) for i in range(4)]) for n in range(4)] + [(2 * GiB, [])] * 4,
    "8intel64-4n2t-memattrs": [(GiB, [0, 1]), (GiB, [2, 3]), (GiB, [4, 5]), (GiB, [6, 7])],
    "cxlmem+dax.v2": None,
    "fakeheterodistances": None,
    "memorysidecaches": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def defused():
    from wanting import need_package

    need_package("defusedxml")


def xml_sizes(path):
    """(memory, CPUs) of a whole machine as the XML's numbers say, read in the most obvious way."""
    import xml.etree.ElementTree as ET

    root = ET.parse(path).getroot()
    nodes = [e for e in root.iter("object") if e.get("type") == "NUMANode"]
    return sum(int(e.get("local_memory", 0)) for e in nodes), sum(e.get("type") == "PU" for e in root.iter("object"))


@pytest.mark.parametrize("name", EXPECTED)
def test_every_file_of_hwloc_becomes_a_machine(name):
    """With all of its memory and CPUs; the machine file says the same again."""
    topology, notes = import_machine(str(HWLOC / f"{name}.xml"))
    memory, cpus = xml_sizes(HWLOC / f"{name}.xml")
    assert topology.nr_cpus == cpus and notes
    assert topology.memory_bytes == memory or (memory == 0 and topology.memory_bytes == 512 * MiB)
    if EXPECTED[name] is not None:
        assert [(node.memory_bytes, list(node.cpus)) for node in topology.nodes] == [
            (m, sorted(c)) for m, c in EXPECTED[name]
        ]
    import tomllib

    assert Topology.from_dict(tomllib.loads(topology.to_toml())) == topology


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_file_of_hwloc_boots(name):
    """With full memory: the host gives what is used only."""
    topology, _ = import_machine(str(HWLOC / f"{name}.xml"))
    from numaemu.machine import Machine

    with Machine(topology) as machine:
        task = machine.task(cpu=topology.cpus[-1])
        task.mmap("64KiB").touch()
        assert machine.read("/sys/devices/system/node/online").strip() == (
            f"0-{topology.nr_nodes - 1}" if topology.nr_nodes > 1 else "0"
        )


def test_distances_and_latencies_are_read():
    topology, notes = import_machine(str(HWLOC / "memorysidecaches.xml"))
    assert topology.distance == ((10, 21, 11, 21), (21, 10, 21, 11), (11, 21, 10, 21), (21, 11, 21, 10))
    assert any("memory-side caches" in note for note in notes) and any("2 threads" in note for note in notes)
    xml = (HWLOC / "8intel64-4n2t-memattrs.xml").read_text()
    attribute = '<memattr name="Latency" flags="6"><memattr_value target_obj_gp_index="{}" initiator_cpuset="0x3" value="{}"/></memattr>'
    index = xml.split('type="NUMANode" os_index="0"')[1].split('gp_index="')[1].split('"')[0]
    with_latency = xml.replace("</topology>", attribute.format(index, 90) + "</topology>")
    topology, notes = imported(with_latency)
    assert topology.latency_ns[0] == (90, 189, 189, 189) and any("some pairs" in note for note in notes)


def test_memory_attributes_are_of_the_memory_that_they_name():
    """By hwloc's own numbers, which are other nodes' numbers as well."""
    topology, _ = import_machine(str(HWLOC / "64intel64-heteromem.xml"))
    fast = [row.index(90000) for row in topology.bandwidth_mbs[:4]]
    assert fast == [7, 4, 5, 6] and topology.bandwidth_mbs[0][0] == 22500


def imported(text, tmp=[]):
    """import_machine of a text, through its reader."""
    from numaemu.tools.importer.found import machine_dict

    machine, notes = machine_dict(source.reader_of(text)(text, "x"))
    return Topology.from_dict(machine), notes


@pytest.mark.parametrize("flags", ["v1", "v2"])
def test_versions_of_hwloc_agree(tmp_path, flags):
    """What lstopo writes of the same machine in the format of hwloc 1 and 2."""
    from wanting import need_program

    need_program("lstopo")
    subprocess.run(["lstopo", "--if", "synthetic", "--input", "NUMANode:3 Core:2 PU:2", "--of", "xml", "--export-xml-flags",
                    "1" if flags == "v1" else "0", str(tmp_path / "m.xml")], check=True, capture_output=True)  # fmt: skip
    topology, notes = import_machine(str(tmp_path / "m.xml"))
    assert [node.cpus for node in topology.nodes] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    assert {node.memory_bytes for node in topology.nodes} == {GiB}
    assert any("2 threads" in note for note in notes)


NUMACTL = """available: 2 nodes (0,2)
node 0 cpus: 0 2 4
node 0 size: 1000 MB
node 0 free: 3 MB
node 2 cpus:
node 2 size: 500 MB
node 2 free: 1 MB
node distances:
node   0   2
  0:  10  17
  2:  17  10
"""
LSCPU = """# The following is the parsable format, which can be fed to other
# CPU,Core,Socket,Node,,L1d,L1i,L2,L3
0,0,0,0,,0,0,0,0
1,1,1,1,,1,1,1,1
2,0,0,0,,0,0,0,0
"""
MLC = """Intel(R) Memory Latency Checker - v3.11
Measuring idle latencies for sequential access (in ns)...
\t\tNuma node
Numa node\t     0\t     1\t     2
       0\t  81.6\t 139.2\t 250.0
       1\t 140.1\t  82.0\t 251.4

Measuring Peak Injection Memory Bandwidths for the system
ALL Reads        :\t100000.0

Measuring Memory Bandwidths between nodes within system
Bandwidths are in MB/sec (1 MB/sec = 1,000,000 Bytes/sec)
\t\tNuma node
Numa node\t     0\t     1\t     2
       0\t98000.5\t34000.0\t12000.0
       1\t34100.0\t99000.0\t-
"""


def test_what_numactl_prints():
    topology, notes = imported(NUMACTL)
    assert [(n.memory_bytes, n.cpus) for n in topology.nodes] == [(1000 * MiB, (0, 2, 4)), (500 * MiB, ())]
    assert topology.distance == ((10, 17), (17, 10)) and "nodes 0,2 are numbered from 0 without gaps" in notes


def test_what_lscpu_and_mlc_print(tmp_path):
    (tmp_path / "l").write_text(LSCPU)
    topology, notes = import_machine(str(tmp_path / "l"))
    assert [n.cpus for n in topology.nodes] == [(0, 2), (1,)] and "each node gets 512MiB of memory" in notes
    (tmp_path / "m").write_text(MLC)
    topology, notes = import_machine(str(tmp_path / "m"))
    assert (
        topology.latency_ns[:2] == ((82, 139, 250), (140, 82, 251))
        and "peak bandwidths and loaded latencies are left out" in notes
    )
    assert topology.bandwidth_mbs == ((98000, 34000, 12000), (34100, 99000, 12000), (12000, 12000, 12000))
    assert "bandwidths are known for some pairs of nodes only; the others are the lowest, 12000 MB/s" in notes
    assert [n.cpus for n in topology.nodes] == [(0,), (1,), ()]
    base = load_topology(nodes=2, cpus_per_node=3, memory_per_node="64MiB", memory_only_nodes=1)
    (tmp_path / "base.toml").write_text(base.to_toml())
    topology, _ = import_machine(str(tmp_path / "m"), onto=str(tmp_path / "base.toml"))
    assert topology.nodes == base.nodes and topology.latency_ns[0] == (82, 139, 250)


def test_an_export_is_the_machine_again(tmp_path, loopback):
    """A tree of /proc and /sys: memory as the kernel manages it, CPUs, distances, latencies, settings."""
    from test_view import Shown

    from numaemu.windows.export import export

    loop = loopback(nodes=2, cpus_per_node=2, memory_per_node="16MiB", distance=[[10, 31], [31, 10]], latency=[[70, 200], [200, 70]],
                    sysctl={"vm.swappiness": 7})  # fmt: skip
    export(Shown(loop), tmp_path / "t")
    topology, _ = import_machine(str(tmp_path / "t"))
    assert [n.cpus for n in topology.nodes] == [(0, 1), (2, 3)] and topology.distance == ((10, 31), (31, 10))
    assert topology.nodes[1].memory_bytes == 16 * MiB and 0 < 16 * MiB - topology.nodes[0].memory_bytes < MiB
    assert topology.latency_ns[0][0] == 70 and topology.sysctl["vm.swappiness"] == 7


def test_this_host():
    topology, _ = import_machine("this")
    assert topology.nr_cpus >= 1 and topology.memory_bytes > 64 * MiB


BOMB = '<?xml version="1.0"?><!DOCTYPE t [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><topology version="2.0">&b;</topology>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE t [<!ENTITY a SYSTEM "file:///etc/passwd">]><topology>&a;</topology>'


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is none of"),
        (b"hello\n", "is none of"),
        (b"\0\1\2" * 99, "is binary"),
        (b"<topology", "no valid XML"),
        (b"<html></html>", "must be hwloc's <topology>"),
        (b"<topology version='2.0'/>", "has no Machine"),
        (BOMB.encode(), "the XML is refused: EntitiesForbidden"),
        (OUTSIDE.encode(), "the XML is refused: EntitiesForbidden"),
        (b"<topology version='2.0'>" + b"<object type='Group'>" * 5000, "no valid XML"),
        (HWLOC.joinpath("memorysidecaches.xml").read_bytes()[:9000], "no valid XML"),
        (HWLOC.joinpath("memorysidecaches.xml").read_bytes().replace(b'os_index="1"', b'os_index="x"'), "does not make sense"),
        (HWLOC.joinpath("8intel64-4n2t-memattrs.xml").read_bytes().replace(b'local_memory="', b'local_memory="9999999999'), "must be at most 16TiB"),
        (NUMACTL.encode()[:60], "is not complete"),
        (NUMACTL.replace("2:  17  10", "2:  17").encode(), "is not complete"),
        (b"# CPU,Core,Socket,Node\n0,0\n", "is not complete"),
        (b"Numa node 0 1\n 0 80.0\n", "must have 2"),
    ],
)  # fmt: skip
def test_what_is_no_machine_ends_in_one_line(tmp_path, capsys, data, words):
    (tmp_path / "f").write_bytes(data)
    assert cli.main(["machine", "import", str(tmp_path / "f")]) == cli.USAGE
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and words in told.err and str(tmp_path / "f") in told.err, (
        told.err
    )


def test_what_cannot_be_read_ends_in_one_line(tmp_path, capsys):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(2 << 30)
    for path, words in (
        (tmp_path / "huge", "has more than 64 MiB"),
        (tmp_path / "none", "no such file"),
        (tmp_path, "has neither"),
    ):
        assert cli.main(["machine", "import", str(path)]) == cli.USAGE
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and words in told


def test_import_and_draw_from_the_command_line(tmp_path, capsys):
    assert (
        cli.main(["machine", "import", str(HWLOC / "24em64t-2n6c2t-pci.xml"), "--scale", "64", "--name", "small"]) == 0
    )
    out, err = capsys.readouterr()
    assert out.startswith('name = "small"') and "numaemu: note: cores have 2 threads" in err
    (tmp_path / "m.toml").write_text(out)
    assert cli.main(["machine", "draw", str(tmp_path / "m.toml")]) == 0
    drawn = capsys.readouterr().out
    assert "Machine small" in drawn and "NUMANode P#1" in drawn and "[ 0] [ 2] [ 4]" in drawn and "distances" in drawn
    assert cli.main(["machine", "draw", str(tmp_path / "m.toml"), "--svg", str(tmp_path / "m.svg")]) == 0
    import xml.etree.ElementTree as ET

    assert ET.parse(tmp_path / "m.svg").getroot().tag.endswith("svg")


def test_every_preset_is_drawn():
    from numaemu.spec.topology import list_presets

    for name in list_presets():
        topology = load_topology(name)
        lines = drawing.text(topology).splitlines()
        framed = [line for line in lines if line[0] in "┌│└"]
        assert (
            len({len(line) for line in framed}) == 1
            and sum("NUMANode" in line and line.count("NUMANode") or 0 for line in framed) == topology.nr_nodes
        )
        assert drawing.svg(topology).count("NUMANode") == topology.nr_nodes

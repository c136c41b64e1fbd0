"""/sys/devices/system/cpu: Linux's drivers/base/{cpu,topology}.c. A node is a package, a CPU one of its cores."""

from numaemu.kernel.fs.sysfs.node import ROOT as NODE
from numaemu.kernel.fs.sysfs.node import mask_text
from numaemu.spec.machine_file import MAX_CPUS
from numaemu.spec.units import list_text

ROOT = "/sys/devices/system/cpu"


def topology_files(system, node, cpu):
    """{name: text} of a CPU's directory topology."""
    nr_bits, cpus = system.machine.nr_cpus, node.cpus
    package, core = (mask_text(some, nr_bits) for some in (cpus, [cpu]))
    files = {"physical_package_id": node.id, "die_id": 0, "cluster_id": -1, "core_id": cpus.index(cpu)}
    for names, mask, some in (
        (("core_siblings", "package_cpus", "die_cpus"), package, cpus),
        (("thread_siblings", "core_cpus"), core, [cpu]),
    ):
        for name in names:
            files |= {name: mask, f"{name}_list": list_text(some)}
    return files


def cache_files(system, cpu):
    """{name: text} below a CPU's directory cache: Linux's drivers/base/cacheinfo.c. A machine without [cache] has none."""
    spec, nodes = system.topology.cache, [node.cpus for node in system.topology.nodes]
    files = {}
    for index, level in enumerate(spec.levels if spec else ()):
        groups = level.groups(nodes)
        number = next(number for number, group in enumerate(groups) if cpu in group)
        words = {
            "coherency_line_size": level.line,
            "id": number,
            "level": index + 1,
            "number_of_sets": level.sets,
            "physical_line_partition": 1,
            "shared_cpu_list": list_text(groups[number]),
            "shared_cpu_map": mask_text(groups[number], system.machine.nr_cpus),
            "size": f"{level.size >> 10}K",
            "type": "Unified" if index else "Data",
            "ways_of_associativity": level.ways,
        }
        files |= {f"index{index}/{name}": text for name, text in words.items()}
    return files


def files(system):
    """{path: text} of everything but links; CPUs do not come and go."""
    topology = system.topology
    cpus = list_text(topology.cpus)
    found = {
        "online": cpus,
        "possible": cpus,
        "present": cpus,
        "offline": "",
        "isolated": "",
        "kernel_max": MAX_CPUS - 1,
    }
    for node in topology.nodes:
        for cpu in node.cpus:
            found |= {f"cpu{cpu}/topology/{name}": text for name, text in topology_files(system, node, cpu).items()}
            found |= {f"cpu{cpu}/cache/{name}": text for name, text in cache_files(system, cpu).items()}
            if cpu:
                found[f"cpu{cpu}/online"] = 1  # CPU 0 has no such file: it cannot go
    return {f"{ROOT}/{name}": f"{text}\n" for name, text in found.items()}


def links(system):
    """{path: target} of CPUs and their nodes."""
    return {
        path: target
        for node in system.topology.nodes
        for cpu in node.cpus
        for path, target in (
            (f"{ROOT}/cpu{cpu}/node{node.id}", f"../../node/node{node.id}"),
            (f"{NODE}/node{node.id}/cpu{cpu}", f"../../cpu/cpu{cpu}"),
        )
    }

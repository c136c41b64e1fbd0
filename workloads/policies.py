"""Memory policies side by side: the nodes that get the pages of the same small area.

A task on CPU 0 maps an area, sets a policy on it with mbind(2) and touches it. Look for:
  - default and local: its own node; bind and preferred: the node that was named;
  - preferred-many: the nearest of the nodes that were named, as long as it has memory;
  - interleave: page after page, round the nodes; weighted interleave: likewise, by the weights in
    /sys/kernel/mm/mempolicy/weighted_interleave (1 for each node unless somebody has set them).
"""

import numaemu

LOCKSTEP = True
PAGES = 240


def place(task, mode, nodes, nr_nodes):
    """Touch an area under a policy; pages per node."""
    area = task.mmap(PAGES * 4096)
    task.mbind(area.addr, area.nbytes, mode, nodes)
    found = area.touch().nodes().tolist()
    area.munmap()
    return [found.count(node) for node in range(nr_nodes)]


def main(machine):
    memory = [node.id for node in machine.nodes if node.memory_bytes]
    last, high = memory[-1], memory[len(memory) // 2 :]
    cases = {
        "default": (numaemu.MPOL_DEFAULT, None),
        "local": (numaemu.MPOL_LOCAL, None),
        f"bind {last}": (numaemu.MPOL_BIND, last),
        f"preferred {last}": (numaemu.MPOL_PREFERRED, last),
        f"preferred-many {high}": (numaemu.MPOL_PREFERRED_MANY, high),
        f"interleave {memory}": (numaemu.MPOL_INTERLEAVE, memory),
        f"weighted interleave {memory}": (numaemu.MPOL_WEIGHTED_INTERLEAVE, memory),
    }
    return {name: machine.run(place, *case, len(machine.nodes)) for name, case in cases.items()}

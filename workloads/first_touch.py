"""First touch: a page lands on the node of the CPU that touches it first, whoever asked for the memory.

One task on each node maps 8 MiB and writes one word to each page; the pages of each are counted by node.
"""
from collections import Counter

MACHINE = "two-socket"


def main(machine):
    """{task: pages on each node}"""
    handles = {node.id: machine.spawn(touch, cpu=node.cpus[0], name=f"node{node.id}") for node in machine.nodes if node.cpus}
    placed = {node: handle.result() for node, handle in handles.items()}
    return {f"touched on node {node}": {f"on node {n.id}": pages[n.id] for n in machine.nodes}
            for node, pages in placed.items()}


def touch(task):
    """Touch fresh memory; how many of its pages lie on each node."""
    memory = task.mmap("8MiB")
    memory.touch()
    return Counter(memory.nodes().tolist())

"""Node masks as people write them."""

import numpy as np


def node_mask(nodes):
    """A mask from a node, several nodes, text like "0,2-3", or None for none."""
    if nodes is None:
        return 0
    if isinstance(nodes, str):
        nodes = [n for part in nodes.split(",") if part.strip() for n in _span(part)]
    if isinstance(nodes, (int, np.integer)):
        nodes = [nodes]
    mask = 0
    for node in nodes:
        if not 0 <= int(node) < 64:
            raise ValueError(f"node {node} is not one of 0 to 63")
        mask |= 1 << int(node)
    return mask


def _span(part):
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def nodes_of(mask):
    """The nodes of a mask, in order."""
    return [n for n in range(64) if mask >> n & 1]

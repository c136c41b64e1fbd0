"""What lies behind the caches: the memory controllers of the nodes, that lines come from and go back to.

A line that a CPU fetches costs the latency of the pair, its node and the line's; one that it writes back costs it nothing.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8

U = np.uint64


@hot
def home_node(cpu, physical):
    """The node whose memory has a physical address."""
    return np.int64(u8.array(cpu.block_node)[np.int64(physical >> U(21))])


@kernel("i64(cpu_t*, u64, bool)")
def fetch_line(cpu, physical, write):
    """A line comes from memory, for a load or a store: the ns that the CPU waits for it."""
    return cpu.latency_ns[home_node(cpu, physical)]


@kernel("void(cpu_t*, u64)")
def write_back_line(cpu, physical):
    """A dirty line leaves the caches for memory; the CPU does not wait."""

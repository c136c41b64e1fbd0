"""machine.latency_matrix: what a chase of pointers says of a machine, against what its machine file says."""

import numpy as np
import pytest

from numaemu import Machine
from numaemu.api.latency import zigzag

SHAPE = dict(nodes=2, cpus_per_node=1, memory_per_node="32MiB", latency=[[83, 141], [139, 87]])
CACHES = {  # of little more than nothing, so that it is quick to fill them
    "l1d": {"size": "4KiB", "ways": 4},
    "llc": {"size": "32KiB", "ways": 8, "latency_ns": 20},
    "prefetch": ["next-line", "stride"],
}
MACHINES = {
    "plain": {},
    "caches": {"cache": CACHES},
    "rates": {"bandwidth_per_node": "20GB/s", "link": {"bandwidth": "5GB/s"}, "cpu": {"outstanding": 12}},
    "small TLB": {"l1": {"entries": 4, "ways": 2}, "l2": {"entries": 8, "ways": 4}},
}


@pytest.mark.parametrize("kind", MACHINES)
@pytest.mark.parametrize("lockstep", [True, False])
def test_it_is_the_machine_file_s(kind, lockstep):
    with Machine(**SHAPE, **MACHINES[kind], lockstep=lockstep) as machine:
        for _ in range(2):  # the first one leaves lines in the caches, and frames to be used again
            assert np.abs(machine.latency_matrix() / SHAPE["latency"] - 1).max() < 0.01
        machine.check()


def test_nodes_without_cpus_have_no_row_and_those_without_memory_no_column():
    nodes = [{"memory": "16MiB", "cpus": 1}, {"memory": 0, "cpus": 1}, {"memory": "16MiB"}]
    with Machine(
        {"name": "uneven", "node": nodes, "distance": {"matrix": [[10, 20, 30], [20, 10, 30], [30, 30, 10]]}}
    ) as machine:
        told, measured = np.array(machine.topology.latency_ns, float), machine.latency_matrix()
    told[2], told[:, 1] = np.nan, np.nan
    np.testing.assert_array_equal(measured, told)


@pytest.mark.parametrize("n", [1, 2, 15, 16])
def test_a_zigzag_comes_to_each_place_once_and_repeats_no_distance(n):
    order = zigzag(n)
    assert sorted(order) == list(range(n))
    assert len(set(np.diff(order))) == n - 1

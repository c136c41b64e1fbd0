"""What several test files share: machines in this process and real ones, and a last look that nothing was left behind."""
import os
import pathlib

import hypothesis
import psutil
import pytest
from loopback import SMALL_TLB, Loopback

from numaemu.build import JIT
from numaemu.link import compile_everything

hypothesis.settings.register_profile("numaemu", derandomize=True, deadline=None, print_blob=True, max_examples=50 if JIT else 8,
                                     suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("numaemu")


def pytest_configure():
    """No test waits for a compiler, but those about it."""
    compile_everything()


@pytest.fixture
def loopback():
    """Loopback machines with small TLBs, closed at the end: loopback(nodes=2, …)."""
    made = []

    def make(source=None, **keywords):
        made.append(Loopback(source, **{**SMALL_TLB, **keywords}))
        return made[-1]
    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def two_nodes(loopback):
    """Two nodes with one CPU and 16 MiB each."""
    return loopback(nodes=2, cpus_per_node=1, memory_per_node="16MiB")


@pytest.fixture(scope="module")
def machine():
    """A real one of two nodes with two CPUs each, shared by the tests of a file."""
    from numaemu.machine import Machine
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as booted:
        yield booted
        booted.check()


def emulator_processes():
    """Coordinators, nodes and CPUs below this process."""
    titles = {}
    for process in psutil.Process().children(recursive=True):
        try:
            titles[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return {pid: title for pid, title in titles.items() if title.startswith(("numaemu: c", "numaemu: n"))}


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind():
    """Every name in /dev/shm is gone and every machine of this process has ended."""
    yield
    mine = [p.name for p in pathlib.Path("/dev/shm").glob("*numaemu*") if f".{os.getpid()}." in p.name]
    assert not mine
    assert not emulator_processes()

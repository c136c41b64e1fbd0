"""What several test files share: machines in this process and real ones, and a last look that nothing was left behind."""

import contextlib
import os
import pathlib

import hypothesis
import loopback as loopback_module
import psutil
import pytest
from loopback import SMALL_TLB, Loopback

from numaemu.compiler.build import JIT
from numaemu.compiler.link import compile_everything
from numaemu.errors import NumaemuError

hypothesis.settings.register_profile(
    "numaemu",
    derandomize=True,
    deadline=None,
    print_blob=True,
    max_examples=50 if JIT else 8,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("numaemu")


def pytest_configure(config):
    """No test waits for a compiler, but those about it. What a dying process says is not captured."""
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        loopback_module.OUTSIDE = open(os.dup(2), "w", buffering=1)
    compile_everything()


# Rooms that look at a machine from outside; heaps and collectors are user mode, which has hardly any check of the debug build: those
# tests of theirs that find something there carry the mark themselves.
OUTSIDE = {"api", "compiler", "conform", "docs", "gc", "malloc", "process", "project", "tools", "windows"}


def is_concurrent(item):
    """True for a test of what a machine of several processes does at once. What runs in this process alone has the checks of the debug
    build as plain Python; in lockstep nothing runs at once.
    """
    alone = item.get_closest_marker("interpreted") and "Machine" not in item.function.__code__.co_names
    boots = "machine" in item.fixturenames or "Machine" in vars(item.module) and not alone
    return boots and not OUTSIDE & set(pathlib.Path(item.path).parts) and item.module.__name__ != "test_lockstep"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark those that also run compiled in the debug build (pyproject.toml), besides those that say so themselves."""
    for item in filter(is_concurrent, items):
        item.add_marker(pytest.mark.concurrent)


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


LOST = []  # (machine, how many) waits that ended by their time limit though what they waited for was there


def look_for_lost_wakeups(machine):
    """Time limits of waits only hide such an error."""
    if machine.death is None and not machine.closed:
        with contextlib.suppress(NumaemuError, TimeoutError):  # it may die at this moment, or stand still
            answer = machine._request("lost_wakeups")
            machine.let_run(answer)
            LOST.append((repr(machine), answer.result(10)))


@pytest.fixture(scope="session", autouse=True)
def machines_are_looked_at_when_they_end():
    from numaemu.machine import Machine

    close = Machine.close

    def look_and_close(self):
        if self._driver == os.getpid() and self._booted.done():
            look_for_lost_wakeups(self)
        close(self)

    Machine.close = look_and_close
    yield
    Machine.close = close


@pytest.fixture(autouse=True)
def no_wakeup_is_lost(machines_are_looked_at_when_they_end):
    """In no machine of the test, whether it has ended or lives on."""
    yield
    from numaemu.machine import _machines

    for machine in list(_machines):
        look_for_lost_wakeups(machine)
    lost, _ = [(machine, number) for machine, number in LOST if number], LOST.clear()
    assert not lost, f"wake-ups were lost: {lost}"


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

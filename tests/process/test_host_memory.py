"""The host's memory: a machine that is larger says so, and one that finds none left ends with one line."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings

import psutil
import pytest

from numaemu.errors import HostMemoryWarning
from numaemu.process import host_memory
from numaemu.spec.units import GiB, MiB

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def free(monkeypatch):
    """Sets what the host has free; nothing has been told yet."""
    monkeypatch.setattr(host_memory, "_told", [])
    return lambda nbytes: monkeypatch.setattr(host_memory, "free_bytes", lambda: nbytes)


def test_a_machine_larger_than_the_host_s_free_memory_says_so_once(free):
    free(3 * GiB + 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host_memory.warn_if_larger(3 * GiB)
    with pytest.warns(HostMemoryWarning, match="the machine has 4GiB of memory, this host 3GiB free for it") as caught:
        host_memory.warn_if_larger(4 * GiB)
        host_memory.warn_if_larger(5 * GiB)
    assert len(caught) == 1


def test_free_memory_is_the_host_s(monkeypatch):
    available = psutil.virtual_memory().available
    assert 0 < host_memory.free_bytes() <= max(available, psutil.virtual_memory().available) + 64 * MiB


def script(text, *prefix):
    """(what a driver prints, what is said on stderr)"""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return done.stdout, done.stderr


EAT = """
    from numaemu import Machine, MachineCheck
    def eat(task):
        task.mmap("64MiB").touch()
    machine = Machine(nodes=1, cpus_per_node=1, memory_per_node="128MiB")
    try:
        machine.run(eat)
    except MachineCheck as error:
        print(error)
"""
SMALL_SHM = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=4m none /dev/shm && exec "$0" "$@"')


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0 or subprocess.run([*SMALL_SHM, "true"]).returncode != 0,
    reason="no /dev/shm of its own",
)
def test_a_full_dev_shm_ends_a_machine_with_one_line():
    """Whichever process is the first that finds no memory: the CPU that touches pages, or the node that keeps account of them."""
    out, err = script(EAT, *SMALL_SHM)
    died = r"died: signal 7 \(bus error: is /dev/shm full\?\)"
    assert re.fullmatch(
        rf"emulator process ('node 0' .*{died}|'cpu 0' .*{died} \(in memory accesses of task .*\))\n", out
    )
    warning, *source = err.splitlines()  # Python 3.13 also shows the line that is warned of, as all do of a script
    assert "HostMemoryWarning: the machine has 128MiB of memory, this host 4MiB free for it" in warning
    assert source in ([], ['  machine = Machine(nodes=1, cpus_per_node=1, memory_per_node="128MiB")'])


def test_a_bus_error_is_no_stack_dump():
    out, err = script(
        EAT.replace(
            "machine.run(eat)",
            f"__import__('os').kill(machine.processes['cpu 0'], {int(signal.SIGBUS)}); machine.run(eat)",
        )
    )
    assert "'cpu 0'" in out and "signal 7 (bus error: is /dev/shm full?)" in out and err == ""

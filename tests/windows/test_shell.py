"""A command in namespaces of its own, where /proc and /sys are the machine's; the tools that people have."""

import os
import signal
import subprocess
import sys
import tempfile

import psutil
import pytest
from wanting import need_fuse, need_namespaces, need_program

from docs.tools import real_tools
from numaemu.errors import ConfigError
from numaemu.host import extras
from numaemu.windows import namespace


@pytest.fixture(scope="module")
def machine():
    from numaemu.machine import Machine

    with Machine(**real_tools.MACHINE) as booted:
        yield booted


@pytest.fixture(scope="module")
def task(machine):
    return real_tools.prepare(machine)


@pytest.fixture(scope="module")
def exported(machine, task, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export")
    machine.export(directory)
    return directory


def shell(machine, script):
    """(status, output) of a shell's script."""
    with tempfile.TemporaryFile() as output:
        status = namespace.run(machine, ["sh", "-c", script], output=output)
        output.seek(0)
        return status, output.read().decode()


@pytest.mark.parametrize("tool, command, expected", [row[:3] for row in real_tools.TOOLS], ids=lambda word: word[:30])
def test_real_tools_see_the_machine(machine, task, exported, tool, command, expected):
    need_program(tool)
    need_namespaces()
    need_fuse()
    assert real_tools.looks_right(machine, task, command, expected, exported) == ""


def test_the_guide_names_every_tool():
    text = real_tools.GUIDE.read_text()
    rows = [
        line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "`" in line and "PID" not in line
    ]
    commands = {row[1].strip("`") for row in rows}
    assert {c for _, c, _, _ in real_tools.TOOLS if "{" not in c} <= commands


def test_psutil_sees_the_machine(machine, task):
    need_namespaces()
    need_fuse()
    script = f"import psutil; print(psutil.cpu_count(), psutil.Process({task.pid}).memory_info().rss, psutil.virtual_memory().total)"
    status, text = shell(machine, f"{sys.executable} -c '{script}'")
    cpus, rss, total = map(int, text.split())
    assert (status, cpus, rss) == (0, 4, real_tools.TOUCHED_KB << 10) and total >> 20 == 127


def test_the_files_are_live_and_can_be_written(machine, task):
    need_namespaces()
    need_fuse()
    assert shell(machine, "echo 42 > /proc/sys/vm/swappiness; cat /proc/sys/vm/swappiness; cat /proc/self/comm") == (
        0,
        "42\ncat\n",
    )
    assert machine.read("/proc/sys/vm/swappiness") == "42\n"


def test_the_exit_status_is_the_commands(machine):
    need_namespaces()
    assert shell(machine, "exit 7")[0] == 7
    assert shell(machine, "kill -TERM $$")[0] in (0, 143)  # as process 1 it may ignore it
    with tempfile.TemporaryFile() as output:
        assert namespace.run(machine, ["nixda"], output=output) == 127
        output.seek(0)
        assert output.read() == b"numaemu: nixda: command not found\n"


def test_without_fuse_there_is_a_snapshot(machine, task, monkeypatch):
    need_namespaces()
    monkeypatch.setattr(namespace, "is_there", lambda: False)
    status, text = shell(
        machine, f"cat /proc/{task.pid}/comm; cat /sys/devices/system/node/node0/cpulist; ls /proc/self"
    )
    assert status == 0 and text.startswith("T0\n0-1\ncgroup\n")


def test_a_host_that_refuses_is_told_in_a_line(machine, monkeypatch):
    need_namespaces()
    monkeypatch.setattr(namespace.enter, "__file__", str(refusing(monkeypatch)))
    with pytest.raises(
        ConfigError, match="is not to be had: the host does not allow user namespaces .*; without: numaemu run --mount"
    ):
        namespace.run(machine, ["true"])


def refusing(monkeypatch):
    """The program, for a host that allows no new namespaces."""
    with open(namespace.enter.__file__) as file:
        text = file.read()
    fd, path = tempfile.mkstemp(suffix=".py")
    os.write(fd, text.replace("LIBC.unshare(", "(lambda flags: -1)(").encode())
    os.close(fd)
    return path


def test_children_that_are_left_end_with_the_command(machine):
    need_namespaces()
    assert shell(machine, "sleep 98765 & exit 3")[0] == 3
    assert not [p for p in psutil.process_iter(["cmdline"]) if "98765" in (p.info["cmdline"] or [])]


DRIVER = """
import sys
from numaemu import Machine
from numaemu.windows import namespace
with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as machine:
    namespace.run(machine, ["sh", "-c", "echo up; exec sleep 87654"])
"""


@pytest.mark.parametrize("who", ["driver", "enter.py"])
def test_nothing_stays_when_somebody_is_killed(who):
    need_namespaces()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", DRIVER], **pipes) as driver:
        assert driver.stdout.readline() == "up\n"
        enter = next(
            p for p in psutil.Process(driver.pid).children(recursive=True) if "enter.py" in " ".join(p.cmdline())
        )
        inner = enter.children()
        os.kill(driver.pid if who == "driver" else enter.pid, signal.SIGKILL)
        driver.wait()
    _, alive = psutil.wait_procs([enter, *inner], timeout=20)
    assert not alive


def test_extras_are_named():
    assert extras.need("json", "x", "y")

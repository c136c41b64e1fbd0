"""A machine's tree as a reader sees it, with the reader in it; exports."""

import os
import pathlib

import pytest

from numaemu.errors import ConfigError
from numaemu.host import extras
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.windows.export import export
from numaemu.windows.view import Reader, View

pytestmark = pytest.mark.interpreted


class Shown:
    """What View needs of a Machine, over a machine in this process."""

    def __init__(self, loop):
        self.loop, self.system, self.topology = loop, System(loop.machine, loop.topology), loop.topology

    def read(self, path):
        found = proc.read(self.system, path)
        return self.loop.system(*found) if isinstance(found, tuple) else found

    def listdir(self, path):
        return proc.listdir(self.system, path)

    def kind(self, path):
        return proc.kind(self.system, path)


@pytest.fixture
def shown(two_nodes):
    return Shown(two_nodes)


def test_a_reader_finds_itself(shown):
    view, reader = View(shown), Reader(7, "tool")
    assert view.kind("/proc/self", reader) == ("link", "7") and view.kind("/proc/self") == ("link", "1")
    assert view.kind("/proc/thread-self", reader) == ("link", "7/task/7")
    assert view.kind("/proc/7", reader) == ("dir", "") and view.kind("/proc/7/nix", reader) == ("", "")
    text = view.read("/proc/7/status", reader).decode()
    assert "Pid:\t7\n" in text and "Cpus_allowed_list:\t0-1\n" in text and "Mems_allowed_list:\t0-1\n" in text
    stat = view.read("/proc/7/task/7/stat", reader).decode().split()
    assert stat[:3] == ["7", "(tool)", "R"] and len(stat) == 52
    assert "7" in view.listdir("/proc", reader) and "7" not in view.listdir("/proc")
    assert view.listdir("/proc/7/task", reader) == ["7"] and "status" in view.listdir("/proc/7", reader)
    with pytest.raises(FileNotFoundError):
        view.listdir("/proc/7/task/8", reader)


def test_a_task_with_the_readers_number_comes_first(two_nodes, shown):
    task = two_nodes.task(name="mine")
    view = View(shown)
    assert view.read(f"/proc/{task.pid}/comm", Reader(task.pid, "tool")) == b"mine\n"


def test_an_export_is_the_tree(two_nodes, shown, tmp_path):
    task = two_nodes.task(name="T0")
    task.mmap("16KiB").touch()
    shown.loop = two_nodes
    assert export(shown, tmp_path / "a") == sum(
        len(files) + links(top, dirs) for top, dirs, files in os.walk(tmp_path / "a")
    )
    node = tmp_path / "a/sys/devices/system/node/node1"
    assert (node / "meminfo").read_text() == shown.read("/sys/devices/system/node/node1/meminfo")
    assert os.readlink(node / "cpu1") == "../../cpu/cpu1" and (node / "cpu1/topology/core_id").read_text() == "0\n"
    assert (tmp_path / f"a/proc/{task.pid}/comm").read_text() == "T0\n"
    assert os.readlink(tmp_path / "a/proc/self") == "1" and (tmp_path / "a/proc/self/status").exists()
    assert (node / "compact").stat().st_mode & 0o777 == 0o200 and (node / "meminfo").stat().st_mode & 0o777 == 0o444
    task.exit()
    export(shown, tmp_path / "a")  # replaces it
    assert not (tmp_path / f"a/proc/{task.pid}").exists()


def links(top, dirs):
    return sum(os.path.islink(os.path.join(top, name)) for name in dirs)


def test_an_export_overwrites_nothing_else(shown, tmp_path):
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(ConfigError, match="holds 'letter', must be empty"):
        export(shown, tmp_path)
    with pytest.raises(ConfigError, match="not a directory|file exists"):
        export(shown, tmp_path / "letter")
    assert os.listdir(tmp_path) == ["letter"]


def test_what_is_not_installed_is_told_in_a_line(monkeypatch):
    with pytest.raises(
        ConfigError, match=r"^a thing needs the package nixda_lib, which is not installed: pip install 'numaemu\[x\]'$"
    ):
        extras.need("nixda_lib.part", "x", "a thing")
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))
    assert extras.need("json", "x", "a thing").loads("1") == 1

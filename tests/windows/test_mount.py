"""A live mount through FUSE: reading, writing, errors by their numbers, and nothing that stays behind."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from wanting import need_fuse

from numaemu.errors import ConfigError


@pytest.fixture
def mounted(machine, tmp_path):
    need_fuse()
    with machine.mount(tmp_path / "m") as directory:
        yield directory
    assert not os.path.ismount(tmp_path / "m")


def read(*parts):
    with open(os.path.join(*parts)) as file:
        return file.read()


def write(text, *parts):
    with open(os.path.join(*parts), "w") as file:
        file.write(text)


def test_files_are_live(machine, mounted):
    assert sorted(os.listdir(mounted)) == ["proc", "sys"]
    assert read(mounted, "proc/meminfo") == machine.read("/proc/meminfo")
    with open(f"{mounted}/proc/stat") as file:
        before = file.read()
        task = machine.task(cpu=1, name="T0")
        task.sleep(1000)
        file.seek(0)
        assert file.read() != before  # read again from its beginning, as vmstat does
    assert read(mounted, f"proc/{task.pid}/comm") == "T0\n"
    assert os.readlink(f"{mounted}/sys/devices/system/node/node1/cpu2") == "../../cpu/cpu2"
    task.exit()
    assert str(task.pid) not in os.listdir(f"{mounted}/proc")


def test_writes_reach_the_machine(machine, mounted):
    write("30\n", mounted, "proc/sys/vm/swappiness")
    assert machine.read("/proc/sys/vm/swappiness") == "30\n"
    os.mkdir(f"{mounted}/sys/fs/cgroup/a")
    assert machine.listdir("/sys/fs/cgroup/a") == sorted(os.listdir(f"{mounted}/sys/fs/cgroup/a"))
    os.rmdir(f"{mounted}/sys/fs/cgroup/a")
    assert "a" not in machine.listdir("/sys/fs/cgroup")


@pytest.mark.parametrize(
    "action, number",
    [
        (lambda d: read(d, "proc/nixda"), errno.ENOENT),
        (lambda d: write("x", d, "proc/sys/vm/swappiness"), errno.EINVAL),
        (lambda d: write("1", d, "proc/meminfo"), errno.EACCES),
        (lambda d: read(d, "proc/sys/vm/compact_memory"), errno.EACCES),
        (lambda d: os.rmdir(f"{d}/sys/fs/cgroup/none"), errno.ENOENT),
        (lambda d: os.unlink(f"{d}/proc/meminfo"), errno.EPERM),
    ],
)
def test_errors_have_their_numbers(mounted, action, number):
    with pytest.raises(OSError) as caught:
        action(mounted)
    assert caught.value.errno == number


def test_frames_are_read_by_ranges(machine, mounted):
    task = machine.task(cpu=0)
    memory = task.mmap("16KiB")
    memory.touch()
    with open(f"{mounted}/proc/{task.pid}/pagemap", "rb") as file:
        file.seek(memory.addr >> 12 << 3)
        words = file.read(32)
    assert words == machine.pread(f"/proc/{task.pid}/pagemap", 32, memory.addr >> 12 << 3) and words[7] & 0x80
    task.exit()


def test_where_one_cannot_mount(machine, tmp_path):
    need_fuse()
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(ConfigError, match="is not empty"):
        machine.mount(tmp_path)
    with machine.mount(tmp_path / "m"), pytest.raises(ConfigError, match="something is mounted on"):
        machine.mount(tmp_path / "m")


DRIVER = """
import sys, time
from numaemu import Machine
with Machine(nodes=1, cpus_per_node=1, memory_per_node="16MiB") as machine, machine.mount(sys.argv[1]):
    print("mounted", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_stays_mounted_when_the_driver_is_killed(tmp_path, number):
    need_fuse()
    directory = tmp_path / "m"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", DRIVER, str(directory)], **pipes) as driver:
        assert driver.stdout.readline() == "mounted\n" and os.path.ismount(directory)
        driver.send_signal(number)
        assert driver.wait() == -number  # libfuse has not kept the signal for itself
    unmounted(directory)


def unmounted(directory):
    """Wait until the shell that unmounts has: the mount table says when it changes."""
    import select

    table = os.open("/proc/self/mountinfo", os.O_RDONLY)
    poll = select.poll()
    poll.register(table, select.POLLERR | select.POLLPRI)
    try:
        for _ in range(100):
            os.lseek(table, 0, 0)
            text = b""
            while piece := os.read(table, 1 << 16):
                text += piece
            if str(directory).encode() not in text:
                return
            poll.poll(10_000)
        raise AssertionError(f"{directory} is still mounted")
    finally:
        os.close(table)

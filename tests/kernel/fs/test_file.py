"""Descriptors: who has which open file after open, dup, close, fork, clone, vfork, execve and exit, against a twin."""

import errno

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from loopback import SMALL_TLB, Loopback

from numaemu import MachineCheck
from numaemu.compiler.build import JIT
from numaemu.kernel.fs.file import FIRST_FD
from numaemu.kernel.fs.inode import file_of
from numaemu.spec.param import MAX_OPEN
from numaemu.uapi import (
    MAP_PRIVATE,
    MAP_SHARED,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_RDWR,
    O_WRONLY,
    PROT_READ,
    RLIMIT_NOFILE,
)

pytestmark = pytest.mark.interpreted
PATH, OTHER, PAGE = "/mnt/data", "/dev/shm/other", 4096


@pytest.fixture
def files(two_nodes):
    two_nodes.create_file(PATH, bytes(range(256)) * 64)
    return two_nodes


def test_parent_and_child_have_one_position(files):
    parent = files.task()
    file = parent.open(PATH, O_RDWR)
    assert file.fd == FIRST_FD and file.read(3) == bytes([0, 1, 2])
    child = parent.fork()
    inherited = child.fdopen(file)
    assert inherited.read(3) == bytes([3, 4, 5]) and file.read(1) == bytes([6]) and inherited.tell() == 7
    late = parent.open(PATH)  # the child does not have it
    with pytest.raises(OSError, match="Bad file descriptor"):
        child.fdopen(late)
    file.close()
    assert inherited.read(1) == bytes([7])
    parent.exit()
    area = child.mmap(PAGE, PROT_READ, MAP_PRIVATE, file=inherited)
    assert child.read(area.addr, 2) == bytes([0, 1])
    files.audit()
    child.exit()
    files.audit()


def test_a_child_maps_what_its_parent_has_opened(files):
    parent = files.task()
    file = parent.memfd_create("story")
    file.write(b"once")
    child = parent.fork()
    file.close()
    area = child.mmap(PAGE, flags=MAP_SHARED, file=file)  # by the same descriptor
    child.write(area.addr, b"ONCE")
    assert child.fdopen(file.fd).pread(4, 0) == b"ONCE" and child.fdopen(file.fd).path == "/memfd:story"
    child.open(PATH)
    stranger = files.task()
    stranger.open(PATH)
    with pytest.raises(OSError, match="descriptor 3 of task .* is /mnt/data, not /memfd:story: it is not inherited"):
        stranger.mmap(PAGE, flags=MAP_SHARED, file=file)
    files.audit()


def test_threads_share_a_table_and_a_vforked_child_has_its_own(files):
    task = files.task()
    thread, child = task.clone(), task.vfork()
    file = thread.open(PATH)
    assert task.fdopen(file).read(1) == b"\0"
    with pytest.raises(OSError, match="Bad file descriptor"):
        child.fdopen(file)
    task.exit()
    assert thread.fdopen(file).read(1) == b"\1"  # the other thread still has it
    thread.exit()
    child.exit()
    files.audit()


def test_dup(files):
    task = files.task()
    file = task.open(PATH, O_RDWR | O_CLOEXEC)
    twin = file.dup()
    assert twin.fd == file.fd + 1 and file.read(2) == bytes([0, 1]) and twin.read(1) == bytes([2])
    other = task.open(OTHER, O_RDWR | O_CREAT)
    there = twin.dup(other.fd)  # dup2: what was there is closed
    assert there.fd == other.fd and there.read(1) == bytes([3]) and there.dup(there.fd).fd == there.fd
    high = file.dup(100)
    file.close()
    assert high.read(1) == bytes([4]) and task.open(PATH).fd == FIRST_FD
    for fd in (-1, MAX_OPEN):
        with pytest.raises(OSError, match="Bad file descriptor"):
            twin.dup(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        task.fdopen(99)
    files.audit()


def test_there_are_no_more_than_a_process_may_have(files):
    task = files.task()
    opened = [task.open(PATH) for _ in range(FIRST_FD, MAX_OPEN)]
    for one_more in (lambda: task.open(PATH), opened[0].dup):
        with pytest.raises(OSError, match="Too many open files") as error:
            one_more()
        assert error.value.errno == errno.EMFILE
    opened[7].close()
    assert task.open(PATH).fd == opened[7].fd
    files.audit()
    task.exit()
    files.audit()


def test_a_limit_of_descriptors(files):
    """RLIMIT_NOFILE: for new ones, in children too; who has more keeps them."""
    task = files.task()
    first, second = task.open(PATH), task.open(PATH)
    assert task.getrlimit(RLIMIT_NOFILE) == (MAX_OPEN, MAX_OPEN)
    task.setrlimit(RLIMIT_NOFILE, first.fd + 1)
    for one_more in (lambda: task.open(PATH), first.dup, task.fork().fdopen(first.fd).dup):
        with pytest.raises(OSError, match="Too many open files"):
            one_more()
    with pytest.raises(OSError, match="Bad file descriptor"):
        first.dup(second.fd)
    assert second.read(1) == bytes([0])
    task.setrlimit(RLIMIT_NOFILE, second.fd + 2)
    assert first.dup().fd == second.fd + 1
    with pytest.raises(PermissionError):  # sysctl_nr_open
        task.setrlimit(RLIMIT_NOFILE, MAX_OPEN, MAX_OPEN + 1)
    files.audit()


def test_modes(files):
    task = files.task()
    for file, refused, text in (
        (task.open(PATH), lambda f: f.write(b"x"), "Bad file descriptor"),
        (task.open(PATH, O_WRONLY), lambda f: f.read(1), "Bad file descriptor"),
        (task.open(PATH), lambda f: f.truncate(0), "Invalid argument"),
    ):
        with pytest.raises(OSError, match=text):
            refused(file)
    log, also = task.open(OTHER, O_WRONLY | O_CREAT | O_APPEND), task.open(OTHER, O_WRONLY)
    log.write(b"ab")
    also.write(b"xyz")
    log.write(b"c")
    assert task.open(OTHER).read() == b"xyzc" and log.tell() == 4


def test_the_audit_counts_users(files):
    task = files.task()
    task.open(PATH)
    file_of(files.machine, 1).count += 1
    with pytest.raises(MachineCheck, match="open file 1 of /mnt/data: count is 2, 1 descriptors and mappings have it"):
        files.audit()
    file_of(files.machine, 1).count -= 1


class Descriptors(RuleBasedStateMachine):
    """Tasks that open, duplicate, close, fork and end; the twin has {descriptor: position} of each."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=1, cpus_per_node=2, memory_per_node="8MiB", **SMALL_TLB)
        self.loop.create_file(PATH, bytes(range(250)))
        self.tasks = [(self.loop.task(), {})]

    who, fd = st.integers(0, 3), st.integers(FIRST_FD, FIRST_FD + 5)

    def pick(self, who):
        return self.tasks[who % len(self.tasks)]

    @rule(who=who)
    def open(self, who):
        task, twin = self.pick(who)
        fd = task.open(PATH).fd
        assert fd == next(n for n in range(FIRST_FD, MAX_OPEN) if n not in twin)
        twin[fd] = [0]

    @rule(who=who, fd=fd, to=st.none() | fd)
    def dup(self, who, fd, to):
        task, twin = self.pick(who)
        if fd in twin:
            got = task.fdopen(fd).dup(to).fd
            twin[got] = twin[fd]

    @rule(who=who, fd=fd)
    def read(self, who, fd):
        task, twin = self.pick(who)
        if fd in twin:
            assert task.fdopen(fd).read(7) == bytes(range(250))[twin[fd][0] :][:7]
            twin[fd][0] = min(twin[fd][0] + 7, 250)
        else:
            with pytest.raises(OSError, match="Bad file descriptor"):
                task.fdopen(fd)

    @rule(who=who, fd=fd)
    def close(self, who, fd):
        task, twin = self.pick(who)
        if twin.pop(fd, None):
            task.fdopen(fd).close()

    @rule(who=who, how=st.sampled_from(["fork", "vfork", "clone"]))
    def start(self, who, how):
        task, twin = self.pick(who)
        if len(self.tasks) < 4:
            self.tasks.append((getattr(task, how)(), twin if how == "clone" else dict(twin)))

    @rule(who=who)
    def exit(self, who):
        if len(self.tasks) > 1:
            self.tasks.pop(who % len(self.tasks))[0].exit()

    @invariant()
    def counts(self):
        self.loop.audit()

    def teardown(self):
        for task, _ in self.tasks:
            task.exit()
        self.loop.audit()
        self.loop.close()


TestDescriptors = Descriptors.TestCase
TestDescriptors.settings = settings(max_examples=25 if JIT else 2, stateful_step_count=30)


# -- /proc/<pid>/io ------------------------------------------------------------------------------------------------------


def io_of(files, task, thread=None):
    text = files.read(f"/proc/{task.pid}/io" if thread is None else f"/proc/{task.pid}/task/{thread.pid}/io")
    return {name: int(value) for name, value in (line.split(": ") for line in text.splitlines())}


def test_io_counts_calls_bytes_and_what_disks_have_to_do(files):
    task = files.task()
    assert set(io_of(files, task).values()) == {0}
    file = task.open(PATH, O_RDWR)
    file.read(100)
    file.read(200)
    seen = io_of(files, task)
    assert (seen["rchar"], seen["syscr"], seen["wchar"], seen["write_bytes"]) == (300, 2, 0, 0)
    assert seen["read_bytes"] == files.vmstat()["pgpgin"] * 1024 > 0  # readahead reads more than was asked for
    file.pwrite(b"x" * (PAGE + 1), 0)
    file.pwrite(b"y", 0)  # dirty already
    seen = io_of(files, task)
    assert (seen["wchar"], seen["syscw"], seen["write_bytes"]) == (PAGE + 2, 2, 2 * PAGE)
    file.truncate(PAGE)
    assert io_of(files, task)["cancelled_write_bytes"] == PAGE


def test_io_of_a_process_keeps_what_its_ended_threads_did_and_a_child_begins_anew(files):
    task = files.task()
    file = task.open(PATH)
    thread = task.clone()
    thread.fdopen(file).read(10)
    assert io_of(files, task)["rchar"] == 10 and io_of(files, task, thread)["rchar"] == 10
    assert io_of(files, task, task)["rchar"] == 0
    thread.exit()
    assert io_of(files, task)["rchar"] == 10
    child = task.fork()
    assert io_of(files, child)["rchar"] == 0
    child.exit()

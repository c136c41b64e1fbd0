"""tmpfs files against byte arrays: read, write, map, cut, swap out, fork, in any order; names, limits, the ends of files."""
import errno

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from loopback import SMALL_TLB, Loopback

from numaemu import BusError, MachineCheck
from numaemu.build import JIT
from numaemu.kernel import swapon
from numaemu.uapi import (MADV_DONTNEED, MADV_PAGEOUT, MAP_PRIVATE, MAP_SHARED, O_CREAT, O_EXCL, O_RDWR, O_TRUNC, PROT_READ)

pytestmark = pytest.mark.interpreted

PAGE, PAGES, PATH, AT = 4096, 6, "/dev/shm/x", 0x1000_0000


class TmpfsMachine(RuleBasedStateMachine):
    """Two tasks, and what they fork, share one file; each byte seen is the twin's."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB)
        swapon.swapon(self.loop.machine, "/dev/vdb", 1 << 20, None, "disk")
        self.data, self.tasks = bytearray(), [self.start(cpu) for cpu in (0, 1)]

    def start(self, cpu):
        task = self.loop.task(cpu)
        file = task.open(PATH, O_RDWR | O_CREAT)
        task.mmap(PAGES * PAGE, flags=MAP_SHARED | 0x10, file=file, addr=AT)
        return task, file

    who, offset = st.integers(0, 3), st.integers(0, PAGES * PAGE - 1)
    text = st.binary(min_size=1, max_size=6000)

    def pick(self, who):
        return self.tasks[who % len(self.tasks)]

    @rule(who=who, offset=offset, text=text)
    def pwrite(self, who, offset, text):
        text = text[:PAGES * PAGE - offset]
        task, file = self.pick(who)
        if file is None:
            return
        assert file.pwrite(text, offset) == len(text)
        self.data.extend(bytes(max(offset - len(self.data), 0)))
        self.data[offset:offset + len(text)] = text

    @rule(who=who, offset=offset, nbytes=st.integers(0, 9000))
    def pread(self, who, offset, nbytes):
        task, file = self.pick(who)
        if file is not None:
            assert file.pread(nbytes, offset) == bytes(self.data[offset:offset + nbytes])

    @rule(who=who, offset=offset, text=text)
    def store(self, who, offset, text):
        task, _ = self.pick(who)
        text = text[:max(len(self.data) - offset, 0)]
        task.write(AT + offset, text)
        self.data[offset:offset + len(text)] = text

    @rule(who=who, page=st.integers(0, PAGES - 1))
    def load(self, who, page):
        task, _ = self.pick(who)
        if page * PAGE >= len(self.data):
            with pytest.raises(BusError, match="byte .* of /dev/shm/x, which has"):
                task.read(AT + page * PAGE, 1)
        else:
            assert task.read(AT + page * PAGE, PAGE) == bytes(self.data[page * PAGE:(page + 1) * PAGE]).ljust(PAGE, b"\0")

    @rule(who=who, size=st.integers(0, PAGES * PAGE))
    def truncate(self, who, size):
        task, file = self.pick(who)
        if file is not None:
            file.truncate(size)
            self.data = self.data[:size].ljust(size, b"\0")

    @rule(who=who, page=st.integers(0, PAGES - 1), advice=st.sampled_from([MADV_PAGEOUT, MADV_DONTNEED]))
    def madvise(self, who, page, advice):
        self.pick(who)[0].madvise(AT + page * PAGE, min(2, PAGES - page) * PAGE, advice)

    @rule(who=who)
    def fork(self, who):
        if len(self.tasks) < 4:
            self.tasks.append((self.pick(who)[0].fork(), None))

    @rule(who=who)
    def exit(self, who):
        if who > 1 and len(self.tasks) > 2:
            self.tasks.pop()[0].exit()

    @rule(who=who)
    def drop(self, who):
        self.loop.system("drop_caches", 1)

    @invariant()
    def size(self):
        assert self.tasks[0][1].size == len(self.data)

    def teardown(self):
        self.loop.audit()
        for task, _ in self.tasks:
            task.exit()
        assert self.loop.vmstat()["nr_shmem"] <= PAGES
        self.loop.system("unlink", PATH)
        self.loop.drain()
        assert self.loop.vmstat()["nr_shmem"] == 0 == self.loop.machine.tmpfs_pages == self.loop.machine.vm_committed_as
        self.loop.audit()
        self.loop.close()


TestTmpfs = TmpfsMachine.TestCase
TestTmpfs.settings = settings(max_examples=25 if JIT else 3, stateful_step_count=30)


def read(loop, task, name):
    return loop.actors[0].rpc_read(f"/proc/{task.pid}/{name}")


def test_a_name_in_maps_and_memory_in_status(two_nodes):
    task, other = two_nodes.task(), two_nodes.task(cpu=1)
    file = task.open(PATH, O_RDWR | O_CREAT)
    file.truncate(4 * PAGE)
    area = task.mmap(4 * PAGE, flags=MAP_SHARED, file=file)
    area.array()[:] = 7
    seen = other.mmap(2 * PAGE, PROT_READ, MAP_SHARED, file=other.open(PATH), offset=2 * PAGE)
    assert other.load([seen.addr + 800])[0] == 7 and other.mincore(seen.addr, 2 * PAGE).tolist() == [1, 1]
    line = read(two_nodes, task, "maps").splitlines()[0]
    assert line.startswith(f"{area.addr:x}-{area.addr + 4 * PAGE:x} rw-s 00000000 00:18 ") and line.endswith(" /dev/shm/x")
    assert "RssShmem:\t      16 kB" in read(two_nodes, task, "status")
    assert two_nodes.vmstat()["nr_shmem"] == 4 == two_nodes.vmstat()["nr_mapped"]
    assert two_nodes.machine.vm_committed_as == 4 + 2 * 33
    two_nodes.system("unlink", PATH)
    file.close()
    assert read(two_nodes, task, "maps").splitlines()[0].endswith(" /dev/shm/x (deleted)")
    task.exit()
    assert two_nodes.vmstat()["nr_shmem"] == 4                     # the other one still maps it
    other.exit()
    two_nodes.audit()
    assert two_nodes.vmstat()["nr_shmem"] == 0


def test_memfd(two_nodes):
    task = two_nodes.task()
    file = task.memfd_create("story")
    file.write(b"in memory only")
    area = task.mmap(PAGE, flags=MAP_SHARED, file=file)
    child = task.fork()
    child.write(area.addr, b"IN")
    assert file.pread(14, 0) == b"IN memory only"
    fields = read(two_nodes, child, "maps").splitlines()[0].split(maxsplit=5)
    assert fields[3] == "00:01" and fields[5] == "/memfd:story (deleted)"
    assert two_nodes.machine.tmpfs_pages == 1
    for each in (task, child):
        each.exit()
    assert two_nodes.machine.tmpfs_pages == 0
    two_nodes.audit()


def test_names_and_what_is_not_there(two_nodes):
    task = two_nodes.task()
    file = task.open(PATH, O_RDWR | O_CREAT | O_EXCL)
    file.write(b"abc")
    with pytest.raises(OSError, match="File exists"):
        task.open(PATH, O_RDWR | O_CREAT | O_EXCL)
    with pytest.raises(NotImplementedError, match="a private mapping of a tmpfs file: only MAP_SHARED is there"):
        task.mmap(PAGE, flags=MAP_PRIVATE, file=file)
    with pytest.raises(ValueError, match="lies in memory, not on the disk"):
        two_nodes.create_file("/dev/shm/y", b"y")
    assert task.open(PATH, O_RDWR | O_TRUNC).size == 0 and two_nodes.machine.tmpfs_pages == 0
    file.pwrite(b"hole", 3 * PAGE)
    assert file.pread(5, 3 * PAGE - 1) == b"\0hole" and two_nodes.machine.tmpfs_pages == 1
    assert two_nodes.vmstat()["nr_dirty"] == 0 and two_nodes.system("sync") == 0
    two_nodes.audit()


def test_half_of_memory_is_the_limit(loopback):
    """Then a write says so, and an access is a bus error."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    task, most = loop.task(), loop.machine.total_ram_pages // 2
    file = task.open(PATH, O_RDWR | O_CREAT)
    file.truncate(most + 10 << 12)
    area = task.mmap(most + 10 << 12, flags=MAP_SHARED, file=file)
    task.touch(area.addr, most << 12)
    with pytest.raises(BusError):
        task.touch(area.addr + (most << 12), PAGE)
    with pytest.raises(OSError, match="No space left") as error:
        file.pwrite(b"x", most << 12)
    assert error.value.errno == errno.ENOSPC and loop.machine.tmpfs_pages == most
    file.truncate(PAGE)
    task.store([area.addr], np.uint64(1))
    assert loop.machine.tmpfs_pages == 1
    loop.audit()


def test_the_audit_counts_pages(two_nodes):
    task = two_nodes.task()
    task.open(PATH, O_RDWR | O_CREAT).write(b"x")
    two_nodes.machine.tmpfs_pages += 1
    with pytest.raises(MachineCheck, match="tmpfs_pages is 2, all files together have 1"):
        two_nodes.audit()
    two_nodes.machine.tmpfs_pages -= 1

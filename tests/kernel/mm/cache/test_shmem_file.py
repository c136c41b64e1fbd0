"""tmpfs files against byte arrays: read, write, map, cut, swap out, fork, in any order; names, limits, the ends of files."""

import errno

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from loopback import SMALL_TLB, Loopback

from numaemu import BusError, MachineCheck
from numaemu.compiler.build import JIT
from numaemu.kernel.core.xarray import MAX_INDEX
from numaemu.kernel.fs.inode import inode_of
from numaemu.kernel.mm.cache.shmem_file import shmem_truncate_range
from numaemu.kernel.mm.swap import swapfile, swapon
from numaemu.uapi import (
    MADV_DONTNEED,
    MADV_FREE,
    MADV_PAGEOUT,
    MADV_WIPEONFORK,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    O_CREAT,
    O_EXCL,
    O_RDWR,
    O_TRUNC,
    PROT_READ,
)

pytestmark = pytest.mark.interpreted

PAGE, PAGES, PATH, AT, OWN = 4096, 6, "/dev/shm/x", 0x1000_0000, 0x2000_0000


class Member:
    """A task, its open file (None: it does not hold it), and the pages it has of its own at `where`, as {page: bytes}."""

    def __init__(self, task, file=None, pages=(), where=OWN):
        self.task, self.file, self.where = task, file, where
        self.pages = {page: bytearray(data) for page, data in dict(pages).items()}


class TmpfsMachine(RuleBasedStateMachine):
    """Two tasks, and what they fork, share one file, each with a shared and a private mapping; each byte is the twin's."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB)
        swapon.swapon(self.loop.machine, "/dev/vdb", 1 << 20, None, "disk")
        self.data, self.tasks = bytearray(), [self.start(cpu) for cpu in (0, 1)]

    def start(self, cpu):
        task = self.loop.task(cpu)
        file = task.open(PATH, O_RDWR | O_CREAT)
        task.mmap(PAGES * PAGE, flags=MAP_SHARED | MAP_FIXED, file=file, addr=AT)
        task.mmap(PAGES * PAGE, flags=MAP_PRIVATE | MAP_FIXED, file=file, addr=OWN)
        return Member(task, file)

    who, offset = st.integers(0, 3), st.integers(0, PAGES * PAGE - 1)
    text = st.binary(min_size=1, max_size=6000)

    def pick(self, who):
        return self.tasks[who % len(self.tasks)]

    @rule(who=who, offset=offset, text=text)
    def pwrite(self, who, offset, text):
        text, file = text[: PAGES * PAGE - offset], self.pick(who).file
        if file is None:
            return
        assert file.pwrite(text, offset) == len(text)
        self.data.extend(bytes(max(offset - len(self.data), 0)))
        self.data[offset : offset + len(text)] = text

    @rule(who=who, offset=offset, nbytes=st.integers(0, 9000))
    def pread(self, who, offset, nbytes):
        if (file := self.pick(who).file) is not None:
            assert file.pread(nbytes, offset) == bytes(self.data[offset : offset + nbytes])

    @rule(who=who, offset=offset, text=text)
    def store(self, who, offset, text):
        text = text[: max(len(self.data) - offset, 0)]
        self.pick(who).task.write(AT + offset, text)
        self.data[offset : offset + len(text)] = text

    def contents(self, page):
        return bytes(self.data[page * PAGE : (page + 1) * PAGE]).ljust(PAGE, b"\0")

    def file_pages(self):
        return -(-len(self.data) // PAGE)

    @rule(who=who, page=st.integers(0, PAGES - 1), offset=st.integers(0, PAGE - 1), text=text)
    def store_private(self, who, page, offset, text):
        member, text = self.pick(who), text[: PAGE - offset]
        if page < self.file_pages():
            member.task.write(member.where + page * PAGE + offset, text)
            own = member.pages.setdefault(page, bytearray(self.contents(page)))
            own[offset : offset + len(text)] = text

    @rule(who=who, page=st.integers(0, PAGES - 1), private=st.booleans())
    def load(self, who, page, private):
        member = self.pick(who)
        at = (member.where if private else AT) + page * PAGE
        if page >= self.file_pages():
            with pytest.raises(BusError, match="byte .* of /dev/shm/x, which has"):
                member.task.read(at, 1)
        else:
            own = member.pages.get(page) if private else None
            assert member.task.read(at, PAGE) == bytes(own or self.contents(page))

    @rule(who=who, size=st.integers(0, PAGES * PAGE))
    def truncate(self, who, size):
        if (file := self.pick(who).file) is None:
            return
        file.truncate(size)
        self.data = self.data[:size].ljust(size, b"\0")
        for member in self.tasks:  # private copies behind the end go, too
            member.pages = {page: own for page, own in member.pages.items() if page < self.file_pages()}

    @rule(
        who=who,
        page=st.integers(0, PAGES - 1),
        private=st.booleans(),
        advice=st.sampled_from([MADV_PAGEOUT, MADV_DONTNEED]),
    )
    def madvise(self, who, page, private, advice):
        member, count = self.pick(who), min(2, PAGES - page)
        member.task.madvise((member.where if private else AT) + page * PAGE, count * PAGE, advice)
        if private and advice == MADV_DONTNEED:
            for gone in range(page, page + count):
                member.pages.pop(gone, None)

    @rule(page=st.integers(0, PAGES - 1))
    def swap_out(self, page):
        """The file's page: where one task alone still maps it."""
        if page < self.file_pages():
            for member in self.tasks:
                for start in [AT] if page in member.pages else [AT, member.where]:
                    member.task.madvise(start + page * PAGE, PAGE, MADV_DONTNEED)
            self.tasks[0].task.read(AT + page * PAGE, 1)
            for _ in range(2):  # the first time only takes the accessed bit
                self.tasks[0].task.madvise(AT + page * PAGE, PAGE, MADV_PAGEOUT)

    @rule(who=who)
    def move(self, who):
        member = self.pick(who)
        there = OWN + 0x1000_0000 if member.where == OWN else OWN
        member.task.mremap(member.where, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there)
        member.where = there

    @rule(who=who)
    def fork(self, who):
        if len(self.tasks) < 4:
            of = self.pick(who)
            self.tasks.append(Member(of.task.fork(), None, of.pages, of.where))

    @rule(who=who)
    def exit(self, who):
        if who > 1 and len(self.tasks) > 2:
            self.tasks.pop().task.exit()

    @rule(who=who)
    def drop(self, who):
        self.loop.system("drop_caches", 1)

    @invariant()
    def size(self):
        assert self.tasks[0].file.size == len(self.data)

    def teardown(self):
        self.loop.audit()
        for member in self.tasks:
            member.task.exit()
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
    assert line.startswith(f"{area.addr:x}-{area.addr + 4 * PAGE:x} rw-s 00000000 00:18 ") and line.endswith(
        " /dev/shm/x"
    )
    assert "RssShmem:\t      16 kB" in read(two_nodes, task, "status")
    assert two_nodes.vmstat()["nr_shmem"] == 4 == two_nodes.vmstat()["nr_mapped"]
    assert two_nodes.machine.vm_committed_as == 4 + 2 * 33
    two_nodes.system("unlink", PATH)
    file.close()
    assert read(two_nodes, task, "maps").splitlines()[0].endswith(" /dev/shm/x (deleted)")
    task.exit()
    assert two_nodes.vmstat()["nr_shmem"] == 4  # the other one still maps it
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


def test_a_page_that_a_fork_has_mapped_again_does_not_hang_truncation(two_nodes):
    """Its first walk may miss such a page: then it is told, and walks again."""
    task = two_nodes.task()
    file = task.open(PATH, O_RDWR | O_CREAT)
    file.write(b"a" * 3 * PAGE)
    area = task.mmap(3 * PAGE, flags=MAP_PRIVATE, file=file)
    task.read(area.addr + 2 * PAGE, 1)
    task.madvise(area.addr, PAGE, MADV_DONTNEED)
    inode = inode_of(two_nodes.machine, two_nodes.open_file(file).inode)
    assert shmem_truncate_range(two_nodes.cpu(), inode.object, 0, MAX_INDEX) == 1  # page 0 has gone
    assert two_nodes.machine.tmpfs_pages == 2
    file.truncate(0)
    assert two_nodes.machine.tmpfs_pages == 0
    two_nodes.audit()


def test_names_and_what_is_not_there(two_nodes):
    task = two_nodes.task()
    file = task.open(PATH, O_RDWR | O_CREAT | O_EXCL)
    file.write(b"abc")
    with pytest.raises(OSError, match="File exists"):
        task.open(PATH, O_RDWR | O_CREAT | O_EXCL)
    with pytest.raises(ValueError, match="lies in memory, not on the disk"):
        two_nodes.create_file("/dev/shm/y", b"y")
    assert task.open(PATH, O_RDWR | O_TRUNC).size == 0 and two_nodes.machine.tmpfs_pages == 0
    file.pwrite(b"hole", 3 * PAGE)
    assert file.pread(5, 3 * PAGE - 1) == b"\0hole" and two_nodes.machine.tmpfs_pages == 1
    assert two_nodes.vmstat()["nr_dirty"] == 0 and two_nodes.system("sync") == 0
    two_nodes.audit()


def smaps(loop, task, at):
    """{name: kB} of the mapping that begins at an address."""
    lines = read(loop, task, "smaps").split(f"{at:08x}-")[1].splitlines()[1:22]
    return {line.split()[0].rstrip(":"): int(line.split()[1]) for line in lines if line.endswith(" kB")}


def test_a_private_mapping_of_a_memfd(two_nodes):
    """It shows the file's pages until they are written to, and is counted as what it shows."""
    task = two_nodes.task()
    file = task.memfd_create("story")
    file.write(b"a" * 4 * PAGE)
    area = task.mmap(4 * PAGE, flags=MAP_PRIVATE, file=file)
    assert task.read(area.addr, 1) == b"a"  # and the three around it
    kb = smaps(two_nodes, task, area.addr)
    assert (kb["Rss"], kb["Anonymous"], kb["Private_Dirty"]) == (16, 0, 16)
    task.write(area.addr + PAGE, b"b")
    assert file.pread(1, PAGE) == b"a" and task.read(area.addr + PAGE, 2) == b"ba"
    status = read(two_nodes, task, "status")
    assert "RssShmem:\t      12 kB" in status and "RssAnon:\t       4 kB" in status
    assert smaps(two_nodes, task, area.addr)["Anonymous"] == 4
    file.pwrite(b"c", 0)
    assert task.read(area.addr, 1) == b"c"
    for advice in (MADV_FREE, MADV_WIPEONFORK):  # only for anonymous memory
        with pytest.raises(OSError, match="Invalid argument"):
            task.madvise(area.addr, PAGE, advice)
    assert two_nodes.machine.vm_committed_as == 4 + 4 + 33  # the file's pages, the mapping, the stack
    two_nodes.audit()


@pytest.mark.parametrize("kind", ["disk", "zram"])
def test_private_pages_and_the_files_in_swap(loopback, kind):
    """smaps: swapped out are the copy, and what the file has where nothing else is mapped; coming back is a major fault."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB")
    swapon.swapon(loop.machine, "area", 16 << 20, kind=kind)
    task = loop.task()
    file = task.memfd_create("story")
    file.write(b"a" * 4 * PAGE)
    area = task.mmap(4 * PAGE, flags=MAP_PRIVATE, file=file)
    task.write(area.addr, b"b")
    task.touch(area.addr, 4 * PAGE, write=False)
    for _ in range(2):  # the first time only takes the accessed bits
        task.madvise(area.addr, 4 * PAGE, MADV_PAGEOUT)
    task.mmap(
        "12MiB", flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    ).touch().munmap()  # the swap cache is empty then
    swapfile.swap_of(loop.machine).page_cluster = 0
    kb = smaps(loop, task, area.addr)
    assert (kb["Rss"], kb["Swap"], kb["SwapPss"]) == (0, 16, 4)
    major = task.counters()["task_major_faults"]
    assert task.read(area.addr, 2) == b"ba" and task.read(area.addr + 3 * PAGE, 1) == b"a"
    assert task.counters()["task_major_faults"] - major == 2
    loop.audit()


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

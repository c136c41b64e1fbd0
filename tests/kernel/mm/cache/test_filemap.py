"""The page cache against byte arrays: reads, writes, mappings, truncation, write-back and dropping in any order."""

import errno

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from loopback import SMALL_TLB, Loopback, if_there_is_room

from numaemu import BusError, SegmentationFault
from numaemu.api.files import seeded_bytes
from numaemu.compiler.build import JIT
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.mm.cache.shmem import folio_hold_mapping, release_mapping
from numaemu.kernel.syscalls import allocators as kernel_calls
from numaemu.uapi import (
    MADV_DONTNEED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    O_APPEND,
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
    SEEK_END,
)

PAGES, SEED, PATH = 6, 7, "/mnt/f"  # of the file at first; its mappings are as long as it may become
MOST = 2 * PAGES
SHARED, PRIVATE = 0x1000_0000, 0x2000_0000
RW = PROT_READ | PROT_WRITE
COUNTERS = ("nr_file_pages", "nr_dirty", "nr_writeback", "nr_mapped", "nr_anon_pages", "nr_slab_reclaimable")


class Process:
    """A task with the file open and mapped twice; `own`: {page: bytes} of its private copies."""

    def __init__(self, task, file, own=None):
        self.task, self.file, self.own = task, file, own or {}


class FileMachine(RuleBasedStateMachine):
    """Up to four processes read, write and map one file; each byte seen is the twin's, each page is accounted for."""

    def __init__(self):
        super().__init__()
        self.loop = Loopback(nodes=2, cpus_per_node=1, memory_per_node="8MiB", **SMALL_TLB)
        size = PAGES * 4096 - 1000
        self.loop.create_file(PATH, size, SEED)
        self.data = bytearray(seeded_bytes(SEED, 0, size))
        self.processes = [self.start(cpu) for cpu in (0, 1)]

    def start(self, cpu):
        task = self.loop.task(cpu)
        file = task.open(PATH, O_RDWR)
        for address, kind in ((SHARED, MAP_SHARED), (PRIVATE, MAP_PRIVATE)):
            task.mmap(MOST << 12, RW, kind | 0x10, file=file, addr=address)
        return Process(task, file)

    who, page, cpus = st.integers(0, 3), st.integers(0, MOST - 1), st.integers(0, 1)
    offset, text = st.integers(0, (MOST << 12) - 1), st.binary(min_size=1, max_size=9000)

    def pick(self, who):
        return self.processes[who % len(self.processes)]

    def page_of(self, page):
        """What the file has there: the bytes of a page, zeros behind the end."""
        return bytes(self.data[page << 12 : (page + 1) << 12]).ljust(4096, b"\0")

    def backed(self, page):
        return page << 12 < len(self.data)

    @rule(who=who, offset=offset, n=st.integers(0, 20000))
    def read(self, who, offset, n):
        assert self.pick(who).file.read(n, offset) == bytes(self.data[offset : offset + n])

    @rule(who=who, offset=offset, text=text)
    def write(self, who, offset, text):
        text = text[: (MOST << 12) - offset]
        assert self.pick(who).file.write(text, offset) == len(text)
        self.data.extend(bytes(max(offset + len(text) - len(self.data), 0)))
        self.data[offset : offset + len(text)] = text

    @rule(who=who, page=page, place=st.sampled_from([0, 8, 4088]), value=st.integers(1, 255), cpu=cpus)
    def store_shared(self, who, page, place, value, cpu):
        process, address = self.pick(who), SHARED + (page << 12) + place
        process.task.sched_setaffinity(cpu)
        if not self.backed(page):
            with pytest.raises(BusError, match="which has"):
                process.task.store([address], np.uint8(value))
            return
        process.task.store([address], np.uint8(value))
        if (page << 12) + place < len(self.data):
            self.data[(page << 12) + place] = value

    @rule(who=who, page=page, cpu=cpus)
    def load_shared(self, who, page, cpu):
        process = self.pick(who)
        process.task.sched_setaffinity(cpu)
        if not self.backed(page):
            with pytest.raises(BusError):
                process.task.read(SHARED + (page << 12), 1)
            return
        inside = min(4096, len(self.data) - (page << 12))
        assert process.task.read(SHARED + (page << 12), inside) == self.page_of(page)[:inside]

    @rule(who=who, page=page, value=st.integers(1, 255))
    def store_private(self, who, page, value):
        process, address = self.pick(who), PRIVATE + (page << 12)
        if page not in process.own and not self.backed(page):
            with pytest.raises(BusError):
                process.task.store([address], np.uint8(value))
            return
        process.task.store([address], np.uint8(value))
        if page not in process.own:
            process.own[page] = bytearray(self.page_of(page))
        process.own[page][0] = value

    @rule(who=who, page=page)
    def load_private(self, who, page):
        process = self.pick(who)
        if page not in process.own and not self.backed(page):
            with pytest.raises(BusError):
                process.task.read(PRIVATE + (page << 12), 1)
            return
        inside = 4096 if page in process.own else min(4096, len(self.data) - (page << 12))
        want = bytes(process.own.get(page, self.page_of(page)))
        inside = min(inside, max(len(self.data) - (page << 12), 1))
        assert process.task.read(PRIVATE + (page << 12), inside) == want[:inside]

    @rule(who=who, page=page)
    def forget_private(self, who, page):
        process = self.pick(who)
        process.task.madvise(PRIVATE + (page << 12), 4096, MADV_DONTNEED)
        process.own.pop(page, None)

    @rule(who=who, size=st.integers(0, MOST << 12))
    def truncate(self, who, size):
        self.pick(who).file.truncate(size)
        self.data = self.data[:size].ljust(size, b"\0")
        for process in self.processes:
            process.own = {page: own for page, own in process.own.items() if self.backed(page)}

    @rule(who=who, how=st.sampled_from(["fsync", "msync", "sync"]))
    def write_back(self, who, how):
        process = self.pick(who)
        if how == "fsync":
            process.file.fsync()
        elif how == "msync":
            process.task.msync(SHARED, MOST << 12)
        else:
            self.loop.system("sync")
        assert self.loop.vmstat()["nr_dirty"] == 0

    @rule()
    def drop_caches(self):
        self.loop.system("drop_caches")

    @rule(who=who, node=st.integers(0, 1))
    def migrate(self, who, node):
        with if_there_is_room():
            self.pick(who).task.migrate_pages([1 - node], [node])

    @rule(who=who, cpu=cpus)
    def fork(self, who, cpu):
        if len(self.processes) < 4:
            process = self.pick(who)
            task = process.task.fork(cpu=cpu)
            own = {page: bytearray(data) for page, data in process.own.items()}
            self.processes.append(Process(task, task.open(PATH, O_RDWR), own))

    @rule(who=who)
    def exit(self, who):
        if len(self.processes) > 1:
            process = self.pick(who)
            process.task.exit()
            self.processes.remove(process)

    @invariant()
    def every_page_is_accounted_for(self):
        self.loop.audit()

    def teardown(self):
        reader = self.processes[0].file
        assert reader.read(MOST << 12, 0) == bytes(self.data)
        self.loop.system("sync")
        for process in self.processes:
            process.task.munmap(SHARED, MOST << 12)
            process.task.munmap(PRIVATE, MOST << 12)
        self.loop.system("drop_caches")
        assert self.loop.vmstat()["nr_file_pages"] == 0
        assert reader.read(MOST << 12, 0) == bytes(self.data)
        self.loop.system("unlink", PATH)
        for process in self.processes:
            process.task.exit()
        for cpu in self.loop.cpus:
            kernel_calls.flush_slab(int(cpu.state.address), self.loop.machine.bh_cachep)
        kernel_calls.kernel_cache_shrink(int(self.loop.cpus[0].state.address), self.loop.machine.bh_cachep)
        self.loop.drain()
        used = self.loop.audit()
        assert sum(zone["used"] + zone["tables"] + zone["pcp"] for zone in used.values()) == 1  # the page of zeros
        assert {name: self.loop.vmstat()[name] for name in COUNTERS} == dict.fromkeys(COUNTERS, 0)
        self.loop.close()


FileMachine.TestCase.settings = settings(max_examples=40 if JIT else 3, stateful_step_count=40 if JIT else 20)
TestFiles = pytest.mark.interpreted(FileMachine.TestCase)


@pytest.mark.interpreted
def test_open_files_behave_as_linux_has_them(two_nodes):
    loop, task = two_nodes, two_nodes.task()
    with pytest.raises(FileNotFoundError, match="/mnt/none"):
        task.open("/mnt/none")
    with pytest.raises(FileNotFoundError, match="must begin with /"):
        task.open("none")
    file = task.open("/mnt/a", O_RDWR | O_CREAT | O_EXCL)
    with pytest.raises(FileExistsError):
        task.open("/mnt/a", O_RDWR | O_CREAT | O_EXCL)
    assert (file.write(b"hello world"), file.tell(), file.seek(-5, SEEK_END), file.read()) == (11, 11, 6, b"world")
    log = task.open("/mnt/a", O_WRONLY | O_APPEND)
    log.write(b"!")
    log.write(b"?", offset=0)
    assert file.pread(100, 0) == b"hello world!?"
    with pytest.raises(OSError, match="Bad file descriptor"):
        log.read(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        task.open("/mnt/a").write(b"x")
    with pytest.raises(PermissionError):
        task.mmap(4096, RW, MAP_SHARED, task.open("/mnt/a"))
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.task()._op("file_read", file.fd, 0, 1)  # another task's
    assert task.open("/mnt/a", O_RDWR | O_TRUNC).size == 0 and file.pread(100, 0) == b""
    file.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.read(1)
    loop.audit()


@pytest.mark.interpreted
def test_a_name_that_goes_leaves_the_open_file(two_nodes):
    loop, task = two_nodes, two_nodes.task()
    loop.create_file("/mnt/f", b"contents")
    file = task.open("/mnt/f")
    area = task.mmap(4096, PROT_READ, MAP_PRIVATE, file)
    loop.system("unlink", "/mnt/f")
    file.close()
    assert task.read(area.addr, 8) == b"contents"
    with pytest.raises(FileNotFoundError):
        task.open("/mnt/f")
    assert loop.vmstat()["nr_file_pages"] == 1
    area.munmap()
    assert loop.vmstat()["nr_file_pages"] == 0
    loop.audit()


@pytest.mark.interpreted
def test_one_copy_of_a_library_serves_many(two_nodes):
    """Mapped privately by three tasks: 8 pages in memory, each mapped three times."""
    loop = two_nodes
    loop.create_file("/lib/libc.so", 8 << 12, 3)
    tasks = [loop.task(cpu) for cpu in (0, 1, 0)]
    for task in tasks:
        area = task.mmap(8 << 12, PROT_READ, MAP_PRIVATE | MAP_POPULATE, task.open("/lib/libc.so"))
        assert task.read(area.addr, 8 << 12) == seeded_bytes(3, 0, 8 << 12)
        assert loop.mm(task).rss[0] == 8
    assert loop.vmstat()["nr_file_pages"] == loop.vmstat()["nr_mapped"] == 8
    assert loop.vmstat()["pgpgin"] == 32
    pfn = loop.pfn(tasks[0], area.addr)
    assert loop.page(pfn).mapcount == 3 and loop.page(pfn).refcount >= 4
    loop.audit()


@pytest.mark.interpreted
def test_a_page_that_cannot_be_read_for_lack_of_memory_kills_only_the_task(loopback):
    """Everything but a few pages is taken by others: readahead gives up quietly, the page itself is needed."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    loop.create_file("/mnt/f", 64 << 12, 3)
    task = loop.task()
    file = task.open("/mnt/f")
    loop.machine.on_oom = 0
    held = list(iter(lambda: task.kernel.alloc_pages(GFP_KERNEL), None))
    with pytest.raises(OSError, match="Cannot allocate"):
        file.read(4096)
    for pfn in held:
        task.kernel.free_pages(pfn)
    assert file.read(4096) == seeded_bytes(3, 0, 4096)
    loop.audit()


@pytest.mark.interpreted
def test_a_full_disk_is_told(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="8MiB", disk={"size": "2MiB"})
    task = loop.task()
    loop.create_file("/mnt/a", 400 << 12)
    file = task.open("/mnt/b", O_RDWR | O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        file.write(bytes(113 << 12))
    assert file.write(bytes(112 << 12)) == 112 << 12
    loop.system("unlink", "/mnt/a")
    assert file.write(bytes(300 << 12)) == 300 << 12
    with pytest.raises(OSError, match="No space left"):
        loop.create_file("/mnt/c", 2 << 20)
    assert "/mnt/c" not in proc.files(loop.machine)
    loop.audit()


@pytest.mark.interpreted
def test_dropping_spares_what_is_dirty_or_mapped(two_nodes):
    loop, task = two_nodes, two_nodes.task()
    loop.create_file("/mnt/f", 8 << 12, 3)
    file = task.open("/mnt/f", O_RDWR)
    file.read()
    file.write(b"dirty", 0)
    area = task.mmap(4096, PROT_READ, MAP_SHARED, file, 7 << 12)
    task.read(area.addr, 1)
    mapped = loop.vmstat()["nr_mapped"]
    assert loop.system("drop_caches") == 7 - mapped
    assert loop.vmstat()["drop_pagecache"] == 1
    assert proc.files(loop.machine) == {"/mnt/f": {"size": 8 << 12, "cached": 1 + mapped, "dirty": 1}}
    loop.audit()


@pytest.mark.interpreted
def test_maps_name_the_file(two_nodes):
    loop, task = two_nodes, two_nodes.task()
    loop.create_file("/mnt/f", 8 << 12, 3)
    area = task.mmap(4 << 12, PROT_READ, MAP_PRIVATE, task.open("/mnt/f"), 2 << 12)
    system = System(loop.machine, loop.topology)
    line = next(line for line in proc.read(system, f"/proc/{task.pid}/maps").splitlines() if "/mnt/f" in line)
    assert line.split() == [f"{area.addr:x}-{area.addr + 0x4000:x}", "r--p", "00002000", "fe:00", "1", "/mnt/f"]
    task.read(area.addr, 1)
    assert "file=/mnt/f mapped=" in proc.read(system, f"/proc/{task.pid}/numa_maps")
    assert "RssFile:\t      16 kB" in proc.read(system, f"/proc/{task.pid}/status")
    loop.system("unlink", "/mnt/f")
    assert "/mnt/f (deleted)" in proc.read(system, f"/proc/{task.pid}/maps")


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 4090, 12345])
def test_a_seeded_file_is_what_its_twin_says(two_nodes, offset):
    two_nodes.create_file("/mnt/f", 20000, 99)
    assert two_nodes.task().open("/mnt/f").read(5000, offset) == seeded_bytes(99, offset, 5000)


def rewrite(task, path):
    """Writes through a mapping, and write(2), of one file from several CPUs."""
    file = task.open(path, O_RDWR)
    area = task.mmap(64 << 12, RW, MAP_SHARED, file)
    for round_ in range(1, 40):
        task.store(area.pages() + np.uint64(8 * task.cpu), np.uint64(round_))
        file.write(bytes([round_]) * 8, offset=(round_ % 64 << 12) + 2048 + 8 * task.cpu)
        if round_ % 8 == task.cpu:
            area.msync()
        if round_ % 8 == 5:
            task.madvise(area.addr, area.nbytes, MADV_DONTNEED)
    return task.load(area.pages() + np.uint64(8 * task.cpu)).tolist()


def test_many_cpus_write_one_file_while_it_is_written_back(machine):
    """Four real CPUs store, write, sync and drop at once: nobody's last word is lost, on disk neither."""
    machine.create_file("/mnt/shared", 64 << 12)
    handles = [machine.spawn(rewrite, "/mnt/shared", cpu=cpu) for cpu in range(4)]
    for _ in range(10):
        machine.write("/proc/sys/vm/drop_caches", "1")
        machine.sync()
    assert [handle.result(timeout=120) for handle in handles] == [[39] * 64] * 4
    machine.sync()
    machine.write("/proc/sys/vm/drop_caches", "3")
    assert machine.files()["/mnt/shared"] == {"size": 64 << 12, "cached": 0, "dirty": 0}
    data = machine.task().open("/mnt/shared").read()
    for page in range(64):
        words = np.frombuffer(data[page << 12 :][:32], np.uint64)
        assert words.tolist() == [39] * 4
        last = max(round_ for round_ in range(1, 40) if round_ % 64 == page) if page in range(1, 40) else None
        if last:
            assert data[(page << 12) + 2048 :][:32] == bytes([last]) * 32
    machine.unlink("/mnt/shared")
    machine.check()


def read_all(task, paths):
    for path in paths:
        with task.open(path) as file:
            file.read_through()


def test_shadows_are_counted_by_leaf_and_go_with_the_pages_or_the_file(loopback):
    """workingset_nodes: parts of files' trees that know only pages which were reclaimed; the audit counts them again."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    task, paths = loop.task(), [f"/mnt/{n}" for n in range(32)]
    for path in paths:
        loop.create_file(path, 32 << 12)
    read_all(task, paths)
    assert loop.vmstat()["workingset_nodes"] == 0
    filler = task.mmap("13MiB").touch()
    only_shadows = loop.vmstat()["workingset_nodes"]
    assert loop.vmstat()["pgsteal_file"] > 200 and 4 < only_shadows <= 32
    loop.audit()
    task.munmap(filler.addr, filler.nbytes)
    read_all(task, paths)
    assert loop.vmstat()["workingset_nodes"] == 0 and loop.vmstat()["workingset_refault_file"] > 200
    loop.audit()
    filler = task.mmap("13MiB").touch()
    left = loop.vmstat()["workingset_nodes"]
    for path in paths[:16]:
        loop.system("unlink", path)
    assert 0 < loop.vmstat()["workingset_nodes"] < left or left == 0
    loop.audit()
    loop.system("drop_caches")
    assert loop.vmstat()["workingset_nodes"] == 0
    loop.audit()


@pytest.mark.interpreted
def test_who_holds_a_mapping_last_does_not_take_the_file_along(two_nodes):
    """Compaction holds the mapping of a page that it moves, and the last munmap may come meanwhile: the inode has it still."""
    two_nodes.create_file("/mnt/held", 4096, SEED)
    task = two_nodes.task()
    with task.open("/mnt/held", O_RDWR) as file:
        area = task.mmap(4096, RW, MAP_SHARED, file=file).touch()
        pfn = two_nodes.pfn(task, area.addr)
        held = folio_hold_mapping(two_nodes.cpu(), pfn)
        assert held > 0
        area.munmap()
        release_mapping(two_nodes.cpu(), held)
        two_nodes.audit()
        assert file.pread(4096, 0) == seeded_bytes(SEED, 0, 4096)
        held = folio_hold_mapping(two_nodes.cpu(), pfn)  # nobody maps it, and it can be moved all the same
        assert held > 0
    two_nodes.system("unlink", "/mnt/held")  # the inode goes first
    release_mapping(two_nodes.cpu(), held)
    two_nodes.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("path", ["/mnt/ro", "/dev/shm/ro"])
def test_what_was_opened_for_reading_is_never_written_through_a_mapping(two_nodes, path):
    task = two_nodes.task()
    if path.startswith("/mnt"):
        two_nodes.create_file(path, b"as it was")
    else:
        with task.open(path, O_RDWR | O_CREAT) as file:
            file.write(b"as it was")
    file = task.open(path, O_RDONLY)
    area = task.mmap(4096, PROT_READ, MAP_SHARED, file=file)
    for prot in (RW, PROT_WRITE):
        with pytest.raises(OSError) as caught:
            task.mprotect(area.addr, 4096, prot)
        assert caught.value.errno == errno.EACCES
    with pytest.raises(SegmentationFault):
        task.write(area.addr, b"X")
    line = next(line for line in two_nodes.read(f"/proc/{task.pid}/maps").splitlines() if path in line)
    assert line.split()[1] == "r--s" and task.read(area.addr, 9) == b"as it was"
    flags = next(line for line in two_nodes.read(f"/proc/{task.pid}/smaps").splitlines() if line.startswith("VmFlags"))
    assert flags.split()[1:6] == ["rd", "mr", "me", "ms", "sd"]
    task.mprotect(area.addr, 4096, PROT_READ | PROT_EXEC)
    own = task.mmap(4096, PROT_READ, MAP_PRIVATE, file=file)
    task.mprotect(own.addr, 4096, RW)
    task.write(own.addr, b"own")
    assert task.read(area.addr, 9) == b"as it was"
    two_nodes.audit()

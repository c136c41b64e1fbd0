"""The page cache against byte arrays: reads, writes, mappings, truncation, write-back and dropping in any order."""
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from loopback import SMALL_TLB, Loopback

from numaemu import BusError, SegmentationFault
from numaemu.build import JIT
from numaemu.files import seeded_bytes
from numaemu.kernel import sys as syscalls
from numaemu.uapi import (MADV_DONTNEED, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED, O_APPEND, O_CREAT, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC,
                          O_WRONLY, PROT_READ, PROT_WRITE, SEEK_END)

PAGES, SEED, PATH = 6, 7, "/mnt/f"       # of the file at first; its mappings are as long as it may become
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
        return bytes(self.data[page << 12:(page + 1) << 12]).ljust(4096, b"\0")

    def backed(self, page):
        return page << 12 < len(self.data)

    @rule(who=who, offset=offset, n=st.integers(0, 20000))
    def read(self, who, offset, n):
        assert self.pick(who).file.read(n, offset) == bytes(self.data[offset:offset + n])

    @rule(who=who, offset=offset, text=text)
    def write(self, who, offset, text):
        text = text[:(MOST << 12) - offset]
        assert self.pick(who).file.write(text, offset) == len(text)
        self.data.extend(bytes(max(offset + len(text) - len(self.data), 0)))
        self.data[offset:offset + len(text)] = text

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
            syscalls.flush_slab(int(cpu.state.address), self.loop.machine.bh_cachep)
        syscalls.kernel_cache_shrink(int(self.loop.cpus[0].state.address), self.loop.machine.bh_cachep)
        self.loop.drain()
        used = self.loop.audit()
        assert sum(zone["used"] + zone["tables"] + zone["pcp"] for zone in used.values()) == 1      # the page of zeros
        assert {name: self.loop.vmstat()[name] for name in COUNTERS} == dict.fromkeys(COUNTERS, 0)
        self.loop.close()


FileMachine.TestCase.settings = settings(max_examples=60 if JIT else 3, stateful_step_count=40 if JIT else 20)
TestFiles = pytest.mark.interpreted(FileMachine.TestCase)

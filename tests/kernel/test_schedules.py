"""The tool that tries schedules (tests/schedules.py): small programs in every order, and faults of the past, which it must find."""

import ctypes

import numpy as np
import pytest
from schedules import Exploration, Failed, Inside, Stage, explore, spoil

from numaemu import SegmentationFault
from numaemu.compiler.atomic import fetch_add, load_acquire
from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import address_of, i64, u64
from numaemu.hardware import mailbox
from numaemu.hardware.mailbox import FULL, RING, fall_asleep, fetch, mailbox_t, post
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import pte_pfn
from numaemu.kernel.arch.tlb import mm_tlb_flush_pending
from numaemu.kernel.core import smp
from numaemu.kernel.core.smp import MSG_DRAIN, PHASE, read_unlock
from numaemu.kernel.core.xarray import xa_get_page, xa_slot
from numaemu.kernel.fs.inode import inode_of
from numaemu.kernel.include.gfp import GFP_HIGHUSER_MOVABLE, GFP_KERNEL
from numaemu.kernel.mm.cache.pagemap import filemap_get_folio
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.migrate.compact_control import COMPACT_ALL, MIGRATE_SYNC, compact_control_of
from numaemu.kernel.mm.migrate.compaction import init_control, migrate_isolated, place_scanners, release_freepages
from numaemu.kernel.mm.migrate.migrate import batch_of, compaction_free
from numaemu.kernel.mm.migrate.migrate_scanner import isolate_migratepages_block
from numaemu.kernel.mm.page_alloc.page_alloc import put_page
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, shrink_node
from numaemu.kernel.mm.swap import swapon
from numaemu.kernel.syscalls import common as syscalls
from numaemu.kernel.syscalls.mempolicy import sys_get_mempolicy
from numaemu.spec.param import PAGEBLOCK_PAGES
from numaemu.uapi import MAP_SHARED, MPOL_BIND, MPOL_F_NODE, O_RDWR, POSIX_FADV_DONTNEED, PROT_NONE

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(JIT, reason="a compiled function cannot be held up in its middle"),
]
PAGE = 4096
SWAP_BYTES = 64 * PAGE  # small, as every look at the end goes over all of it


@pytest.fixture
def stage():
    made = []

    def make(swap=False, **keywords):
        made.append(Stage(**{**dict(nodes=1, cpus_per_node=2, memory_per_node="4MiB"), **keywords}))
        if swap:
            swapon.swapon(made[-1].machine, "area", SWAP_BYTES)
        return made[-1]

    yield make
    for machine in made:
        machine.close()


def reclaim(stage, node=0, passes=3):
    """What kswapd does at its hardest: the first passes find that pages have been used."""
    cpu = cpu_t.at(stage.context(node))
    sc = scan_control_of(cpu)
    for _ in range(passes):
        init_scan_control(stage.machine, sc, GFP_KERNEL, 0, stage.machine.node_mask)
        sc.priority, sc.kswapd = 0, 1
        shrink_node(cpu, sc, node)


# -- short programs in every order -------------------------------------------------------------------------------------------


def lock_program(memory, readers, writers):
    """Contexts that take a lock of readers and writers, and look who else has it."""
    lock, inside = int(memory.ctypes.data), i64.array(int(memory.ctypes.data) + 8)

    def program(stage):
        memory[:] = 0

        def hold(number, take, give, adds, allowed):
            take(stage.cpu(number), lock)
            fetch_add(inside, 0, adds)
            assert load_acquire(inside, 0) in allowed
            fetch_add(inside, 0, -adds)
            give(lock)

        def look():
            assert memory[0] & ~PHASE == 0 and memory[1] == 0

        shared = range(1, readers + 1)
        kinds = [(smp.read_lock, read_unlock, 1, shared)] * readers + [
            (smp.write_lock, smp.write_unlock, 100, (100,))
        ] * writers
        names = [f"reader {n}" for n in range(readers)] + [f"writer {n}" for n in range(writers)]
        return {name: lambda n=n: hold(n, *kinds[n]) for n, name in enumerate(names)}, look

    return program


@pytest.mark.parametrize("readers, writers", [(2, 1), (1, 2)])
def test_readers_and_writers(stage, readers, writers):
    machine, memory = stage(cpus_per_node=3), np.zeros(2, np.int64)
    words = [int(memory.ctypes.data), int(memory.ctypes.data) + 8]
    program = lock_program(memory, readers, writers)
    every = Exploration(machine, program, kthreads=False, audit=False, visible=words)
    every.every(2, limit=250)
    every.seeds(range(30))


def test_a_reader_that_does_not_look_for_a_writer_is_found(stage, monkeypatch):
    machine, memory = stage(cpus_per_node=3), np.zeros(2, np.int64)
    words = [int(memory.ctypes.data), int(memory.ctypes.data) + 8]
    spoil(monkeypatch, smp.read_lock, ("if seen >= 0 and seen", "if seen"))
    program = lock_program(memory, 1, 1)
    with pytest.raises(Failed, match="assert"):
        Exploration(machine, program, kthreads=False, audit=False, visible=words).every(1)


def mailbox_program(box):
    """Two contexts post to a mailbox of two slots, a third one reads, and sleeps while there is nothing."""

    def program(stage):
        ctypes.memset(box.address, 0, mailbox_t.nbytes)
        words, got = np.zeros(7, np.int64), []

        def post_all(sender):
            for number in range(3):
                while (posted := post(box, MSG_DRAIN, sender, number, 0, 0, 0, 0)) == FULL:
                    stage.others_run()
                if posted == RING:
                    stage.run.wake("mail")

        def read():
            while len(got) < 6:
                while fetch(box, i64.array(words.ctypes.data)):
                    got.append((int(words[1]), int(words[2])))
                if len(got) < 6 and fall_asleep(box):
                    stage.run.wait("mail")

        def look():
            for sender in (1, 2):
                assert [number for who, number in got if who == sender] == [0, 1, 2]

        return {"reads": read, "posts 1": lambda: post_all(1), "posts 2": lambda: post_all(2)}, look

    return program


def test_a_mailbox_loses_no_message_and_no_ring(stage, monkeypatch):
    monkeypatch.setattr(mailbox, "MAILBOX_SLOTS", 2)
    machine, memory = stage(), np.zeros(mailbox_t.nbytes, np.uint8)
    program = mailbox_program(mailbox_t.at(memory.ctypes.data))
    tried = Exploration(machine, program, kthreads=False, audit=False)
    tried.every(1, limit=400)
    tried.seeds(range(60))


def test_a_receiver_that_does_not_look_a_last_time_is_found(stage, monkeypatch):
    monkeypatch.setattr(mailbox, "MAILBOX_SLOTS", 2)
    machine, memory = stage(), np.zeros(mailbox_t.nbytes, np.uint8)
    program = mailbox_program(mailbox_t.at(memory.ctypes.data))
    monkeypatch.setattr(mailbox, "has_mail", lambda box: False)
    with pytest.raises(Failed, match="a wake-up was lost"):
        Exploration(machine, program, kthreads=False, audit=False).every(1)


# -- faults of the past ------------------------------------------------------------------------------------------------


def mprotect_while_reclaim(stage, kind):
    """A thread uses pages that reclaim is taking, of a file or its own, and that another thread protects."""
    task = stage.task()
    if kind == "file":
        stage.create_file("/mnt/f", 4 * PAGE)
        area = task.mmap(4 * PAGE, flags=MAP_SHARED, file=task.open("/mnt/f", O_RDWR))
        task.load(area.pages())
    else:
        area = task.mmap(4 * PAGE).touch()
    thread = task.clone(cpu=1)

    def program(stage):
        protected = []
        inside = Inside(stage, thread)
        inside.begin()
        for page in area.pages():
            inside.load(page)

        def protect():
            task.mprotect(area.addr, area.nbytes, PROT_NONE)
            protected.append(True)

        def use():
            late = False
            while not late:
                late = bool(protected)
                try:
                    for page in area.pages():
                        inside.load(page)
                        assert not late, "a page could be read after mprotect had returned"
                except SegmentationFault:
                    break
                stage.others_run()
            inside.end()

        return {"reclaim": lambda: reclaim(stage), "mprotect": protect, "use": use}, None

    return program


@pytest.mark.parametrize("kind", ["file", "anonymous"])
def test_mprotect_while_reclaim(stage, kind):
    machine = stage(swap=True)
    explore(machine, mprotect_while_reclaim(machine, kind), range(20), kthreads=False)


def test_the_flush_after_the_batch_is_found_missing(stage, monkeypatch):
    machine = stage(swap=True)
    program = mprotect_while_reclaim(machine, "file")
    spoil(monkeypatch, mm_tlb_flush_pending, ("> 0", "< 0"))
    with pytest.raises(Failed, match="after mprotect had returned"):
        explore(machine, program, range(60), kthreads=False)


def get_mempolicy_while_munmap(stage):
    """A thread asks for the node of a page of node 0; another one unmaps it, and its page table gets a page of node 1."""
    task = stage.task()
    area, elsewhere = task.mmap(PAGE, addr=3 << 30), task.mmap(PAGE, addr=5 << 30)
    task.store([area.addr], [1])
    task.mbind(elsewhere.addr, PAGE, MPOL_BIND, 1)
    thread = task.clone(cpu=1)

    def program(stage):
        def unmap():
            task.munmap(area.addr, PAGE)
            task.store([elsewhere.addr], [1])

        def ask():
            try:
                node = thread.get_mempolicy(area.addr, MPOL_F_NODE)[0]
            except OSError:
                return
            assert node == 0, f"a page of node 0 is said to be on node {node}"

        return {"ask": ask, "unmap": unmap}, None

    return program


def test_get_mempolicy_while_munmap(stage):
    machine = stage(nodes=2)
    explore(machine, get_mempolicy_while_munmap(machine), range(20))


def test_the_unlocked_walk_of_get_mempolicy_is_found(stage, monkeypatch):
    machine = stage(nodes=2)
    program = get_mempolicy_while_munmap(machine)
    locks = ("        read_lock(cpu, mmap_lock(cpu))\n", ""), ("        read_unlock(mmap_lock(cpu))\n", "")
    spoil(monkeypatch, sys_get_mempolicy, *locks)
    with pytest.raises(Failed, match="said to be on node 1"):
        explore(machine, program, range(200))


def pread_while_reuse(stage):
    """A task reads a file whose page another one drops, and whose frame it uses for itself."""
    stage.create_file("/mnt/f", b"f" * PAGE)
    reader, other = stage.task(cpu=1), stage.task()
    file, dropped = reader.open("/mnt/f", O_RDWR), other.open("/mnt/f", O_RDWR)
    area = other.mmap(PAGE)
    file.pread(8, 0)

    def program(stage):
        def drop():
            dropped.fadvise(0, PAGE, POSIX_FADV_DONTNEED)
            other.write(area.addr, b"secret!!")

        def read():
            assert file.pread(8, 0) == b"f" * 8

        return {"read": read, "drop": drop}, None

    return program


def test_pread_while_reuse(stage):
    machine = stage()
    explore(machine, pread_while_reuse(machine), range(20))


def test_a_missing_second_look_after_try_get_page_is_found(stage, monkeypatch):
    machine = stage()
    program = pread_while_reuse(machine)
    spoil(monkeypatch, xa_get_page, ("load_acquire(u64.array(slot), 0) == entry", "True"))
    with pytest.raises(Failed, match="in read:"):
        explore(machine, program, range(150))


def page_of_file(stage, file, index=0):
    """(number of a file's mapping, pfn of a page of it)"""
    number = inode_of(stage.machine, stage.open_file(file).inode).mapping
    slot = int(xa_slot(stage.machine, mapping_of(stage.machine, number), index))
    return number, int(pte_pfn(u64.array(slot)[0]))


def lookup_while_compaction(stage):
    """A CPU looks a page of a file up. Another one drops it, and compacts: a page is to go to its frame, but cannot be moved.

    Others may run before what the two do with the reference counts of these pages.
    """
    task = stage.task()
    stage.create_file("/mnt/stays", bytes(PAGE))
    stage.create_file("/mnt/goes", bytes(PAGE))
    stays, goes = task.open("/mnt/stays", O_RDWR), task.open("/mnt/goes", O_RDWR)
    stays.pread(8, 0)
    while task.kernel.alloc_pages(GFP_HIGHUSER_MOVABLE, 0) != 2 * PAGEBLOCK_PAGES - 1:
        pass  # the free scanner does not come to the first two pageblocks
    goes.pread(8, 0)
    mapping, frame, busy = page_of_file(stage, goes)[0], *(page_of_file(stage, file)[1] for file in (goes, stays))
    assert frame % PAGEBLOCK_PAGES == 0, "the free scanner is to come to this frame first"
    zone, page, cpus = stage.zones()[0], stage.page(busy), [stage.cpu(0), stage.cpu(1)]
    page.refcount += 1  # a device reads it

    def program(stage):
        def drop_and_compact():
            goes.fadvise(0, PAGE, POSIX_FADV_DONTNEED)
            cc = compact_control_of(stage.machine, 0)
            init_control(cc, COMPACT_ALL, GFP_KERNEL, MIGRATE_SYNC, 0)
            cc.zone, cc.whole_zone, cc.ignore_skip_hint, cc.cluster = zone.number, 1, 1, 32
            cc.freepages = cc.nr_freepages = cc.free_isolated = 0
            syscalls.drain_pages(int(cpus[0].address))
            place_scanners(stage.machine, cc)
            batch_of(stage.machine, cpus[0]).nr = 0
            isolate_migratepages_block(cpus[0], cc, busy, busy + 1)
            migrate_isolated(cpus[0], cc)
            release_freepages(cpus[0], cc)

        def look_up():
            found = filemap_get_folio(cpus[1], mapping, 0)
            if found != 0:
                put_page(cpus[1], found)

        def look():
            page.refcount -= 1
            assert stage.page(frame).refcount >= 0, "a reference was lost"

        return {"look up": look_up, "compact": drop_and_compact}, look

    return program, [int(address_of(stage.page(pfn), "refcount")) for pfn in (frame, busy)]


def test_lookup_while_compaction(stage):
    machine = stage(memory_per_node="12MiB")
    program, visible = lookup_while_compaction(machine)
    explore(machine, program, range(4))
    assert Exploration(machine, program, audit=False, visible=visible).every(2)


def test_a_stored_reference_count_in_compaction_is_found(stage, monkeypatch):
    machine = stage(memory_per_node="12MiB")
    program, visible = lookup_while_compaction(machine)
    right = """    if fetch_add(page, "refcount", -1) != 1:
        return
"""
    spoil(monkeypatch, compaction_free, (right, "    page.refcount = 0\n"))
    with pytest.raises(Failed):
        Exploration(machine, program, audit=False, visible=visible).every(3)

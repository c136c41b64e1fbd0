"""What a program does wrong with a heap: it is told, the heap goes on, and `check` finds what was written over."""

import numpy as np
import pytest

from numaemu import HeapError, SegmentationFault
from numaemu.compiler.library import library
from numaemu.malloc import aligned_alloc, calloc, free, malloc, realloc, usable_size
from numaemu.malloc.check import check_headers
from numaemu.malloc.control import lock, unlock
from numaemu.malloc.errors import FREE_TWICE
from numaemu.malloc.kinds import KINDS
from numaemu.malloc.rows import COLUMNS

pytestmark = pytest.mark.interpreted

every_kind = pytest.mark.parametrize("kind", KINDS)
TAGGED, CHUNKS = ("implicit", "explicit", "segregated"), ("dlmalloc", "ptmalloc")
WILD, HUGE = 0x7000_0000_0000, (1 << 63) - 1


@every_kind
def test_sizes_are_as_in_c(two_nodes, kind):
    """Nothing, negative numbers (which are huge in C), numbers that no word holds, products that no word holds."""
    heap = two_nodes.task().malloc_heap(kind)
    block = heap.malloc("1KiB")
    for nbytes in (0, -1, -5000, 1 << 62, HUGE, 1 << 63, 1 << 80):
        assert heap.malloc(nbytes) is None
        assert heap.aligned_alloc(64, nbytes) is None
        if nbytes:
            assert heap.realloc(block, nbytes) is None
    for number, nbytes in (((1 << 61) + 1, 8), (1 << 33, 1 << 31), (-1, -8), (-1, 1), (0, 8), (8, 0)):
        assert heap.calloc(number, nbytes) is None
    for alignment in (1, 2, 8, 4096, "2MiB"):
        assert heap.aligned_alloc(alignment, 10) % (alignment if alignment != "2MiB" else 1 << 21) == 0
    for alignment in (1 << 40, 1 << 62):
        assert heap.aligned_alloc(alignment, 10) is None
    assert heap.usable_size(block) >= 1024 and heap.usable_size(None) == 0
    assert heap.realloc(block, 0) is None and heap.stats().payload == 50
    heap.check()


def test_what_is_no_size_is_told_and_leaves_no_lock(two_nodes):
    heap = two_nodes.task().malloc_heap("segregated")
    for wrong in (2.5, None, True, "much"):
        with pytest.raises(TypeError, match="malloc: nbytes must be a size such as 4096 or '64KiB'"):
            heap.malloc(wrong)
    for alignment in (0, 3, -8):
        with pytest.raises(ValueError, match=f"aligned_alloc: alignment is {alignment}, must be a power of two"):
            heap.aligned_alloc(alignment, 8)
    with pytest.raises(TypeError, match="free: block must be an address"):
        heap.free("x")
    assert heap.malloc(8) and heap.check() and heap.map(width=0, lines=-1)


@library
def corners(cpu, heap):
    """The same in a user kernel: how many answers are wrong."""
    block = malloc(cpu, heap, 100)
    wrong = 0
    for alignment in (-8, 0, 3, 12):
        wrong += aligned_alloc(cpu, heap, alignment, 10) != 0
    for nbytes in (-1, 0, 1 << 60):
        wrong += aligned_alloc(cpu, heap, 64, nbytes) != 0
        wrong += malloc(cpu, heap, nbytes) != 0
    wrong += calloc(cpu, heap, (1 << 61) + 1, 8) != 0
    wrong += realloc(cpu, heap, block, -1) != 0 or usable_size(cpu, heap, block) < 100
    free(cpu, heap, 0)
    wrong += usable_size(cpu, heap, 0) != 0
    free(cpu, heap, realloc(cpu, heap, 0, 30))
    return wrong + (realloc(cpu, heap, block, 0) != 0)


def test_user_kernels_get_the_same_answers(two_nodes):
    task = two_nodes.task()
    heap = task.malloc_heap("segregated")
    assert task.call(corners, heap) == 0
    assert heap.stats().payload == 0


@every_kind
@pytest.mark.parametrize("growth", [1, 13, 100])
def test_any_growth_will_do(two_nodes, kind, growth):
    heap = two_nodes.task().malloc_heap(kind, growth=growth)
    blocks = [heap.malloc(n) for n in (10, 100, 1000, 3, 5000)]
    for block in blocks[::2]:
        heap.free(block)
    heap.check()
    assert heap.malloc(2000) and heap.check()


def test_options_that_cannot_be_are_told(two_nodes):
    task = two_nodes.task()
    before = two_nodes.read(f"/proc/{task.pid}/maps")
    for options, message in (
        ({"growth": "2GiB"}, "growth is 2GiB, must be at most 1GiB"),
        ({"limit": "1MiB"}, "limit is '1MiB', which only a heap with source='mmap' has"),
        ({"source": "mmap", "limit": 0}, "limit is 0B, must be at least 4KiB"),
        ({"source": ["brk"]}, "source is .*, must be brk or mmap"),
        ({"mmap_threshold": 0}, "mmap_threshold is 0B, must be at least 1B"),
        ({"node": "x"}, "node must be a node's number, not 'x'"),
        ({"node": -1}, "node -1 is not a node of this machine"),
        ({"accounts": "no"}, "accounts must be True or False, not 'no'"),
        ({"trim_threshold": 4096}, "a heap of kind implicit has no option trim_threshold"),
    ):
        with pytest.raises(Exception, match=message):
            task.malloc_heap("implicit", **options)
    assert two_nodes.read(f"/proc/{task.pid}/maps") == before
    heap = task.malloc_heap("implicit", source="mmap")  # its 64 MiB are more than the machine has
    with pytest.raises(TypeError, match="is there already and takes no option fit"):
        task.malloc_heap(heap, fit="best")


@pytest.mark.parametrize("kind", TAGGED)
def test_a_heap_ends_before_sizes_do(two_nodes, kind):
    """Free neighbours of more than 2 GiB would make a block whose size no tag can hold."""
    heap = two_nodes.task().malloc_heap(kind, source="mmap", limit="8GiB")
    first, second = heap.malloc(3 << 29), heap.malloc(3 << 29)
    assert first and second is None
    heap.free(first)
    assert heap.malloc(9 << 27) and heap.check()


@every_kind
def test_the_last_bytes_of_a_limit_serve(two_nodes, kind):
    heap = two_nodes.task().malloc_heap(kind, source="mmap", limit="32KiB")
    blocks = 0
    while heap.malloc(200):
        blocks += 1
    assert blocks * 256 > 32768 - 1024 - 4096 * (kind in CHUNKS)
    heap.check()


@every_kind
def test_a_break_that_has_moved_stays(two_nodes, kind):
    """Only the last of several heaps by brk can grow or shrink."""
    task = two_nodes.task()
    first = task.malloc_heap(kind)
    block = first.malloc(30000)
    second = task.malloc_heap(kind)
    other = second.malloc(30000)
    first.free(block)
    assert first.trim() == 0 and first.check() >= 0
    assert first.malloc(100) and first.malloc(100_000) is None
    second.free(other)
    assert second.trim() > 8192
    first.check()
    second.check()


def free_blocks(two_nodes, kind):
    """A heap with many free blocks of one size, no two of them neighbours: task, heap, addresses of all blocks."""
    task = two_nodes.task()
    heap = task.malloc_heap(kind)
    blocks = [heap.malloc(2000) for _ in range(8)]
    for block in blocks[1::2]:
        heap.free(block)
    heap.check()
    return task, heap, blocks


LINK = {"segregated": np.uint32, "explicit": np.int64, "buddy": np.int64, "dlmalloc": np.int64, "ptmalloc": np.int64}
BEFORE = {
    "explicit": 0,
    "segregated": 0,
    "buddy": 8,
    "dlmalloc": 16,
    "ptmalloc": 16,
}  # a link leads there, from the payload
FAULTS = {
    "wild": "has an entry 0x[0-9a-f]+, where no block begins",
    "odd": "has an entry 0x[0-9a-f]+, where no block begins",
    "used": "has a block that is used",
    "cycle": "a free block stands twice in list",
    "back": "whose link back does not lead to the entry before it",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", LINK)
def test_check_finds_what_is_wrong_with_a_list(two_nodes, kind, fault):
    task, heap, blocks = free_blocks(two_nodes, kind)
    base = heap._word(16)[0] if kind == "segregated" else 0
    leads = {"wild": WILD, "odd": blocks[1] + 4, "used": blocks[2], "cycle": blocks[3], "back": WILD}[fault]
    link = LINK[kind]()
    at = blocks[3] + (link.nbytes if fault == "back" else 0)
    task.store(
        [at],
        np.array(
            [
                (leads - base - (BEFORE[kind] if leads != WILD else 0)) & (1 << 31) - 1
                if base
                else leads - (BEFORE[kind] if leads != WILD else 0)
            ],
            link.dtype,
        ),
    )
    with pytest.raises(HeapError, match=f"^heap: .*{FAULTS[fault]}"):
        heap.check()
    assert heap.stats().blocks == 4 and heap.map() and len(heap.blocks()) >= 8


@pytest.mark.parametrize("kind", CHUNKS)
def test_a_fault_leaves_no_lock(two_nodes, kind):
    """What was written to a block after it had been freed leads malloc astray; the heap can be looked at, by others, too."""
    task, heap, blocks = free_blocks(two_nodes, kind)
    thread = task.clone(cpu=1)
    task.store([blocks[1], blocks[1] + 8], np.array([WILD, WILD], np.int64))
    with pytest.raises(SegmentationFault, match="store to 0x7000000000"):
        for _ in range(4):
            heap.malloc(2000)
    with pytest.raises(HeapError, match="heap: list"):
        heap.check()
    with pytest.raises(SegmentationFault):
        for _ in range(4):
            heap.malloc(2000)
    task.exit()
    with pytest.raises(HeapError, match="heap: list"):
        thread.malloc_heap(heap).check()


@every_kind
def test_a_block_that_was_joined_when_it_was_freed_is_free(two_nodes, kind):
    """Its own tags may still say that it is used."""
    heap = two_nodes.task().malloc_heap(kind, source="mmap")
    for order in ((0, 1), (1, 0), (0, 2, 1), (2, 1, 0)):
        blocks = sorted(heap.malloc(600) for _ in range(4))
        for i in order:
            heap.free(blocks[i])
        for again in order:
            with pytest.raises(HeapError, match=f"block {blocks[again]:#x}: it is free already") as raised:
                heap.free(blocks[again])
            assert (raised.value.code, raised.value.pointer) == (FREE_TWICE, blocks[again])
        heap.check()
        new = [heap.malloc(600) for _ in range(4)]
        assert len({*new, blocks[3]}) == 5 or kind == "ptmalloc"
        for block in (*new, *(blocks[i] for i in range(4) if i not in order)):
            heap.free(block)


@every_kind
def test_a_failed_malloc_leaves_the_heap_as_it_was(two_nodes, kind):
    heap = two_nodes.task().malloc_heap(kind, source="mmap", limit="1MiB", mmap_threshold=None)
    assert heap.malloc(10)
    before = heap.held()
    assert heap.malloc("5MiB") is None and heap.held() == before
    assert heap.malloc("100KiB") and heap.check()


@pytest.mark.parametrize("kind", (*TAGGED, "buddy"))
def test_a_heap_whose_headers_are_lost_has_no_figures(two_nodes, kind):
    """Nobody knows what lies behind a header that something has written over."""
    task = two_nodes.task()
    heap = task.malloc_heap(kind, source="mmap")
    blocks = sorted(heap.malloc(100) for _ in range(4))
    task.write(blocks[1] - 8, b"C" * 8)
    for look in (heap.stats, heap.map):
        with pytest.raises(HeapError, match="heap: a header is none: block") as raised:
            look()
        assert raised.value.blocks[0] == (blocks[0], heap.blocks()[-2][1], "used")
    with pytest.raises(HeapError, match="heap: a header is none|heap: header and footer disagree"):
        heap.check()
    with pytest.raises(HeapError, match="beyond the end of a block, or before its beginning"):
        heap.free(blocks[1])


def test_a_lost_header_of_any_arena_is_found():
    """Rows of several arenas lie one behind the other; what is lost need not be the last."""
    rows = np.zeros((3, COLUMNS), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 2] = (0x1000, 0x2000, 0x9000), 64, (1, -1, 1)
    with pytest.raises(HeapError, match="a header is none: block 0x2000") as raised:
        check_headers(rows)
    assert raised.value.blocks[2] == (0x9000, 64, "used")


def test_a_link_that_is_no_address_is_told(two_nodes):
    task, heap, blocks = free_blocks(two_nodes, "explicit")
    task.write(blocks[1], b"U" * 64)
    with pytest.raises(SegmentationFault, match="store to 0x555555555555555d: not a multiple of the size of a word"):
        for _ in range(4):
            heap.malloc(2000)


def test_a_lock_of_a_thread_that_has_ended_is_not_its_number_s(two_nodes):
    """A later thread of the process has the number; others do not wait for it."""
    task = two_nodes.task()
    heap, thread = task.malloc_heap("segregated"), task.clone(cpu=1)
    thread.call(lock, heap.address)
    thread.exit()
    later = task.clone(cpu=1)
    assert later._number == thread._number and later.pid != thread.pid
    assert heap.malloc(100) and heap.check()


@pytest.mark.parametrize("kind", (*TAGGED, *CHUNKS))
def test_an_overrun_by_a_zero_is_told_with_the_block_behind(two_nodes, kind):
    """A string's 0 beyond a block tells the next one that it is free; to join it would lead anywhere."""
    task = two_nodes.task()
    heap = task.malloc_heap(kind, source="mmap")
    blocks = sorted(heap.malloc(1240) for _ in range(6))
    if kind in CHUNKS:  # the size that the first byte of a head holds is 0 anyway
        blocks = [heap.malloc(1272) for _ in range(6)]
    task.write(blocks[1] + heap.usable_size(blocks[1]), bytes(1))
    with pytest.raises(HeapError, match=f"block {blocks[2]:#x}: .*(before it|beyond).*{blocks[1]:#x}"):
        heap.free(blocks[2])
    with pytest.raises(HeapError):
        heap.check()


def test_a_block_in_another_threads_cache_is_free_already(two_nodes):
    first = two_nodes.task(cpu=0)
    second = first.clone(cpu=1)
    heap = first.malloc_heap("ptmalloc")
    its = second.malloc_heap(heap)
    its.free(its.malloc(40))
    block = heap.malloc(100)
    heap.free(block)
    for call in (its.free, its.usable_size, lambda block: its.realloc(block, 50)):
        with pytest.raises(HeapError, match=f"block {block:#x}: it is free already"):
            call(block)
    assert heap.malloc(100) == block
    its.free(block)
    assert its.malloc(100) == block
    heap.check()


def test_check_finds_what_is_wrong_with_a_cache(two_nodes):
    task = two_nodes.task()
    heap = task.malloc_heap("ptmalloc")
    blocks = [heap.malloc(100) for _ in range(3)]
    for block in blocks[:2]:
        heap.free(block)
    task.store([blocks[1]], WILD)
    with pytest.raises(
        HeapError, match="the cache of thread [0-9]+ has an entry 0x700000000000, where no block begins"
    ):
        heap.check()
    assert heap.stats().blocks == 2  # nothing tells that the block behind the wild entry is cached
    task.store([blocks[1]], blocks[2])
    with pytest.raises(HeapError, match="the cache of thread"):
        heap.check()


@pytest.mark.parametrize("arenas", ["thread", "node", "main"])
def test_pointers_into_an_arena_that_are_no_blocks(two_nodes, arenas):
    task = two_nodes.task(cpu=1)
    task.clone(cpu=0)
    heap = task.malloc_heap("ptmalloc", arenas=arenas)
    block = heap.malloc(100)
    page = block & -4096
    for wild in (
        *range(page, page + 64, 8),
        page - 4096 + 528,
        page + 4096 - 8,
        *(heap._word(24)[0] - 8 * i for i in range(4)),
    ):
        with pytest.raises(HeapError, match=f"block {wild:#x}: "):
            heap.free(wild)
    heap.check()


def test_a_map_shows_each_arena_by_itself(two_nodes):
    first = two_nodes.task(cpu=0)
    heap = first.malloc_heap("ptmalloc")
    blocks = [heap.malloc(3000), first.clone(cpu=1).malloc_heap(heap).malloc(3000)]
    assert abs(blocks[0] - blocks[1]) > 1 << 30
    lines = heap.map(width=40, lines=4).splitlines()
    starts = [line for line in lines if line.startswith("0x")]
    assert len(starts) == 2 and len(lines) <= 8
    assert sum(line.count("█") for line in lines[1:]) > 20


@every_kind
def test_a_child_by_fork_has_a_copy(two_nodes, kind):
    """With the lock that a thread of the parent has taken, which is none of the child's."""
    task = two_nodes.task(cpu=0)
    heap = task.malloc_heap(kind)
    blocks = [heap.malloc(100 + i) for i in range(20)]
    for block in blocks[::2]:
        heap.free(block)
    task.write(blocks[1], b"parent")
    heap._call_kind(lock)
    child = task.fork(cpu=1)
    heap._call_kind(unlock)
    its = child.malloc_heap(heap)
    child.write(blocks[1], b"child!")
    its.free(blocks[3])
    more = [its.malloc(50) for _ in range(30)]
    assert its.check() >= 40 and len({*more, *blocks[1::2]}) >= 39
    assert task.read(blocks[1], 6) == b"parent" and heap.usable_size(blocks[3]) >= 103
    assert heap.stats().blocks == 10 and heap.check() >= 10
    child.exit()


def test_stats_are_those_of_a_sheet_of_paper(two_nodes):
    """A prologue of 16 bytes, blocks with tags of 8 bytes in multiples of 8, one free block of 4096 bytes to begin with."""
    heap = two_nodes.task().malloc_heap("implicit", accounts=True)
    blocks = [heap.malloc(nbytes) for nbytes in (1, 100, 56, 1000)]  # 16 + 112 + 64 + 1008 bytes
    heap.free(blocks[1])
    stats = heap.stats()
    assert (stats.payload, stats.used, stats.free) == (1057, 16 + 64 + 1008, 112 + 4096 - 1200)
    assert (stats.heap, stats.peak_heap, stats.blocks, stats.free_blocks) == (4112, 4112, 3, 2)
    assert (stats.largest_free, stats.peak_payload, stats.overhead) == (2896, 1157, 4112 - 1057 - 3008)
    assert stats.internal_fragmentation == pytest.approx(1 - 1057 / 1088)
    assert stats.external_fragmentation == pytest.approx(112 / 3008)
    assert stats.utilisation == pytest.approx(1057 / 4112) and stats.peak_utilisation == pytest.approx(1157 / 4112)
    assert heap.map(width=513, lines=1).splitlines()[1].startswith("█" * 3 + "░" * 14 + "█" * 134 + "░" * 362)

"""The kernel's own page table: the direct map against a flat map in every format, and who may use it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import SMALL_TLB, Loopback

from numaemu import GFP_HIGHUSER, GFP_KERNEL, ConfigError, KernelBug, SegmentationFault
from numaemu.compiler.build import JIT
from numaemu.hardware.paging import _PAGE_PRESENT, _PAGE_USER, PTE_PFN_MASK, entry_load
from numaemu.hardware.processor import KERNEL_READ, KERNEL_WRITE, LEAF_SHIFT, READ
from numaemu.hardware.walk import walk
from numaemu.kernel.arch.init_mm import kernel_entry_offset
from numaemu.spec.formats import FORMATS
from numaemu.spec.topology import load_topology

MiB = 1 << 20


def small(loopback, name, **keywords):
    return loopback(nodes=1, cpus_per_node=1, memory_per_node="32MiB", paging=name, **keywords)


def memory(topology):
    """[(first byte, end, node)] of all memory."""
    return [
        (start, start + nbytes, node)
        for node, parts in enumerate(topology.physical_ranges())
        for start, nbytes in parts
    ]


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20 if JIT else 3, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 24), min_size=1, max_size=4),
    low=st.integers(1, 20),
    places=st.lists(st.integers(0, 1 << 40)),
)
def test_the_direct_map_against_a_flat_map(name, sizes, low, places):
    """Every byte of memory is mapped where it lies, in entries that no node shares with another; holes are not."""
    nodes = [{"memory": f"{2 * size}MiB", "cpus": 1} for size in sizes]
    with Loopback(
        {"node": nodes, "paging": name, "low_memory": f"{2 * low}MiB"}
        if name != "x86-32"
        else {"node": nodes, "paging": name},
        **SMALL_TLB,
    ) as machine:
        cpu, start = machine.cpu(), FORMATS[name]["page_offset"]
        mapped = memory(machine.topology)
        edges = [edge + offset for first, end, _ in mapped for edge in (first, end) for offset in (-4096, 0)]
        for place in edges + [place % (2 * mapped[-1][1]) for place in places]:
            place &= ~0xFFF
            there = [(first, end, node) for first, end, node in mapped if first <= place < end]
            if place < 0 or start + place >= min(FORMATS[name]["vmalloc_start"] or 1 << 32, 1 << 64):
                continue
            entry = int(walk(cpu, np.uint64(start + place), KERNEL_WRITE))
            assert bool(entry) == bool(there) and not walk(cpu, np.uint64(start + place), READ)
            if there:
                size = 4096 << (entry >> int(LEAF_SHIFT) & 7) * FORMATS[name]["table_bits"]
                frame = entry & int(PTE_PFN_MASK) & ~(size - 1)
                assert frame + (place & (size - 1)) == place and not entry & int(_PAGE_USER)
                assert there[0][0] <= frame and frame + size <= there[0][1]
        assert sum(machine.machine.direct_map[i] for i in range(3)) == sum(end - first for first, end, _ in mapped)


@pytest.mark.parametrize(("name", "sizes"), [("x86-64-4level", {2: 7, 1: 512}), ("x86-64-5level", {2: 7, 1: 512}),
                                             ("arm64-39", {2: 7, 1: 512}), ("arm64-48", {2: 7, 1: 512})])  # fmt: skip
def test_entries_are_as_large_as_nodes_allow(loopback, name, sizes):
    """Two nodes of 4 GiB that meet inside a GiB, and the hole below 4 GiB."""
    machine = loopback({"node": [{"memory": "3584MiB", "cpus": 1}, {"memory": "4608MiB", "cpus": 1}], "paging": name})
    direct = [machine.machine.direct_map[i] for i in range(3)]
    assert direct == [0, sizes[1] * 2 * MiB, sizes[2] << 30]


def test_what_the_direct_map_has_no_room_for():
    with pytest.raises(ConfigError, match="1TiB of memory, must be at most 252GiB with paging 'arm64-39'"):
        load_topology(nodes=1, memory_per_node="1TiB", paging="arm64-39")


@pytest.mark.interpreted
def test_low_memory_only_on_32_bits(loopback):
    machine = loopback("x86-32")
    assert [machine.machine.direct_map[i] for i in range(3)] == [0, 896 * MiB, 0]
    cpu = machine.cpu()
    assert walk(cpu, np.uint64(0xC000_0000 + 896 * MiB - 4096), KERNEL_READ)
    assert not walk(cpu, np.uint64(0xC000_0000 + 896 * MiB), KERNEL_READ)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_kernel_memory_is_the_same_in_every_task(loopback, name):
    machine = small(loopback, name)
    one, other = machine.task(), machine.task()
    address = one.kernel.kmalloc(100, GFP_KERNEL)
    assert address >= FORMATS[name]["page_offset"]
    one.kernel.write(address, b"from one task to the other")
    assert other.kernel.read(address, 26) == b"from one task to the other"
    assert other.fork().kernel.read(address, 4) == b"from"
    walks = int(machine.cpu().walks)
    assert one.kernel.read(address, 4) == b"from" and int(machine.cpu().walks) == walks  # global entries survive
    with pytest.raises(SegmentationFault, match=r"a kernel address, not for users \(error code 0x5\)"):
        other.read(address, 1)
    with pytest.raises(SegmentationFault, match=r"error code 0x7\)"):
        other.write(address, b"x")
    machine.audit()


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_an_oops_says_where_and_why(loopback, name):
    machine = small(loopback, name)
    kernel, address = machine.task().kernel, FORMATS[name]["page_offset"] + 33 * MiB
    with pytest.raises(KernelBug, match=rf"{address:#x}: .* supervisor read, error code 0x0, not-present page: no"):
        kernel.read(address, 1)
    with pytest.raises(KernelBug, match=r"supervisor write, error code 0x2"):
        kernel.write(address, b"x")
    assert (int(machine.cpu().cr2), int(machine.cpu().error_code)) == (address, 2)
    assert f"BUG: unable to handle page fault for address: {address:016x}" in machine.actors[0].system.kmsg


@pytest.mark.interpreted
def test_the_kernel_half_of_a_top_level_table_is_copied(loopback):
    for name in FORMATS:
        machine = small(loopback, name)
        task = machine.task()
        mine, entry = machine.machine.memory + machine.mm(task).pgd, 1 << FORMATS[name]["entry_shift"]
        half = (
            np.frombuffer(machine_bytes(mine), np.uint8),
            np.frombuffer(machine_bytes(machine.machine.kernel_table), np.uint8),
        )
        first = (FORMATS[name]["kernel_start"] >> FORMATS[name]["pgdir_shift"]) % (4096 // entry) * entry
        same = (half[0][first:] == half[1][first:]).all()
        assert same or name.startswith("arm64")
        assert half[1].any()


def machine_bytes(host):
    import ctypes

    return ctypes.string_at(int(host), 4096)


@pytest.mark.interpreted
def test_nobody_has_less_memory_for_it(loopback):
    """The kernel's tables lie in frames behind all zones."""
    machine = small(loopback, "x86-64-4level")
    table = (int(machine.machine.kernel_table) - int(machine.machine.memory)) >> 12
    assert table >= machine.machine.max_pfn == 32 * MiB >> 12
    assert sum(zone.free_pages for zone in machine.zones()) == (32 * MiB >> 12) - 2
    where = kernel_entry_offset(machine.machine, np.uint64(0xFFFF_8880_0000_0000), np.uint64(21))
    assert entry_load(where) & _PAGE_PRESENT


@pytest.mark.interpreted
def test_high_memory_has_no_address_in_the_direct_map(loopback):
    kernel = loopback("x86-32").task().kernel
    high = kernel.alloc_page(GFP_HIGHUSER)
    assert kernel.page_address(high) is None
    with pytest.raises(KernelBug, match="nothing is mapped there"):
        kernel.read(0xC000_0000 + (high << 12) & 0xFFFF_FFFF, 1)


@pytest.mark.interpreted
@pytest.mark.parametrize("name", FORMATS)
def test_tables_of_the_whole_user_range_go_again(loopback, name):
    """Also those of the highest addresses, which x86-64 with four levels does not have."""
    machine = small(loopback, name)
    task = machine.task()
    top = task.mmap(4096, addr=FORMATS[name]["task_size"] - 64 * MiB)
    assert top.addr >= FORMATS[name]["task_size"] - 256 * MiB
    top.touch()
    assert machine.mm(task).pgtables == machine.vmstat()["nr_page_table_pages"] > 0
    assert f"VmPTE:\t{4 * machine.mm(task).pgtables:8d} kB" in machine.actors[0].rpc_read(f"/proc/{task.pid}/status")
    task.exit()
    assert machine.vmstat()["nr_page_table_pages"] == 0

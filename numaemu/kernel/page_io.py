"""Writing pages to swap and reading them back: Linux's mm/page_io.c.

A page of zeros is only noted (zeromap). An area on zram keeps it compressed in memory; with zswap so does one on disk
as long as there is room; else it is copied to the disk.
"""
import numpy as np

from numaemu.compile import hot, kernel
from numaemu.kernel.disk import io_wait
from numaemu.kernel.mm_inline import folio_clear, folio_set
from numaemu.kernel.mm_types import PG_uptodate, PG_writeback
from numaemu.kernel.mmzone import page_of, page_to_nid
from numaemu.kernel.smp import machine_of
from numaemu.kernel.swapfile import SWAP_ZRAM, swap_of, swp_offset, swp_type
from numaemu.kernel.vmstat import (NR_WRITEBACK, NR_WRITTEN, PGPGIN, PGPGOUT, PSWPIN, PSWPOUT, SWPIN_ZERO, SWPOUT_ZERO,
                                   ZSWPIN, ZSWPOUT, count_vm_events, mod_node_page_state)
from numaemu.kernel.zram import zs_free, zs_load, zs_store
from numaemu.native import clear_bytes, copy_bytes
from numaemu.pointer import u64, u8

U = np.uint64
PAGE_KEEP, PAGE_SUCCESS, PAGE_WRITEBACK = range(3)       # pageout's answers: failed, written, on its way


@hot
def frame_of(machine, pfn):
    """Host address of a frame."""
    return machine.memory + (U(pfn) << U(12))


@hot
def is_folio_zero_filled(machine, pfn):
    words = u64.array(frame_of(machine, pfn))
    if words[511] != U(0):
        return False
    for i in range(511):
        if words[i] != U(0):
            return False
    return True


@hot
def place_on_disk(machine, entry):
    return swap_of(machine).info[swp_type(entry)].data + (U(swp_offset(entry)) << U(12))


@kernel("i64(cpu_t*, i64)")
def swap_writepage(cpu, pfn):
    """Write a locked page of the swap cache to its slot: PAGE_SUCCESS, PAGE_WRITEBACK (end_swap_write follows), PAGE_KEEP."""
    machine = machine_of(cpu)
    page = page_of(machine, pfn)
    entry, node = page.private, page_to_nid(machine, pfn)
    if is_folio_zero_filled(machine, pfn):
        u8.array(swap_of(machine).zeromap)[entry] = 1
        count_vm_events(machine, cpu.id, SWPOUT_ZERO, 1)
        return PAGE_SUCCESS
    u8.array(swap_of(machine).zeromap)[entry] = 0
    zs_free(cpu, entry)                  # what was kept of it before is old by now, wherever it goes this time
    zram = swap_of(machine).info[swp_type(entry)].kind == SWAP_ZRAM
    if zram or machine.zswap_enabled:
        if zs_store(cpu, entry, frame_of(machine, pfn)):
            count_vm_events(machine, cpu.id, PSWPOUT if zram else ZSWPOUT, 1)
            return PAGE_SUCCESS
        if zram:
            return PAGE_KEEP
    copy_bytes(place_on_disk(machine, entry), frame_of(machine, pfn), 4096)
    cpu.clock_base_ns += machine.disk_page_ns
    count_vm_events(machine, cpu.id, PSWPOUT, 1)
    count_vm_events(machine, cpu.id, PGPGOUT, 4)
    folio_set(page, PG_writeback)
    mod_node_page_state(machine, cpu.id, node, NR_WRITEBACK, 1)
    return PAGE_WRITEBACK


@kernel("void(cpu_t*, i64)")
def end_swap_write(cpu, pfn):
    """The disk has the page."""
    machine = machine_of(cpu)
    folio_clear(page_of(machine, pfn), PG_writeback)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_WRITEBACK, -1)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_WRITTEN, 1)


@kernel("bool(cpu_t*, i64)")
def swap_read_folio(cpu, pfn):
    """Fill a locked page of the swap cache from its slot; True if the disk had it, whose latency is the caller's to charge."""
    machine = machine_of(cpu)
    page, frame = page_of(machine, pfn), frame_of(machine, pfn)
    entry, from_disk = page.private, False
    if u8.array(swap_of(machine).zeromap)[entry] != 0:
        clear_bytes(frame, 4096)
        count_vm_events(machine, cpu.id, SWPIN_ZERO, 1)
    elif zs_load(cpu, entry, frame):
        zram = swap_of(machine).info[swp_type(entry)].kind == SWAP_ZRAM
        count_vm_events(machine, cpu.id, PSWPIN if zram else ZSWPIN, 1)
    else:
        from_disk = True
        copy_bytes(frame, place_on_disk(machine, entry), 4096)
        io_wait(cpu, machine.disk_page_ns)
        count_vm_events(machine, cpu.id, PSWPIN, 1)
        count_vm_events(machine, cpu.id, PGPGIN, 4)
    folio_set(page, PG_uptodate)
    return from_disk

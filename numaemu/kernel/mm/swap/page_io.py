"""Writing pages to swap and reading them back: Linux's mm/page_io.c.

A page of zeros is only noted (zeromap). An area on zram keeps it compressed in memory; with zswap so does one on disk
as long as there is room and it saves some; else it is copied to the disk.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.native import clear_bytes, copy_bytes
from numaemu.compiler.pointer import u8, u64
from numaemu.hardware.controller import charge_dma
from numaemu.kernel.core.psi import psi_memstall_leave, psi_thrashing_start
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.bio import submit_bio
from numaemu.kernel.fs.disk import io_wait
from numaemu.kernel.include.mm import frame_of
from numaemu.kernel.include.mm_types import PG_dirty, PG_uptodate, PG_writeback
from numaemu.kernel.include.mmzone import page_of, page_to_nid
from numaemu.kernel.include.task_io_accounting_ops import task_io_account_read
from numaemu.kernel.include.vmstat import (
    NR_WRITEBACK,
    NR_WRITTEN,
    PGPGIN,
    PGPGOUT,
    PSWPIN,
    PSWPOUT,
    SWPIN_ZERO,
    SWPOUT_ZERO,
    ZSWPIN,
    ZSWPOUT,
    count_vm_events,
    mod_node_page_state,
)
from numaemu.kernel.mm.reclaim.lru import folio_clear, folio_set
from numaemu.kernel.mm.swap.swapfile import SWAP_ZRAM, swap_of, swp_offset, swp_type
from numaemu.kernel.mm.swap.zram import zram_read_page, zram_write_page
from numaemu.kernel.mm.swap.zswap import zswap_invalidate, zswap_load, zswap_store
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
PAGE_KEEP, PAGE_SUCCESS, PAGE_WRITEBACK = range(3)  # pageout's answers: failed, written, on its way


@hot
def is_folio_zero_filled(machine, pfn):
    """True if a frame holds nothing but zeros; its last word is looked at first, as in Linux."""
    words = u64.array(frame_of(machine, pfn))
    if words[511] != U(0):
        return False
    for i in range(511):
        if words[i] != U(0):
            return False
    return True


@hot
def place_on_disk(machine, entry):
    return swap_of(machine).info[swp_type(entry)].data + (U(swp_offset(entry)) << U(PAGE_SHIFT))


@kernel("void(cpu_t*, i64)")
def write_to_disk(cpu, pfn):
    """The disk is given a locked page of the swap cache; end_swap_write follows (__swap_writepage), and blk_wait."""
    machine = machine_of(cpu)
    copy_bytes(place_on_disk(machine, page_of(machine, pfn).private), frame_of(machine, pfn), PAGE_SIZE)
    charge_dma(cpu, page_to_nid(machine, pfn), PAGE_SIZE)
    submit_bio(cpu, page_of(machine, pfn).private)
    fetch_add(swap_of(machine).info[swp_type(page_of(machine, pfn).private)], "nr_writes", 1)
    count_vm_events(machine, cpu.id, PSWPOUT, 1)
    count_vm_events(machine, cpu.id, PGPGOUT, 4)
    folio_set(page_of(machine, pfn), PG_writeback)
    mod_node_page_state(machine, cpu.id, page_to_nid(machine, pfn), NR_WRITEBACK, 1)


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
    if swap_of(machine).info[swp_type(entry)].kind == SWAP_ZRAM:
        if not zram_write_page(cpu, entry, frame_of(machine, pfn)):
            return PAGE_KEEP
        count_vm_events(machine, cpu.id, PSWPOUT, 1)
        return PAGE_SUCCESS
    zswap_invalidate(cpu, entry)  # what was kept of it before is old by now, wherever it goes this time
    if zswap_store(cpu, entry, frame_of(machine, pfn), node):
        count_vm_events(machine, cpu.id, ZSWPOUT, 1)
        return PAGE_SUCCESS
    write_to_disk(cpu, pfn)
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
        clear_bytes(frame, PAGE_SIZE)
        count_vm_events(machine, cpu.id, SWPIN_ZERO, 1)
    elif swap_of(machine).info[swp_type(entry)].kind == SWAP_ZRAM and zram_read_page(cpu, entry, frame):
        count_vm_events(machine, cpu.id, PSWPIN, 1)
    elif zswap_load(cpu, entry, frame):
        count_vm_events(machine, cpu.id, ZSWPIN, 1)
        folio_set(page, PG_dirty)  # nobody else has the data any more
    else:
        from_disk = True
        copy_bytes(frame, place_on_disk(machine, entry), PAGE_SIZE)
        charge_dma(cpu, page_to_nid(machine, pfn), PAGE_SIZE)
        stalled = psi_thrashing_start(cpu, page)
        io_wait(cpu, machine.disk_page_ns)
        psi_memstall_leave(cpu, stalled)
        fetch_add(swap_of(machine).info[swp_type(entry)], "nr_reads", 1)
        count_vm_events(machine, cpu.id, PSWPIN, 1)
        count_vm_events(machine, cpu.id, PGPGIN, 4)
        task_io_account_read(cpu)
    folio_set(page, PG_uptodate)
    return from_disk

"""TLB shootdown and switching of address spaces: Linux's arch/x86/mm/tlb.c.

The initiator has changed page-table entries; it raises mm->tlb_gen, flushes itself, and asks the coordinator to
tell every other CPU in mm->cpumask (one message however many pages). Its flush_* words say what to forget. The
coordinator sets the initiator's bit in each target's `ipi_from`, then `ipi_pending` and `event_at`, then looks whether the target is
inside (see kernel/core/smp.py). Outside: it takes the bit back and acknowledges itself; the target will see tlb_gen before
its next access. Inside: the target takes the bit between two accesses, flushes and acknowledges. Who gets the bit
(an atomic AND or exchange) acknowledges, so each target does exactly once; so does the coordinator, when it will not
look at the initiator's words any more. The last one wakes the initiator. Only then are frames reused.
"""

import numpy as np

from numaemu.compiler.atomic import exchange, fetch_add, fetch_and, fetch_or, load_acquire, store_release, store_seq_cst
from numaemu.compiler.decorators import callback, hot, kernel
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.hardware.mailbox import fetch
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import (
    MSG_NONE,
    MSG_SHOOTDOWN,
    leave,
    machine_of,
    send,
    stop_waiting,
    wait_for_event,
    wake_cpu,
)
from numaemu.kernel.include.mm_types import mm_t
from numaemu.kernel.include.trace import (
    SHOOTDOWN_END,
    TLB_FLUSH,
    TLB_REMOTE_SEND_IPI,
    TLB_REMOTE_SHOOTDOWN,
    trace_event,
)
from numaemu.kernel.include.vmstat import (
    NR_TLB_LOCAL_FLUSH_ALL,
    NR_TLB_LOCAL_FLUSH_ONE,
    NR_TLB_REMOTE_FLUSH,
    NR_TLB_REMOTE_FLUSH_RECEIVED,
    count_vm_events,
    percpu_of,
)
from numaemu.mmu import tlb_flush_all, tlb_flush_asid, tlb_flush_local, tlb_flush_page, tlb_switch_asid
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64
KERNEL_MM = -1  # in flush_mm: the mappings of the kernel
UBC_MMS = 32  # address spaces one batch of unmapped pages may touch before it is flushed

# fmt: off
tlbflush_unmap_batch_t = Struct("tlbflush_unmap_batch_t", [      # its CPU only: entries taken out and not flushed yet
    ("nr_mms", i64), ("mms", i64, UBC_MMS), ("start", u64, UBC_MMS), ("end", u64, UBC_MMS),
    ("dirty", i64),                      # 1: an entry of the page that is being unmapped was dirty
])
# fmt: on
SHOOTDOWNS_AT_ONCE = 64  # by the coordinator, before it looks at what else it has to do; assumed
TLB_SINGLE_PAGE_FLUSH_CEILING = 33  # pages; beyond it the whole TLB is flushed (tlb.c)


@kernel("void(cpu_t*, i64, u64, u64, u64, i64)")
def flush_tlb_func(cpu, mm_number, start, end, shift, gen):
    """What every CPU concerned does: forget [start, end), or everything if it is too much or we have missed a flush.

    One entry is forgotten for every 2**shift bytes: of a huge page there is only one.
    """
    if cpu.mm != mm_number or cpu.tlb_gen >= gen:
        return
    machine = machine_of(cpu)
    if gen == cpu.tlb_gen + 1 and (end - start) >> shift <= U(TLB_SINGLE_PAGE_FLUSH_CEILING):
        address = start
        while address < end:
            tlb_flush_page(cpu, address)
            count_vm_events(machine, cpu.id, NR_TLB_LOCAL_FLUSH_ONE, 1)
            cpu.clock_base_ns += machine.flush_page_ns
            address += U(1) << shift
        cpu.tlb_gen = gen
        return
    cpu.tlb_gen = load_acquire(mm_t.array(machine.mms)[mm_number], "tlb_gen")
    tlb_flush_local(cpu)
    cpu.clock_base_ns += machine.flush_all_ns
    count_vm_events(machine, cpu.id, NR_TLB_LOCAL_FLUSH_ALL, 1)


@kernel("void(cpu_t*, u64, u64, i64)")
def flush_tlb_kernel_func(cpu, start, end, gen):
    """The same for the kernel's mappings: Linux's do_kernel_range_flush and do_flush_tlb_all."""
    if cpu.kernel_tlb_gen >= gen:
        return
    machine = machine_of(cpu)
    if gen == cpu.kernel_tlb_gen + 1 and end - start <= U(TLB_SINGLE_PAGE_FLUSH_CEILING << PAGE_SHIFT):
        address = start
        while address < end:
            tlb_flush_page(cpu, address)
            count_vm_events(machine, cpu.id, NR_TLB_LOCAL_FLUSH_ONE, 1)
            cpu.clock_base_ns += machine.flush_page_ns
            address += U(PAGE_SIZE)
        cpu.kernel_tlb_gen = gen
        return
    cpu.kernel_tlb_gen = load_acquire(machine, "kernel_tlb_gen")
    tlb_flush_all(cpu)
    cpu.clock_base_ns += machine.flush_all_ns
    count_vm_events(machine, cpu.id, NR_TLB_LOCAL_FLUSH_ALL, 1)


@hot
def acknowledge(machine, initiator_number, n):
    """n targets are done with an initiator's request; the last one wakes it."""
    initiator = cpu_t.array(machine.cpus)[initiator_number]
    if fetch_add(initiator, "flush_acks", -n) == n:
        wake_cpu(machine, initiator_number)


@callback("u64(u64, u64, u64)")
def answer_ipi(cpu_address, _b, _c):
    """A CPU inside, between two accesses: serve every shootdown posted to it."""
    cpu = cpu_t.at(cpu_address)
    machine = machine_of(cpu)
    exchange(cpu, "ipi_pending", 0)
    for word in range((machine.nr_cpu_ids + 63) // 64):
        bits = exchange(cpu.ipi_from, word, 0)
        bit = 0
        while bits != U(0):
            if bits & U(1) != U(0):
                initiator = cpu_t.array(machine.cpus)[word * 64 + bit]
                if initiator.flush_mm == KERNEL_MM:
                    flush_tlb_kernel_func(cpu, initiator.flush_start, initiator.flush_end, initiator.flush_gen)
                else:
                    flush_tlb_func(
                        cpu,
                        initiator.flush_mm,
                        initiator.flush_start,
                        initiator.flush_end,
                        initiator.flush_shift,
                        initiator.flush_gen,
                    )
                flush = percpu_of(machine, initiator.id).event[NR_TLB_REMOTE_FLUSH]
                pages = (initiator.flush_end - initiator.flush_start) >> U(PAGE_SHIFT)
                trace_event(cpu, TLB_FLUSH, pages, TLB_REMOTE_SHOOTDOWN, initiator.id, flush, 0)
                cpu.shootdowns_received += 1
                count_vm_events(machine, cpu.id, NR_TLB_REMOTE_FLUSH_RECEIVED, 1)
                cpu.clock_base_ns += machine.ipi_ns
                acknowledge(machine, word * 64 + bit, 1)
            bits >>= U(1)
            bit += 1
    return U(0)


@kernel("i64(machine_t*, i64)")
def post_shootdown(machine, initiator_number):
    """The coordinator's part: tell the targets, answer for those that are outside; how many were told."""
    initiator = cpu_t.array(machine.cpus)[initiator_number]
    word, bit = initiator_number // 64, U(1) << U(initiator_number % 64)
    outside = told = 0
    for number in range(machine.nr_cpus):
        if (initiator.flush_mask[number // 64] >> U(number % 64)) & U(1) == U(0):
            continue
        target = cpu_t.array(machine.cpus)[number]
        fetch_or(target.ipi_from, word, bit)
        exchange(target, "ipi_pending", 1)
        exchange(target, "event_at", 0)
        told += 1
        if load_acquire(target, "inside") == U(0) and fetch_and(target.ipi_from, word, ~bit) & bit != U(0):
            outside += 1
    acknowledge(machine, initiator_number, outside + 1)
    return told


@kernel("i64(machine_t*, mailbox_t*, i64*)")
def serve_shootdowns(machine, mailbox, words):
    """The coordinator's loop: post shootdowns until the mailbox is empty (0) or another kind of message comes (its kind), but
    not for ever (0).
    """
    for _ in range(SHOOTDOWNS_AT_ONCE):
        kind = fetch(mailbox, words)
        if kind != MSG_SHOOTDOWN:
            return kind
        post_shootdown(machine, words[1])
    return MSG_NONE


@kernel("void(cpu_t*, i64, u64, u64, u64, i64, i64)")
def shoot_down(cpu, mm_number, start, end, shift, gen, targets):
    """Ask the CPUs in our flush_mask, `targets` in number, to forget a range; returns when all have."""
    machine = machine_of(cpu)
    cpu.flush_mm, cpu.flush_start, cpu.flush_end, cpu.flush_gen = mm_number, start, end, gen
    cpu.flush_shift = shift
    store_release(cpu, "flush_acks", targets + 1)
    count_vm_events(machine, cpu.id, NR_TLB_REMOTE_FLUSH, 1)
    flush = percpu_of(machine, cpu.id).event[NR_TLB_REMOTE_FLUSH]
    trace_event(cpu, TLB_FLUSH, (end - start) >> U(PAGE_SHIFT), TLB_REMOTE_SEND_IPI, cpu.id, flush, targets)
    cpu.clock_base_ns += machine.shootdown_ns + targets * machine.shootdown_target_ns
    send(cpu, 0, MSG_SHOOTDOWN, 0, 0, 0, 0, 0)
    unwoken = False
    while True:
        store_seq_cst(cpu, "waiting", 1)
        if load_acquire(cpu, "flush_acks") == 0:
            break
        unwoken = wait_for_event(cpu)
    stop_waiting(cpu, unwoken)
    trace_event(cpu, SHOOTDOWN_END, targets, flush, 0, 0, 0)


@hot
def set_flush_mask(cpu, word, mask):
    """One word of the CPUs that a shootdown is for, without ourselves; how many these are."""
    if cpu.id // 64 == word:
        mask &= ~(U(1) << U(cpu.id % 64))
    cpu.flush_mask[word] = mask
    targets = 0
    while mask != U(0):
        targets += np.int64(mask & U(1))
        mask >>= U(1)
    return targets


@kernel("void(cpu_t*, u64, u64)")
def flush_tlb_kernel_range(cpu, start, end):
    """Make every CPU forget [start, end) of the kernel's addresses; returns when all have."""
    machine = machine_of(cpu)
    gen = fetch_add(machine, "kernel_tlb_gen", 1) + 1
    flush_tlb_kernel_func(cpu, start, end, gen)
    targets = 0
    for word in range((machine.nr_cpus + 63) // 64):
        targets += set_flush_mask(cpu, word, machine.cpu_present[word])
    if targets > 0:
        shoot_down(cpu, KERNEL_MM, start, end, U(12), gen, targets)


@kernel("void(cpu_t*, i64, u64, u64, u64)")
def flush_tlb_mm_stride(cpu, mm_number, start, end, shift):
    """Make every CPU forget [start, end) of an address space, where nothing smaller than 2**shift bytes has changed.

    Returns when all have. Mirrors flush_tlb_mm_range with its stride_shift.
    """
    machine = machine_of(cpu)
    mm = mm_t.array(machine.mms)[mm_number]
    gen = fetch_add(mm, "tlb_gen", 1) + 1
    flush_tlb_func(cpu, mm_number, start, end, shift, gen)
    targets = 0
    for word in range((machine.nr_cpus + 63) // 64):
        targets += set_flush_mask(cpu, word, load_acquire(mm.cpumask, word))
    if targets > 0:
        shoot_down(cpu, mm_number, start, end, shift, gen, targets)


@kernel("void(cpu_t*, i64, u64, u64)")
def flush_tlb_mm_range(cpu, mm_number, start, end):
    """Make every CPU forget [start, end) of an address space; returns when all have."""
    flush_tlb_mm_stride(cpu, mm_number, start, end, U(12))


# Who changes entries of an address space without its mmap_lock held for writing, and flushes later, says so before the first one
# changes and until all CPUs have forgotten them. So who finds an entry changed by another finds this, too, and flushes itself
# where it must not return while a CPU can still use the old one.


@hot
def inc_tlb_flush_pending(mm):
    fetch_add(mm, "tlb_flush_pending", 1)


@hot
def dec_tlb_flush_pending(mm):
    fetch_add(mm, "tlb_flush_pending", -1)


@hot
def mm_tlb_flush_pending(mm):
    """True if a CPU may still use entries that are gone. With the caller's own count: mm_tlb_flush_nested."""
    return load_acquire(mm, "tlb_flush_pending") > 0


@hot
def mm_tlb_flush_nested(mm):
    return load_acquire(mm, "tlb_flush_pending") > 1


@kernel("void(cpu_t*, tlbflush_unmap_batch_t*)")
def try_to_unmap_flush(cpu, ubc):
    """One shootdown for each address space concerned."""
    for i in range(ubc.nr_mms):
        if ubc.end[i] != U(0):
            flush_tlb_mm_range(cpu, ubc.mms[i], ubc.start[i], ubc.end[i])
        dec_tlb_flush_pending(mm_t.array(machine_of(cpu).mms)[ubc.mms[i]])
    ubc.nr_mms = 0


@kernel("i64(cpu_t*, tlbflush_unmap_batch_t*, i64)")
def set_tlb_ubc_flush_pending(cpu, ubc, mm_number):
    """Entries of this address space are about to change, to be flushed with the others before any frame is used again: its
    place in the batch.
    """
    for i in range(ubc.nr_mms):
        if ubc.mms[i] == mm_number:
            return i
    if ubc.nr_mms == UBC_MMS:
        try_to_unmap_flush(cpu, ubc)
    i = ubc.nr_mms
    ubc.mms[i], ubc.start[i], ubc.end[i] = mm_number, ~U(0), U(0)
    ubc.nr_mms += 1
    inc_tlb_flush_pending(mm_t.array(machine_of(cpu).mms)[mm_number])
    return i


@hot
def add_to_ubc(ubc, i, address):
    """The entry of an address has changed."""
    ubc.start[i] = min(ubc.start[i], address)
    ubc.end[i] = max(ubc.end[i], address + U(PAGE_SIZE))


@hot
def flush_asid(cpu, asid):
    """Forget the entries of an address-space id, be it the one that is loaded or one whose entries wait."""
    if asid == cpu.asid:
        tlb_flush_local(cpu)
    else:
        tlb_flush_asid(cpu, U(asid))


@kernel("i64(cpu_t*, i64, i64)")
def choose_new_asid(cpu, mm_id, gen):
    """The address-space id under which this CPU knows an address space, or one that is taken from another (1, 2, ...),
    which may be the one that is loaded.

    What it knows is flushed if entries have changed meanwhile: nobody told a CPU that had another one loaded.
    """
    for asid in range(1, cpu.asids + 1):
        if cpu.asid_mm_id[asid] == mm_id:
            if cpu.asid_gen[asid] != gen:
                flush_asid(cpu, asid)
            return asid
    asid = cpu.asid_next % cpu.asids + 1
    cpu.asid_next = asid
    flush_asid(cpu, asid)
    cpu.asid_mm_id[asid] = mm_id
    return asid


@kernel("void(cpu_t*, i64)")
def switch_mm(cpu, mm_number):
    """Load another address space: the old one need not tell us any more. Mirrors switch_mm_irqs_off.

    Without address-space ids that flushes the TLB but for what is global.
    """
    machine = machine_of(cpu)
    word, bit = cpu.id // 64, U(1) << U(cpu.id % 64)
    if cpu.mm != 0:
        fetch_and(mm_t.array(machine.mms)[cpu.mm].cpumask, word, ~bit)
    old, new, gen, mm = cpu.asid, 0, 0, mm_t.array(machine.mms)[mm_number]
    if mm_number != 0:
        fetch_or(mm.cpumask, word, bit)
        gen = load_acquire(mm, "tlb_gen")
    if cpu.asids > 1:
        cpu.asid_gen[old] = cpu.tlb_gen
        if mm_number != 0:
            new = choose_new_asid(cpu, mm.id, gen)
    if new == 0 or new != old:
        tlb_switch_asid(cpu, U(old), U(new))
    cpu.mm, cpu.mm_id, cpu.cr3, cpu.asid, cpu.tlb_gen = mm_number, 0, U(0), new, gen
    if mm_number != 0:
        cpu.mm_id, cpu.cr3 = mm.id, machine.memory + mm.pgd


@kernel("void(cpu_t*, i64)")
def drop_mm(cpu, mm_number):
    """The address space is about to be freed: unload it here."""
    if cpu.mm == mm_number:
        leave(cpu)
        switch_mm(cpu, 0)

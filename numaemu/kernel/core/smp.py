"""Between processors: being inside accesses or not, waiting, asking another process, locks. Linux's kernel/smp.c.

Inside and outside. A CPU says `inside = 1` *before* it looks whether its TLB is behind, and whoever posts a
shootdown does so *before* looking whether the CPU is inside (both sequentially consistent). So either the CPU
sees the new generation, or it is seen inside and asked. A CPU that waits, for a message or a lock, is outside:
it owes nobody an answer and catches up before its next access.
"""

import numpy as np

from numaemu.compiler.atomic import (
    compare_exchange,
    exchange,
    fetch_add,
    fetch_or,
    load_acquire,
    store_release,
    store_seq_cst,
)
from numaemu.compiler.decorators import callback, hot, kernel
from numaemu.compiler.native import call_address, sem_post
from numaemu.compiler.pointer import i64, u64
from numaemu.hardware.mailbox import FULL, RING, mailbox_t, post
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.mm_types import machine_t, mm_t
from numaemu.kernel.include.mmzone import node_of
from numaemu.kernel.include.trace import NODE_MESSAGE, trace_event
from numaemu.mmu import clock_ns, tlb_flush_all, tlb_flush_local

U = np.uint64
SPINS = 100  # tries for a lock before the host may run somebody else; assumed

# kinds of messages; a, b, c, d are their words
(
    MSG_NONE,
    MSG_FILL,  # CPU -> node, coordinator -> node: zone and alloc flags, migratetype, pages, cpu: fill that CPU's shelf
    MSG_DRAIN,  # CPU -> node: zone: take back what was returned
    MSG_ALLOC,  # CPU -> node: zone and alloc flags, order, migratetype: one block; the reply is its pfn or 0
    MSG_FREE,  # CPU -> node: pfn, order: one block back
    MSG_FALLBACK,  # CPU -> coordinator: zone, migratetype, pages: another node's zone has to fill my shelf
    MSG_SHOOTDOWN,  # CPU -> coordinator: my flush_* words say what; acknowledged by its targets
    MSG_DRAIN_ALL,  # CPU -> coordinator: everybody gives unused pages back; the reply is how many came
    MSG_LRU_DRAIN_ALL,  # CPU -> coordinator: CPUs that run no operation empty their LRU batches; the reply comes when they have
    MSG_WAKE_KTHREAD,  # CPU -> coordinator: node: its kernel threads have work (node_t.kthread_pending says which)
    MSG_OOM,  # CPU -> coordinator: gfp, order, nodes: nothing is left; the reply is a victim's mm
    MSG_UNRESERVE,  # CPU -> node: zone, migratetype, force: a pageblock kept for atomic allocations; the reply is 1 or 0
    MSG_WARN_ALLOC,  # CPU -> coordinator: gfp, order, nodes: an allocation has failed: say so
    MSG_CALL,  # bulk: a Python call (method, arguments) pickled in the sender's outbox: offset, bytes
    MSG_RESULT,  # bulk: its answer
    MSG_ISOLATE_FREE,  # context -> node: zone: my compact_control_t says how many free pages I want; the reply is how many I have
    MSG_RANGE,  # context -> node: zone and a step of page_isolation.py, first page, pages; the reply is the step's answer
) = range(17)


@hot
def machine_of(cpu):
    return machine_t.at(cpu.machine)


@hot
def mailbox_of(machine, actor):
    return mailbox_t.array(machine.mailboxes)[actor]


@hot
def actor_of_node(node):
    """Number of a node's process among the actors: 0 is the coordinator, then the nodes, then the CPUs."""
    return 1 + node


def actor_of_cpu(machine, cpu_number):
    """Only Python code asks: every process at its start, where a compiled function would have to be loaded first."""
    return 1 + machine.nr_nodes + cpu_number


@callback("u64(u64, u64, u64)")
def ring(_number, bell, _c):
    """machine.on_ring and on_wake. Compiled: another thread of the process may have Python's lock, for as long as it waits."""
    sem_post(bell)
    return U(0)


@kernel("void(cpu_t*)")
def enter(cpu):
    """Go inside emulated accesses; flush first if the address space, or the kernel's, was flushed while this CPU was outside."""
    store_seq_cst(cpu, "inside", 1)
    kernel_gen = load_acquire(machine_of(cpu), "kernel_tlb_gen")
    if kernel_gen != cpu.kernel_tlb_gen:
        tlb_flush_all(cpu)
        cpu.kernel_tlb_gen = kernel_gen
    if cpu.mm != 0:
        gen = load_acquire(mm_t.array(machine_of(cpu).mms)[cpu.mm], "tlb_gen")
        if gen != cpu.tlb_gen:
            tlb_flush_local(cpu)
            cpu.tlb_gen = gen


@kernel("void(cpu_t*)")
def leave(cpu):
    """Go outside. Whoever saw this CPU inside before waits for its answer: give it now."""
    store_seq_cst(cpu, "inside", 0)
    if load_acquire(cpu, "ipi_pending") != U(0):
        call_address(cpu.on_ipi, cpu.address, U(0), U(0))


FOR_BELL, FOR_OTHERS, NOT_WOKEN = range(3)  # what machine.on_wait is called for


@kernel("bool(cpu_t*)")
def wait_for_event(cpu):
    """Outside, let other processes run until this CPU's bell rings; True if it was not rung, but a while has passed."""
    was_inside = cpu.inside
    leave(cpu)
    ended = call_address(machine_of(cpu).on_wait, U(cpu.id), U(FOR_BELL), cpu.machine)
    unwoken = ended != U(0) and load_acquire(cpu, "waiting") != U(0)
    if was_inside != U(0):
        enter(cpu)
    return unwoken


@kernel("void(cpu_t*, bool)")
def stop_waiting(cpu, unwoken):
    """What was waited for is there. If no bell has rung for it, and none does now, a wake-up was lost: it is counted."""
    if unwoken:
        call_address(machine_of(cpu).on_wait, U(cpu.id), U(NOT_WOKEN), cpu.machine)
    store_release(cpu, "waiting", 0)


@kernel("void(machine_t*, i64)")
def wake_cpu(machine, cpu_number):
    """After writing what a CPU may wait for: ring it if it does. Its `waiting` is set before its last look."""
    cpu = cpu_t.array(machine.cpus)[cpu_number]
    if exchange(cpu, "waiting", 0) != U(0):
        call_address(machine.on_wake, U(cpu_number), cpu.wait_bell, U(0))


@kernel("void(machine_t*, i64, i64, i64)")
def reply(machine, cpu_number, token, value):
    """Answer a CPU's request."""
    cpu = cpu_t.array(machine.cpus)[cpu_number]
    cpu.reply_value = value
    store_seq_cst(cpu, "reply_seq", token)
    wake_cpu(machine, cpu_number)


@kernel("void(cpu_t*)")
def let_others_run(cpu):
    """Outside, give the host's processor away for a moment: what we wait for is another CPU's work."""
    was_inside = cpu.inside
    leave(cpu)
    call_address(machine_of(cpu).on_wait, U(cpu.id), U(FOR_OTHERS), cpu.machine)
    if was_inside != U(0):
        enter(cpu)


@kernel("void(cpu_t*, i64, i64, i64, i64, i64, i64, i64)")
def send(cpu, to, kind, token, a, b, c, d):
    """Post a message to an actor and ring if it sleeps. While its mailbox is full this CPU waits, outside."""
    machine = machine_of(cpu)
    mailbox = mailbox_of(machine, to)
    posted = post(mailbox, kind, cpu.id, token, a, b, c, d)
    while posted == FULL:
        let_others_run(cpu)
        posted = post(mailbox, kind, cpu.id, token, a, b, c, d)
    if posted == RING:
        call_address(machine.on_ring, U(to), mailbox.bell, U(0))


@kernel("i64(cpu_t*, i64, i64, i64, i64, i64)")
def request(cpu, to, kind, a, b, c):
    """Ask another process and wait for its answer, outside; a CPU has one request at a time."""
    machine = machine_of(cpu)
    token = cpu.reply_seq + 1
    trace_event(cpu, NODE_MESSAGE, to, kind, a, b, c)
    send(cpu, to, kind, token, a, b, c, cpu.id)
    cpu.clock_base_ns += machine.message_ns
    unwoken = False
    while True:
        store_seq_cst(cpu, "waiting", 1)
        if load_acquire(cpu, "reply_seq") == token:
            break
        unwoken = wait_for_event(cpu)
    stop_waiting(cpu, unwoken)
    return cpu.reply_value


@kernel("void(cpu_t*, i64, u64)")
def wake_kthread(cpu, node, work):
    """Give a node's kernel threads work (KSWAPD, ...); the coordinator wakes them if they do not have it already. They do it at
    our time at the earliest.
    """
    pgdat, now_ns = node_of(machine_of(cpu), node), clock_ns(cpu)
    seen = load_acquire(pgdat, "kthread_wake_ns")
    while seen < now_ns and compare_exchange(pgdat, "kthread_wake_ns", seen, now_ns) != seen:
        seen = load_acquire(pgdat, "kthread_wake_ns")
    if fetch_or(pgdat, "kthread_pending", work) & work == U(0):
        send(cpu, 0, MSG_WAKE_KTHREAD, 0, node, 0, 0, 0)


@hot
def relax(cpu, tries):
    """In a loop that waits for another CPU: let others run once in SPINS tries."""
    if tries % SPINS == 0:
        let_others_run(cpu)


@hot
def take_over(cpu, tries):
    """The lock is ours; if another context had it when we came, the word and what it protects move from that one's cache."""
    if tries > 0:
        cpu.clock_base_ns += machine_of(cpu).lock_handover_ns


@kernel("void(cpu_t*, u64)")
def spin_lock(cpu, lock):
    """Take the lock word at address `lock` (0 free, else the holder's number + 1)."""
    tries = 0
    while compare_exchange(u64.array(lock), 0, U(0), U(cpu.id + 1)) != U(0):
        tries += 1
        relax(cpu, tries)
    take_over(cpu, tries)


@hot
def spin_unlock(lock):
    store_release(u64.array(lock), 0, U(0))


# A lock word for many readers or one writer, an i64 (Linux's rw_semaphore):
#
#     63        48      32..47            16..31            0..15
#     a writer  phase   writers waiting   readers waiting   readers
#
# Whoever finds it taken tries again; after PATIENCE looks it counts itself among those that wait. While a writer waits so,
# no other reader or writer comes first, so it has the lock when those readers are gone that hold it. A writer that
# leaves hands the lock to all the readers that wait, and turns the phase, by which they know. So neither starves the other.
READER, READER_WAITS, WRITER_WAITS, PHASE, WRITER = 1, 1 << 16, 1 << 32, 1 << 48, -1 << 63
READERS, WAITING_READERS, WAITING_WRITERS = 0xFFFF * READER, 0xFFFF * READER_WAITS, 0xFFFF * WRITER_WAITS
PATIENCE = 64 * SPINS  # assumed; Linux's RWSEM_WAIT_TIMEOUT is 4 ms


@kernel("void(cpu_t*, u64)")
def read_lock(cpu, lock):
    """Share the lock word at address `lock`."""
    words, tries = i64.array(lock), 0
    while tries < PATIENCE:
        seen = load_acquire(words, 0)
        if seen >= 0 and seen & WAITING_WRITERS == 0:
            if compare_exchange(words, 0, seen, seen + READER) == seen:
                take_over(cpu, tries)
                return
        else:
            tries += 1
            relax(cpu, tries)
    phase = fetch_add(words, 0, READER_WAITS) & PHASE
    while True:
        seen = load_acquire(words, 0)
        if seen & PHASE != phase:
            take_over(cpu, tries)
            return  # a writer has left it to us
        if seen >= 0 and seen & WAITING_WRITERS == 0:
            if compare_exchange(words, 0, seen, seen - READER_WAITS + READER) == seen:
                take_over(cpu, tries)
                return
        else:
            tries += 1
            relax(cpu, tries)


@kernel("bool(u64)")
def read_trylock(lock):
    """Share the lock word unless a writer has it; one that waits is no hindrance."""
    words = i64.array(lock)
    while True:
        seen = load_acquire(words, 0)
        if seen < 0:
            return False
        if compare_exchange(words, 0, seen, seen + READER) == seen:
            return True


@hot
def read_unlock(lock):
    fetch_add(i64.array(lock), 0, -READER)


@kernel("void(cpu_t*, u64)")
def write_lock(cpu, lock):
    """Take the lock word alone."""
    words, tries = i64.array(lock), 0
    while tries < PATIENCE:
        seen = load_acquire(words, 0)
        if seen & ~PHASE == 0:
            if compare_exchange(words, 0, seen, seen | WRITER) == seen:
                take_over(cpu, tries)
                return
        else:
            tries += 1
            relax(cpu, tries)
    fetch_add(words, 0, WRITER_WAITS)
    while True:
        seen = load_acquire(words, 0)
        if seen >= 0 and seen & READERS == 0:
            if compare_exchange(words, 0, seen, (seen - WRITER_WAITS) | WRITER) == seen:
                take_over(cpu, tries)
                return
        else:
            tries += 1
            relax(cpu, tries)


@hot
def write_trylock(lock):
    """Take the lock word alone if nobody has it or waits for it."""
    words = i64.array(lock)
    seen = load_acquire(words, 0)
    return seen & ~PHASE == 0 and compare_exchange(words, 0, seen, seen | WRITER) == seen


@kernel("void(u64)")
def write_unlock(lock):
    """Give the lock word up, to the readers that wait if there are any."""
    words = i64.array(lock)
    while True:
        seen = load_acquire(words, 0)
        free, waiting = seen & ~WRITER, (seen & WAITING_READERS) // READER_WAITS
        if waiting != 0:
            free = (free - waiting * (READER_WAITS - READER)) ^ PHASE
        if compare_exchange(words, 0, seen, free) == seen:
            return

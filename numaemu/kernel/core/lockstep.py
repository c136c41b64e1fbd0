"""Lockstep: at every moment one of a machine's threads runs, and who is next is a rule over emulated time alone
(pick.py).

A *strand* is a thread of one of the machine's processes that takes turns: each actor's main thread, a node's kernel
threads, each function and operation under way in a CPU's process, and the driver, which is number 0. A strand has its
*gate*, a semaphore in shared memory, and waits there unless it is `running`. The running strand hands over by opening the gate
of the next one, so everything that it has written before is seen by that one, and nothing else here needs to be atomic: who runs
writes, nobody else. (The one exception is `wake_outside`.)

A strand goes by a clock (`clocked`) while it has the turn of its CPU, or runs kernel threads: then its clock is that context's. It
is looked at before an access (`event_at`, sched.py), at the begin of an operation and where a strand waits. One that
sleeps in emulated time goes by its own clock, which says when it is to go on.

Who wakes another one that waits inside an operation hands its time on: that one continues at the later of both clocks. Who only has to
try again later (a lock is taken) *spins*: its clock moves on to that of the next one, which then runs for SPIN_NS at a time.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, fetch_or, load_acquire, store_seq_cst
from numaemu.compiler.decorators import callback, entry, hot, kernel
from numaemu.compiler.native import release_gil, sem_init, sem_post, sem_wait, take_gil
from numaemu.compiler.pointer import i64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.pick import SPIN_NS, pick
from numaemu.kernel.core.strand import (
    DRIVER,
    FAR,
    NOBODY,
    advance_clock,
    lockstep_of,
    lockstep_t,
    now_of,
    run_until,
    set_ready,
    set_waiting,
    strand_ns,
)
from numaemu.kernel.include.mm_types import machine_t
from numaemu.mmu import clock_ns
from numaemu.spec.param import CONTEXT_WORDS, MAX_STRANDS

U = np.uint64
LOOK_AT_LEAST = 16  # accesses between two looks at the clock; with a drawn schedule or a fine quantum one; assumed
FINE_NS = 1000  # a quantum below it is fine; assumed


@kernel("void(lockstep_t*, i64)")
def open_gate(lockstep, number):
    """Let a strand run; NOBODY: until `wake_outside`, unless that has been there just now."""
    while number == NOBODY:
        store_seq_cst(lockstep, "running", NOBODY)
        number = pick(lockstep)
        if number == NOBODY or compare_exchange(lockstep, "running", NOBODY, number) != NOBODY:
            return
    store_seq_cst(lockstep, "running", number)
    sem_post(lockstep.strands[number].gate.address)


@kernel("void(lockstep_t*, i64)")
def pass_gate(lockstep, number):
    """Wait until this strand, `number`, runs. Other threads of the process may have Python's lock meanwhile."""
    state = release_gil()
    while sem_wait(lockstep.strands[number].gate.address) != 0:
        pass
    take_gil(state)


@kernel("void(lockstep_t*, i64)")
def hand_over(lockstep, number):
    """Let another strand run, and wait until it is this one's turn again."""
    me = lockstep.running
    if number == me:
        return
    lockstep.handovers += 1
    open_gate(lockstep, number)
    pass_gate(lockstep, me)


@kernel("void(lockstep_t*)")
def block(lockstep):
    """Wait until another strand has woken this one, or return at once if one has since it waited last."""
    me = lockstep.running
    strand = lockstep.strands[me]
    set_waiting(lockstep, me)
    if exchange(strand, "permit", 0) != U(0):
        set_ready(lockstep, me)
        return
    hand_over(lockstep, pick(lockstep))
    exchange(strand, "permit", 0)


@kernel("void(lockstep_t*)")
def pause(lockstep):
    """Let others run whose turn it is."""
    hand_over(lockstep, pick(lockstep))


@kernel("void(lockstep_t*, i64)")
def wake(lockstep, number):
    """A strand has something to do from now on; if it waits, it could run, at the time of this one at the earliest."""
    strand, now_ns = lockstep.strands[number], now_of(lockstep)
    store_seq_cst(strand, "permit", 1)
    if strand.clocked != 0 and strand.clock_of == U(0):
        strand.clock_ns = min(strand.clock_ns, now_ns)  # it sleeps, and need not wait for that time
    word, bit = number // 64, U(1) << U(number % 64)
    if (load_acquire(lockstep.clocked, word) | load_acquire(lockstep.serving, word)) & bit != U(0):
        if strand.clocked == 0 and number != DRIVER:
            strand.clock_ns = max(strand.clock_ns, now_ns)
        return
    if strand.clocked == 0:
        strand.clock_ns = now_ns if number != DRIVER else 0
    elif strand.clock_of != U(0):
        advance_clock(cpu_t.at(strand.clock_of), now_ns)
    set_ready(lockstep, number)
    if strand.clocked != 0 and lockstep.running == lockstep.slice:
        run_until(lockstep, min(lockstep.until_ns, strand_ns(strand) + lockstep.quantum_ns))


@kernel("void(lockstep_t*, i64)")
def go_by(lockstep, clocked):
    """From now on the running strand goes by a clock (1), or serves (0)."""
    me = lockstep.running
    set_waiting(lockstep, me)
    lockstep.strands[me].clocked = clocked
    set_ready(lockstep, me)


@kernel("void(lockstep_t*)")
def serve_first(lockstep):
    """Let those that serve do what the running strand has just asked for, and come back to it whatever its clock says."""
    strand = lockstep.strands[lockstep.running]
    goes_by_clock = strand.clocked
    if goes_by_clock != 0:
        go_by(lockstep, 0)
    pause(lockstep)
    if goes_by_clock != 0:
        go_by(lockstep, 1)


@kernel("void(lockstep_t*)")
def spin(lockstep):
    """What this strand waits for is another one's work, which does not wake it: let some time go by, for it too."""
    me = lockstep.running
    strand = lockstep.strands[me]
    serve_first(lockstep)
    set_waiting(lockstep, me)
    number = pick(lockstep)
    if number == NOBODY:
        set_ready(lockstep, me)
        return
    strand.spins = 1
    other = lockstep.strands[number]
    if other.clocked != 0 and strand.clocked != 0 and strand.clock_of != U(0):
        advance_clock(cpu_t.at(strand.clock_of), strand_ns(other))
    if other.clocked != 0:
        run_until(lockstep, min(lockstep.until_ns, strand_ns(other) + SPIN_NS))
    if strand.clocked != 0:
        set_ready(lockstep, me)
        hand_over(lockstep, number)
    else:  # it would be the first again: let the other one run in its place for once
        strand.clocked, strand.clock_of = 1, U(0)
        strand.clock_ns = strand_ns(other)
        set_ready(lockstep, me)
        hand_over(lockstep, number)
        go_by(lockstep, 0)
    strand.spins = 0


# -- from compiled code


@kernel("void(cpu_t*)")
def look_at_clock(cpu):
    """Between two accesses: let others run if this CPU is a quantum ahead."""
    lockstep = lockstep_of(cpu)
    if clock_ns(cpu) > lockstep.until_ns:
        pause(lockstep)


@kernel("void(cpu_t*)")
def cond_resched(cpu):
    """A kernel thread between two pieces of its work, with no lock: in lockstep CPUs go first whose clocks are behind."""
    if machine_t.at(cpu.machine).lockstep != U(0):
        look_at_clock(cpu)


@hot
def look_at_least(cpu):
    """Accesses between two looks at the clock."""
    return lockstep_of(cpu).look_at_least


@hot
def time_left(cpu):
    """ns until this CPU has to look again."""
    return lockstep_of(cpu).until_ns - clock_ns(cpu)


@callback("u64(u64, u64, u64)")
def lockstep_wake(number, lockstep_address, _c):
    """machine.on_wake: what CPU `number` waits for inside an operation is there. Its `wait_bell` is our address."""
    lockstep = lockstep_t.at(lockstep_address)
    waiter = lockstep.waiter[number]
    if waiter != NOBODY:
        wake(lockstep, waiter)
    return U(0)


@kernel("void(lockstep_t*, i64)")
def wait_inside(lockstep, context):
    """A context waits inside an operation until `lockstep_wake`."""
    lockstep.waiter[context] = lockstep.running
    block(lockstep)
    lockstep.waiter[context] = NOBODY


# -- from Python


@entry("void(u64, i64, i64, u64)")
def init_lockstep(address, fixed, quantum_ns, seed):
    """Nobody waits for anything, and the driver runs. Numbers below `fixed` are given away already."""
    lockstep = lockstep_t.at(address)
    lockstep.running, lockstep.slice, lockstep.until_ns = DRIVER, NOBODY, FAR
    lockstep.quantum_ns, lockstep.seed, lockstep.first_free = quantum_ns, seed, fixed
    lockstep.nr_words = (fixed + 63) // 64
    lockstep.look_at_least = LOOK_AT_LEAST if quantum_ns >= FINE_NS else 1
    for context in range(CONTEXT_WORDS * 64):
        lockstep.waiter[context] = NOBODY
    for number in range(fixed):
        sem_init(lockstep.strands[number].gate.address)
        lockstep.strands[number].used = 1
    set_ready(lockstep, DRIVER)


@entry("void(u64, i64, u64, u64, i64)")
def draw_schedule(address, kind, seed, changes, nr_changes):
    """Let a schedule draw who runs next. `changes`: the host's address of the steps at which a priority is lowered, in order."""
    lockstep = lockstep_t.at(address)
    lockstep.schedule, lockstep.schedule_seed, lockstep.look_at_least = kind, seed, 1
    for i in range(nr_changes):
        lockstep.change_at[i] = i64.array(changes)[i]


@entry("i64(u64)")
def schedule_steps(address):
    """How often the schedule has drawn who runs next."""
    return lockstep_t.at(address).steps


@entry("i64(u64)")
def new_strand(address):
    """A strand that could run, for a thread that is about to begin: its number; NOBODY: all MAX_STRANDS are in use."""
    lockstep = lockstep_t.at(address)
    for number in range(lockstep.first_free, MAX_STRANDS):
        strand = lockstep.strands[number]
        if strand.used == 0:
            strand.used, strand.clocked, strand.clock_of, strand.clock_ns = 1, 0, U(0), now_of(lockstep)
            strand.permit, strand.spins, strand.priority = U(0), 0, U(0)
            sem_init(strand.gate.address)
            lockstep.nr_words = max(lockstep.nr_words, number // 64 + 1)
            set_ready(lockstep, number)
            return number
    return NOBODY


@entry("void(u64, i64)")
def begin_strand(address, number):
    """A thread has begun: wait until it is its turn."""
    pass_gate(lockstep_t.at(address), number)


@entry("void(u64)")
def end_strand(address):
    """The running strand ends."""
    lockstep = lockstep_t.at(address)
    set_waiting(lockstep, lockstep.running)
    lockstep.strands[lockstep.running].used = 0
    open_gate(lockstep, pick(lockstep))


@entry("void(u64, i64)")
def drop_strand(address, number):
    """A strand for which there is no thread after all."""
    lockstep = lockstep_t.at(address)
    set_waiting(lockstep, number)
    lockstep.strands[number].used = 0


@entry("i64(u64)")
def running_strand(address):
    """Number of the strand that runs: the caller's."""
    return lockstep_t.at(address).running


@entry("void(u64)")
def block_strand(address):
    """Wait until another strand wakes this one; it may also come back without, so look again."""
    block(lockstep_t.at(address))


@entry("void(u64, i64)")
def wake_strand(address, number):
    """Let a strand look again."""
    wake(lockstep_t.at(address), number)


@entry("void(u64)")
def serve_strands(address):
    """Let those that serve do at once what has just been asked of them."""
    serve_first(lockstep_t.at(address))


@entry("void(u64)")
def spin_strand(address):
    """Try again later."""
    spin(lockstep_t.at(address))


@entry("void(u64, i64)")
def sleep_strand(address, until_ns):
    """Wait until emulated time has come to `until_ns`, or another strand wakes this one."""
    lockstep = lockstep_t.at(address)
    strand = lockstep.strands[lockstep.running]
    strand.clock_of, strand.clock_ns = U(0), until_ns
    go_by(lockstep, 1)
    if exchange(strand, "permit", 0) == U(0):
        pause(lockstep)
    exchange(strand, "permit", 0)
    go_by(lockstep, 0)


@entry("void(u64)")
def leave_turn(address):
    """It takes no emulated time from now on; what others have to serve is done first."""
    lockstep = lockstep_t.at(address)
    strand = lockstep.strands[lockstep.running]
    strand.clock_ns = strand_ns(strand)
    go_by(lockstep, 0)
    pause(lockstep)


@entry("i64(u64)")
def lockstep_now(address):
    """Emulated time at which the running strand runs, in ns."""
    return now_of(lockstep_t.at(address))


def handovers(address):
    """How often one strand has handed over to another so far."""
    return lockstep_t.at(address).handovers


@entry("void(u64, i64)")
def wake_outside(address, number):
    """The same as `wake_strand` from a thread that has no turn: what comes from outside the machine.

    It may run beside the strand that runs: `permit`, `serving` and `running` change atomically. Who goes idle
    stores `running` before it looks whether any strand could run, and this sets the strand's bit before it looks at `running`:
    one of the two sees the other.
    """
    lockstep = lockstep_t.at(address)
    store_seq_cst(lockstep.strands[number], "permit", 1)
    fetch_or(lockstep.serving, number // 64, U(1) << U(number % 64))
    if compare_exchange(lockstep, "running", NOBODY, number) == NOBODY:
        sem_post(lockstep.strands[number].gate.address)

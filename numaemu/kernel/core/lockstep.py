"""Lockstep: at every moment one of a machine's threads runs, and who is next is a rule over emulated time alone.

A *strand* is a thread of one of the machine's processes that takes turns: each actor's main thread, a node's kernel
threads, each function and operation under way in a CPU's process, and the driver, which is number 0. A strand has its
*gate*, a semaphore in shared memory, and waits there unless it is `running`. The running strand hands over by opening the gate
of the next one, so everything that it has written before is seen by that one, and nothing else here needs to be atomic: who runs
writes, nobody else. (The one exception is `wake_outside`.)

Who is next (`pick`):
1. a strand that serves, the lowest number first: the driver, the coordinator, nodes, the Python code of CPUs. It takes no
   emulated time, so it is done before any goes on;
2. else the one that had the *slice*, as long as it is at most a quantum ahead of every other one that could run;
3. else the one with the least clock; of equal ones the lowest number, or the first in an order that the seed draws.

A strand goes by a clock (`clocked`) while it has the turn of its CPU, or runs kernel threads: then its clock is that context's. It
is looked at before an access (`event_at`, sched.py), at the begin of an operation and where a strand waits. One that
sleeps in emulated time goes by its own clock, which says when it is to go on.

A *schedule* may draw who is next of those that go by a clock instead, in the search for what goes wrong only when processes mix
in a certain way (`pick_drawn`): each time anew, or by priorities as in probabilistic concurrency testing (Burckhardt et al.,
ASPLOS 2010): each strand has one, drawn from the seed, the highest runs, and at a few drawn steps the one that has run gets one below all others.

Who wakes another one that waits inside an operation hands its time on: that one continues at the later of both clocks. Who only has to
try again later (a lock is taken) *spins*: its clock moves on to that of the next one, which then runs for SPIN_NS at a time.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, fetch_and, fetch_or, load_acquire, store_seq_cst
from numaemu.compiler.decorators import callback, entry, hot, kernel
from numaemu.compiler.native import release_gil, sem_init, sem_post, sem_wait, take_gil
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.mm_types import machine_t
from numaemu.mmu import clock_ns
from numaemu.spec.param import CONTEXT_WORDS, MAX_STRANDS

U = np.uint64
DRIVER = 0  # the strand that stands for the driver
NOBODY = -1
FAR = 1 << 62  # ns: later than any clock
SPIN_NS = 1000  # how long the others run, in emulated time, until one that spins tries again; assumed
STRAND_WORDS = MAX_STRANDS // 64
BY_CLOCK, AT_RANDOM, BY_PRIORITY = range(3)  # lockstep_t.schedule
MAX_CHANGES = 64  # of priorities
LOOK_AT_LEAST = 16  # accesses between two looks at the clock; with a drawn schedule one; assumed
UNFAIR_STEPS = 500  # of one strand in a row, until its priority is the lowest: it may wait in a loop; assumed
ASLEEP, SPINNING, LOW, HIGH = U(1), U(2), U(1 << 40), U(1 << 63)  # priorities of those that could run

# fmt: off
strand_t = Struct("strand_t", [
    ("gate", u64, 8),           # its sem_t
    ("used", i64),
    ("clocked", i64),           # 1: goes by a clock, 0: serves
    ("clock_of", u64),          # address of the cpu_t whose clock that is, 0: `clock_ns`
    ("clock_ns", i64),          # when it is to go on; of one that serves, the time of who woke it last
    ("permit", u64),            # 1: woken since it last began to wait
    ("spins", i64),             # 1: it has to try again, for instance for a lock
    ("priority", u64),          # of a schedule by priorities, once it was lowered, else 0
    ("_pad", u64),
], nbytes=128)

lockstep_t = Struct("lockstep_t", [
    ("running", i64),           # the strand that runs; NOBODY: all wait for the driver
    ("slice", i64),             # of those that go by a clock, the one that ran last
    ("until_ns", i64),          # when that one is a quantum ahead of the next
    ("quantum_ns", i64), ("seed", u64),
    ("look_at_least", i64),     # accesses between two looks at the clock
    ("nr_words", i64),          # of `serving` and `clocked` that are in use
    ("first_free", i64),        # numbers below are those of actors and kernel threads
    ("handovers", i64),
    ("schedule", i64), ("schedule_seed", u64),     # how those that go by a clock are picked
    ("steps", i64), ("in_a_row", i64),             # how often that was drawn, and the same strand last
    ("changes", i64), ("change_at", i64, MAX_CHANGES),     # priorities lowered so far; at which steps, in order
    ("words", i64, 8),          # of the message that is just served
    ("serving", u64, STRAND_WORDS), ("clocked", u64, STRAND_WORDS),        # strands that could run, by what they go by
    ("waiter", i64, CONTEXT_WORDS * 64),     # the strand that waits inside an operation of each CPU or node
    ("strands", strand_t, MAX_STRANDS),
])
# fmt: on


@hot
def lockstep_of(cpu):
    return lockstep_t.at(machine_t.at(cpu.machine).lockstep)


@hot
def strand_ns(strand):
    """The clock by which a strand goes."""
    return clock_ns(cpu_t.at(strand.clock_of)) if strand.clock_of != U(0) else strand.clock_ns


@kernel("void(cpu_t*, i64)")
def advance_clock(cpu, ns):
    """A context continues at `ns` at the earliest; it has had nothing to do until then."""
    behind = ns - clock_ns(cpu)
    if behind > 0:
        cpu.clock_base_ns += behind
        cpu.idle_ns += behind


@hot
def now_of(lockstep):
    """The emulated time at which the running strand runs."""
    return strand_ns(lockstep.strands[lockstep.running])


@kernel("void(lockstep_t*, i64)")
def set_ready(lockstep, number):
    """A strand could run."""
    word, bit = number // 64, U(1) << U(number % 64)
    if lockstep.strands[number].clocked != 0:
        fetch_or(lockstep.clocked, word, bit)
    else:
        fetch_or(lockstep.serving, word, bit)


@kernel("void(lockstep_t*, i64)")
def set_waiting(lockstep, number):
    """A strand cannot run."""
    word, bit = number // 64, U(1) << U(number % 64)
    fetch_and(lockstep.clocked, word, ~bit)
    fetch_and(lockstep.serving, word, ~bit)


@hot
def mix(x, a, b):
    """Both halves of a word times a constant of 32 bits each, so that nothing overflows."""
    x = (x & U(0xFFFFFFFF)) * a ^ (x >> U(32)) * b
    return x ^ (x >> U(29))


@kernel("u64(u64, i64)")
def drawn(seed, number):
    """A number's place in the order that a seed draws."""
    x = mix((seed << U(20)) ^ U(number), U(0x9E3779B1), U(0x85EBCA77))
    return mix(mix(x, U(0xC2B2AE3D), U(0x27D4EB2F)), U(0x165667B1), U(0x9E3779B1))


@hot
def is_before(lockstep, a_ns, a, b_ns, b):
    """True if strand `a` comes before `b`: by clock, then by number or as the seed draws."""
    if a_ns != b_ns or b == NOBODY:
        return a_ns < b_ns
    if lockstep.seed == U(0):
        return a < b
    return drawn(lockstep.seed, a) < drawn(lockstep.seed, b)


@kernel("i64(u64)")
def lowest_bit(bits):
    """Number of the lowest bit that is set; `bits` is not 0."""
    n = 0
    while bits & U(1) == U(0):
        bits >>= U(1)
        n += 1
    return n


@kernel("void(lockstep_t*, i64)")
def run_until(lockstep, ns):
    """The strand that has the slice is to look again when its clock says `ns`: if that is earlier than before, it has to work out
    anew after how many accesses that is.
    """
    strand = lockstep.strands[lockstep.slice]
    if ns < lockstep.until_ns and strand.clock_of != U(0):
        exchange(cpu_t.at(strand.clock_of), "event_at", 0)
    lockstep.until_ns = ns


@hot
def drawn_priority(lockstep, number):
    """How soon a strand that could run is to run: the highest is next."""
    strand = lockstep.strands[number]
    if strand.clock_of == U(0):
        return ASLEEP
    if strand.spins != 0:
        return SPINNING
    if lockstep.schedule == AT_RANDOM:
        return drawn(lockstep.schedule_seed + U(lockstep.steps << 16), number) | HIGH
    return strand.priority if strand.priority != U(0) else drawn(lockstep.schedule_seed, number) | HIGH


@kernel("void(lockstep_t*)")
def lower_priority(lockstep):
    """The strand that has run gets a priority below all others."""
    if lockstep.slice != NOBODY:
        lockstep.strands[lockstep.slice].priority = LOW - U(lockstep.steps)
    lockstep.in_a_row = 0


@kernel("i64(lockstep_t*)")
def pick_drawn(lockstep):
    """The same as `pick` of those that go by a clock, as the schedule draws it. One that sleeps is next only if all do."""
    lockstep.steps += 1
    while lockstep.changes < MAX_CHANGES and lockstep.change_at[lockstep.changes] == lockstep.steps:
        lower_priority(lockstep)
        lockstep.changes += 1
    if lockstep.in_a_row > UNFAIR_STEPS:
        lower_priority(lockstep)
    first, highest = NOBODY, U(0)
    for word in range(lockstep.nr_words):
        bits = load_acquire(lockstep.clocked, word)
        number = word * 64
        while bits != U(0):
            if bits & U(1) != U(0):
                priority = drawn_priority(lockstep, number)
                if priority > highest:
                    first, highest = number, priority
            bits >>= U(1)
            number += 1
    if first == NOBODY:
        return NOBODY
    lockstep.in_a_row = lockstep.in_a_row + 1 if first == lockstep.slice else 0
    if first != lockstep.slice:
        lockstep.until_ns = FAR
    lockstep.slice = first
    length = drawn(lockstep.schedule_seed + U(1), lockstep.steps) % U(lockstep.quantum_ns)
    run_until(lockstep, strand_ns(lockstep.strands[first]) + np.int64(length))
    return first


@kernel("i64(lockstep_t*)")
def pick(lockstep):
    """The strand that is to run next, or NOBODY; see above for the rule."""
    for word in range(lockstep.nr_words):
        bits = load_acquire(lockstep.serving, word)
        if bits != U(0):
            return word * 64 + lowest_bit(bits)
    if lockstep.schedule != BY_CLOCK:
        return pick_drawn(lockstep)
    first, first_ns, other_ns, spinners = NOBODY, FAR, FAR, 0
    had, had_ns, had_others_ns = lockstep.slice, FAR, FAR
    for word in range(lockstep.nr_words):
        bits = load_acquire(lockstep.clocked, word)
        number = word * 64
        while bits != U(0):
            if bits & U(1) != U(0):
                strand = lockstep.strands[number]
                ns = strand_ns(strand)
                spinners += strand.spins
                if number == had:
                    had_ns = ns
                else:
                    had_others_ns = min(had_others_ns, ns)
                if is_before(lockstep, ns, number, first_ns, first):
                    first, first_ns, other_ns = number, ns, first_ns
                else:
                    other_ns = min(other_ns, ns)
            bits >>= U(1)
            number += 1
    if first == NOBODY:
        return NOBODY
    ahead = SPIN_NS if spinners > 0 else lockstep.quantum_ns
    if had_ns < FAR and had_ns <= had_others_ns + ahead:
        first, other_ns = had, had_others_ns
    if had != first:
        lockstep.until_ns = FAR
    lockstep.slice = first
    run_until(lockstep, min(other_ns + ahead, FAR))
    return first


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
    lockstep.nr_words, lockstep.look_at_least = (fixed + 63) // 64, LOOK_AT_LEAST
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

"""Who runs next in lockstep (lockstep.py), by emulated time alone.

Who is next (`pick`):
1. a strand that serves, the lowest number first: the driver, the coordinator, nodes, the Python code of CPUs. It takes no
   emulated time, so it is done before any goes on;
2. else the one that had the *slice*, as long as it is at most a quantum ahead of every other one that could run;
3. else the one with the least clock; of equal ones the lowest number, or the first in an order that the seed draws.

A *schedule* may draw who is next of those that go by a clock instead, in the search for what goes wrong only when processes mix
in a certain way (`pick_drawn`): each time anew, or by priorities as in probabilistic concurrency testing (Burckhardt et al.,
ASPLOS 2010): each strand has one, drawn from the seed, the highest runs, and at a few drawn steps the one that has run gets one below all others.
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.bits import lowest_bit
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.strand import AT_RANDOM, BY_CLOCK, FAR, MAX_CHANGES, NOBODY, run_until, strand_ns

U = np.uint64
SPIN_NS = 1000  # how long the others run, in emulated time, until one that spins tries again; assumed
UNFAIR_STEPS = 500  # of one strand in a row, until its priority is the lowest: it may wait in a loop; assumed
ASLEEP, SPINNING, LOW, HIGH = U(1), U(2), U(1 << 40), U(1 << 63)  # priorities of those that could run


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
        while bits != U(0):
            number = word * 64 + lowest_bit(bits)
            bits &= bits - U(1)
            priority = drawn_priority(lockstep, number)
            if priority > highest:
                first, highest = number, priority
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
        while bits != U(0):
            number = word * 64 + lowest_bit(bits)
            bits &= bits - U(1)
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

"""What lockstep knows of the threads that take turns (lockstep.py): `strand_t`, `lockstep_t`, by which clock a strand goes, and
which ones could run.
"""

import numpy as np

from numaemu.compiler.atomic import exchange, fetch_and, fetch_or
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64, u64
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.include.mm_types import machine_t
from numaemu.mmu import clock_ns
from numaemu.spec.param import CONTEXT_WORDS, MAX_STRANDS

U = np.uint64
DRIVER = 0  # the strand that stands for the driver
NOBODY = -1
FAR = 1 << 62  # ns: later than any clock
STRAND_WORDS = MAX_STRANDS // 64
BY_CLOCK, AT_RANDOM, BY_PRIORITY = range(3)  # lockstep_t.schedule
MAX_CHANGES = 64  # of priorities

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


@kernel("void(lockstep_t*, i64)")
def run_until(lockstep, ns):
    """The strand that has the slice is to look again when its clock says `ns`: if that is earlier than before, it has to work out
    anew after how many accesses that is.
    """
    strand = lockstep.strands[lockstep.slice]
    if ns < lockstep.until_ns and strand.clock_of != U(0):
        exchange(cpu_t.at(strand.clock_of), "event_at", 0)
    lockstep.until_ns = ns

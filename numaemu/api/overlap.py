"""What a user kernel says of time: loads that do not depend on each other, and computing between accesses.

    load_many_f64(cpu, addresses, values)    values[i] = the f64 at addresses[i]; likewise u8, u16, u32, u64, i32, i64, f32
    work(cpu, ns)                            computing takes so many ns of emulated time

Where misses of a CPU may overlap (`[cpu] outstanding`), those of load_many do; a load_f64 waits until its value is there.
"""

import numpy as np

from numaemu.api.access import load, serve_event
from numaemu.compiler.atomic import exchange
from numaemu.compiler.decorators import entry, hot
from numaemu.compiler.pointer import f32, f64, i32, i64, u8, u16, u32, u64
from numaemu.hardware.controller import begin_overlap, end_overlap
from numaemu.hardware.processor import cpu_t

LOOK_SHIFT = 12  # of ns: a CPU that computes looks once in so long whether its turn is over
LONG_SHIFT = 20  # who computes for hours looks so many times only, as a power of 2


@hot
def work(cpu, ns):
    """Computing takes a CPU so many ns of emulated time, a whole number; others may have their turn meanwhile."""
    if ns < 0:
        raise ValueError("work: ns must not be negative")
    left = np.int64(ns)
    while left > 0:
        before = cpu.clock_base_ns
        step = min(left, max((1 << LOOK_SHIFT) - (before & ((1 << LOOK_SHIFT) - 1)), left >> LONG_SHIFT))
        cpu.clock_base_ns = before + step
        left -= step
        if before >> LOOK_SHIFT != (before + step) >> LOOK_SHIFT:
            exchange(cpu, "event_at", 0)
            serve_event(cpu)


@entry("void(u64, i64)", nogil=True)
def work_ns(cpu_address, ns):
    """The same for `task.work`."""
    work(cpu_t.at(cpu_address), ns)


@hot
def load_many(cpu, addresses, values, kind):
    """values[i] = the `kind` at addresses[i], of two arrays."""
    begin_overlap(cpu)
    for i in range(len(addresses)):
        values[i] = load(cpu, addresses[i], kind)
    end_overlap(cpu)


@hot
def load_many_u8(cpu, addresses, values):
    load_many(cpu, addresses, values, u8)


@hot
def load_many_u16(cpu, addresses, values):
    load_many(cpu, addresses, values, u16)


@hot
def load_many_u32(cpu, addresses, values):
    load_many(cpu, addresses, values, u32)


@hot
def load_many_u64(cpu, addresses, values):
    load_many(cpu, addresses, values, u64)


@hot
def load_many_i32(cpu, addresses, values):
    load_many(cpu, addresses, values, i32)


@hot
def load_many_i64(cpu, addresses, values):
    load_many(cpu, addresses, values, i64)


@hot
def load_many_f32(cpu, addresses, values):
    load_many(cpu, addresses, values, f32)


@hot
def load_many_f64(cpu, addresses, values):
    load_many(cpu, addresses, values, f64)

"""The accesses of a recorded step, as the recorder's program makes them; in the driver, or as a function of the task itself."""

import numpy as np

from numaemu.conform.files import OVERSLEEP_MS, PAGE
from numaemu.conform.init import use_stack

ACCESSES = 1 << 16  # accesses of one operation


def touch(task, step, address, nbytes, random, uses_stack, settle=None):
    """One byte per stride of a range: (what the step answers, the state of the task's random numbers). With `duration_ms` again and
    again for so long. `settle` is called in each pause, where kernel threads would not come by themselves.
    """
    stride = step.get("stride", PAGE)
    before, until = task.counters(), None
    if "duration_ms" in step:
        until = task.clock_ns + step["duration_ms"] * 1_000_000
    done = 0
    while True:
        if uses_stack:
            use_stack(task)
        count, order, repeat = -(-nbytes // stride), step.get("order", "seq"), step.get("repeat", 1)
        indices, random = touch_order(count, order, repeat, random)
        done += access(task, step, address, indices, settle)
        if until is None or task.clock_ns >= until:
            break
    after = task.counters()
    minor, major = (after[name] - before[name] for name in ("task_minor_faults", "task_major_faults"))
    return {"ret": done, "errno": 0, "minflt": minor, "majflt": major}, random


def access(task, step, address, indices, settle):
    """The accesses of a touch, once through, with a pause after every `chunk` bytes; how many."""
    stride, pause = step.get("stride", PAGE), step.get("pause_ms", 0)
    portion = max(step["chunk"] // stride, 1) if "chunk" in step else ACCESSES
    for start in range(0, len(indices), portion):
        part = indices[start : start + portion]
        places = np.uint64(address) + part * np.uint64(stride)
        if step.get("mode") == "read":
            task.load(places, np.uint8)
        else:
            task.store(places, (part + np.uint64(1)).astype(np.uint8))
        if pause:
            task.sleep(pause + OVERSLEEP_MS)
            if settle is not None:
                settle()
    return len(indices)


def touch_order(count, order, repeat, state):
    """Which page (or stride) comes when, as an array of indices, and the state of xorshift64 behind them."""
    if order != "random":
        once = np.arange(count, dtype=np.uint64)
        return np.tile(once if order == "seq" else once[::-1], repeat), state
    drawn = np.empty(count * repeat, np.uint64)
    for i in range(len(drawn)):
        state ^= state << 13 & (1 << 64) - 1
        state ^= state >> 7
        state ^= state << 17 & (1 << 64) - 1
        drawn[i] = state % count
    return drawn, state

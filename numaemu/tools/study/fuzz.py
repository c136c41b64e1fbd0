"""Lockstep runs of one workload under drawn schedules: `numaemu fuzz`.

Each run boots a machine of its own whose processes mix as a schedule says (kernel/core/lockstep.py: `pick_drawn`), checks it every so
often and at the end. A run is named by its schedule's text, and goes the same way each time.
"""

import contextlib
import io
import itertools
import multiprocessing
import os
import random
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import NamedTuple

from numaemu.spec.topology import load_topology

QUANTUM_NS = 2_000  # a drawn schedule looks after so much emulated time at most: some twenty accesses; assumed
CHECK_EVERY = 50  # requests of the driver from one audit to the next


class Outcome(NamedTuple):
    """One run: its schedule, what went wrong in a line ("": nothing), where, how often the schedule was asked, seconds."""

    schedule: str
    error: str
    trace: str
    steps: int
    seconds: float


class TookTooLong(BaseException):
    """A run has not ended in time."""


def checked(machine):
    """The machine is audited before every CHECK_EVERY-th thing that its driver asks for."""
    ask, numbers = machine._ask, itertools.count(1)

    def ask_and_check(method, *args):
        if next(numbers) % CHECK_EVERY == 0 and method != "check":
            machine.check()
        return ask(method, *args)

    machine._ask = ask_and_check
    return machine


def too_long(*_):
    raise TookTooLong


def run_once(path, args, topology, schedule, seed, seconds):
    """Run a workload under a schedule: an Outcome. Its output goes nowhere."""
    from numaemu.machine import Machine
    from numaemu.tools import cli
    from numaemu.tools.study.figures import workload_of

    start, steps, error, trace = time.perf_counter(), 0, "", ""
    signal.signal(signal.SIGALRM, too_long)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), workload_of(path, args) as (module, _):
            cli.seed_all(seed)
            with Machine(load_topology(topology, lockstep=True, schedule=schedule, quantum_ns=QUANTUM_NS)) as machine:
                machine.seed = seed
                module.main(checked(machine))
                steps = machine._ask("schedule_steps")
                machine.check()
    except (TookTooLong, KeyboardInterrupt):
        error = f"has not ended within {seconds:g} s"
    except BaseException as caught:
        error = f"{type(caught).__name__}: {caught}".splitlines()[0]
        trace = getattr(caught, "emulated_traceback", "") or ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return Outcome(schedule, error, trace, steps, time.perf_counter() - start)


def schedules(seed, depth, steps):
    """The schedules that a seed draws, without end: one at random after each four by priorities with `depth` change points,
    which lie anywhere in the `steps` of a run.
    """
    for number in itertools.count(seed):
        draw = random.Random(number)
        changes = sorted(draw.sample(range(1, max(steps, depth) + 1), depth))
        yield (
            f"random:{number}"
            if number % 5 == 4
            else ":".join(["priorities", str(number), *([",".join(map(str, changes))] if changes else [])])
        )


def quiet_worker():
    """A worker leaves Ctrl-C to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def fuzz(path, args, topology, runs, depth, seed, jobs, seconds, say):
    """Run `runs` schedules; the Outcomes that went wrong, the first one that does ending it, and how many ran."""
    first = run_once(path, args, topology, f"random:{seed}", seed, seconds)  # it also compiles what is needed
    if first.error or runs == 1:
        return [first] if first.error else [], 1
    texts, done, failed = schedules(seed, depth, first.steps), 1, []
    context, begun = multiprocessing.get_context("spawn"), time.perf_counter()
    with ProcessPoolExecutor(jobs, context, quiet_worker) as pool:
        waiting, left = set(), runs - 1
        while (left or waiting) and not failed:
            while left and len(waiting) < 2 * jobs:
                waiting.add(pool.submit(run_once, path, args, topology, next(texts), seed, seconds))
                left -= 1
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            outcomes = [future.result() for future in ended]
            done += len(outcomes)
            failed += [outcome for outcome in outcomes if outcome.error]
            say(f"{done} of {runs} schedules, {(done - 1) / (time.perf_counter() - begun):.1f} a second")
        pool.shutdown(cancel_futures=True)
    return failed, done


def minimized(outcome, run, say):
    """The same failure with as few change points as do it: each that is not needed is left out."""
    kind, _, rest = outcome.schedule.partition(":")
    number, _, changes = rest.partition(":")
    points = changes.split(",") if changes else []
    for point in list(points):
        fewer = [other for other in points if other != point]
        say(f"without the change at step {point}")
        again = run(":".join([kind, number, *([",".join(fewer)] if fewer else [])]))
        if again.error:
            outcome, points = again, fewer
    return outcome


def default_jobs():
    return len(os.sched_getaffinity(0))


def note_of(outcome, command):
    """What is printed about a run that went wrong."""
    lines = [f"schedule {outcome.schedule}: {outcome.error}"]
    if outcome.trace:
        lines.append(outcome.trace.rstrip())
    return "\n".join([*lines, f"again: {command} --replay {outcome.schedule}"])


def complain(text):
    print(text, file=sys.stderr)

"""`numaemu bench`: how fast the emulator is on this host, as ratios against the host itself in the same run.

Every figure is the median of a few rounds in which emulator and host take turns. The functions of a task run in a
CPU's process; those of the host are the same loops, compiled by the same compiler, on ordinary memory.
"""

import mmap
import os
import statistics
import subprocess
import sys
import time

import numba
import numpy as np

from numaemu.api.access import load_u64
from numaemu.compiler.link import compile_everything
from numaemu.host import shm
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.machine import Machine
from numaemu.process.fork_server import _environment
from numaemu.spec.units import MiB

ROUNDS = 5  # if the caller does not say
ARRAY_BYTES, ACCESSES = 16 * MiB, 2_000_000  # more than the 6 MiB that the second-level TLB reaches
TOUCH_BYTES = 64 * MiB  # per round; fresh frames each
ROUND_TRIPS, PINGS = 200, 2000
MACHINE = dict(nodes=2, cpus_per_node=1, memory_per_node="1GiB", name="bench")
U = np.uint64


# --- compiled loops: on emulated memory, on host memory ------------------------------------------
@numba.njit(cache=True)
def sum_emulated(cpu, base, index):
    total = U(0)
    for i in index:
        total += load_u64(cpu, base + (U(i) << U(3)))
    return total


@numba.njit(cache=True)
def sum_host(array, index):
    total = U(0)
    for i in index:
        total += array[i]
    return total


@numba.njit(cache=True)
def chase_emulated(cpu, base, hops):
    at = U(0)
    for _ in range(hops):
        at = load_u64(cpu, base + (at << U(3)))
    return at


@numba.njit(cache=True)
def chase_host(array, hops):
    at = U(0)
    for _ in range(hops):
        at = array[at]
    return at


@numba.njit(cache=True)
def touch_host(array):
    for i in range(0, array.size, 4096):
        array[i] = 1


@numba.njit(cache=True)
def spin(cpu, flag, shared):
    """Load two words until the first is not 0."""
    while load_u64(cpu, flag) == U(0):
        load_u64(cpu, shared)


# --- what is measured in a CPU's process ---------------------------------------------------------
def patterns():
    """Word indices of the patterns, and the array whose words lead through it in one random cycle."""
    random = np.random.default_rng(1)
    words = ARRAY_BYTES // 8
    order = random.permutation(words)
    ring = np.empty(words, np.uint64)
    ring[order] = np.roll(order, -1)
    return np.arange(ACCESSES) % words, random.integers(0, words, ACCESSES), ring


def seconds(function, *args):
    """How long a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def measure_accesses(task, number):
    """Accesses per second: [(emulated, host)] per round for sequential, random and pointer chase."""
    sequential, random, ring = patterns()
    memory = task.mmap(ARRAY_BYTES)
    memory.array()[:] = ring
    rounds = []
    for _ in range(number + 1):
        pairs = [
            (seconds(task.call, sum_emulated, U(memory.addr), index), seconds(sum_host, ring, index))
            for index in (sequential, random)
        ]
        pairs.append(
            (seconds(task.call, chase_emulated, U(memory.addr), ACCESSES), seconds(chase_host, ring, ACCESSES))
        )
        rounds.append([(ACCESSES / emulated, ACCESSES / host) for emulated, host in pairs])
    return rounds[1:]  # the first round compiles


def measure_faults(task, number):
    """First touches per second: [(emulated, host)] per round for fresh frames, and for frames used before."""
    touch_host(np.zeros(4096, np.uint8))
    pages, mappings, rounds = TOUCH_BYTES / 4096, [], []
    for _ in range(number):
        mappings.append(task.mmap(TOUCH_BYTES))
        rounds.append([(pages / seconds(mappings[-1].touch), pages / host_touch(mmap.MAP_SHARED))])
    for mapping in mappings:
        mapping.munmap()
    for pairs in rounds:
        mapping = task.mmap(TOUCH_BYTES)
        pairs.append((pages / seconds(mapping.touch), pages / host_touch(mmap.MAP_PRIVATE)))
        mapping.munmap()
    return rounds


def host_touch(flags):
    """Seconds of touching every page of new host memory, in small pages."""
    memory = mmap.mmap(-1, TOUCH_BYTES, flags | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    except OSError:
        pass  # a host without huge pages
    array = np.frombuffer(memory, np.uint8)
    elapsed = seconds(touch_host, array)
    del array
    memory.close()
    return elapsed


def measure_message(task, number):
    """ns of an order-1 allocation and its freeing, each round: both go to the node, the first waits for its answer."""
    kernel, rounds = task.kernel, []
    for _ in range(number):
        start = time.perf_counter()
        for _ in range(ROUND_TRIPS):
            kernel.free_pages(kernel.alloc_pages(GFP_KERNEL, order=1), order=1)
        rounds.append((time.perf_counter() - start) * 1e9 / ROUND_TRIPS)
    return rounds


def measure_shootdown(task, number):
    """ns of munmap of one page, each round, while a thread on another CPU accesses the same address space."""
    words = task.mmap(8192).touch().array()
    thread = task.clone(run_spin, words.addr, words.addr + 4096, cpu=1)
    while task.load([words.addr + 4096])[0] == 0:  # until the thread runs there
        time.sleep(0.001)
    rounds = []
    for _ in range(number):
        elapsed = 0
        for _ in range(ROUND_TRIPS):
            page = task.mmap(4096).touch()
            elapsed += seconds(page.munmap)
        rounds.append(elapsed * 1e9 / ROUND_TRIPS)
    words[0] = 1
    thread.result()
    return rounds


def run_spin(task, flag, ready):
    """The other CPU of a shootdown."""
    task.store([ready], 1)
    task.call(spin, U(flag), U(ready))


# --- what is measured on the host ----------------------------------------------------------------
def ping_pong(number):
    """ns of a round trip between two processes over bare semaphores, each round."""
    ping, pong = shm.doorbell(), shm.doorbell()
    if os.fork() == 0:
        for _ in range((number + 1) * PINGS):
            ping.acquire()
            pong.release()
        os._exit(0)
    rounds = []
    for _ in range(number + 1):
        start = time.perf_counter()
        for _ in range(PINGS):
            ping.release()
            pong.acquire()
        rounds.append((time.perf_counter() - start) * 1e9 / PINGS)
    os.wait()
    return rounds[1:]


def semaphore_round_trip(number):
    """ping_pong in a fresh process, because this one may have threads and must not fork."""
    program = f"from numaemu.tools.bench import ping_pong; print(*ping_pong({number}))"
    done = subprocess.run(
        [sys.executable, "-c", program], env=_environment(), stdout=subprocess.PIPE, check=True, text=True
    )
    return list(map(float, done.stdout.split()))


# --- the whole -----------------------------------------------------------------------------------
def measure(progress, number=ROUNDS):
    """{"rows": [{what, against, unit, emulated, host, ratio}]}, rates per second, times in ns; medians of so many rounds."""
    compile_everything(progress.compiled)
    with Machine(**MACHINE) as machine:
        progress.say("loads against a compiled loop on an array")
        accesses = machine.run(measure_accesses, number)
        progress.say("page faults against the host's own")
        faults = machine.run(measure_faults, number)
        progress.say("round trips against a semaphore's")
        semaphore = semaphore_round_trip(number)
        message, shootdown = machine.run(measure_message, number), machine.run(measure_shootdown, number)
    size, loop, semaphores = f"{ARRAY_BYTES // MiB} MiB", "a compiled loop", "semaphores"
    rates = [
        (f"loads, {size} in sequence", loop),
        (f"loads, {size} at random", loop),
        (f"loads, {size} pointer chase", loop),
        ("first touch, fresh frames", "shared memory"),
        ("first touch, used frames", "anonymous memory"),
    ]
    times = [
        ("order-1 pages, node and back", semaphores, message),
        ("munmap of a page, shootdown", semaphores, shootdown),
    ]
    return {
        "rows": [
            *(row(*names, "1/s", rounds) for names, rounds in zip(rates, (*zip(*accesses), *zip(*faults)))),
            *(row(what, against, "ns", zip(rounds, semaphore)) for what, against, rounds in times),
        ]
    }


def row(what, against, unit, rounds):
    """One line: medians of both sides and of their ratio."""
    rounds, median = list(rounds), statistics.median
    return {
        "what": what,
        "against": against,
        "unit": unit,
        "emulated": median(e for e, _ in rounds),
        "host": median(h for _, h in rounds),
        "ratio": median(e / h for e, h in rounds),
    }

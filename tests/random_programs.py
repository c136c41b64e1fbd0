"""Random programs on real machines, every byte they read against byte arrays of Python.

    python tests/random_programs.py 1000 [first seed] [seconds]       from the root of the checkout

Steps come from the seed alone, so a seed is a program; in a machine with several worlds (random_worlds.py), one to a task, what
they do at the same time is the host's choice.
"""

import random
import sys
import time
import traceback

from random_worlds import DRIVERS, REFUSED, Differs, World

from numaemu import Machine, OutOfMemory

PAGINGS = ("x86-64-4level", "x86-64-5level", "x86-32", "arm64-39", "arm64-48")


def shape_of(seed):
    """(keywords of a machine, what its programs know of it)"""
    choose = random.Random(f"shape {seed}").choice
    paging, nodes, cpus = PAGINGS[seed % len(PAGINGS)], choose((1, 2)), choose((1, 2))
    keywords = dict(
        paging=paging,
        nodes=nodes,
        cpus_per_node=cpus,
        memory_per_node=f"{choose((6, 8, 12, 24)) * 2 // nodes}MiB",
        asids=choose((0, 1, 2, 6)),
        walk_cache=choose((0, 16)),
        kernel={"transparent_hugepage": choose(("always", "madvise", "never"))},
    )
    huge = 4 << 20 if paging == "x86-32" else 2 << 20
    return keywords, dict(cpus=nodes * cpus, nodes=nodes, huge=huge, pages=choose((64, 200)), most=3000)


def program(task, shape, seed, steps):
    """A world inside a task, beside others: (bytes compared, what was done, what differs)."""
    world = World(shape, seed, root=task)
    error = None
    try:
        for _ in range(steps):
            if not world.step():
                break
        world.look_at_everything()
    except Exception:
        error = f"seed {seed}, after {world.last}:\n{traceback.format_exc()}"
    for space in world.spaces:
        for other in space.tasks:
            if other is not task:
                try:
                    other.exit()
                except (OSError, OutOfMemory):
                    pass
    return world.bytes, world.steps, error


def run_alone(seed, steps=250):
    """One world with everything: bytes compared."""
    keywords, shape = shape_of(seed)
    with Machine(**keywords) as machine:
        world = World(shape, seed, machine=machine)
        try:
            for _ in range(steps):
                world.step()
            world.look_at_everything()
            machine.check()
        except BaseException as error:
            error.add_note(f"seed {seed} on {keywords}, after {world.last}")
            raise
        return world.bytes, world.steps


def run_together(seed, steps=120, worlds=4, seconds=60):
    """Several worlds, each in a task of its own, while the driver stirs: bytes compared."""
    keywords, shape = shape_of(seed)
    with Machine(**keywords) as machine:
        handles = [machine.spawn(program, shape, seed * 100 + i, steps, cpu=i % shape["cpus"]) for i in range(worlds)]
        driver, until = World(shape, seed, machine=machine), time.monotonic() + seconds
        driver.swaps.append(machine.swapon(16 << 20))
        while not all(handle.done() for handle in handles) and time.monotonic() < until:
            try:
                getattr(driver, "do_" + driver.random.choice(DRIVERS))(None, None)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
        total, done = 0, {}
        for handle in handles:
            try:
                nbytes, steps_done, differs = handle.result(seconds)
            except OutOfMemory:
                continue
            if differs:
                raise Differs(f"{keywords}: {differs}")
            total += nbytes
            for name, n in steps_done.items():
                done[name] = done.get(name, 0) + n
        machine.check()
        return total, done


def main(count, first=0, seconds=float("inf")):
    """Machine after machine, alone and together in turn; what differs is printed with its seed."""
    begin, total, wrong, machines, slow = time.monotonic(), 0, 0, 0, (0, 0)
    for seed in range(first, first + count):
        if time.monotonic() - begin > seconds:
            break
        started = time.monotonic()
        try:
            nbytes, _ = (run_together if seed % 2 else run_alone)(seed)
            total += nbytes
        except Exception:
            wrong += 1
            print(f"--- seed {seed}", traceback.format_exc(), flush=True)
        machines += 1
        slow = max(slow, (time.monotonic() - started, seed))
    print(f"{machines} machines, {wrong} wrong, {total >> 20} MiB compared, slowest {slow[0]:.1f} s (seed {slow[1]})")
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(*[int(word) for word in sys.argv[1:]]), 1))

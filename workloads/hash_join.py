"""A hash join on many nodes: what each thread has for itself, and what all of them share, with and without NUMA balancing.

One thread has read both tables, so all of their memory is on its node. Then a thread on each node goes through its own part of
the one table and looks each key up in the hash table of the other, which all share.
Look for: the ns of an access to private and to shared memory, in the first round and in the last one.
  - without balancing everything stays on the node of the thread that read it, and all other nodes are far away;
  - with balancing each thread's part comes to its node, since it alone takes the hinting faults there: private gets local;
  - the shared table has no node that is right for all. Its pages go to who used them twice in a row, by chance, and are spread, which
    wins nothing: each thread finds most of them elsewhere, as before.
"""

import numpy as np

from numaemu.tools import chart

LOCKSTEP = True
MACHINE = dict(nodes=8, cpus_per_node=1, memory_per_node="32MiB", l2={"entries": 2048, "ways": 8})
PART, SHARED = 1 << 20, 2 << 20  # bytes of each thread, and of the hash table
ROUNDS, LOADS = 12, 60_000
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
SCANNING = {"scan_delay_ms": 5, "scan_period_min_ms": 20, "scan_period_max_ms": 40, "scan_size_mb": 256}


def probe(task, mine, table, seed):
    """(ns of a private access, ns of a shared one) of each round."""
    rng, rounds = np.random.default_rng(seed), []
    for _ in range(ROUNDS):
        ns = []
        for start, nbytes in ((mine, PART), (table, SHARED)):
            addresses = (start + rng.integers(0, nbytes // 8, LOADS) * 8).astype(np.uint64)
            before = task.clock_ns
            task.load(addresses)
            ns.append((task.clock_ns - before) / LOADS)
        rounds.append(ns)
    return rounds


def join(task, cpus, seed):
    """(ns by thread, round and kind; pages of each node, private and shared)"""
    parts, table = task.mmap(PART * len(cpus)), task.mmap(SHARED)
    parts.touch(write=True)
    table.touch(write=True)
    threads = [task.clone(probe, parts.addr + PART * n, table.addr, seed + n, cpu=cpu) for n, cpu in enumerate(cpus)]
    rounds = np.array([thread.result() for thread in threads])
    near = sum(
        int((np.asarray(task.move_pages(parts.pages()[n * PART // 4096 : (n + 1) * PART // 4096])) == n).sum())
        for n in range(len(cpus))
    )
    shared = np.bincount(np.asarray(table.nodes()), minlength=len(cpus)).tolist()
    return rounds, near, shared


def main(machine):
    cpus = [node.cpus[0] for node in machine.nodes if node.cpus]
    seed, bars, rows = getattr(machine, "seed", None) or 0, {}, {}
    for name, value in SCANNING.items():
        machine.write(f"{SETTINGS}/{name}", value)
    before = machine.read("/proc/sys/kernel/numa_balancing")
    for label, mode in (("off", 0), ("on", 1)):
        machine.write("/proc/sys/kernel/numa_balancing", mode)
        rounds, near, shared = machine.run(join, cpus, seed, cpu=cpus[0])
        mean = rounds.mean(axis=0)
        for when, n in (("first round", 0), ("last round", -1)):
            bars[f"balancing {label}, {when}"] = {"private": mean[n, 0], "shared": mean[n, 1]}
        rows[f"balancing {label}"] = {
            "private, ns": round(float(mean[-1, 0]), 1),
            "shared, ns": round(float(mean[-1, 1]), 1),
            "private pages that are local, %": round(100 * near / (len(cpus) * PART // 4096)),
            "shared pages on the fullest node, %": round(100 * max(shared) / sum(shared)),
        }
    machine.write("/proc/sys/kernel/numa_balancing", before.strip())
    print(chart.bars(f"Mean ns of an access, {len(cpus)} threads on {len(cpus)} nodes", bars, "ns"))
    return rows

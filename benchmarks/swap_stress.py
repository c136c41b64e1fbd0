"""All CPUs at twice the memory for some minutes, every word verified: swap on disk and on zram at once, fork, madvise.

    python benchmarks/swap_stress.py [minutes]

Each round every CPU runs one task; after each round the machine is audited. Any wrong word, death or inconsistency ends it.
"""

import sys
import time

import numpy as np

from numaemu import MADV_COLD, MADV_DONTNEED, MADV_PAGEOUT, MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, Machine

U = np.uint64
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
# fmt: off
COUNTERS = ("pgfault", "pgmajfault", "pswpout", "pswpin", "pgscan_kswapd", "pgscan_direct", "pgsteal_kswapd", "pgsteal_direct",
            "allocstall_normal", "swap_ra", "swap_ra_hit", "workingset_refault_anon", "workingset_activate_anon", "compact_stall",
            "pgmigrate_success", "nr_tlb_remote_flush", "oom_kill")
# fmt: on


class Wrong(Exception):
    """A word is not what was written."""


class Held:
    """Pages of a task and the word that each of them holds, at a place that depends on the page."""

    def __init__(self, task, pages, rng, addr=None, words=None):
        self.task, self.rng, self.verified = task, rng, 0
        self.addr = task.mmap(pages * 4096, flags=UNRESERVED).addr if addr is None else addr
        self.words = np.zeros(pages, U) if words is None else words.copy()

    def places(self, picked):
        return U(self.addr) + picked.astype(U) * U(4096) + U(8) * (picked.astype(U) * U(37) % U(512))

    def verify(self, picked):
        found = self.task.load(self.places(picked))
        wrong = np.flatnonzero(found != self.words[picked])
        if len(wrong):
            page = picked[wrong[0]]
            raise Wrong(
                f"{self.task} on cpu {self.task.cpu}: page {page} of {self.addr:#x} holds {found[wrong[0]]:#x}, "
                f"not {self.words[page]:#x}; {len(wrong)} of {len(picked)} are wrong"
            )
        self.verified += len(picked)

    def write(self, picked):
        self.words[picked] = self.rng.integers(1, 1 << 62, len(picked)).astype(U)
        self.task.store(self.places(picked), self.words[picked])

    def some(self, share):
        """A part of the pages in random order, or a run of them."""
        n = max(1, int(len(self.words) * share))
        if self.rng.random() < 0.5:
            return self.rng.permutation(len(self.words))[:n]
        start = self.rng.integers(0, len(self.words) - n + 1)
        return np.arange(start, start + n)

    def forget(self, share, remap):
        """A run of pages goes: munmap and a new mapping, or MADV_DONTNEED."""
        n = max(1, int(len(self.words) * share))
        start = int(self.rng.integers(0, len(self.words) - n + 1))
        addr, nbytes = self.addr + start * 4096, n * 4096
        if remap:
            self.task.munmap(addr, nbytes)
            self.task.mmap(nbytes, flags=UNRESERVED, addr=addr)
        else:
            self.task.madvise(addr, nbytes, MADV_DONTNEED)
        self.words[start : start + n] = 0

    def advise(self, share, advice):
        n = max(1, int(len(self.words) * share))
        start = int(self.rng.integers(0, len(self.words) - n + 1))
        self.task.madvise(self.addr + start * 4096, n * 4096, advice)


def child(task, addr, words, seed):
    """What a forked task does with its copy: look, write, look again."""
    held = Held(task, len(words), np.random.default_rng(seed), addr, words)
    held.verify(held.some(0.2))
    held.write(held.some(0.1))
    held.verify(held.some(0.3))
    return held.verified


def story(task, seed, pages, steps, cpus):
    """One task's life at its share of the load: words verified."""
    rng = np.random.default_rng(seed)
    held, children = Held(task, pages, rng), []
    held.write(np.arange(pages))
    for step in range(steps):
        what = rng.integers(8)
        if what < 3:
            picked = held.some(0.4)
            held.verify(picked)
            held.write(picked)
        elif what == 3:
            children.append(task.fork(child, held.addr, held.words, seed + step, cpu=cpus[rng.integers(len(cpus))]))
            held.write(held.some(0.1))
        elif what == 4:
            held.forget(0.2, remap=True)
        elif what == 5:
            held.forget(0.1, remap=False)
        else:
            held.advise(0.2, MADV_PAGEOUT if what == 6 else MADV_COLD)
        while len(children) > 1:
            held.verified += children.pop(0).result()
    held.verify(np.arange(pages))
    return held.verified + sum(handle.result() for handle in children)


def one_round(machine, seed, steps, load=2.0):
    """Every CPU at once, `load` times the memory together, compaction meanwhile, an audit at the end: words verified."""
    cpus = [cpu.id for cpu in machine.cpus]
    pages = int(sum(node.memory_bytes for node in machine.nodes) * load) // 4096 // len(cpus)
    handles = [machine.spawn(story, seed * 1000 + cpu, pages, steps, cpus, cpu=cpu) for cpu in cpus]
    while not all(handle.done() for handle in handles):
        machine.write("/proc/sys/vm/compact_memory", "1")
        time.sleep(0.2)
    verified = sum(handle.result() for handle in handles)
    machine.check()
    return verified


def stressed_machine(memory_per_node="16MiB"):
    """Four nodes with two CPUs each, a disk and zram, which comes first until it is full."""
    machine = Machine(nodes=4, cpus_per_node=2, memory_per_node=memory_per_node)
    total = sum(node.memory_bytes for node in machine.nodes)
    machine.swapon(total // 2, kind="zram", priority=10)
    machine.swapon(4 * total, kind="disk", priority=5)
    return machine


def main():
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    start, rounds, verified = time.monotonic(), 0, 0
    with stressed_machine("32MiB") as machine:
        while time.monotonic() - start < minutes * 60:
            verified += one_round(machine, rounds, 10)
            rounds += 1
            counted = machine.stats()["vmstat"]
            print(
                f"{time.monotonic() - start:6.0f} s, round {rounds}: {verified / 1e6:.2f} M words verified, out "
                f"{counted['pswpout']}, in {counted['pswpin']}, major {counted['pgmajfault']}, killed {counted['oom_kill']}",
                flush=True,
            )
        for name in ("/dev/zram0", "/dev/vdb"):
            machine.swapoff(name)
        machine.check()
        for name in COUNTERS:
            print(f"{name:28} {machine.stats()['vmstat'].get(name, 0):14}")


if __name__ == "__main__":
    main()

"""Looks at a running machine from time to time: free memory, counters, accesses, free blocks, tasks' memory by node."""

import contextlib
import re
import threading
import time

from numaemu.errors import MachineCheck

INTERVAL_NS = 1_000_000  # between two looks in lockstep, where they come by emulated time and repeat
INTERVAL_S = 0.05  # between two looks; longer where a look takes long, or a run does
SHARE = 10  # a look takes a tenth of the time at most
MOST_SAMPLES = 400  # then every second one goes, and the interval doubles
MOST_TASKS = 24  # whose memory is looked at
COUNTERS = {  # shown as rates: what they are called in the page
    "pgfault": "page faults",
    "pgmajfault": "major faults",
    "pgscan_kswapd": "pages scanned by kswapd",
    "pgscan_direct": "pages scanned in direct reclaim",
    "pgsteal_kswapd": "pages reclaimed by kswapd",
    "pgsteal_direct": "pages reclaimed directly",
    "pswpin": "pages swapped in",
    "pswpout": "pages swapped out",
    "pgmigrate_success": "pages migrated",
    "compact_stall": "compactions waited for",
    "nr_tlb_remote_flush": "shootdowns",
    "thp_fault_alloc": "huge pages from faults",
}
_NODE_PAGES = re.compile(r"\bN(\d+)=(\d+)")
_PAGE_KB = re.compile(r"kernelpagesize_kB=(\d+)")


def free_blocks(machine):
    """{node: free pages by order} of /proc/buddyinfo, its zones added up."""
    found = {}
    for line in machine.read("/proc/buddyinfo").splitlines():
        words = line.replace(",", "").split()
        row = [int(word) << order for order, word in enumerate(words[4:])]
        node = found.setdefault(int(words[1]), [0] * len(row))
        found[int(words[1])] = [a + b for a, b in zip(node, row)]
    return found


def tasks_memory(machine, tasks):
    """{(pid, name): kB by node} of tasks that are alive."""
    found = {}
    for task in tasks[:MOST_TASKS]:
        with contextlib.suppress(OSError):
            by_node = {}
            for line in machine.read(f"/proc/{task['pid']}/numa_maps").splitlines():
                size = int(match[1]) if (match := _PAGE_KB.search(line)) else 4
                for node, pages in _NODE_PAGES.findall(line):
                    by_node[int(node)] = by_node.get(int(node), 0) + int(pages) * size
            if by_node:
                found[task["pid"], task["name"]] = by_node
    return found


def look(machine):
    """One sample."""
    stats = machine.stats()
    return {
        "ns": stats["emulated_ns"],
        "free_kb": {node["node"]: node["meminfo"]["MemFree"] for node in stats["nodes"]},
        "counters": {name: stats["vmstat"].get(name, 0) for name in COUNTERS},
        "local": sum(cpu["local_accesses"] for cpu in stats["cpus"]),
        "remote": sum(cpu["remote_accesses"] for cpu in stats["cpus"]),
        "servers": {server["server"]: server["bytes"] for server in stats.get("servers", ())},
        "blocks": free_blocks(machine),
        "tasks": tasks_memory(machine, stats["tasks"]),
    }


class Sampler:
    """A thread that looks at a machine, between `start` and `stop`: both look once themselves. In lockstep the machine calls."""

    def __init__(self, traced=False):
        # with the kernel's events, which take long to load
        from numaemu.tools.page.latencies import Latencies, LatencyCollector

        self.latencies = Latencies()
        # where --trace has its events it passes them on
        self.tracing = None if traced else LatencyCollector(self.latencies)
        self.samples, self.tasks, self.ended, self.interval_s = [], {}, threading.Event(), INTERVAL_S

    @contextlib.contextmanager
    def of(self, machine):
        """Looks at a machine within a `with` block."""
        with contextlib.nullcontext() if self.tracing is None else self.tracing.of(machine):
            self.start(machine)
            try:
                yield self
            finally:
                self.stop()

    def start(self, machine):
        """Look once, and then from time to time."""
        self.machine, self.thread, self.timer, self.due_ns = machine, None, None, 0
        self.sample()
        if machine.topology.lockstep:
            self.step_ns, self.timer = INTERVAL_NS, machine.every(INTERVAL_NS, self.at)
            return
        self.thread = threading.Thread(target=self.run, daemon=True, name="sampler")
        self.thread.start()

    def stop(self):
        """The last look, while the machine is still there."""
        self.ended.set()
        if self.timer is not None:
            with contextlib.suppress(MachineCheck):
                self.timer.stop()
        elif self.thread is not None:
            self.thread.join()
        self.sample()

    def at(self, now_ns):
        """A look in lockstep; fewer of them where a run takes long."""
        if now_ns >= self.due_ns:
            self.sample()
            self.due_ns = now_ns + self.step_ns

    def run(self):
        """The thread."""
        while not self.ended.wait(self.interval_s):
            begin = time.perf_counter()
            if not self.sample():
                return
            self.interval_s = max(self.interval_s, SHARE * (time.perf_counter() - begin))

    def sample(self):
        """One look; False: the machine is gone."""
        try:
            seen = look(self.machine)
        except (MachineCheck, OSError):
            return False
        self.tasks |= seen.pop("tasks")  # what was seen last of each task
        if self.samples and seen["ns"] == self.samples[-1]["ns"]:
            self.samples.pop()  # no emulated time has passed
        self.samples.append(seen)
        if len(self.samples) > MOST_SAMPLES:
            del self.samples[1:-1:2]
            self.interval_s *= 2
            self.step_ns = 2 * getattr(self, "step_ns", INTERVAL_NS)
        return True

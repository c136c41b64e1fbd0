"""Pages that reclaim looks at per second in one node's kswapd context, and pages it writes to the disk's memory and frees.

    python benchmarks/reclaim.py [rounds]

The kernel of a machine in this process is called directly, so only its own work is timed. Scanning: all pages were accessed
since the last pass, so each is unlinked, its page-table entry found through rmap and made old, and it is kept. Reclaim: none
was accessed; each gets a slot, is unmapped, copied to the area and freed, 32 by 32 with one flush each.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
import numpy as np
from common import median, repeats
from loopback import Loopback

from numaemu.compiler.decorators import entry
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mmzone import LRU_ACTIVE_ANON, LRU_INACTIVE_ANON, lruvec_of
from numaemu.kernel.mm.reclaim.pageout import scan_control_of
from numaemu.kernel.mm.reclaim.vmscan import init_scan_control, shrink_active_list, shrink_inactive_list
from numaemu.kernel.mm.reclaim.workingset import SWAP_CLUSTER_MAX
from numaemu.kernel.mm.swap import swapon

U = np.uint64
NBYTES = 384 << 20
TARGET = 2e6  # pages scanned per second


@entry("i64(u64, i64, i64)")
def scan(cpu_address, lru, pages):
    """One list of node 0 in pieces of SWAP_CLUSTER_MAX, as shrink_lruvec does: pages freed."""
    cpu = cpu_t.at(cpu_address)
    machine, sc, freed = machine_of(cpu), scan_control_of(cpu), 0
    init_scan_control(machine, sc, GFP_KERNEL, 0, machine.node_mask)
    sc.kswapd, sc.may_deactivate = 1, 3
    while pages > 0:
        if lru == LRU_ACTIVE_ANON:
            shrink_active_list(cpu, sc, 0, lru, SWAP_CLUSTER_MAX)
        else:
            freed += shrink_inactive_list(cpu, sc, 0, lru, SWAP_CLUSTER_MAX)
        pages -= SWAP_CLUSTER_MAX
    return freed


def timed(loop, lru):
    """(pages of the list, those looked at, freed, seconds) of a pass over it."""
    context = int(cpu_t.array(loop.machine.cpus)[loop.machine.nr_cpus].address)
    loop.audit()  # what waits for its list is on it
    pages, before = int(lruvec_of(loop.machine, 0).nr[lru]), loop.vmstat()
    start = time.perf_counter()
    freed = scan(context, lru, pages)
    seconds = time.perf_counter() - start
    after = loop.vmstat()
    looked = sum(after[name] - before[name] for name in ("pgscan_kswapd", "pgrefill"))
    return pages, looked, freed, seconds


def rates():
    """Pages/s: scanned on the active list, on the inactive list, reclaimed."""
    with Loopback(nodes=1, cpus_per_node=1, memory_per_node="512MiB") as loop:
        swapon.swapon(loop.machine, "area", 1 << 30)
        task = loop.task()
        area = task.mmap(NBYTES)
        pages = np.random.default_rng(1).permutation(area.pages())  # neighbours on the list are none in the tables
        task.store(pages, pages)
        active = inactive = 0.0
        for _ in range(4):  # inactive twice, active once, and around
            for lru in (LRU_ACTIVE_ANON, LRU_INACTIVE_ANON):
                task.load(pages)
                listed, looked, freed, seconds = timed(loop, lru)
                if listed >= len(pages):
                    assert freed == 0, f"{freed} accessed pages were reclaimed"
                    if lru == LRU_ACTIVE_ANON:
                        active = looked / seconds
                    else:
                        inactive = looked / seconds
        timed(loop, LRU_ACTIVE_ANON)
        freed = spent = 0
        while freed < len(pages) // 2:  # accessed, referenced, written, freed
            _, _, n, seconds = timed(loop, LRU_INACTIVE_ANON)
            if loop.vmstat()["pswpout"] > 0:
                freed, spent = freed + n, spent + seconds
        assert (task.load(pages[::97]) == pages[::97]).all()
        return active, inactive, freed / spent


def main():
    rows = [rates() for _ in range(repeats())]
    for what, figures, wanted in zip(
        ("active list scanned, M pages/s", "inactive list scanned, M pages/s", "written to swap and freed, M pages/s"),
        zip(*rows),
        (TARGET, TARGET, None),
    ):
        figure = median(figures)
        print(
            f"{what:44} {figure / 1e6:8.2f}"
            + (f"   wanted >={wanted / 1e6:5.2f}{'' if figure >= wanted else '  MISSED'}" if wanted else "")
        )


if __name__ == "__main__":
    main()

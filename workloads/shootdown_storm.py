"""TLB shootdowns: what it costs to unmap one page while 0, 1, 2, … other threads use the address space.

The other threads access memory without a pause, so each of their CPUs must be interrupted and must answer before the
page is free; one task unmaps page by page.
Look for: unmapping is cheap alone, and dear as soon as one other thread uses the address space.
  - alone there is no other TLB to clear: no shootdown is sent;
  - with other threads there is one shootdown per munmap, and every other CPU receives it once;
  - the CPU that unmaps pays for sending and waiting, and more for each CPU that it interrupts; each of these pays for answering:
    what it spends beyond its own loads. So the cost of one munmap to the machine grows with the threads (last column).
"""

import numba
import numpy as np

from numaemu import load_u64, store_u64
from numaemu.tools import chart

LOCKSTEP = True
PAGES, MOST_THREADS = 20, 16
LOADS = 100  # that say how long one takes


@numba.njit(cache=True)
def access_until(cpu, stop, ready):
    """Say that we are here, then access memory until `stop` is set; how many loads."""
    store_u64(cpu, ready, np.uint64(1))
    n = 0
    while load_u64(cpu, stop) == 0:
        n += 1
    return n


@numba.njit(cache=True)
def wait_until(cpu, address):
    while load_u64(cpu, address) == 0:
        pass


def bystander(task, stop, ready):
    """(shootdowns received, emulated ns that answering them took): what was spent beyond the accesses."""
    task.store([ready], np.uint64(0))
    task.load([stop])  # the TLB has both pages from now on
    start = task.counters()
    task.load(np.full(LOADS, stop, np.uint64))
    before = task.counters()
    task.call(access_until, np.uint64(stop), np.uint64(ready))
    after = task.counters()
    load_ns = (before["clock_ns"] - start["clock_ns"]) / (before["loads"] - start["loads"])
    received, loads, stores, ns = (
        after[name] - before[name] for name in ("shootdowns_received", "loads", "stores", "clock_ns")
    )
    return received, ns - load_ns * (loads + stores)


def storm(task, others):
    """One line of the table: unmap PAGES pages while threads on the CPUs `others` run."""
    control = task.mmap(4096 * (1 + len(others))).touch()
    pages = task.mmap(4096 * PAGES).touch()
    ready = [control.addr + 4096 * (1 + i) for i in range(len(others))]
    threads = [task.clone(bystander, control.addr, at, cpu=cpu) for at, cpu in zip(ready, others)]
    for at in ready:
        task.call(wait_until, np.uint64(at))
    before = task.counters()
    for page in pages.pages():
        task.munmap(int(page), 4096)
    after = task.counters()
    task.store([control.addr], np.uint64(1))
    answers = [thread.result() for thread in threads]
    received, answering = sum(n for n, _ in answers), sum(ns for _, ns in answers)
    unmapping = (after["clock_ns"] - before["clock_ns"]) / PAGES
    return {
        "threads": 1 + len(others),
        "munmaps": PAGES,
        "shootdowns sent": after["shootdowns_sent"] - before["shootdowns_sent"],
        "received": received,
        "ns per munmap": round(unmapping),
        "ns per answer": round(answering / received) if received else 0,
        "ns of all CPUs per munmap": round(unmapping + answering / PAGES),
    }


def picture(rows):
    titles = [f"{row['threads']} thread{'s' * (row['threads'] > 1)}" for row in rows]
    costs = {
        title: {
            "the CPU that unmaps": row["ns per munmap"],
            "the CPUs that are interrupted": row["ns of all CPUs per munmap"] - row["ns per munmap"],
        }
        for title, row in zip(titles, rows)
    }
    figures = {title: f"{row['ns of all CPUs per munmap']:,} ns" for title, row in zip(titles, rows)}
    return chart.divided("What it costs all CPUs together to unmap one page, in emulated ns", costs, figures)


def main(machine):
    cpus = [cpu.id for cpu in machine.cpus[:MOST_THREADS]]
    sizes = [n for n in (1, 2, 3, 4, 8, 16) if n <= len(cpus)]
    rows = [machine.run(storm, cpus[1:n]) for n in sizes]
    print(picture(rows))
    return rows

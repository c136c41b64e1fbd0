"""TLB shootdowns: what it costs to unmap one page while 0, 1, 2, … other threads use the address space.

The other threads access memory without a pause, so each of their CPUs must be interrupted and must answer before the
page is free; one task unmaps page by page. Look for:
  - alone there is nobody to tell: no shootdown is sent;
  - with others, one shootdown per munmap, received once by every other CPU;
  - what the unmapping CPU pays, and what the CPUs that are interrupted pay.
"""

import numba
import numpy as np

from numaemu import load_u64, store_u64

PAGES, MOST_THREADS = 20, 16


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
    """ns of the CPU's time that answering cost, per shootdown."""
    before = task.counters()
    task.call(access_until, np.uint64(stop), np.uint64(ready))
    return task.counters()["shootdowns_received"] - before["shootdowns_received"]


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
    received = [thread.result() for thread in threads]
    return {
        "threads": 1 + len(others),
        "munmaps": PAGES,
        "shootdowns sent": after["shootdowns_sent"] - before["shootdowns_sent"],
        "received": sum(received),
        "ns per munmap": round((after["clock_ns"] - before["clock_ns"]) / PAGES),
    }


def main(machine):
    cpus = [cpu.id for cpu in machine.cpus[:MOST_THREADS]]
    sizes = [n for n in (1, 2, 3, 4, 8, 16) if n <= len(cpus)]
    return [machine.run(storm, cpus[1:n]) for n in sizes]

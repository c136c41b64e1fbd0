"""kill -9 of each kind of process of a busy machine, so often: how soon the driver knows, and whether anything is left.

    python benchmarks/kills.py [kills of each kind, 100] [kind …]        kinds: cpu node coordinator forkserver driver

Each kill comes at another moment after boot, from at once to MOMENT_S. A driver that is killed cannot be told; what counts there is
that nothing is left. Exit status 1 if a limit is missed.
"""

import os
import pathlib
import random
import signal
import statistics
import subprocess
import sys
import time

import psutil

from numaemu import MachineCheck
from numaemu.machine import Machine, fork_server

KINDS = ("cpu", "node", "coordinator", "forkserver", "driver")
TOLD_S, GONE_S = 1.0, 10.0  # limits: until the driver knows; until the last process is gone
MOMENT_S = 0.15
SHAPE = dict(nodes=2, cpus_per_node=2, memory_per_node="32MiB")
DRIVER = (
    "import kills, time; kept = kills.boot(); print('pids', *kept[0].processes.values(), flush=True); time.sleep(600)"
)


def busy(task, other):
    """Faults, shootdowns, page requests, threads, printing."""
    region = task.mmap("2MiB")
    while True:
        region.touch()
        task.clone(read, region.addr, cpu=other).result()
        task.madvise(region.addr, region.nbytes, 4)  # MADV_DONTNEED
        print("busy", task.pid)


def read(task, address):
    return int(task.load([address])[0])


def boot():
    machine = Machine(**SHAPE)
    return machine, [machine.spawn(busy, (cpu.id + 1) % len(machine.cpus), cpu=cpu.id) for cpu in machine.cpus]


def victim_of(kind, machine):
    if kind == "forkserver":
        return fork_server.process.pid
    names = [name for name in machine.processes if name.split()[0] == kind]
    return machine.processes[random.choice(names)]


def kill_one(kind):
    """(seconds until everybody who waits has been told, seconds until nothing is left)"""
    machine, handles = boot()
    pids = [*machine.processes.values()]
    time.sleep(random.random() * MOMENT_S)
    began = time.perf_counter()
    os.kill(victim_of(kind, machine), signal.SIGKILL)
    for handle in handles:
        try:
            handle.result(30)
        except MachineCheck as error:
            assert "died" in str(error), error
    told = time.perf_counter() - began
    gone = wait_until_gone(pids, began)
    machine.close()
    return told, gone


def kill_driver():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])}
    with subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, env=environment) as driver:
        while not (line := driver.stdout.readline().split())[0] == "pids":
            pass  # its tasks print, too
        pids = [int(word) for word in line[1:]]
        pids += [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
        time.sleep(random.random() * MOMENT_S)
        began = time.perf_counter()
        driver.kill()
        driver.wait()
    return 0.0, wait_until_gone(pids, began)


def wait_until_gone(pids, began):
    while any(psutil.pid_exists(pid) for pid in pids) and time.perf_counter() - began < 2 * GONE_S:
        time.sleep(0.01)
    return time.perf_counter() - began


def left():
    return [path.name for path in pathlib.Path("/dev/shm").glob("*numaemu*") if f".{os.getpid()}." in path.name]


def main():
    times, kinds = int(sys.argv[1]) if len(sys.argv) > 1 else 100, sys.argv[2:] or KINDS
    sys.stdout, out = open(os.devnull, "w"), sys.stdout  # what the tasks print
    print(
        f"{'kills of':12} {'times':>6} {'told after: median':>20} {'longest':>9} {'all gone: longest':>19}",
        file=out,
        flush=True,
    )
    missed = False
    for kind in kinds:
        results = [kill_driver() if kind == "driver" else kill_one(kind) for _ in range(times)]
        told, gone = zip(*results)
        wrong = max(told) > TOLD_S or max(gone) > GONE_S or left()
        missed |= bool(wrong)
        print(
            f"{kind:12} {times:6} {statistics.median(told):18.3f} s {max(told):7.3f} s {max(gone):17.3f} s {'  MISSED' if wrong else ''}",
            file=out,
            flush=True,
        )
    sys.exit(int(missed))


if __name__ == "__main__":
    main()

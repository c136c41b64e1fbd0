"""A counter that two tasks share loses counts; between get_cpu_var and put_cpu_var, or with a copy per CPU, it does not.

An increment is a load and a store. If another task runs between the two, its count is overwritten. Look for:
  - two tasks on one CPU, each loading before the other has stored: half of all counts are lost;
  - the same between get_cpu_var and put_cpu_var, where the CPU belongs to one task: none is lost;
  - a copy for each CPU (alloc_percpu), all CPUs counting at once without atomic instructions: none is lost, because
    nobody else writes a CPU's copy, and each lies on its CPU's own node. A reader adds the copies up.
"""

import numba

from numaemu import __GFP_ZERO, GFP_KERNEL, this_cpu_add

LOCKSTEP = True
ROUNDS = 200  # increments of each task


def load(task, address):
    return int.from_bytes(task.kernel.read(address, 8), "little")


def store(task, address, value):
    task.kernel.write(address, value.to_bytes(8, "little"))


def unprotected(machine):
    """Two tasks of CPU 0 in the worst order: both load, then both store."""
    tasks = [machine.task(cpu=0) for _ in range(2)]
    counter = tasks[0].kernel.kmalloc(8, GFP_KERNEL | __GFP_ZERO)
    for _ in range(ROUNDS):
        seen = [load(task, counter) for task in tasks]
        for task, value in zip(tasks, seen, strict=True):
            store(task, counter, value + 1)
    counted = load(tasks[0], counter)
    tasks[0].kernel.kfree(counter)
    for task in tasks:
        task.exit()
    return counted


def increment(task, counter):
    for _ in range(ROUNDS):
        with task.kernel.get_cpu_var(counter) as address:
            store(task, address, load(task, address) + 1)


@numba.njit(cache=True)
def count(cpu, counter, rounds):
    for _ in range(rounds):
        this_cpu_add(cpu, counter, 1)


def count_on_this_cpu(task, counter):
    task.call(count, counter, 100 * ROUNDS)


def row(tasks, increments, counted):
    return {"tasks": tasks, "increments": increments, "counted": counted, "lost": increments - counted}


def main(machine):
    reader, cpus = machine.task(cpu=0, name="reader"), [cpu for node in machine.nodes for cpu in node.cpus]
    kernel, table = reader.kernel, {"load, other task, store": row(2, 2 * ROUNDS, unprotected(machine))}

    def total(counter):
        return sum(load(reader, kernel.per_cpu_ptr(counter, cpu)) for cpu in cpus)

    counter = kernel.alloc_percpu(8)
    for run in [machine.spawn(increment, counter, cpu=0) for _ in range(2)]:
        run.result()
    table["get_cpu_var, put_cpu_var"] = row(2, 2 * ROUNDS, total(counter))
    kernel.free_percpu(counter)
    counter = kernel.alloc_percpu(8)
    for run in [machine.spawn(count_on_this_cpu, counter, cpu=cpu) for cpu in cpus]:
        run.result()
    table["a copy per CPU, all CPUs"] = row(len(cpus), 100 * ROUNDS * len(cpus), total(counter))
    kernel.free_percpu(counter)
    reader.exit()
    return table

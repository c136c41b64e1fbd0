"""Memory runs out: who has to go? Three tasks hold memory, a fourth one asks for more than there is.

The kernel kills the task with the most points: its pages, plus its oom_score_adj in thousandths of all memory. Look for:
  - "protected" is the largest and stays: its oom_score_adj is -1000;
  - "expendable" is the smallest and goes first: its oom_score_adj is 500;
  - "hungry" asks on and is the next, as it is by then larger than "modest";
  - the survivors find their contents as they were, and free memory is back.
"""

import numpy as np

import numaemu

LOCKSTEP = True
SHARES = {"protected": (0.35, -1000), "modest": (0.2, 0), "expendable": (0.1, 500)}  # of all memory; oom_score_adj


def free_kb(machine):
    return sum(node["meminfo"]["MemFree"] for node in machine.stats()["nodes"])


def hold(machine, name, nbytes, adjustment, cpu):
    """A task that has filled a mapping with its pid."""
    task = machine.task(cpu=cpu, name=name)
    machine.write(f"/proc/{task.pid}/oom_score_adj", adjustment)
    mapping = task.mmap(nbytes)
    task.store(mapping.pages(), np.uint64(task.pid))
    return task, mapping


def hungry(task, nbytes):
    task.mmap(nbytes).touch()


def intact(task, mapping):
    """True if the task is alive and its pages hold what it wrote, False if it was killed."""
    try:
        return set(task.load(mapping.pages()).tolist()) == {task.pid}
    except numaemu.OutOfMemory:
        return False


def main(machine):
    total = sum(node["meminfo"]["MemTotal"] for node in machine.stats()["nodes"]) << 10
    cpus = [cpu.id for cpu in machine.cpus]
    held = {
        name: hold(machine, name, int(total * share) & -4096, adjustment, cpus[i % len(cpus)])
        for i, (name, (share, adjustment)) in enumerate(SHARES.items())
    }
    scores = {name: int(machine.read(f"/proc/{task.pid}/oom_score")) for name, (task, _) in held.items()}
    print("oom_score before:", scores)
    try:
        machine.run(hungry, total, cpu=cpus[-1], name="hungry")
    except numaemu.OutOfMemory as error:
        print(error)
    kills = [line for line in machine.dmesg().splitlines() if line.startswith("Out of memory: Killed")]
    print(*kills, sep="\n")
    survivors = [name for name, where in held.items() if intact(*where)]
    print("alive, contents intact:", ", ".join(survivors))
    return {
        "victims": [line.split("(")[1].split(")")[0] for line in kills],
        "survivors": survivors,
        "scores": scores,
        "free_share": round(free_kb(machine) * 1024 / total, 2),
    }

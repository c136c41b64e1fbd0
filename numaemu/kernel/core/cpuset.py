"""Which nodes a task may use: the part of Linux's kernel/cgroup/cpuset.c that the page allocator asks.

The groups themselves are the coordinator's (cgroup.py); a task carries what its group allows it (task_t.mems_allowed).
"""

import numpy as np

from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.gfp import __GFP_HARDWALL
from numaemu.kernel.include.internal import ALLOC_CPUSET
from numaemu.kernel.include.mm_types import task_t

U = np.uint64


@hot
def cpuset_current_mems_allowed(cpu):
    """The nodes that the running task's cpuset allows it; all of them where no task runs."""
    return load_acquire(task_t.array(machine_of(cpu).tasks)[cpu.task], "mems_allowed")


@kernel("u64(cpu_t*, i64, i64, u64)")
def cpuset_nodemask(cpu, gfp, alloc_flags, nodemask):
    """What is left of `nodemask` for an allocation in the slow path. Mirrors cpuset_node_allowed, for all nodes at once.

    With __GFP_HARDWALL only what the cpuset allows, else (the kernel's own needs) every node, as no group has a hard wall
    of its own in version 2. Those who cannot wait, and victims of the OOM killer, do not mind cpusets.
    """
    machine = machine_of(cpu)
    if machine.cpusets_enabled == 0 or not alloc_flags & ALLOC_CPUSET or not gfp & __GFP_HARDWALL:
        return nodemask
    task = task_t.array(machine.tasks)[cpu.task]
    if cpu.task != 0 and load_acquire(task, "oom_victim") == task.pid:
        return nodemask
    return nodemask & cpuset_current_mems_allowed(cpu)

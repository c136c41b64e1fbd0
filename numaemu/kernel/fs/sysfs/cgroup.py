"""Control groups of version 2, /sys/fs/cgroup: Linux's kernel/cgroup/cgroup.c and cpuset.c, as far as memory needs them.

The tree is the coordinator's; the CPUs see a cgroup_t for each group. What a task is allowed changes between two of its
operations, on its own CPU: writers of these files are generators that ask for it, and end when every task is told.
"""

import errno
import functools
import os

from numaemu.kernel.fs.sysfs.sysctl import invalid, strtoul
from numaemu.kernel.include.mm_types import TASK_RUNNING, cgroup_t, pool_t, present_cpus, task_t
from numaemu.kernel.mm.page_alloc.page_alloc import set_alloc_hooks
from numaemu.spec.param import CPU_WORDS, MAX_CGROUPS, PAGE_SIZE
from numaemu.spec.units import list_text

MOUNT = "/sys/fs/cgroup"
CONTROLLERS = ("cpuset", "memory")


class Cgroup:
    """A group: a directory of the tree."""

    def __init__(self, number, name, parent):
        self.number, self.name, self.parent = number, name, parent
        self.children, self.subtree_control = {}, set()
        self.cpus, self.mems = set(), set()  # as written; empty: as the parent's
        self.offline = set()  # numbers of groups below that are gone, which may still be charged

    @property
    def path(self):
        """As /proc/<pid>/cgroup has it."""
        if self.parent is None:
            return "/"
        return self.parent.path.rstrip("/") + "/" + self.name

    @property
    def controllers(self):
        return set(CONTROLLERS) if self.parent is None else self.parent.subtree_control

    def with_descendants(self):
        yield self
        for child in self.children.values():
            yield from child.with_descendants()


def root_of(system):
    """The root group; made when first asked for."""
    if system.cgroups is None:
        system.cgroups = {0: Cgroup(0, "/", None)}
    return system.cgroups[0]


def group_of(system, number):
    """The group with a number, as task_t.cgroup has it."""
    root_of(system)
    return system.cgroups[number]


def error(number, what):
    return OSError(number, os.strerror(number), what)


def lookup(system, path):
    """The group of a directory, or None."""
    if path != MOUNT and not path.startswith(MOUNT + "/"):
        return None
    group = root_of(system)
    for name in path[len(MOUNT) + 1 :].split("/") if path != MOUNT else ():
        group = group.children.get(name)
        if group is None:
            return None
    return group


# -- what a group allows -------------------------------------------------------------------------------------


def effective(system, group, what):
    """The nodes ("mems") or CPUs ("cpus") of a group: its own as far as the parent has them, else the parent's."""
    if group.parent is None:
        machine = system.machine
        every = range(machine.nr_nodes) if what == "mems" else present_cpus(machine)
        return {n for n in every if what == "cpus" or int(machine.memory_mask) >> n & 1}
    above = effective(system, group.parent, what)
    return getattr(group, what) & above or above


def memcg_of(group):
    """The number of the nearest group upward with a memory controller of its own; 0: the root, which is not charged."""
    while group.parent is not None and "memory" not in group.controllers:
        group = group.parent
    return group.number


def publish(system, group):
    """Let the CPUs see what a group and those below it allow."""
    for each in group.with_descendants():
        struct = cgroup_t.array(system.machine.cgroups)[each.number]
        mask = sum(1 << cpu for cpu in effective(system, each, "cpus"))
        for word in range(CPU_WORDS):
            struct.cpus[word] = mask >> 64 * word & (1 << 64) - 1
        struct.memcg = memcg_of(each)
    if any("cpuset" in each.subtree_control for each in root_of(system).with_descendants()):
        system.machine.cpusets_enabled = 1
        set_alloc_hooks(system.machine)


def running_tasks(system, wanted):
    """(number, task) of each living task that `wanted` says so of."""
    tasks = task_t.array(system.machine.tasks)
    for number in range(1, pool_t.at(system.machine.task_pool).used + 1):
        task = tasks[number]
        if task.state == TASK_RUNNING and task.mm and wanted(task):
            yield number, task


def mask_of(nodes):
    return sum(1 << node for node in nodes)


def change_tasks(system, wanted, group_for, old_mems):
    """Tell every task that `wanted` says so of what group_for(task) allows; who is forked meanwhile is told, too.

    old_mems: {group's number: the nodes that its tasks were allowed}, from which their pages move.
    """
    told, moved = set(), set()
    while True:
        todo = [(number, task.pid) for number, task in running_tasks(system, wanted) if task.pid not in told]
        if not todo:
            return
        for number, pid in todo:
            task = task_t.array(system.machine.tasks)[number]
            told.add(pid)
            old, group, whole = mask_of(old_mems[task.cgroup]), group_for(task), task.tgid not in moved
            moved.add(task.tgid)
            try:
                yield system.call_task(
                    number, pid, "cpuset_attach", (group.number, mask_of(effective(system, group, "mems")), old, whole)
                )
            except Exception as failed:  # it has ended meanwhile, by itself or by the OOM killer
                if task.pid == pid and task.state == TASK_RUNNING:
                    raise failed


def update_groups(system, group, change):
    """change() something of a group that those below it inherit, then tell their tasks."""
    groups = {each.number: each for each in group.with_descendants()}
    old = {number: effective(system, each, "mems") for number, each in groups.items()}
    change()
    publish(system, group)
    yield from change_tasks(system, lambda task: task.cgroup in groups, lambda task: groups[task.cgroup], old)


# -- directories ---------------------------------------------------------------------------------------------


def is_charged(struct):
    return struct.kernel_pages != 0 or struct.slab_reclaimable != 0 or struct.slab_unreclaimable != 0


def mkdir(system, path):
    """A new group."""
    parent_path, _, name = path.rstrip("/").rpartition("/")
    parent = lookup(system, parent_path)
    if parent is None:
        raise error(errno.ENOENT if parent_path.startswith(MOUNT) else errno.EPERM, path)
    if name in parent.children or name in group_files(parent):
        raise error(errno.EEXIST, path)
    used, groups = system.cgroups, cgroup_t.array(system.machine.cgroups)
    free = [n for n in range(1, MAX_CGROUPS) if n not in used and not is_charged(groups[n])]
    if not free:
        raise OSError(errno.EAGAIN, f"all {MAX_CGROUPS} groups (MAX_CGROUPS) that a machine may have are in use", path)
    for each in used.values():
        each.offline.discard(free[0])
    group = parent.children[name] = used[free[0]] = Cgroup(free[0], name, parent)
    publish(system, group)


def rmdir(system, path):
    """Take a group away that has neither tasks nor groups.

    Kernel memory charged to it stays charged until it is freed, and counts in those above (memcg_reparent_objcgs).
    """
    group = lookup(system, path.rstrip("/"))
    if group is None:
        raise error(errno.ENOENT, path)
    if group.parent is None or group.children or any(running_tasks(system, lambda task: task.cgroup == group.number)):
        raise error(errno.EBUSY, path)
    del group.parent.children[group.name], system.cgroups[group.number]
    group.parent.offline |= group.offline | {group.number}


# -- files ---------------------------------------------------------------------------------------------------


def read_procs(system, group):
    found = {task.tgid for _, task in running_tasks(system, lambda task: task.cgroup == group.number)}
    return "".join(f"{tgid}\n" for tgid in sorted(found))


def write_procs(system, group, text):
    """cgroup_attach_task: a process with all its threads comes into a group, and its memory to the nodes allowed there."""
    pid = strtoul(text.strip())
    found = [task.tgid for _, task in running_tasks(system, lambda task: task.pid == pid)]
    if not found:
        raise error(errno.ESRCH if pid is not None else errno.EINVAL, f"cgroup.procs: {text.strip()!r}")
    if group.parent is not None and group.subtree_control:  # no processes in inner groups
        raise error(errno.EBUSY, group.path)
    old = {number: effective(system, each, "mems") for number, each in system.cgroups.items()}
    return change_tasks(
        system, lambda task: task.tgid == found[0] and task.cgroup != group.number, lambda _: group, old
    )


def read_controllers(_system, group):
    return " ".join(name for name in CONTROLLERS if name in group.controllers) + "\n"


def read_subtree_control(_system, group):
    return " ".join(name for name in CONTROLLERS if name in group.subtree_control) + "\n"


def write_subtree_control(system, group, text):
    """cgroup_subtree_control_write"""
    wanted = set(group.subtree_control)
    for word in text.split():
        sign, name = word[0], word[1:]
        if sign not in "+-" or name not in CONTROLLERS:
            raise invalid(f"cgroup.subtree_control: {word!r}, must be + or - and one of {', '.join(CONTROLLERS)}")
        if sign == "+" and name not in group.controllers:
            raise error(errno.ENOENT, f"{group.path}: {name}")
        if sign == "-" and any(name in child.subtree_control for child in group.children.values()):
            raise error(errno.EBUSY, f"{group.path}: {name}")
        (wanted.add if sign == "+" else wanted.discard)(name)
    if group.parent is not None and wanted and any(running_tasks(system, lambda task: task.cgroup == group.number)):
        raise error(errno.EBUSY, group.path)

    def change():
        group.subtree_control = wanted
        if "cpuset" not in wanted:
            for child in group.children.values():
                child.cpus, child.mems = set(), set()

    return update_groups(system, group, change)


def parse_list(text, what, every):
    """{0, 2, 3} of "0,2-3": bitmap_parselist; every number must be one of `every`."""
    numbers = set()
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        low, high = strtoul(first.strip()), strtoul((last or first).strip())
        if low is None or high is None or low > high:
            raise invalid(f"{what}: {part!r} is no number and no range")
        if high >= 1 << 16:
            raise error(errno.ERANGE, f"{what}: {part}")
        numbers |= set(range(low, high + 1))
    if not numbers <= every:
        raise invalid(f"{what}: {list_text(numbers - every)} is not one of {list_text(every)}")
    return numbers


def read_set(_system, group, what):
    return list_text(getattr(group, what)) + "\n"


def write_set(system, group, text, what):
    """cpuset_write_resmask: nothing, or numbers that the machine has; a node may be one without memory, which then allows none."""
    machine = system.machine
    every = set(range(machine.nr_nodes) if what == "mems" else present_cpus(machine))
    numbers = parse_list(text, f"cpuset.{what}", every)
    return update_groups(system, group, lambda: setattr(group, what, numbers))


def read_effective(system, group, what):
    return list_text(effective(system, group, what)) + "\n"


def memory_stat(system, group):
    """memory.stat, in bytes: what is charged to groups here is kernel memory only.

    Each group is charged as many pages as its objects fill, rounded up; Linux has up to one more for each CPU.
    """
    charged = [
        cgroup_t.array(system.machine.cgroups)[number]
        for each in group.with_descendants()
        for number in {each.number} | each.offline
    ]
    pages = sum(c.kernel_pages + -(-(c.slab_reclaimable + c.slab_unreclaimable) // PAGE_SIZE) for c in charged)
    reclaimable = sum(c.slab_reclaimable for c in charged)
    unreclaimable = sum(c.slab_unreclaimable + c.large_kmalloc * PAGE_SIZE for c in charged)
    return (
        f"kernel {pages * PAGE_SIZE}\nslab_reclaimable {reclaimable}\nslab_unreclaimable {unreclaimable}\n"
        f"slab {reclaimable + unreclaimable}\n"
    )


def group_files(group):
    """{name: (reader, writer)} of a group's directory."""
    files = {
        "cgroup.controllers": (read_controllers, None),
        "cgroup.procs": (read_procs, write_procs),
        "cgroup.subtree_control": (read_subtree_control, write_subtree_control),
    }
    for what in ("cpus", "mems"):
        if "cpuset" in group.controllers:
            files[f"cpuset.{what}.effective"] = (functools.partial(read_effective, what=what), None)
            if group.parent is not None:
                files[f"cpuset.{what}"] = (
                    functools.partial(read_set, what=what),
                    functools.partial(write_set, what=what),
                )
    if group.parent is not None and "memory" in group.controllers:
        files["memory.stat"] = memory_stat, None
    return files


def find(system, path):
    """(reader, writer) of a file of the tree, as proc.find; None: there is none."""
    directory, _, name = path.rpartition("/")
    group = lookup(system, directory)
    found = group_files(group).get(name) if group is not None else None
    if found is None:
        return None
    read, write = found
    return (read and functools.partial(read, group=group)), (
        write and (lambda system, text: write(system, group, text))
    )


def paths(system):
    for group in root_of(system).with_descendants():
        yield from (MOUNT + group.path.rstrip("/") + "/" + name for name in group_files(group))


def proc_cgroup(system, number, _mm_number):
    """/proc/<pid>/cgroup"""
    return f"0::{group_of(system, task_t.array(system.machine.tasks)[number].cgroup).path}\n"


PID_FILES = {"cgroup": proc_cgroup}

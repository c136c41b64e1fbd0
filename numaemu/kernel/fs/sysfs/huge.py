"""The files of huge pages from the pools: the sysctls and sysfs groups of Linux's mm/hugetlb.c.

The coordinator reads; a new size of a pool is made by a CPU, which allocates and frees.
"""

import errno
import functools

from numaemu.kernel.fs.sysfs.node import ROOT
from numaemu.kernel.fs.sysfs.sysctl import invalid, strtoul
from numaemu.kernel.include.mm_types import task_t
from numaemu.kernel.mm.huge.hugetlb_pool import default_hstate, hstate_at, hstate_is_gigantic
from numaemu.spec.machine_file import ULONG_MAX
from numaemu.uapi import MPOL_DEFAULT, MPOL_LOCAL

ALL_NODES = -1
MOST_PAGES = 1 << 62  # more than any machine has; sums with it still fit a word


def hstate(system, number):
    return default_hstate(system.machine) if number is None else hstate_at(system.machine, number)


def size_name(h):
    """hugepages-2048kB"""
    return f"hugepages-{4 << int(h.order)}kB"


def number_of(name, text, pool):
    """A number of pages. What no unsigned long holds: EINVAL of the sysctl (proc_get_long), ERANGE of a pool's file (kstrtoul)."""
    value = strtoul(text.strip())
    if value is None or value < 0:
        raise invalid(f"{name} is {shorten(text)}, must be a number of pages")
    if value > ULONG_MAX:
        raise OSError(
            errno.EINVAL if pool is None else errno.ERANGE, f"{name} is {shorten(text)}, must be at most {ULONG_MAX}"
        )
    return min(value, MOST_PAGES)


def shorten(text):
    """What was written, for an error of one line."""
    return repr(text.strip()) if len(text) <= 40 else repr(text.strip()[:30]) + " ..."


def show(system, field, pool=None):
    return f"{getattr(hstate(system, pool), field)}\n"


def show_node(system, field, pool, node):
    return f"{getattr(hstate(system, pool), field)[node]}\n"


def init_nodemask_of_mempolicy(system):
    """The nodes that the writer's policy names; 0: it has none, or nobody writes."""
    task = task_t.array(system.machine.tasks)[system.writer]
    if not system.writer or task.policy.mode == MPOL_DEFAULT:
        return 0
    return 1 << system.topology.node_of_cpu(int(task.cpu)) if task.policy.mode == MPOL_LOCAL else int(task.policy.nodes)


def store_nr_hugepages(system, text, pool=None, node=ALL_NODES, obey_mempolicy=False):
    """nr_hugepages_store_common: by a CPU."""
    name = "nr_hugepages_mempolicy" if obey_mempolicy else "nr_hugepages"
    nodes = init_nodemask_of_mempolicy(system) if obey_mempolicy else 0
    return "set_max_huge_pages", int(hstate(system, pool).number), number_of(name, text, pool), node, nodes


def store_overcommit(system, text, pool=None):
    """nr_overcommit_hugepages_store: gigantic pages are not made when they are needed."""
    h, pages = hstate(system, pool), number_of("nr_overcommit_hugepages", text, pool)
    if hstate_is_gigantic(h):
        raise invalid(
            f"nr_overcommit_hugepages of {size_name(h)} is {pages}: the buddy system has no pages of this size"
        )
    h.nr_overcommit_huge_pages = pages


def reader(field):
    return functools.partial(show, field=field)


store_mempolicy = functools.partial(store_nr_hugepages, obey_mempolicy=True)
SYSCTLS = {
    "/proc/sys/vm/nr_hugepages": (reader("max_huge_pages"), store_nr_hugepages),
    "/proc/sys/vm/nr_hugepages_mempolicy": (reader("max_huge_pages"), store_mempolicy),
    "/proc/sys/vm/nr_overcommit_hugepages": (reader("nr_overcommit_huge_pages"), store_overcommit),
}
GLOBAL_FILES = {
    "nr_hugepages": (reader("nr_huge_pages"), store_nr_hugepages),
    "nr_hugepages_mempolicy": (reader("nr_huge_pages"), store_mempolicy),
    "nr_overcommit_hugepages": (reader("nr_overcommit_huge_pages"), store_overcommit),
    "free_hugepages": (reader("free_huge_pages"), None),
    "resv_hugepages": (reader("resv_huge_pages"), None),
    "surplus_hugepages": (reader("surplus_huge_pages"), None),
}
NODE_FIELDS = {"nr_hugepages": "nr_node", "free_hugepages": "free_node", "surplus_hugepages": "surplus_node"}


def pool_files(system, pool):
    """{path: (reader, writer)} of one pool."""
    name = size_name(hstate(system, pool))
    found = {
        f"/sys/kernel/mm/hugepages/{name}/{file}": [how and functools.partial(how, pool=pool) for how in hows]
        for file, hows in GLOBAL_FILES.items()
    }
    for node in range(system.machine.nr_nodes):
        for file, field in NODE_FIELDS.items():
            write = functools.partial(store_nr_hugepages, pool=pool, node=node) if file == "nr_hugepages" else None
            found[f"{ROOT}/node{node}/hugepages/{name}/{file}"] = (
                functools.partial(show_node, field=field, pool=pool, node=node),
                write,
            )
    return found


def files(system):
    """{path: (reader, writer)} of everything under .../hugepages."""
    return {path: hows for pool in range(system.machine.nr_hstates) for path, hows in pool_files(system, pool).items()}

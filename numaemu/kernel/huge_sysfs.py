"""The files of huge pages from the pool: the sysctls and sysfs groups of Linux's mm/hugetlb.c.

The coordinator reads; a new size of the pool is made by a CPU, which allocates and frees.
"""
import functools

from numaemu.kernel.hugetlb_pool import hstate_t
from numaemu.kernel.node_sysfs import ROOT
from numaemu.kernel.sysctl import invalid, strtoul

ALL_NODES = -1


def hstate(system):
    return hstate_t.at(system.machine.hstate)


def size_name(system):
    """hugepages-2048kB"""
    return f"hugepages-{4 << int(system.machine.paging.table_bits)}kB"


def number_of(name, text):
    value = strtoul(text.strip())
    if value is None or value < 0:
        raise invalid(f"{name} is {text.strip()!r}, must be a number of pages")
    return value


def show(system, field):
    return f"{getattr(hstate(system), field)}\n"


def show_node(system, field, node):
    return f"{getattr(hstate(system), field)[node]}\n"


def store_nr_hugepages(_system, text, node=ALL_NODES):
    """nr_hugepages_store_common: by a CPU."""
    return "set_max_huge_pages", number_of("nr_hugepages", text), node


def store_overcommit(system, text):
    """nr_overcommit_hugepages_store"""
    hstate(system).nr_overcommit_huge_pages = number_of("nr_overcommit_hugepages", text)


def reader(field):
    return functools.partial(show, field=field)


SYSCTLS = {
    "/proc/sys/vm/nr_hugepages": (reader("max_huge_pages"), store_nr_hugepages),
    "/proc/sys/vm/nr_overcommit_hugepages": (reader("nr_overcommit_huge_pages"), store_overcommit),
}
GLOBAL_FILES = {
    "nr_hugepages": (reader("nr_huge_pages"), store_nr_hugepages),
    "nr_overcommit_hugepages": (reader("nr_overcommit_huge_pages"), store_overcommit),
    "free_hugepages": (reader("free_huge_pages"), None), "resv_hugepages": (reader("resv_huge_pages"), None),
    "surplus_hugepages": (reader("surplus_huge_pages"), None),
}
NODE_FIELDS = {"nr_hugepages": "nr_node", "free_hugepages": "free_node", "surplus_hugepages": "surplus_node"}


def files(system):
    """{path: (reader, writer)} of everything under .../hugepages."""
    name = size_name(system)
    found = {f"/sys/kernel/mm/hugepages/{name}/{file}": how for file, how in GLOBAL_FILES.items()}
    for node in range(system.machine.nr_nodes):
        for file, field in NODE_FIELDS.items():
            write = functools.partial(store_nr_hugepages, node=node) if file == "nr_hugepages" else None
            found[f"{ROOT}/node{node}/hugepages/{name}/{file}"] = functools.partial(show_node, field=field, node=node), write
    return found

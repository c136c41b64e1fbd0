"""The audit of what is charged to control groups: each group's pages against those that say so."""
import numpy as np

from numaemu.errors import MachineCheck
from numaemu.kernel.memcontrol import MEMCG_SHIFT
from numaemu.kernel.mm_types import PG_head, cgroup_t, page_t
from numaemu.kernel.mmzone import MAX_NR_ZONES, page_of, zone_of
from numaemu.param import MAX_CGROUPS


def charged_pages(machine):
    """Pages by group, as the page structs have them; a compound page is charged as a whole to its head."""
    found = np.zeros(MAX_CGROUPS, np.int64)
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.present_pages and zone.virgin_pfn > zone.start_pfn:
            pages = page_t.array(page_of(machine, zone.start_pfn).address).as_numpy(zone.virgin_pfn - zone.start_pfn)
            pages = pages[pages["flags"] >> MEMCG_SHIFT != 0]
            weights = np.where(pages["flags"] & np.uint64(PG_head) != 0, 1 << pages["order"].astype(np.int64), 1)
            np.add.at(found, (pages["flags"] >> MEMCG_SHIFT).astype(np.int64), weights)
    return found


def audit_memcg(machine):
    found = charged_pages(machine)
    for number in range(MAX_CGROUPS):
        pages = cgroup_t.array(machine.cgroups)[number].kernel_pages
        if pages != found[number]:
            raise MachineCheck(f"control group {number} is charged {pages} kernel pages, {found[number]} pages say so")

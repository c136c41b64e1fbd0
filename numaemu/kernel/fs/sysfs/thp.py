"""/sys/kernel/mm/transparent_hugepage: the settings of Linux's mm/huge_memory.c and mm/khugepaged.c.

They are single words of the machine that the coordinator writes: a fault that still sees the old one is an earlier moment's.
"""

import functools

from numaemu.compiler.atomic import fetch_or
from numaemu.kernel.boot import NS_PER_MS, calculate_min_free_kbytes
from numaemu.kernel.fs.sysfs.sysctl import invalid, set_watermarks, strtoul
from numaemu.kernel.include.mmzone import (
    KHUGEPAGED,
    MAX_NR_ZONES,
    MIGRATE_PCPTYPES,
    WMARK_HIGH,
    ZONE_HIGHMEM,
    ZONE_MOVABLE,
    node_t,
    zone_of,
)
from numaemu.kernel.mm.huge.huge_memory import THP_NEVER
from numaemu.spec.machine_file import UINT_MAX
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_PAGES

ROOT = "/sys/kernel/mm/transparent_hugepage"
ENABLED = ("always", "madvise", "never")  # as shown; THP_* from the last to the first
DEFRAG = ("always", "defer", "defer+madvise", "madvise", "never")
SHMEM_ENABLED = ("always", "within_size", "advise", "never", "deny", "force")
MIN_FREE = "vm.min_free_kbytes"


def choice(names, chosen):
    """always [madvise] never"""
    return " ".join(f"[{name}]" if i == chosen else name for i, name in enumerate(names)) + "\n"


def chosen(file, names, text):
    if text.strip() not in names:
        raise invalid(f"{ROOT}/{file} is {text.strip()!r}, must be one of {', '.join(names)}")
    return names.index(text.strip())


def recommended_min_free_kbytes(machine):
    """set_recommended_min_free_kbytes: pageblocks to be kept free, so that huge pages find some; 5 % of low memory at most."""
    zones = [zone_of(machine, number) for number in range(machine.nr_nodes * MAX_NR_ZONES)]
    zones = [zone for zone in zones if zone.managed_pages and zone.type not in (ZONE_HIGHMEM, ZONE_MOVABLE)]
    blocks = PAGEBLOCK_PAGES * len(zones) * (2 + MIGRATE_PCPTYPES * MIGRATE_PCPTYPES)
    lowmem = sum(max(zone.managed_pages - zone.watermark[WMARK_HIGH], 0) for zone in zones)
    return min(blocks, lowmem // 20) << (PAGE_SHIFT - 10)


def start_stop_khugepaged(system, before):
    """Where huge pages are wanted more memory is kept free; where they no longer are, as much as without them."""
    machine = system.machine
    if machine.thp_enabled != THP_NEVER:
        machine.thp_used = 1
        wanted = max(recommended_min_free_kbytes(machine), system.sysctl[MIN_FREE])
    elif before != THP_NEVER:
        wanted = max(calculate_min_free_kbytes(machine), system.topology.sysctl.get(MIN_FREE, 0))
    else:
        return
    if wanted != system.sysctl[MIN_FREE]:
        system.sysctl[MIN_FREE] = wanted
        set_watermarks(system)


def show_enabled(system):
    return choice(ENABLED, len(ENABLED) - 1 - system.machine.thp_enabled)


def store_enabled(system, text):
    before = system.machine.thp_enabled
    system.machine.thp_enabled = len(ENABLED) - 1 - chosen("enabled", ENABLED, text)
    start_stop_khugepaged(system, before)


def show_defrag(system):
    return choice(DEFRAG, system.machine.thp_defrag)


def store_defrag(system, text):
    system.machine.thp_defrag = chosen("defrag", DEFRAG, text)


def hpage_pmd_size(system):
    return f"{PAGE_SIZE << int(system.machine.paging.table_bits)}\n"


def show(system, field, unit=1):
    return f"{getattr(system.machine, field) // unit}\n"


def store(system, text, field, most, least=0, unit=1):
    """A number from `least` to `most`."""
    value = strtoul(text.strip())
    if value is None or not least <= value <= most(system):
        raise invalid(f"{field} is {text.strip()!r}, must be {least} to {most(system)}")
    setattr(system.machine, field, value * unit)


def store_sleep(system, text, field):
    """__sleep_millisecs_store: khugepaged_wait is woken, so that a sleep that has begun ends now."""
    store(system, text, field, unsigned_int, unit=NS_PER_MS)
    system.machine.khugepaged_next_ns = 0
    fetch_or(node_t.array(system.machine.nodes)[0], "kthread_pending", KHUGEPAGED)
    system.wake_kthreads(0)


def show_shmem_enabled(_system):
    return choice(SHMEM_ENABLED, SHMEM_ENABLED.index("never"))


def store_shmem_enabled(_system, text):
    """Shared memory and tmpfs have small pages only."""
    if chosen("shmem_enabled", SHMEM_ENABLED, text) not in map(SHMEM_ENABLED.index, ("never", "deny")):
        raise invalid(f"shmem_enabled is {text.strip()!r}, must be never or deny: shared memory has no huge pages here")


def pages_less_one(system):
    return (1 << int(system.machine.paging.table_bits)) - 1


def number(field, most, least=0):
    return functools.partial(show, field=field), functools.partial(store, field=field, most=most, least=least)


def sleep(field):
    return functools.partial(show, field=field, unit=NS_PER_MS), functools.partial(store_sleep, field=field)


def one(_system):
    return 1


def unsigned_int(_system):
    """What kstrtouint takes."""
    return UINT_MAX


FILES = {
    f"{ROOT}/enabled": (show_enabled, store_enabled),
    f"{ROOT}/defrag": (show_defrag, store_defrag),
    f"{ROOT}/shmem_enabled": (show_shmem_enabled, store_shmem_enabled),
    f"{ROOT}/use_zero_page": number("thp_use_zero_page", one),
    f"{ROOT}/hpage_pmd_size": (hpage_pmd_size, None),
    f"{ROOT}/khugepaged/defrag": number("khugepaged_defrag", one),
    f"{ROOT}/khugepaged/pages_to_scan": number("khugepaged_pages_to_scan", unsigned_int, 1),
    f"{ROOT}/khugepaged/max_ptes_none": number("khugepaged_max_ptes_none", pages_less_one),
    f"{ROOT}/khugepaged/max_ptes_swap": number("khugepaged_max_ptes_swap", pages_less_one),
    f"{ROOT}/khugepaged/max_ptes_shared": number("khugepaged_max_ptes_shared", pages_less_one),
    f"{ROOT}/khugepaged/scan_sleep_millisecs": sleep("khugepaged_scan_sleep_ns"),
    f"{ROOT}/khugepaged/alloc_sleep_millisecs": sleep("khugepaged_alloc_sleep_ns"),
    f"{ROOT}/khugepaged/pages_collapsed": (functools.partial(show, field="khugepaged_pages_collapsed"), None),
    f"{ROOT}/khugepaged/full_scans": (functools.partial(show, field="khugepaged_full_scans"), None),
}

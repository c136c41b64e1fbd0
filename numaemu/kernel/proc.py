"""/proc and /sys as text, in Linux's format: Linux's fs/proc and drivers/base/node.c."""
from numaemu.kernel.mmzone import MAX_NR_ZONES, NR_ORDERS, ZONE_NAMES, zone_of
from numaemu.kernel.stats import task_numbers  # noqa: F401


def buddyinfo(machine, topology):
    """/proc/buddyinfo: free blocks per order; untouched memory counts as the blocks it would be cut into."""
    lines = []
    for number in range(machine.nr_nodes * MAX_NR_ZONES):
        zone = zone_of(machine, number)
        if zone.present_pages == 0:
            continue
        counts = [int(zone.free_area[o].nr_free.as_numpy().sum()) for o in range(NR_ORDERS)]
        for order in virgin_orders(zone):
            counts[order] += 1
        lines.append(f"Node {zone.node}, zone {ZONE_NAMES[zone.type]:>8} " + "".join(f"{c:6d} " for c in counts))
    return "\n".join(lines) + "\n"


def virgin_orders(zone):
    """The orders of the blocks that the untouched rest of a zone consists of."""
    pfn, orders = zone.virgin_pfn, []
    while pfn < zone.virgin_end:
        order = NR_ORDERS - 1
        while pfn & ((1 << order) - 1) or pfn + (1 << order) > zone.virgin_end:
            order -= 1
        orders.append(order)
        pfn += 1 << order
    return orders


FILES = {"/proc/buddyinfo": buddyinfo}


def read(machine, topology, path):
    """The text of a file."""
    if path not in FILES:
        raise FileNotFoundError(f"{path}: no such file in the emulated /proc or /sys")
    return FILES[path](machine, topology)


def write(machine, topology, path, value):
    raise FileNotFoundError(f"{path}: no such file to write in the emulated /proc or /sys")

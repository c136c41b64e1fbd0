"""/proc/slabinfo: slabinfo_show of Linux's mm/slab_common.c.

Objects on a CPU's own list count as free here; Linux's SLUB counts them as active.
"""

from numaemu.kernel.mm.slab.slab import cache_name, cache_of, get_node, live_caches, objects_in_use
from numaemu.spec.param import PAGE_SIZE

HEADER = (
    "slabinfo - version: 2.1\n"
    "# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>"
    " : tunables <limit> <batchcount> <sharedfactor> : slabdata <active_slabs> <num_slabs> <sharedavail>\n"
)


def slabinfo(system):
    """One line a cache, the newest first, as Linux lists them."""
    machine, lines = system.machine, []
    for number in reversed(live_caches(machine)):
        cache, nodes = cache_of(machine, number), [get_node(machine, number, n) for n in range(machine.nr_nodes)]
        slabs, total = sum(n.nr_slabs for n in nodes), sum(n.total_objects for n in nodes)
        lines.append(
            f"{cache_name(machine, number):<17} {objects_in_use(machine, number):6d} {total:6d} {cache.size:6d} "
            f"{(PAGE_SIZE << cache.order) // cache.size:4d} {1 << cache.order:4d} : tunables {0:4d} {0:4d} {0:4d}"
            f" : slabdata {slabs:6d} {slabs:6d} {0:6d}\n"
        )
    return HEADER + "".join(lines)


FILES = {"/proc/slabinfo": slabinfo}

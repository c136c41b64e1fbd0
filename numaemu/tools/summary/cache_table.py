"""The table of the CPUs' caches in a summary."""

from numaemu.api.tables import Table
from numaemu.tools.summary.layout import fitted
from numaemu.tools.summary.numbers import busiest, count, dimmed, percent


def cache_table(cpus, width, most):
    """For each CPU the share of look-ups that each level served, and what the caches did. Nothing on a machine without caches."""
    cpus = [cpu for cpu in cpus if "caches" in cpu]
    if not cpus:
        return []
    shown, left_out = busiest(cpus, lambda cpu: cpu["loads"] + cpu["stores"], most)
    levels = list(cpus[0]["caches"]["levels"])
    rows = []
    for cpu in shown:
        caches = cpu["caches"]
        shares = [percent(level["hits"], level["hits"] + level["misses"]) for level in caches["levels"].values()]
        outer = caches["levels"][levels[-1]]
        numbers = (outer["misses"], outer["write_backs"], caches["invalidations"], caches["transfers"])
        used = percent(caches["prefetch_hits"], caches["prefetches"])
        rows.append((str(cpu["cpu"]), *shares, *map(count, numbers), count(caches["prefetches"]), used))
    titles = ("CPU", *levels, "missed", "written", "taken", "got", "prefetched", "used")
    idle = {number for number, cpu in enumerate(shown) if not cpu["loads"] + cpu["stores"]}
    return [*fitted(Table("", titles, rows), width, idle), *dimmed(left_out)]

"""The charts of a run's page: each is a title, what it means, and a Vega-Lite chart made with Altair."""

from typing import NamedTuple

from numaemu.host.extras import need
from numaemu.tools.page.sampler import COUNTERS

MOST_CELLS = 32  # nodes of a matrix that are drawn
MOST_CPUS = 64  # of bars
ORDERS = 11


class Chart(NamedTuple):
    """A part of the page."""

    title: str
    text: str
    spec: dict


def altair():
    return need("altair", "report", "the page of a run")


def data(rows):
    return altair().Data(values=rows)


def ms(sample):
    return sample["ns"] / 1e6


def time_axis():
    return altair().X("ms:Q", title="emulated ms", axis=altair().Axis(labelOverlap=True, tickCount=8))


def lines(rows, unit, colour, height=220):
    """A line for each value of `colour`."""
    alt = altair()
    return alt.Chart(data(rows), width="container", height=height).mark_line(point=len(rows) < 80, interpolate="linear").encode(
        x=time_axis(), y=alt.Y("value:Q", title=unit), color=alt.Color(f"{colour}:N", title=None, legend=alt.Legend(orient="bottom", columns=3)),
        tooltip=[f"{colour}:N", "ms:Q", "value:Q"],
    )  # fmt: skip


def heat(rows, x, y, value, form, scheme="blues", height=220, x_kind="O"):
    """Cells with their values in them."""
    alt = altair()
    base = alt.Chart(data(rows), width="container", height=height).encode(
        x=alt.X(f"{x}:{x_kind}", axis=alt.Axis(labelAngle=0)), y=alt.Y(f"{y}:O")
    )
    cells = base.mark_rect().encode(
        color=alt.Color(f"{value}:Q", scale=alt.Scale(scheme=scheme), legend=None),
        tooltip=[f"{x}:O", f"{y}:O", f"{value}:Q"],
    )
    words = base.mark_text(baseline="middle").encode(text=alt.Text(f"{value}:Q", format=form))
    return cells + words if len(rows) <= 256 else cells


def bars(rows, unit, category, part, rows_high=None):
    """Horizontal bars in parts."""
    alt = altair()
    names = {row[category] for row in rows}
    return alt.Chart(data(rows), width="container", height=max(22 * len(names), 60)).mark_bar().encode(
        x=alt.X("value:Q", title=unit, stack=True, axis=alt.Axis(labelOverlap=True, tickCount=8)), y=alt.Y(f"{category}:N", sort=None, title=None),
        color=alt.Color(f"{part}:N", title=None, legend=alt.Legend(orient="bottom", columns=3), sort=None), tooltip=[f"{category}:N", f"{part}:N", "value:Q"],
    )  # fmt: skip


# -- over time -----------------------------------------------------------------------------------------------


def free_memory(samples):
    """Free memory of each node."""
    rows = [{"ms": ms(s), "value": kb / 1024, "node": f"node {n}"} for s in samples for n, kb in s["free_kb"].items()]
    text = "Memory of each node that nobody uses. It falls while pages are touched first; kswapd keeps some of it free."
    return Chart("Free memory", text, lines(rows, "MiB free", "node"))


def rates(samples):
    """What happened between two looks, per emulated ms; only what happened at all."""
    rows = []
    for before, after in zip(samples, samples[1:]):
        passed = ms(after) - ms(before)
        for name, words in COUNTERS.items():
            if samples[-1]["counters"][name] > samples[0]["counters"][name]:
                rows.append(
                    {
                        "ms": ms(after),
                        "value": (after["counters"][name] - before["counters"][name]) / passed,
                        "what": words,
                    }
                )
    if not rows:
        return None
    text = "Counters of /proc/vmstat as rates. Faults come with first touches; scanning and reclaim, when free memory is short."
    return Chart("Faults, reclaim, migration", text, lines(rows, "per emulated ms", "what"))


def traffic(samples):
    """Accesses to the CPU's own node and to others."""
    rows = []
    for before, after in zip(samples, samples[1:]):
        for kind in ("local", "remote"):
            value = (after[kind] - before[kind]) / (ms(after) - ms(before))
            rows.append({"ms": ms(after), "value": value * 8 / 1e3, "what": f"{kind} memory"})
    if not any(row["value"] for row in rows):
        return None
    text = (
        "Loads and stores, eight bytes each, by whether the memory is on the CPU's own node. Remote ones take longer."
    )
    return Chart("Bandwidth", text, lines(rows, "MB per emulated s, all CPUs", "what"))


def servers(samples):
    """What memory controllers and links have moved; those that moved nothing are left out."""
    moved = [name for name, nbytes in samples[-1]["servers"].items() if nbytes > samples[0]["servers"][name]]
    rows = [
        {"ms": ms(after), "value": (after["servers"][name] - before["servers"][name]) / (ms(after) - ms(before)) / 1e6, "what": name}
        for before, after in zip(samples, samples[1:])
        for name in moved
    ]  # fmt: skip
    text = "Lines that each memory controller, and each link between nodes, has moved: loads, stores, copies of pages, disks."
    return Chart("Controllers and links", text, lines(rows, "GB per emulated s", "what")) if rows else None


def fragmentation(samples):
    """The share of each node's free memory in blocks of each order, over time."""
    alt, rows = altair(), []
    nodes = sorted(samples[-1]["blocks"])[:4]
    for i, sample in enumerate(samples):
        end = ms(samples[i + 1]) if i + 1 < len(samples) else ms(sample)
        for node in nodes:
            total = sum(sample["blocks"].get(node, ())) or 1
            rows += [{"ms": ms(sample), "end": end, "order": o, "share": pages / total, "node": f"node {node}"}
                     for o, pages in enumerate(sample["blocks"].get(node, ()))]  # fmt: skip
    chart = alt.Chart(data(rows), height=160, width="container").mark_rect().encode(
        x=time_axis(), x2="end:Q", y=alt.Y("order:O", sort="descending", title="order of block"),
        color=alt.Color("share:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), title="share of free memory"),
        tooltip=["node:N", "order:O", "share:Q", "ms:Q"])  # fmt: skip
    text = (
        "Where free memory lies: in large blocks (order 10 is 4 MiB) or in small ones. A node whose free memory has come down to low "
        "orders is fragmented: huge pages cannot be had without compaction."
    )
    charts = [chart.transform_filter(f"datum.node == 'node {node}'").properties(title=f"node {node}") for node in nodes]
    return [Chart("Fragmentation" if i == 0 else "", text if i == 0 else "", each) for i, each in enumerate(charts)]


# -- at the end ----------------------------------------------------------------------------------------------


def access_matrix(run):
    """Whose memory the CPUs of each node have used."""
    nodes = run["nodes"][:MOST_CELLS]
    sums = [sum(node["accesses_from"][i] for node in run["nodes"]) for i in range(len(nodes))]
    rows = [{"CPUs of node": i, "memory of node": node["node"], "share": node["accesses_from"][i] / sums[i]}
            for node in nodes for i in range(len(nodes)) if sums[i]]  # fmt: skip
    if not rows:
        return None
    text = "The share of each node's loads and stores that went to each node's memory. The diagonal is local."
    return Chart(
        "Where accesses went",
        text,
        heat(rows, "memory of node", "CPUs of node", "share", ".0%", height=min(60 + 34 * len(nodes), 500)),
    )


def latency_matrix(run):
    """What a load takes, as the machine file says."""
    matrix = run["machine"]["latency"]["matrix"]
    rows = [
        {"CPUs of node": i, "memory of node": j, "ns": ns}
        for i, row in enumerate(matrix[:MOST_CELLS])
        for j, ns in enumerate(row[:MOST_CELLS])
    ]
    text = "What one load takes on this machine, in emulated ns, without the TLB."
    height = min(60 + 34 * len(matrix), 500)
    return Chart(
        "Latency of the machine", text, heat(rows, "memory of node", "CPUs of node", "ns", "d", "oranges", height)
    )


def translations(run):
    """Accesses of each busy CPU by what translated them."""
    kinds = {"l1_tlb_hits": "first TLB", "l2_tlb_hits": "second TLB", "page_walks": "page walk"}
    busy = [cpu for cpu in run["cpus"] if cpu["loads"] + cpu["stores"]][:MOST_CPUS]
    rows = [{"CPU": f"CPU {c['cpu']}", "value": c[key], "by": name} for c in busy for key, name in kinds.items()]
    if not rows:
        return None
    text = "How addresses were translated. A page walk reads up to five entries of page tables from memory; huge pages make them rare."
    return Chart("Translation", text, bars(rows, "accesses", "CPU", "by"))


def memory_in_use(run):
    """Each node's memory by use."""
    kinds = {
        "AnonPages": "anonymous",
        "FilePages": "files",
        "PageTables": "page tables",
        "Slab": "slab",
        "Shmem": "shared",
    }
    rows = [
        {"node": f"node {n['node']}", "value": n["meminfo"][key] / 1024, "what": what}
        for n in run["nodes"]
        for key, what in kinds.items()
    ]
    if not any(row["value"] for row in rows):
        return None
    text = "What memory was used for when main returned. What ended tasks had used is free again."
    return Chart("Memory in use at the end", text, bars(rows, "MiB", "node", "what"))


def tasks_memory(tasks):
    """The memory of each task by node, as it was seen last."""
    rows = [
        {"task": f"{name} ({pid})", "value": kb / 1024, "node": f"node {node}"}
        for (pid, name), nodes in tasks.items()
        for node, kb in sorted(nodes.items())
    ]
    if not rows:
        return None
    text = "On which nodes each task's pages lay when it was last looked at while it lived (/proc/<pid>/numa_maps)."
    return Chart("Tasks' memory by node", text, bars(rows, "MiB", "task", "node"))


def duration_text(ns):
    """A duration as an edge of a bar: 200 ns, 5 us, 1 ms."""
    for unit, least in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= least:
            return f"{ns / least:g} {unit}"
    return f"{ns:g} ns"


def latency_charts(latencies):
    """How long faults, reclaim, compaction and shootdowns took; those that there were."""
    from numaemu.tools.page.latencies import KINDS

    alt, found = altair(), []
    for number, kind in enumerate(KINDS):
        total = latencies.total(number)
        if not total:
            continue
        rows = [
            {"took": f"{duration_text(low)} to {duration_text(high)}", "from": low, "count": count}
            for low, high, count in latencies.bins(number)
        ]
        lost = f" {latencies.lost:,} events were lost, and are not in it." if latencies.lost else ""
        longest = duration_text(float(f"{latencies.longest[number]:.3g}"))
        text = f"{kind.text} Emulated time; {total:,} of them, the longest {longest}.{lost}"
        chart = alt.Chart(data(rows), width="container", height=max(20 * len(rows), 60)).mark_bar().encode(
            x=alt.X("count:Q", title="how many", axis=alt.Axis(labelOverlap=True, tickCount=8)),
            y=alt.Y("took:N", sort=alt.SortField("from"), title=None), tooltip=["took:N", "count:Q"],
        )  # fmt: skip
        found.append(Chart(kind.title, text, chart))
    return found


def all_charts(run, samples, tasks, latencies=None):
    """The charts of a run that have something to show."""
    over_time = [free_memory(samples), rates(samples), traffic(samples), servers(samples)] if len(samples) > 1 else []
    found = [
        *over_time,
        *(latency_charts(latencies) if latencies is not None else ()),
        access_matrix(run),
        latency_matrix(run),
        translations(run),
        memory_in_use(run),
        tasks_memory(tasks),
    ]
    if len(samples) > 1:
        found += fragmentation(samples)
    return [chart._replace(spec=chart.spec.to_dict()) for chart in found if chart is not None]

"""What people see: the summary of a run, errors, tables; and values made fit for JSON. progress.py shows a run that goes on.

Every table is a function from figures (as `machine.stats()` and the JSON of a run have them) to something rich can
print, so that tests print into a recording console. rich is imported when it is first needed.
"""

import os
import re
import sys
import textwrap

from numaemu.api.failure import failure_text
from numaemu.api.tables import Table, blocks, cell, jsonable  # noqa: F401  (for those who have a report)
from numaemu.host import shm
from numaemu.spec.units import format_size, parse_size
from numaemu.tools.summary import notes
from numaemu.tools.summary.cache_table import cache_table
from numaemu.tools.summary.layout import fitted, new_console, new_table, print_blocks, text_width
from numaemu.tools.summary.numbers import ALL, busiest, count, dimmed, duration, percent

MAX_ROWS = 16  # CPUs, and nodes of the access matrix, that a summary shows
MAX_COLUMNS = 8  # memory nodes of the access matrix: what 80 columns hold
MAX_RESULT_ROWS = 40  # of a table that main returned
NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
HUGE_PAGES_FILE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
HUGE_PAGES = ("always", "within_size", "advise", "force")
SHADES = ("", "on grey19", "on dark_green", "on dark_goldenrod", "on dark_orange3", "on red3")  # of shares


def rate(bytes_per_s):
    """A rate in GB/s."""
    return f"{bytes_per_s / 1e9:.3g}"


def accesses(cpu):
    """Loads and stores of a CPU."""
    return cpu["loads"] + cpu["stores"]


# --- a result -----------------------------------------------------------------------------------
def print_result(result, console=None, verbose=False):
    """What main returned, alone: tables where it is made of them, else as Python writes it."""
    if result is None:
        return
    console, most_rows = console or new_console(), ALL if verbose else MAX_RESULT_ROWS
    if isinstance(result, str):
        console.print(result, markup=False, soft_wrap=True)
    elif hasattr(result, "__rich__") or hasattr(result, "__rich_console__"):
        console.print(result)
    else:
        print_blocks(blocks(result), console, most_rows)


# --- what a workload says of itself -------------------------------------------------------------
_LOOK_FOR = re.compile(r"\bLook\s+for\b([^:]*):[ \t]*", re.S)


def first_line(doc):
    """The summary line of a docstring."""
    return (doc or "").strip().partition("\n")[0]


def look_for(doc):
    """What a docstring says there is to see: the rest of the sentence after `Look for:`, and the items below it."""
    found = _LOOK_FOR.search(doc or "")
    if found is None:
        return []
    inline, *lines = doc[found.end() :].split("\n")
    items = [inline.strip()] if inline.strip() else []
    for line in lines:
        text = line.strip()
        if not line.startswith("  ") and not (items and not items[0].startswith("- ") and text):
            if text or items:
                break
        elif text.startswith("- ") or not items:
            items.append(text)
        else:
            items[-1] += f" {text}"
    return [item.removeprefix("- ") for item in items if item]


def print_header(figures, doc="", console=None, verbose=False):
    """What runs, on which machine, and what there is to see: before anything else of a run is printed. With `verbose` all that
    the workload says of itself.
    """
    console = console or new_console()
    width, name = text_width(console), os.path.basename(figures["workload"])
    title = f"{name} on {figures['machine']['name']}"
    console.print(
        f"[bold]{name}[/bold]{title.removeprefix(name)} {'─' * (min(width, 80) - len(title) - 1)}", soft_wrap=True
    )
    for line in textwrap.wrap(first_line(doc), width):
        console.print(line, markup=False, soft_wrap=True)
    for line in textwrap.wrap(machine_line(figures["machine"]), width):
        console.print(line, style="dim", markup=False, soft_wrap=True)
    if verbose and (rest := (doc or "").strip().partition("\n")[2].strip("\n")):
        console.print(f"\n{rest}", markup=False, soft_wrap=True)
    elif items := look_for(doc):
        console.print("\n[bold]look for[/bold]")
        for item in items:
            for line in textwrap.wrap(item, width, initial_indent="  - ", subsequent_indent="    "):
                console.print(line, markup=False, soft_wrap=True)
    console.print()


class Header:
    """Prints the header of a run once: on a terminal at once, elsewhere before the first word that the run itself prints. A
    workload without a docstring says nothing of what it shows: its header comes with the summary. It stands in for stdout while
    the run goes on, and knows whether that has printed anything; a context manager.
    """

    def __init__(self, figures, doc, verbose=False):
        self.figures, self.doc, self.verbose = figures, doc, verbose
        self.shown, self.wrote, self.stream = False, False, sys.stdout

    def __enter__(self):
        self.stream, sys.stdout = sys.stdout, self
        if self.doc and self.stream.isatty():
            self.show()
        return self

    def __exit__(self, *_):
        """A run that has failed and printed nothing has no header."""
        if sys.stdout is self:
            sys.stdout = self.stream

    def write(self, text):
        if self.doc:
            self.show()
        self.wrote = True
        return self.stream.write(text)

    def show(self):
        if not self.shown:
            self.shown, out, sys.stdout = True, sys.stdout, self.stream
            print_header(self.figures, self.doc, verbose=self.verbose)
            sys.stdout = out

    def __getattr__(self, name):
        return getattr(self.stream, name)


# --- the summary of a run -----------------------------------------------------------------------
def print_summary(figures, doc="", console=None, verbose=False, header=None):
    """Everything about a run that a person wants to know at its end, below its header, which may have been printed already."""
    console = console or new_console()
    if header is not None and header.wrote:
        console.print()
    if header is None:
        print_header(figures, doc, console, verbose)
    else:
        header.show()
    if figures["result"] is not None:
        console.print("[bold]result[/bold]")
        print_result(figures["result"], console, verbose)
    cpus, nodes = figures["cpus"], figures["nodes"]
    idle = not any(accesses(cpu) or cpu["minor_faults"] or cpu["clock_ns"] for cpu in cpus)
    width, tables = console.width, []
    if not idle:
        tables = [
            (
                "CPUs: accesses, TLB hits, walks, faults, shootdowns sent and received, clock",
                cpu_table(cpus, width, verbose),
            ),
            (
                "caches: hits by level, and what went between CPUs and to memory",
                cache_table(cpus, width, ALL if verbose else MAX_ROWS),
            ),
            ("numastat: pages by the node they came from", numastat_table(nodes, width, verbose)),
            (
                "accesses: share of each node's loads and stores by the memory's node",
                access_matrix(figures, max(1, (width - 16) // 8), verbose),
            ),
        ]
    if not idle and (table := server_table(figures.get("servers", ()), figures["emulated_ns"], width, verbose)):
        tables.append(("controllers and links: moved, of their limit, and how long requests waited there", table))
    if verbose and any(figures["vmstat"].values()):
        tables.append(("vmstat: what is not zero", vmstat_table(figures["vmstat"], width)))
    for title, parts in tables:
        if parts:
            console.print(f"\n[bold]{title}[/bold]")
        for part in parts:
            console.print(part)
    console.print()
    console.print(idle_line(figures) if idle else time_line(figures), soft_wrap=True)
    if verbose:
        print_hints(console, hints(len(cpus), figures.get("compiled", 0)))
    else:
        print_hints(console, [*compiled_hint(figures.get("compiled", 0)), *notes.due(hints(len(cpus)))])


def machine_line(machine):
    """The machine in one line."""
    nodes = machine["node"]
    cpus = sum(len(node["cpus"]) for node in nodes)
    memory = format_size(sum(parse_size(node["memory"]) for node in nodes))
    empty = [i for i, node in enumerate(nodes) if not node["cpus"]]
    parts = [f"{plural(len(nodes), 'node')}, {plural(cpus, 'CPU')}, {memory}"]
    if empty:
        parts.append(f"no CPUs in {plural(len(empty), 'node')} ({', '.join(map(str, empty))})")
    bare = [i for i, node in enumerate(nodes) if not parse_size(node["memory"])]
    if bare:
        parts.append(f"no memory in {plural(len(bare), 'node')} ({', '.join(map(str, bare))})")
    latencies = sorted({ns for row in machine["latency"]["matrix"] for ns in row})
    spread = f"{latencies[0]} to {latencies[-1]}" if len(latencies) > 1 else f"{latencies[0]}"
    return ", ".join([*parts, f"a load takes {spread} ns"])


def plural(number, noun):
    return f"{number} {noun}" + ("" if number == 1 else "s")


def cpu_table(cpus, width, everything=False):
    """Accesses, TLBs, faults and shootdowns per CPU."""
    most = ALL if everything else MAX_ROWS
    shown, left_out = busiest(cpus, lambda c: accesses(c) + c["minor_faults"] + c["clock_ns"], most)
    titles = ("CPU", "node", "loads", "stores", "L1 hit", "L2 hit", "walks", "faults", "sent", "rcvd", "time")
    rows = [
        (
            str(cpu["cpu"]),
            str(cpu["node"]),
            count(cpu["loads"]),
            count(cpu["stores"]),
            percent(cpu["l1_tlb_hits"], accesses(cpu)),
            percent(cpu["l2_tlb_hits"], accesses(cpu) - cpu["l1_tlb_hits"]),
            count(cpu["page_walks"]),
            count(cpu["minor_faults"]),
            count(cpu["shootdowns_sent"]),
            count(cpu["shootdowns_received"]),
            duration(cpu["clock_ns"]),
        )
        for cpu in shown
    ]
    idle = {number for number, cpu in enumerate(shown) if not accesses(cpu) and not cpu["clock_ns"]}
    return [*fitted(Table("", titles, rows), width, idle), *dimmed(left_out)]


def numastat_table(nodes, width, everything=False):
    """Where pages came from, by the names numastat prints: a row per node."""
    shown, left_out = busiest(nodes, lambda n: sum(n["numastat"].values()), ALL if everything else MAX_ROWS)
    pages = [[node["numastat"][name] for name in NUMASTAT] for node in shown]
    rows = [
        (str(node["node"]), *(f"{n:,}" if n < 10**7 else count(n) for n in numbers))
        for node, numbers in zip(shown, pages)
    ]
    idle = {number for number, numbers in enumerate(pages) if not any(numbers)}
    return [*fitted(Table("", ("node", *NUMASTAT), rows), width, idle), *dimmed(left_out)]


def access_matrix(figures, most_columns=MAX_COLUMNS, everything=False):
    """Which share of a CPU node's accesses went to which node's memory: a heat map. Empty if there was no access, or no choice."""
    from rich.text import Text

    nodes = figures["nodes"]
    rows = [
        (number, [memory["accesses_from"][number] for memory in nodes])
        for number, node in enumerate(figures["machine"]["node"])
        if node["cpus"]
    ]
    shown, _ = busiest(rows, lambda row: sum(row[1]), ALL if everything else MAX_ROWS)
    columns, _ = busiest(nodes, lambda n: sum(n["accesses_from"]), most_columns)
    if not any(sum(row) for _, row in shown) or len(nodes) == 1 and not everything:
        return []
    table = new_table("CPUs of", *(f"mem {n['node']}" for n in columns), "accesses")
    for number, row in shown:
        done = sum(row)
        shares = [row[n["node"]] / done if done else 0 for n in columns]
        table.add_row(
            f"node {number}",
            *(Text(f"{percent(share, 1) if share else '·':>5}", shade(share)) for share in shares),
            count(done),
            style=None if done else "dim",
        )
    left_out = [
        plural(n, kind)
        for n, kind in ((len(rows) - len(shown), "CPU node"), (len(nodes) - len(columns), "memory node"))
        if n
    ]
    return [table, *dimmed(f"left out: the least busy {' and '.join(left_out)}" if left_out else "")]


def server_table(servers, emulated_ns, width, everything=False):
    """What memory controllers and links have moved."""
    most = ALL if everything else MAX_ROWS
    shown, left_out = busiest(list(servers), lambda server: server["bytes"], most)
    rows = [
        (
            server["server"],
            count(server["bytes"]) + "B",
            rate(server["bytes"] * 1e9 / emulated_ns),
            rate(server["limit_bytes_per_s"]) if server["limit_bytes_per_s"] else "none",
            percent(server["busy_ns"], emulated_ns),
            duration(server["queued_ns"] / server["requests"]) if server["requests"] else "·",
            duration(server["queued_ns"]),
        )
        for server in shown
    ]
    titles = ("", "moved", "GB/s", "limit", "busy", "wait", "in all")
    idle = {number for number, server in enumerate(shown) if not server["bytes"]}
    return [*fitted(Table("", titles, rows), width, idle), *dimmed(left_out)] if rows else []


def shade(share):
    """The colour of a cell of the heat map."""
    return SHADES[0] if not share else SHADES[min(1 + int(share * 5), 5)]


def time_line(figures):
    """Emulated time, wall time, speed."""
    done, wall_s = sum(map(accesses, figures["cpus"])), figures["wall_s"]
    return (
        f"emulated time [bold]{duration(figures['emulated_ns'])}[/bold], wall time "
        f"[bold]{duration(wall_s * 1e9)}[/bold], {count(done)} accesses, "
        f"[bold]{count(done / wall_s if wall_s else 0)}[/bold] accesses/s"
    )


def idle_line(figures):
    """The same of a machine on which nothing ran."""
    return f"wall time [bold]{duration(figures['wall_s'] * 1e9)}[/bold]; on this machine itself nothing ran"


def vmstat_table(vmstat, width):
    """The counters of /proc/vmstat that are not zero, side by side."""
    from rich.columns import Columns

    named = [f"{name} {value:,}" for name, value in vmstat.items() if value]
    return [Columns(named, padding=(0, 3), column_first=True)] if width < 1000 else named


def compiled_hint(compiled):
    """A line about functions that were compiled meanwhile, if there were any."""
    if not compiled:
        return []
    return [
        f"{plural(compiled, 'function')} of the kernel were compiled meanwhile, for the first and last time\n"
        f"help: run it again; numaemu compile does all of them at once"
    ]


def hints(nr_cpus, compiled=0):
    """A line for each thing that cost speed, and what would help: functions compiled meanwhile, the host's settings."""
    lines, setting, cores = compiled_hint(compiled), shm.huge_pages_setting(), len(os.sched_getaffinity(0))
    if setting not in HUGE_PAGES:
        lines.append(
            "no huge pages for shared memory on this host: random accesses take longer\n"
            + (
                f"help: as root, echo advise > {HUGE_PAGES_FILE}"
                if setting
                else "help: a host kernel with transparent huge pages"
            )
        )
    if cores < nr_cpus:
        lines.append(
            f"{plural(nr_cpus, 'emulated CPU')} on {plural(cores, 'core')} of this host take turns\n"
            f"help: more cores (emulated time stays the same)"
        )
    return lines


def print_hints(console, lines):
    """The hints, if there are any."""
    for hint in lines:
        console.print("note: " + hint.replace("\n", "\n      "), style="yellow", markup=False, soft_wrap=True)


# --- other tables -------------------------------------------------------------------------------
def print_machines(machines, console=None):
    """The presets: {name: (topology, comment)}."""
    rows = [
        (name, topology.nr_nodes, topology.nr_cpus, format_size(topology.memory_bytes), comment)
        for name, (topology, comment) in machines.items()
    ]
    print_table(Table("", ("name", "nodes", "CPUs", "memory", "what it is like"), rows), console)


def print_workloads(workloads, console=None):
    """The workloads that come along: {name: its summary line}."""
    print_table(Table("", ("name", "what it shows"), list(workloads.items())), console)
    (console or new_console()).print("\nnumaemu run NAME runs one of them", style="dim")


def print_table(table, console=None):
    """One table, as wide as the console allows."""
    console = console or new_console()
    for part in fitted(table, console.width):
        console.print(part)


def print_bench(figures, console=None):
    """The figures of `numaemu bench`: rows of what, emulated, host, ratio and unit."""
    console = console or new_console()
    table = new_table("what", "emulated", "host", "ratio")
    table.add_column("the host's")
    for row in figures["rows"]:
        show = duration if row["unit"] == "ns" else lambda rate: f"{count(rate)}/s"
        ratio = f"{row['ratio']:.2f}" if row["ratio"] < 10 else f"{row['ratio']:.1f}"
        table.add_row(row["what"], show(row["emulated"]), show(row["host"]), ratio, row["against"])
    console.print(table)
    console.print(
        "ratios of rates: 1 is the host's own speed, more is better; of times: less is better",
        style="dim",
        soft_wrap=True,
    )
    print_hints(console, hints(0))


# --- errors -------------------------------------------------------------------------------------
def print_failure(error):
    """Tell a person on stderr what the workload raised."""
    everything = os.environ.get("NUMAEMU_DEBUG", "") not in ("", "0")
    sys.stderr.write(failure_text(error, everything))

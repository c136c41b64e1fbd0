"""What people see: progress while a run goes on, the summary at its end, errors, tables; and values made fit for JSON.

Every table is a function from figures (as `machine.stats()` and the JSON of a run have them) to something rich can
print, so that tests print into a recording console. rich is imported when it is first needed.
"""

import dataclasses
import math
import numbers
import os
import sys
import threading
import time
import traceback

from numaemu.host import shm
from numaemu.spec.units import format_size, parse_size

MAX_ROWS = 16  # CPUs, and nodes of the access matrix, that a summary shows
MAX_COLUMNS = 8  # memory nodes of the access matrix: what 80 columns hold
MAX_RESULT_ROWS = 40  # of a table that main returned
COMPILING_S = 0.5  # after that long without a new function, nothing is being compiled
POLL_S = 0.5  # how often the figures of a running machine are looked at …
POLL_SHARE = 50  # … but never more than a 50th of the time
NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
HUGE_PAGES_FILE = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
HUGE_PAGES = ("always", "within_size", "advise", "force")
SHADES = ("", "on grey19", "on dark_green", "on dark_goldenrod", "on dark_orange3", "on red3")  # of shares


# --- numbers ------------------------------------------------------------------------------------
def count(value):
    """A count in at most five characters: 9,999 or 12.3M."""
    if value < 9_999.5:
        return f"{value:,.0f}"
    for unit in ("k", "M", "G", "T", "P"):
        value /= 1000
        if value < 999.5 or unit == "P":
            return f"{value:.3g}{unit}" if value < 99.95 else f"{value:.0f}{unit}"


def duration(ns):
    """Nanoseconds for people, in at most seven characters: 740 ns, 1.26 ms, 200 s, 20 min."""
    for unit, size in (("ns", 1), ("us", 1e3), ("ms", 1e6), ("s", 1e9)):
        if ns < 999.5 * size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 60e9:.0f} min"


def percent(part, whole):
    """A share, or a dot if there is nothing to share."""
    if not whole:
        return "·"
    share = 100 * part / whole
    return f"{share:.0f}%" if share >= 99.95 or share == 0 else f"{share:.1f}%"


def accesses(cpu):
    """Loads and stores of a CPU."""
    return cpu["loads"] + cpu["stores"]


# --- values for JSON ----------------------------------------------------------------------------
def jsonable(value, outer=()):
    """The value as JSON can hold it: NumPy's become Python's; what JSON cannot hold becomes its repr."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real) and abs(float(value)) < float("inf"):
        return float(value)
    if hasattr(value, "tolist") and hasattr(value, "dtype") and value.dtype.names is None:
        value = value.tolist()
        if not isinstance(value, list):
            return value if isinstance(value, bool) else repr(value)
    if id(value) in outer:
        return repr(value)
    outer = (*outer, id(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): jsonable(item, outer) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item, outer) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item, outer) for item in value), key=repr)
    return repr(value)


# --- a result -----------------------------------------------------------------------------------
def result_view(result):
    """What main returned, as something to print: tables where it is one, else as Python writes it."""
    from rich.pretty import Pretty
    from rich.text import Text

    if isinstance(result, str):
        return Text(result)
    if hasattr(result, "__rich__") or hasattr(result, "__rich_console__"):
        return result
    rows = table_rows(result)
    if rows is None:
        return Pretty(result, max_length=MAX_RESULT_ROWS)
    header, rows = rows
    table = new_table(*map(Text, header))
    for row in rows[:MAX_RESULT_ROWS]:
        table.add_row(*(Text(cell(value)) for value in row))
    return noted(table, f"and {len(rows) - MAX_RESULT_ROWS} more rows" if len(rows) > MAX_RESULT_ROWS else "")


def table_rows(value):
    """(column titles, rows) of a dict, a dict or list of like dicts, or a matrix; None of anything else."""
    if getattr(value, "ndim", 0) == 2 and 0 < value.shape[1] <= 16:
        return ("", *map(str, range(value.shape[1]))), [(i, *row) for i, row in enumerate(value.tolist())]
    if isinstance(value, dict) and value:
        if like_dicts(value.values()):
            columns = list(next(iter(value.values())))
            return ("", *map(str, columns)), [(key, *row.values()) for key, row in value.items()]
        if not any(isinstance(item, dict) for item in value.values()):
            return ("", ""), list(value.items())
    if isinstance(value, (list, tuple)) and value and like_dicts(value):
        return tuple(map(str, value[0])), [tuple(row.values()) for row in value]
    return None


def like_dicts(values):
    """True if all are dicts of the same few keys."""
    values = list(values)
    return all(isinstance(v, dict) and v and list(v) == list(values[0]) for v in values) and len(values[0]) <= 12


def cell(value):
    """One value in a table."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{int(value):,}"
    if isinstance(value, numbers.Real):
        number = float(value)
        return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.1f}"
    return repr(jsonable(value))


def print_result(result, console=None):
    """What main returned, alone."""
    if result is not None:
        (console or new_console()).print(result_view(result))


# --- the summary of a run -----------------------------------------------------------------------
def new_console(**options):
    from rich.console import Console

    return Console(highlight=False, **options)


def new_table(*titles):
    """A table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, show_header=any(map(str, titles))
    )
    for i, title in enumerate(titles):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    return table


def noted(table, note):
    """A table with a line below it, if there is something to say."""
    from rich.console import Group
    from rich.text import Text

    return Group(table, Text(note, style="dim")) if note else table


def print_summary(figures, doc="", console=None):
    """Everything about a run that a person wants to know at its end."""
    console = console or new_console()
    console.print()
    console.rule(f"[bold]{os.path.basename(figures['workload'])}[/bold] on {figures['machine']['name']}", align="left")
    if doc:
        console.print(doc.strip().partition("\n")[0], markup=False)
    console.print(machine_line(figures["machine"]), style="dim", markup=False)
    if figures["result"] is not None:
        console.print("\n[bold]result[/bold]")
        print_result(figures["result"], console)
    for title, table in (
        ("CPUs: accesses, TLB hits, walks, faults, shootdowns sent and received, clock", cpu_table(figures["cpus"])),
        ("numastat: pages by the node they came from", numastat_table(figures["nodes"])),
        ("accesses: share of each node's loads and stores by the memory's node", access_matrix(figures)),
    ):
        if table is not None:
            console.print(f"\n[bold]{title}[/bold]")
            console.print(table)
    console.print()
    console.print(time_line(figures))
    print_hints(console, len(figures["cpus"]), figures["compiled"])


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


def busiest(rows, work, limit):
    """The rows to show, in their order, and a line about those left out: (rows, line)."""
    busy = [row for row in rows if work(row)]
    shown = rows if len(rows) <= limit else sorted(sorted(busy, key=work, reverse=True)[:limit], key=rows.index)
    idle, quieter = len(rows) - len(busy), len(busy) - len(shown)
    words = [f"{quieter} less busy" if quieter > 0 else "", f"{idle} idle" if idle else ""]
    return shown, "" if len(shown) == len(rows) else f"left out: {' and '.join(filter(None, words))}"


def cpu_table(cpus):
    """Accesses, TLBs, faults and shootdowns per CPU."""
    shown, left_out = busiest(cpus, lambda c: accesses(c) + c["minor_faults"] + c["clock_ns"], MAX_ROWS)
    table = new_table("CPU", "node", "loads", "stores", "L1 hit", "L2 hit", "walks", "faults", "sent", "rcvd", "time")
    for cpu in shown:
        done, missed = accesses(cpu), accesses(cpu) - cpu["l1_tlb_hits"]
        table.add_row(
            str(cpu["cpu"]),
            str(cpu["node"]),
            count(cpu["loads"]),
            count(cpu["stores"]),
            percent(cpu["l1_tlb_hits"], done),
            percent(cpu["l2_tlb_hits"], missed),
            count(cpu["page_walks"]),
            count(cpu["minor_faults"]),
            count(cpu["shootdowns_sent"]),
            count(cpu["shootdowns_received"]),
            duration(cpu["clock_ns"]),
            style=None if done or cpu["clock_ns"] else "dim",
        )
    return noted(table, left_out)


def numastat_table(nodes):
    """Where pages came from, by the names numastat prints: a row per node."""
    shown, left_out = busiest(nodes, lambda n: sum(n["numastat"].values()), MAX_ROWS)
    table = new_table("node", *NUMASTAT)
    for node in shown:
        pages = node["numastat"]
        table.add_row(
            str(node["node"]),
            *(f"{pages[name]:,}" if pages[name] < 10**7 else count(pages[name]) for name in NUMASTAT),
            style=None if any(pages.values()) else "dim",
        )
    return noted(table, left_out)


def access_matrix(figures):
    """Which share of a CPU node's accesses went to which node's memory: a heat map. None if there was no access."""
    from rich.text import Text

    nodes = figures["nodes"]
    rows = [
        (number, [memory["accesses_from"][number] for memory in nodes])
        for number, node in enumerate(figures["machine"]["node"])
        if node["cpus"]
    ]
    shown, _ = busiest(rows, lambda row: sum(row[1]), MAX_ROWS)
    columns, _ = busiest(nodes, lambda n: sum(n["accesses_from"]), MAX_COLUMNS)
    if not any(sum(row) for _, row in shown):
        return None
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
    return noted(table, f"left out: the least busy {' and '.join(left_out)}" if left_out else "")


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


def hints(nr_cpus, compiled=0):
    """A line for each thing that cost speed, and what would help: the host's settings, functions compiled meanwhile."""
    lines, setting, cores = [], shm.huge_pages_setting(), len(os.sched_getaffinity(0))
    if compiled:
        lines.append(
            f"{plural(compiled, 'function')} of the kernel were compiled meanwhile, for the first and last time\n"
            f"help: run it again; numaemu compile does all of them at once"
        )
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


def print_hints(console, nr_cpus, compiled=0):
    """The hints, if there are any."""
    for hint in hints(nr_cpus, compiled):
        console.print("note: " + hint.replace("\n", "\n      "), style="yellow", markup=False, soft_wrap=True)


# --- other tables -------------------------------------------------------------------------------
def print_machines(machines, console=None):
    """The presets: {name: (topology, comment)}."""
    table = new_table("name", "nodes", "CPUs", "memory")
    table.add_column("what it is like")
    for name, (topology, comment) in machines.items():
        table.add_row(name, str(topology.nr_nodes), str(topology.nr_cpus), format_size(topology.memory_bytes), comment)
    (console or new_console()).print(table)


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
    print_hints(console, 0)


# --- errors -------------------------------------------------------------------------------------
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_INTERNAL = (PACKAGE, os.sep + os.path.join("concurrent", "futures") + os.sep, "<frozen importlib")


def is_internal(path):
    """True for a frame between the user's own code and what it called."""
    return any(part in path for part in _INTERNAL)


def failure_text(error, everything=False):
    """The traceback of what a workload raised: its own frames only, those of its task on a CPU too."""
    report = traceback.TracebackException.from_exception(error)
    if not everything:
        drop_internal(report)
        if getattr(error, "one_line", False):
            return one_line(error, report)
    text = "".join(report.format())
    inside = getattr(error, "emulated_traceback", "")
    if not inside:
        return text
    last = "".join(report.format_exception_only())
    own = inside if everything else own_frames(inside)
    if '  File "' in inside and '  File "' not in own:  # none of its own code was under way there
        return text
    return f"{text.removesuffix(last)}in a task on a CPU of the machine:\n{own}"


def one_line(error, report):
    """An error that its message explains, and the workload's line."""
    where = "".join(f" ({os.path.basename(f.filename)}, line {f.lineno}, in {f.name})" for f in report.stack[-1:])
    return f"numaemu: {error}{where}\n"


def drop_internal(report):
    """Take the driver's internals out of a TracebackException and of what it was raised from."""
    seen = set()
    while report is not None and id(report) not in seen:
        seen.add(id(report))
        report.stack = traceback.StackSummary.from_list([f for f in report.stack if not is_internal(f.filename)])
        report = report.__cause__ or report.__context__


def own_frames(text):
    """A printed traceback without the frames of the package: each is its `File` line and the lines below it."""
    kept, internal = [], False
    for line in text.splitlines(keepends=True):
        if line.startswith('  File "'):
            internal = is_internal(line.split('"')[1])
        elif not line.startswith("    "):
            internal = False
        if not internal:
            kept.append(line)
    return "".join(kept)


def print_failure(error):
    """Tell a person on stderr what the workload raised."""
    everything = os.environ.get("NUMAEMU_DEBUG", "") not in ("", "0")
    sys.stderr.write(failure_text(error, everything))


# --- progress -----------------------------------------------------------------------------------
class Progress:
    """A live line on stderr while a run goes on, if that is a terminal; a context manager.

    A thread asks the machine for its figures twice a second at most. What is printed meanwhile appears above the line.
    """

    def __init__(self, quiet=False, stream=None):
        self.stream = stream or sys.stderr
        self.quiet, self.live = quiet, not quiet and self.stream.isatty()
        self.start, self.text = time.monotonic(), "starting"
        self.kernels, self.compiled_at = 0, -math.inf  # functions compiled meanwhile; when the last one was
        self.display = self.watcher = None
        self.done = threading.Event()

    def __enter__(self):
        if self.live:
            from rich.live import Live

            both = sys.stdout.isatty()  # printed text must go around the line if it goes to the same screen
            self.display = Live(
                console=new_console(file=self.stream),
                get_renderable=self.view,
                transient=True,
                refresh_per_second=4,
                redirect_stdout=both,
                redirect_stderr=True,
            )
            self.display.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        if self.display is not None:
            sys.stdout.flush()  # the redirected streams hold what is not yet a line
            sys.stderr.flush()
            self.display.stop()

    def view(self):
        """The line, now."""
        from rich.text import Text

        now = time.monotonic()
        compiling = (
            f"compiling the kernel, once ({self.kernels} functions)  " if now - self.compiled_at < COMPILING_S else ""
        )
        return Text(
            f"{now - self.start:5.0f} s  {compiling}{self.text}", style="cyan", no_wrap=True, overflow="ellipsis"
        )

    def compiled(self, functions):
        """So many functions of the kernel have been compiled."""
        if not self.kernels and not self.live and not self.quiet:
            print(
                "numaemu: compiling what is needed of the kernel for the first time; this takes some seconds",
                file=self.stream,
                flush=True,
            )
        self.kernels, self.compiled_at = self.kernels + functions, time.monotonic()

    def say(self, text):
        """What goes on."""
        self.text = text

    def watch(self, machine):
        """From now on show how far the machine is."""
        self.text = "running"
        if self.live:
            self.watcher = threading.Thread(target=self._poll, args=(machine,), daemon=True, name="progress")
            self.watcher.start()

    def _poll(self, machine):
        pause = POLL_S
        while not self.done.wait(pause):
            asked = time.monotonic()
            try:
                stats = machine.stats()
            except Exception:  # the machine has ended; who runs it will say so
                return
            self.text = live_line(stats)
            pause = max(POLL_S, POLL_SHARE * (time.monotonic() - asked))


def live_line(stats):
    """How far a running machine is."""
    cpus = stats["cpus"]
    return (
        f"emulated {duration(stats['emulated_ns'])}  accesses {count(sum(map(accesses, cpus)))}  "
        f"faults {count(sum(c['minor_faults'] + c['major_faults'] for c in cpus))}  "
        f"tasks {len(stats['tasks'])}"
    )

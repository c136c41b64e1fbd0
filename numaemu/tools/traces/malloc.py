"""`numaemu malloc`: traces of requests, replayed on each kind of heap; a table of what that took."""

from numaemu.api.tables import Table
from numaemu.errors import ConfigError
from numaemu.malloc.heap import settings_of
from numaemu.malloc.kinds import KINDS
from numaemu.malloc.replay import replay
from numaemu.malloc.trace import read_trace
from numaemu.spec.units import decimal, nearest, shown
from numaemu.tools.summary import report


def play_all(paths, kinds, settings, boot, say):
    """A row for each trace and kind, on a machine that `boot` makes. ConfigError: a trace, a kind or an option is none."""
    options = heap_options(settings)
    kinds = chosen_kinds(kinds, options)
    traces = [read_trace(path) for path in paths]
    rows = []
    with boot() as machine:
        for trace in traces:
            for kind in kinds:
                say(f"{trace.name}: {kind}")
                try:
                    rows.append(replay(machine, trace, kind, **options)._asdict())
                except OSError as error:  # no such node, or more memory than there can be
                    raise ConfigError(str(error.strerror or error)) from error
    return rows


def chosen_kinds(kinds, options):
    """The kinds that are asked for; all that have these options if none is. ConfigError: a kind or an option is none."""
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"--kind is {shown(kind)}, must be one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    found, told = [], None
    for kind in kinds or KINDS:
        try:
            settings_of(kind, options)
            found.append(kind)
        except TypeError as error:  # it has no such option
            told = told or error
            if kinds:
                break
        except ValueError as error:
            raise ConfigError(str(error)) from error
    if told and (kinds or not found):
        raise ConfigError(str(told)) from told
    return found


def heap_options(settings):
    """{name: value} of texts such as fit=best."""
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise ConfigError(f"--option is {shown(setting)}, must be name=value")
        options[name] = {"true": True, "false": False}.get(value.lower(), decimal(value))
    return options


def print_rows(rows, console=None):
    """The table, with the mean utilisation of each kind below, if there are several traces."""
    console = console or report.new_console()
    header = ("valid", "utilisation", "operations", "each", "accesses", "TLB misses", "faults")
    figures = [
        (
            "yes" if row["valid"] else "no",
            f"{100 * row['utilisation']:.1f} %",
            report.count(row["operations"]),
            report.duration(row["ns_per_operation"]),
            f"{row['accesses_per_operation']:.1f}",
            f"{row['tlb_misses_per_operation']:.3f}",
            f"{row['faults_per_operation']:.3f}",
        )
        for row in rows
    ]
    wide = Table("", ("trace", "kind", *header), [(r["trace"], r["kind"], *f) for r, f in zip(rows, figures)])
    if len(parts := report.fitted(wide, console.width)) > 1:  # each part says whose figures these are
        narrow = [(f"{r['trace']} {r['kind']}", *f) for r, f in zip(rows, figures)]
        parts = report.fitted(Table("", ("trace, kind", *header), narrow), console.width)
    for part in parts:
        console.print(part)
    for row in rows:
        if not row["valid"]:
            console.print(f"{row['trace']}, {row['kind']}: {row['why']}", soft_wrap=True)
    for trace, lines in {row["trace"]: row["skipped"] for row in rows if row["skipped"]}.items():
        text = f"{trace}: {lines} lines are left out, which tell of no whole call, of none that got memory, or of a block from before"
        console.print(text, soft_wrap=True, style="yellow")
    for kind, mean in means(rows).items():
        console.print(f"mean utilisation of {kind}: {100 * mean:.1f} %", style="dim")


def means(rows):
    """{kind: mean utilisation}, of kinds with several rows."""
    kinds = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row["utilisation"])
    return {kind: sum(values) / len(values) for kind, values in kinds.items() if len(values) > 1}

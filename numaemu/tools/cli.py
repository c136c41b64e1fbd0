"""The command line: python -m numaemu run, workloads, machine and so on. Further commands have a file each: `commands`.

Each command answers with an exit status; `main` turns what goes wrong into one line on stderr and a status:
0 main returned, 1 it raised, 2 wrong usage or machine file, 3 an emulator process died, 130 Ctrl-C.
"""

import ast
import contextlib
import importlib
import importlib.util
import inspect
import os
import random
import signal
import sys
import threading
import time
import types
import warnings

import click

import numaemu
from numaemu.api.samples import Samples, parse_interval
from numaemu.errors import ConfigError, MachineCheck, NumaemuWarning, note
from numaemu.host import where
from numaemu.spec.machine_file import KEYWORDS
from numaemu.spec.topology import list_presets, load_topology
from numaemu.spec.units import check_table
from numaemu.tools import shipped
from numaemu.tools.options import check_writable, machine_options, topology_of, write_json
from numaemu.tools.page import html as page
from numaemu.tools.page.sampler import Sampler
from numaemu.tools.summary import report
from numaemu.tools.summary.progress import Progress

DONE, RAISED, USAGE, MACHINE_DIED, INTERRUPTED = 0, 1, 2, 3, 130
MAX_TIMEOUT = threading.TIMEOUT_MAX / 2
MAX_SEED = 2**32 - 1  # what numpy.random.seed takes


class WorkloadRaised(Exception):
    """The workload's own code has raised `error`."""

    def __init__(self, error):
        super().__init__(error)
        self.error = error


class TimeLimit:
    """--timeout: Ctrl-C from a thread."""

    is_left = True
    seconds: float = 0

    def limit(self, seconds):
        """From now on; None: there is no limit."""
        self.is_left = True
        if seconds is None:
            return
        self.seconds = seconds
        if signal.getsignal(signal.SIGINT) != signal.default_int_handler:  # in a shell's background Ctrl-C is ignored
            signal.signal(signal.SIGINT, self.interrupt)
        threading.Thread(target=self.wait, args=(threading.get_ident(),), daemon=True, name="timeout").start()

    def wait(self, main):
        time.sleep(self.seconds)
        self.is_left = False
        signal.pthread_kill(main, signal.SIGINT)

    def interrupt(self, *_):
        if not self.is_left:
            raise KeyboardInterrupt


TIME = TimeLimit()


WELCOME = """Usage: numaemu COMMAND …

  numaemu workloads        lists what can be run at once, a line each
  numaemu run first_touch  runs one of these
  numaemu run FILE.py      runs a file of your own with a function main(machine)
  numaemu machine list     lists machines, for numaemu run NAME --machine cxl
  numaemu run --help       lists what a run can do; numaemu --help, all commands"""


class LazyGroup(click.Group):
    """A group some of whose commands are loaded when they are asked for: each is `command` of a file in tools/commands."""

    def __init__(self, *args, later=(), prefix="", **keywords):
        super().__init__(*args, **keywords)
        self.later, self.prefix = later, prefix

    def list_commands(self, context):
        return sorted([*super().list_commands(context), *self.later])

    def get_command(self, context, name):
        if name in self.later:
            return importlib.import_module(f"numaemu.tools.commands.{self.prefix}{name}").command
        return super().get_command(context, name)


@click.group(
    cls=LazyGroup,
    later=(
        "bench",
        "compare",
        "compile",
        "conform",
        "diff",
        "export",
        "fuzz",
        "malloc",
        "mlc",
        "replay",
        "shell",
        "sweep",
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.version_option(numaemu.__version__, prog_name="numaemu")
@click.pass_context
def cli(context):
    """Emulates NUMA machines and the Linux memory management that runs on them."""
    if context.invoked_subcommand is None:
        print(WELCOME, file=sys.stderr)
        context.exit(USAGE)


# --- numaemu run --------------------------------------------------------------------------------
@cli.command(context_settings={"max_content_width": 100})
@click.argument("workload")
@click.argument("args", nargs=-1)
@machine_options
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    metavar="N",
    help="Seeds random and numpy.random; machine.seed. Default 0.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, MAX_TIMEOUT, min_open=True),
    metavar="SECONDS",
    help="End the run after so long, as Ctrl-C does, and say where each task is.",
)
@click.option("--lockstep", is_flag=True, help="Processes take turns by emulated time: the same run each time.")
@click.option("--json", "json_path", metavar="FILE", help="Write all figures there.")
@click.option(
    "--report", "report_path", metavar="FILE.html", help="Write a page about the run: charts, tables, the machine."
)
@click.option("--trace", "events", metavar="EVENTS", help="Trace these events, as kmem:*,tlb_flush, or all.")
@click.option("--trace-out", metavar="FILE", help="Where to: .perfetto, .dat (trace-cmd), .txt (ftrace) or .parquet.")
@click.option(
    "--sample", "sample", metavar="TIME", help="Sample figures each so often of emulated time, as 1ms, for --json."
)
@click.option("--buddyinfo", metavar="FILE", help="Boot with the free lists of a real /proc/buddyinfo.")
@click.option("--pagetypeinfo", metavar="FILE", help="And with the mobility types of a /proc/pagetypeinfo.")
@click.option("--check", is_flag=True, help="Audit every frame of the machine when the workload has ended.")
@click.option("--mount", "mount_dir", metavar="DIR", help="Show the machine's /proc and /sys below DIR while it runs.")
@click.option(
    "-v", "--verbose", is_flag=True, help="Show everything: the docstring, all rows, vmstat, notes on the host."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only the result.")
def run(**given):
    """Run main(machine) of WORKLOAD, a file or the name of one that comes along; ARGS reach it as sys.argv[1:].

    'numaemu workloads' lists the names. Options for the workload come after --, as in 'numaemu run belady -- --help'. A
    workload may state its machine in a variable MACHINE: a preset's name or a dict of Machine's keywords. --machine replaces
    it; the other options change it.
    """
    options = types.SimpleNamespace(**given)
    if options.quiet and options.verbose:
        raise ConfigError("--quiet and --verbose exclude each other")
    check_writable(options.json_path)
    watchers = watchers_for(options)
    path = workload_path(options.workload)
    TIME.limit(options.timeout)
    start_early(path, options)
    seed_all(options.seed)
    sys.argv = [options.workload, *options.args]
    module = load_workload(path)
    topology = choose_topology(options, module)
    header = None
    if not options.quiet:
        named = {"workload": options.workload, "machine": topology.to_dict()}
        header = report.Header(named, inspect.getdoc(module), options.verbose)
    figures = run_workload(module, topology, options, header, watchers)
    if options.quiet:
        report.print_result(figures["result"])
    else:
        report.print_summary(figures, verbose=options.verbose, header=header)
    if options.json_path:
        write_json(figures, options.json_path)
    for watcher in watchers:
        if isinstance(watcher, Samples):
            continue
        if isinstance(watcher, Sampler):
            page.write(figures, watcher, options.report_path, inspect.getdoc(module))
        else:
            print(f"numaemu: {watcher.write()}", file=sys.stderr)
    return DONE


def watchers_for(options):
    """What looks at the machine while main runs, for --report and --trace, after all that they need has been found to be there."""
    found: list = []
    if options.report_path is not None:
        check_writable(options.report_path, "--report")
        page.check()
        found.append(Sampler(traced=options.events is not None))
    if options.sample is not None:
        if options.json_path is None:
            raise ConfigError("--sample needs --json, the file that its samples go to")
        found.append(Samples(parse_interval(options.sample, "--sample", "command line")))
    if (options.events is None) != (options.trace_out is None):
        raise ConfigError("--trace and --trace-out go together: which events, and the file they go to")
    if options.events is not None:
        check_writable(options.trace_out, "--trace-out")
        from numaemu.tools.tracing.collector import Collector

        found.append(
            Collector(options.events, options.trace_out, *(w.latencies for w in found if isinstance(w, Sampler)))
        )
    return found


def start_early(path, options):
    """Let the compiled functions load while the workload is imported, if the machine it will ask for is plain to see."""
    try:
        with open(path) as file:
            body = ast.parse(file.read()).body
        stated = [
            ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["MACHINE"]
        ]
        if not any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body):
            return
        choose_topology(options, types.SimpleNamespace(MACHINE=stated[-1] if stated else None, __file__=path))
    except (ConfigError, SyntaxError, ValueError, TypeError, OSError, MemoryError, RecursionError):
        return  # what is wrong is said where it is needed; nothing is started
    from numaemu.machine import fork_server

    fork_server.launch()


def workload_path(given):
    """The absolute path of a workload's file: the one that is named, or one of those that come along."""
    path = os.path.abspath(given)
    if not os.path.isfile(path) and (known := shipped.find(given)):
        return known
    if not os.path.exists(path):
        raise ConfigError(f"workload not found: {given}{shipped.advice(given)}")
    if not os.path.isfile(path):
        raise ConfigError(f"not a file: {given}")
    if not path.endswith(".py"):
        raise ConfigError(f"workload is {given}, must be a .py file")
    return path


def load_workload(path):
    """The workload's module, under a name by which CPU processes find it too, with its directory on sys.path."""
    name = module_name(path)
    sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no file of Python")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise WorkloadRaised(error) from error
    if not callable(getattr(module, "main", None)):
        raise ConfigError.at(path, "workload has no function main(machine)")
    return module


def module_name(path):
    """The file's stem, unless another module has that name."""
    stem = os.path.basename(path).removesuffix(".py").replace(".", "_")
    taken = sys.modules.get(stem)
    if taken is not None and getattr(taken, "__file__", None) == path:
        return stem  # loaded before
    if taken is None and stem.isidentifier():
        found = importlib.util.find_spec(stem)
        if found is None or found.origin and os.path.abspath(found.origin) == path:
            return stem
    return f"workload_{stem}"


def choose_topology(options, module):
    """The machine: the workload's MACHINE or --machine, changed by the other options."""
    source, stated = options.machine, getattr(module, "MACHINE", None)
    if source is None and stated is not None:
        source = stated_topology(stated, module.__file__)
    topology = topology_of(options, source)
    return load_topology(topology, lockstep=True) if getattr(module, "LOCKSTEP", False) else topology


def stated_topology(stated, path):
    """What a workload's MACHINE describes; a machine file is looked for beside the workload."""
    where = f"MACHINE in {path}"
    if isinstance(stated, dict):
        return load_topology(where=where, **check_table(stated, KEYWORDS, "machine", where))
    if isinstance(stated, str) and stated.endswith(".toml"):
        stated = os.path.join(os.path.dirname(path), stated)
    try:
        return load_topology(stated)
    except ConfigError as error:
        raise ConfigError.at(where, str(error)) from None


def seed_all(seed):
    """Seed the driver's own sources of random numbers."""
    import numpy
    import rich.style  # noqa: F401  (draws a number when it is imported, whenever that would be)

    random.seed(seed)
    numpy.random.seed(seed)


def run_workload(module, topology, options, header=None, watchers=()):
    """Boot the machine, run main(machine), and collect the figures of the run. What main prints comes below the header."""
    memory = {"buddyinfo": options.buddyinfo, "pagetypeinfo": options.pagetypeinfo}
    with Progress(quiet=options.quiet) as progress, boot(topology, progress, **memory) as machine:
        machine.seed = options.seed
        progress.watch(machine)
        mount = machine.mount(options.mount_dir) if options.mount_dir else contextlib.nullcontext()
        start = time.perf_counter()
        try:
            with mount, header or contextlib.nullcontext(), contextlib.ExitStack() as stack:
                for watcher in watchers:
                    stack.enter_context(watcher.of(machine))
                result = call_main(module, machine)
        except KeyboardInterrupt as error:
            note(error, whereabouts=whereabouts(error, machine))
            raise
        wall_s = time.perf_counter() - start
        if machine.closed:
            raise WorkloadRaised(
                RuntimeError(
                    "main(machine) has closed the machine and its figures are lost; "
                    "numaemu run closes it when main returns"
                )
            )
        stats = machine.stats()
        if options.check:
            machine.check()
    return {
        "numaemu": numaemu.__version__,
        "machine": topology.to_dict(),
        "workload": options.workload,
        "mode": "lockstep" if topology.lockstep else "free",
        "seed": options.seed,
        "wall_s": wall_s,
        **({} if topology.lockstep else {"compiled": progress.kernels}),
        "emulated_ns": stats["emulated_ns"],
        "result": result,
        "vmstat": stats["vmstat"],
        "nodes": stats["nodes"],
        "cpus": stats["cpus"],
        "tasks": stats["tasks"],
        **{key: stats[key] for key in ("servers",) if key in stats},
        **{"samples": watcher.rows for watcher in watchers if isinstance(watcher, Samples)},
    }


def whereabouts(error, machine):
    """Where main and the tasks were when a run was interrupted: a line each."""
    lines = [f"main: {place}"] if (place := where.of_error(error)) else []
    with contextlib.suppress(MachineCheck, TimeoutError, OSError, KeyboardInterrupt):
        lines += machine.whereabouts()
    return lines


def boot(topology, progress, **memory):
    """A machine; whatever keeps it from booting is a MachineCheck. `memory`: further keywords of Machine."""
    from numaemu.machine import Machine

    try:
        return Machine(topology, progress=progress.compiled, **memory)
    except (OSError, MemoryError) as error:
        raise MachineCheck(f"the machine could not boot: {error}") from error


def call_main(module, machine):
    """What main(machine) returns; what it raises is its own affair, unless the machine has died."""
    try:
        return module.main(machine)
    except MachineCheck as error:
        if machine.closed and machine.death is None:
            raise WorkloadRaised(error) from error
        raise
    except Exception as error:
        if machine.death is not None:
            raise machine.death from error
        raise WorkloadRaised(error) from error


# --- the other commands -------------------------------------------------------------------------
@cli.command()
def workloads():
    """The workloads that come along."""
    report.print_workloads(shipped.summaries())
    return DONE


@cli.group(cls=LazyGroup, later=("draw", "import"), prefix="machine_")
def machine():
    """Presets and machine files."""


@machine.command("list")
def list_machines():
    """The presets."""
    report.print_machines({name: (load_topology(name), text) for name, text in list_presets().items()})
    return DONE


@machine.command("show")
@click.argument("source", metavar="[NAME|FILE.toml]", required=False)
def show_machine(source):
    """A preset or machine file, complete with all defaults, as a machine file."""
    sys.stdout.write(load_topology(source).to_toml())
    return DONE


# --- the whole ----------------------------------------------------------------------------------
def show_warning(message, category, *rest):
    """What numaemu warns of is a line without a place in the sources; other warnings are Python's to show."""
    if issubclass(category, NumaemuWarning):
        print(f"numaemu: warning: {message}", file=sys.stderr)
    else:
        _python_shows(message, category, *rest)


_python_shows = warnings.showwarning


def main(argv=None):
    """Run a command line; its exit status."""
    warnings.showwarning = show_warning
    try:
        return cli.main(argv, prog_name="numaemu", standalone_mode=False) or DONE
    except WorkloadRaised as raised:
        if isinstance(raised.error, BrokenPipeError):
            return nobody_reads()
        sys.stdout.flush()
        report.print_failure(raised.error)
        return RAISED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except (ConfigError, click.ClickException) as error:
        return fail(USAGE, error.format_message() if isinstance(error, click.ClickException) else error)
    except MachineCheck as error:
        return fail(MACHINE_DIED, error)
    except (KeyboardInterrupt, click.Abort) as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        fail(INTERRUPTED, "interrupted" if TIME.is_left else f"interrupted after {TIME.seconds:g} s (--timeout)")
        for line in getattr(error.__cause__ or error, "whereabouts", ()):  # click has made an Abort of it
            print(f"  {line}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        return nobody_reads()


def nobody_reads():
    """The end of a run whose reader has gone, as in `numaemu … | head`: no word about it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return RAISED


def fail(status, message):
    """One line on stderr."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    print("numaemu: " + " ".join(str(message).split()), file=sys.stderr)
    return status

"""numaemu replay TRACE"""

import types

import click

from numaemu.errors import ConfigError
from numaemu.spec.formats import FORMATS
from numaemu.tools.options import check_writable, machine_options, topology_of, write_json
from numaemu.tools.study import settings as texts

OWN = ("policy", "threads")  # keys of --against beside those of a machine


@click.command("replay", context_settings={"max_content_width": 100})
@click.argument("trace", metavar="TRACE")
@machine_options
@click.option(
    "--format", "kind", metavar="NAME", help="lackey, champsim, drmemtrace, perf or csv; found out if not given."
)
@click.option("--policy", metavar="POLICY", help="As interleave:0-1, bind:1, preferred:0, local.")
@click.option(
    "--threads",
    type=click.Choice(["one", "by-id"]),
    default="one",
    help="by-id: a thread for each of the trace's, on the CPUs in turn; one: a task that does all.",
)
@click.option("--no-fetches", is_flag=True, help="Leave instruction fetches out.")
@click.option(
    "--against",
    multiple=True,
    metavar="SETTINGS",
    help="Replay once more under 'KEY=VALUE …' (machine, nodes, policy, threads, sysctls …), and compare.",
)
@click.option("--json", "json_path", metavar="FILE", help="Write all figures there; of several replays a list.")
@click.option("-v", "--verbose", is_flag=True, help="Show everything.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only the result.")
def command(trace, kind, policy, threads, no_fetches, against, json_path, verbose, quiet, **options):
    """Replay a trace of memory accesses that another tool has recorded, at its addresses.

    Traces of valgrind's lackey, ChampSim, DynamoRIO's drmemtrace (its view), perf script of perf mem, or a CSV with columns addr,
    size, kind and thread; compressed or not. All that the trace touches is mapped before; an access is done in whole words.
    """
    from numaemu.tools.traces import formats

    check_writable(json_path)
    if kind is not None and kind not in formats.READERS:
        raise ConfigError(f"--format is {kind!r}, must be one of {', '.join(formats.READERS)}")
    base = topology_of(options)
    plans = [("A", {"policy": policy, "threads": threads}, base)]
    for letter, text in zip("BCDEFGHIJKLMNOPQRSTUVWXYZ", against):
        given = texts.parse(text, OWN, "--against")
        if given.get("threads", threads) not in ("one", "by-id"):
            raise ConfigError(f"--against: threads is {given['threads']!r}, must be one or by-id")
        own = {"policy": given.get("policy", policy), "threads": given.get("threads", threads)}
        plans.append((letter, own, texts.topology_of(given, base, "--against")))
    runs = play(trace, kind, plans, not no_fetches, types.SimpleNamespace(quiet=quiet, verbose=verbose))
    if json_path:
        write_json(runs if against else runs[0], json_path)


def play(trace, kind, plans, fetches, shown):
    """Replay under each plan, print summaries and the comparison: the figures of each."""
    from numaemu.tools import cli
    from numaemu.tools.study.compare import print_comparison
    from numaemu.tools.summary import report
    from numaemu.tools.summary.progress import Progress
    from numaemu.tools.traces import replay

    policies = {name: replay.parse_policy(own["policy"]) for name, own, _ in plans}
    lowest = min(FORMATS[topology.paging]["task_size"] for _, _, topology in plans)
    with Progress(quiet=shown.quiet) as progress:
        survey = replay.Survey(trace, kind, lowest, fetches, lambda n: progress.say(f"{n:,} accesses read"))
    runs = []
    with survey:
        for name, own, topology in plans:

            def main(machine, name=name, own=own):
                done = replay.replay(machine, survey, policies[name], own["threads"] == "by-id")
                return {"accesses": done, **survey.figures()}

            module = types.SimpleNamespace(main=main)
            options = types.SimpleNamespace(
                quiet=shown.quiet,
                seed=0,
                workload=trace,
                buddyinfo=None,
                pagetypeinfo=None,
                mount_dir=None,
                check=False,
            )
            figures = cli.run_workload(module, topology, options)
            runs.append(figures | own)
            if len(plans) == 1:
                (
                    report.print_result(figures["result"])
                    if shown.quiet
                    else report.print_summary(figures, verbose=shown.verbose)
                )
    if len(plans) > 1:
        print_comparison([name for name, _, _ in plans], runs)
    return runs

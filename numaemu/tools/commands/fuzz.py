"""numaemu fuzz WORKLOAD"""

import shlex

import click

from numaemu.tools.options import machine_options


def repeating(workload, args, seed, options):
    """The words of a command that runs the same workload on the same machine; --replay is still to be said."""
    words = ["numaemu", "fuzz", workload, "--seed", str(seed)]
    for key in ("machine", "nodes", "cpus_per_node", "memory_per_node"):
        if options.get(key):
            words += [f"--{key.replace('_', '-')}", str(options[key])]
    for setting in options.get("settings") or ():
        words += ["--set", setting]
    return [*words, *args]


@click.command("fuzz", context_settings={"max_content_width": 100})
@click.argument("workload")
@click.argument("args", nargs=-1)
@machine_options
@click.option("--runs", type=click.IntRange(1, 10_000_000), default=100, metavar="N", help="How many. Default 100.")
@click.option(
    "--depth", type=click.IntRange(0, 64), default=3, metavar="D", help="Change points of priorities a run. Default 3."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, metavar="N", help="Of the first run. Default 0.")
@click.option("--jobs", type=click.IntRange(1, 1024), metavar="N", help="Runs at once; default: the host's processors.")
@click.option(
    "--limit",
    type=click.FloatRange(0, 86400, min_open=True),
    default=120.0,
    metavar="SECONDS",
    help="A run that takes longer has failed. Default 120.",
)
@click.option("--minimize", is_flag=True, help="Leave out the change points that a failure does not need.")
@click.option("--replay", metavar="SCHEDULE", help="Only this one, as a failure has named it.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(workload, args, runs, depth, seed, jobs, limit, minimize, replay, quiet, **options):
    """Run a workload in lockstep under many schedules, in search of what goes wrong only when its processes mix in a certain way.

    A run fails if main(machine) raises, if it does not end, or if the machine's audit finds something. The first failure ends
    the search; it is told with one command that repeats it. The exit status is 1 then.
    """
    from numaemu.tools import cli
    from numaemu.tools.options import topology_of
    from numaemu.tools.study import fuzz
    from numaemu.tools.study.figures import check_workload, workload_of
    from numaemu.tools.summary import report
    from numaemu.tools.summary.progress import Progress

    path = check_workload(workload)
    with workload_of(path, args) as (module, _):
        stated = getattr(module, "MACHINE", None)
        source = None if options.get("machine") or stated is None else cli.stated_topology(stated, path)
        topology = topology_of(options | {"seed": seed}, source)
    again = shlex.join(repeating(workload, args, seed, options))

    def run(schedule):
        return fuzz.run_once(path, list(args), topology, schedule, seed, limit)

    with Progress(quiet=quiet) as progress:
        if replay:
            outcome = run(replay)
            failed, done = [outcome] if outcome.error else [], 1
        else:
            failed, done = fuzz.fuzz(
                path, list(args), topology, runs, depth, seed, jobs or fuzz.default_jobs(), limit, progress.say
            )
        if failed and minimize:
            failed = [fuzz.minimized(failed[0], run, progress.say)]
    for outcome in failed:
        fuzz.complain(fuzz.note_of(outcome, again))
    print(f"{report.plural(done, 'schedule')}, {len(failed) or 'none'} failed")
    return 1 if failed else 0

"""numaemu sweep WORKLOAD"""

import os
import sys

import click

from numaemu.errors import ConfigError
from numaemu.tools.options import check_writable


@click.command("sweep", context_settings={"max_content_width": 100})
@click.argument("workload")
@click.argument("args", nargs=-1)
@click.option(
    "--vary", multiple=True, metavar="KEY=VALUES", help="As nodes=1,2,4 or vm.swappiness=0:200:20 or args.pages=10,100."
)
@click.option("--points", metavar="FILE", help="A CSV or JSON with a point a line, instead of a grid.")
@click.option("--out", required=True, metavar="FILE", help="The table: .parquet, .csv or .json.")
@click.option(
    "--repeat", type=click.IntRange(1, 100000), default=1, metavar="N", help="Each point so often, with a seed each."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, metavar="N", help="The first seed. Default 0.")
@click.option(
    "--jobs", type=click.IntRange(1, 1024), metavar="N", help="Runs at once on this host; default: its processors."
)
@click.option("--scheduler", metavar="ADDRESS", help="A Dask cluster, as tcp://host:8786, instead of this host.")
@click.option("--retry-failed", is_flag=True, help="Run again what has failed.")
@click.option("--plot", metavar="X,Y[,COLOR]", help="Also draw these columns, as a page beside the table.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(workload, args, vary, points, out, repeat, seed, jobs, scheduler, retry_failed, plot, quiet):
    """Run a workload over a grid of settings, and write a table with a row for each run.

    A key is one of a machine's options, a sysctl, 'seed', or args.NAME for an option of the workload; ARGS reach every run. What is
    done is not done again: FILE.runs beside the table remembers it. The exit status is 1 if a run has failed.
    """
    from numaemu.tools.study import sweep
    from numaemu.tools.study.figures import check_workload
    from numaemu.tools.summary import report
    from numaemu.tools.summary.progress import Progress

    if bool(vary) == bool(points):
        raise click.UsageError("sweep: say --vary or --points" + (", not both" if vary else ""))
    if not out.endswith(sweep.FORMATS):
        raise ConfigError(f"--out is {out}, must end in {', '.join(sweep.FORMATS)}")
    check_writable(out, "--out")
    path = check_workload(workload)
    grid = sweep.points_of_file(points) if points else sweep.grid([sweep.axis(text) for text in vary])
    everything = sweep.repeated(grid, repeat, seed)
    if len(everything) > sweep.MOST_RUNS:
        raise ConfigError(f"there are {len(everything)} runs, must be at most {sweep.MOST_RUNS}")
    with open(path, encoding="utf-8") as file:
        notebook = sweep.Notebook(out, file.read(), args)
    with Progress(quiet=quiet) as progress:
        jobs = jobs or len(os.sched_getaffinity(0))
        rows = sweep.sweep(path, args, everything, notebook, scheduler, jobs, progress.say, retry_failed)
    frame = sweep.write_table(rows, out)
    failed = [row for row in rows if "error" in row]
    print(f"{report.plural(len(rows), 'run')} in {out}" + (f", {len(failed)} of them failed" if failed else ""))
    for row in failed[:3]:
        print(f"numaemu: {row['error']}", file=sys.stderr)
    if plot:
        sweep.write_plot(frame, plot.split(","), os.path.splitext(out)[0] + ".html")
    return 1 if failed else 0

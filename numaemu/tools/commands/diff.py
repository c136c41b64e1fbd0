"""numaemu diff WORKLOAD"""

import click

from numaemu.tools.options import check_writable, write_json


@click.command("diff", context_settings={"max_content_width": 100})
@click.argument("workload")
@click.argument("args", nargs=-1)
@click.option(
    "--a", "a_text", default="", metavar="'SETTINGS'", help="As 'vm.swappiness=10 nodes=4'; default: nothing is set."
)
@click.option("--b", "b_text", default="", metavar="'SETTINGS'", help="The same for the other run.")
@click.option("--json", "json_path", metavar="FILE", help="Write the differences there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def command(workload, args, a_text, b_text, json_path, quiet):
    """Run a workload twice in lockstep, under other settings, and show what that changes.

    Every counter that differs is shown, and the first event at which the runs part. A setting is one of a machine's options, a
    sysctl, 'seed', or args.NAME for an option of the workload; ARGS reach both runs.
    """
    from numaemu.tools.study import settings, whatif
    from numaemu.tools.study.figures import OWN, check_workload
    from numaemu.tools.summary.progress import Progress

    check_writable(json_path)
    path = check_workload(workload)
    chosen = {name: settings.parse(text, OWN, f"--{name}") for name, text in (("a", a_text), ("b", b_text))}
    runs = []
    with Progress(quiet=quiet) as progress:
        for name, given in chosen.items():
            progress.say(f"run {name.upper()}: {settings.text_of(given)}")
            runs.append(whatif.Run.of(path, args, given, f"--{name}"))
    whatif.print_difference(*runs)
    if json_path:
        write_json(whatif.as_json(*runs), json_path)

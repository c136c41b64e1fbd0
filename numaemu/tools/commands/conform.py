"""numaemu conform"""

import click

from numaemu.tools.options import check_writable
from numaemu.tools.summary.progress import Progress


@click.command("conform")
@click.argument("cases", metavar="CASE…", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All cases that the project keeps.")
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=1, metavar="N", help="Play each case so many times. Default 1."
)
@click.option(
    "--json", "json_path", metavar="FILE", help="Of one case write what was observed there, of several the table."
)
@click.option("--markdown", "markdown_path", metavar="FILE", help="Write the results there, as a page of the docs.")
def command(cases, every, repeat, json_path, markdown_path):
    """Replay scenarios that were recorded on a real Linux, and compare.

    A CASE is a file .json, .json.zst or .json.gz, or the name of a case that the project keeps. The exit status is 0 if
    all that can be played agree, 1 if one disagrees, 3 if none can be played.
    """
    from numaemu.conform import command as conformance

    if bool(cases) == every:
        raise click.UsageError("conform: name cases or say --all" + (", not both" if every else ""))
    check_writable(json_path)
    check_writable(markdown_path, "--markdown")
    with Progress() as progress:
        return conformance.main(cases, json_path, every, repeat, markdown_path, progress.say)

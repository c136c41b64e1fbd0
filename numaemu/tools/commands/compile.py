"""numaemu compile"""

import sys

import click

from numaemu.errors import ConfigError
from numaemu.tools.summary import report
from numaemu.tools.summary.progress import Progress


@click.command("compile")
def command():
    """Compile the whole kernel now; a run compiles what it needs for the first time, and keeps it."""
    from numaemu.compiler.build import JIT
    from numaemu.compiler.link import compile_everything

    if not JIT:
        raise ConfigError("NUMBA_DISABLE_JIT is set: nothing is compiled")
    with Progress(quiet=not sys.stderr.isatty()) as progress:
        progress.say("")
        compile_everything(progress.compiled)
    done = (
        f"{report.plural(progress.kernels, 'function')} compiled, none is left"
        if progress.kernels
        else "all is compiled"
    )
    print(done)

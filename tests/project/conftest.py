"""What an experiment prints and returns, run once for all tests of a session, whichever worker asks first."""

import collections
import fcntl
import json

import pytest

from docs.tools import gallery

Shown = collections.namedtuple(
    "Shown", "printed result"
)  # what `numaemu run NAME -q` prints; what main returns, as JSON


@pytest.fixture(scope="session")
def shown(tmp_path_factory, request):
    """shown(name): the Shown of an experiment that runs in lockstep, on its own machine, which is audited at the end."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if hasattr(request.config, "workerinput") else base  # workers of one session share it

    def show(name):
        printed, figures = folder / f"{name}.txt", folder / f"{name}.json"
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not printed.exists():
                printed.write_text(gallery.output(name, "--check", "--json", str(figures)))
        return Shown(printed.read_text(), json.loads(figures.read_text())["result"])

    return show

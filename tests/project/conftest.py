"""What an experiment prints and returns, run once for all tests of a session, whichever worker asks first."""

import collections
import fcntl
import json
import os
import pathlib
import subprocess
import sys

import pytest

Shown = collections.namedtuple(
    "Shown", "printed result"
)  # what `numaemu run NAME -q` prints; what main returns, as JSON


ROOT = pathlib.Path(__file__).parents[2]


class Experiments:
    """A process that runs one experiment after the other; it is there once the first is asked for."""

    def __init__(self):
        self.process = None

    def run(self, name, *options):
        """What an experiment prints."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "docs.tools.gallery", "--listen"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        print(json.dumps([name, *options]), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        assert "wrong" not in answer, answer["wrong"]
        return answer["printed"]

    def end(self):
        if self.process:
            self.process.communicate()


@pytest.fixture(scope="session")
def experiments():
    process = Experiments()
    yield process
    process.end()


@pytest.fixture(scope="session")
def shown(tmp_path_factory, request, experiments):
    """shown(name): the Shown of an experiment that runs in lockstep, on its own machine, which is audited at the end."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if hasattr(request.config, "workerinput") else base  # workers of one session share it

    def show(name):
        printed, figures = folder / f"{name}.txt", folder / f"{name}.json"
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not printed.exists():
                printed.write_text(experiments.run(name, "--check", "--json", str(figures)))
        return Shown(printed.read_text(), json.loads(figures.read_text())["result"])

    return show

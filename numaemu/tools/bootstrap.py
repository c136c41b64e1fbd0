"""Makes a virtual environment and installs the project into it, with one line that says what is being done.

    python numaemu/tools/bootstrap.py VENV REQUIREMENT        as from the Makefile: .venv '.[test]'

Nothing is installed yet when this runs: it is plain Python, and imports nothing of the package.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

BAR = 24  # characters
PREPARE = "import numaemu.coordinator, numaemu.tools.cli, rich.console, rich.live, rich.pretty, rich.table"
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Line:
    """On a terminal one line that changes; elsewhere a line for each step."""

    def __init__(self, stream=None):
        self.stream, self.step, self.start = stream or sys.stderr, "", time.monotonic()
        self.live = self.stream.isatty()

    def show(self, step, done=0, total=0, what=""):
        """What is being done: a step, how many of its parts are done, the one that is under way."""
        if self.live:
            full = BAR * min(done, total) // total if total else 0
            bar = f"{'━' * full}{'─' * (BAR - full)} {done} of {total}  " if total else ""
            text = f"{time.monotonic() - self.start:5.0f} s  {step}: {bar}{what}" if bar or what else step
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r\x1b[2K\x1b[36m{text[: width - 1]}\x1b[0m")
            self.stream.flush()
        elif step != self.step:
            print(f"numaemu: {step}", file=self.stream, flush=True)
        self.step = step

    def end(self):
        if self.live:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()


def direct_requirements(text, extras):
    """The names that pyproject.toml lists: of the project itself, and of some extras."""
    import tomllib

    project = tomllib.loads(text)["project"]
    listed = [*project["dependencies"]]
    for extra in extras:
        listed += project["optional-dependencies"][extra]
    return {normal(re.split(r"[^\w.-]", item, maxsplit=1)[0]) for item in listed}


def normal(name):
    """A distribution's name as it is compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def follow(lines, line, wanted):
    """Show how far pip is, from what it prints; all of that, for whoever wants to know why it has failed."""
    printed, seen = [], set()
    for text in lines:
        printed.append(text)
        if found := re.match(r"(?:Collecting|Requirement already satisfied:) ([\w.-]+)", text):
            seen |= {normal(found[1])} & wanted
            line.show("installing", len(seen), len(wanted), normal(found[1]))
        elif found := re.match(r"Installing collected packages: (.*)", text):
            names = found[1].split(", ")
            line.show("installing", len(wanted), len(wanted), f"unpacking {len(names)} packages")
    return printed


def main(venv, requirement):
    """The exit status."""
    line = Line()
    python = pathlib.Path(venv, "bin", "python")
    try:
        if not python.exists():
            line.show("making a virtual environment")
            if status := subprocess.call([sys.executable, "-m", "venv", venv]):
                return status
        line.show("installing")
        extras = re.findall(r"[\w-]+", requirement.partition("[")[2])
        wanted = direct_requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"), extras)
        # Without --no-compile pip compiles every module of every package: half of its time.
        options = ["--no-compile", "--disable-pip-version-check", "--progress-bar", "off", "--editable", requirement]
        command = [python, "-m", "pip", "install", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as pip:
            printed = follow(pip.stdout, line, wanted)
        if status := pip.returncode:
            line.end()
            sys.stderr.writelines(printed)
            print(f"numaemu: pip has failed with exit status {status}", file=sys.stderr)
            return status
        line.show("preparing")  # those modules that a run imports, once instead of in each of its first processes
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        return subprocess.call([python, "-c", PREPARE], cwd=ROOT, env=environment | {"NUMAEMU_COMPILING": "1"})
    finally:
        line.end()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

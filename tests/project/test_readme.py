"""The README's examples run, and print what it says."""

import pathlib
import re
import subprocess
import sys

import pytest

README = pathlib.Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n(?:    [^\n]*\n\n)?```text\n(.*?)```\n)?", re.DOTALL)


def examples():
    """(code, printed text) of every Python block."""
    return BLOCK.findall(README.read_text())


def run(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=200, cwd=README.parent)


def comparable(text):
    """Lines without the space at their ends."""
    return [line.rstrip() for line in text.strip().splitlines()]


def test_workload_prints_what_the_readme_says(tmp_path):
    ((code, printed),) = [(code, printed) for code, printed in examples() if "def main(machine)" in code]
    path = tmp_path / "interleave.py"
    path.write_text(code)
    done = run("-m", "numaemu", "run", "--quiet", str(path))
    assert done.returncode == 0, done.stderr
    assert comparable(done.stdout) == comparable(printed)


def test_api_examples_print_what_the_readme_says(tmp_path):
    """They follow one another, as typed into a notebook: run as one script."""
    blocks = [(code, printed) for code, printed in examples() if "def main(machine)" not in code]
    path = tmp_path / "notebook.py"
    path.write_text("\n\n".join(f"{code}\nprint('--- end of block {i}')" for i, (code, _) in enumerate(blocks)))
    done = run(str(path))
    assert done.returncode == 0, done.stderr
    parts = re.split(r"--- end of block \d+\n", done.stdout)
    for (code, printed), output in zip(blocks, parts):
        assert comparable(output) == comparable(printed), code


@pytest.mark.parametrize("word", ["huge pages", "Files", "lockstep"])
def test_limits_are_named(word):
    assert word in README.read_text().partition("## Limits")[2]

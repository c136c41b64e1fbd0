"""Runs the examples of the README and of docs/ and compares what they print with what the pages say.

    python -m docs.tools.examples [PAGE.md …]             says what differs; the exit status is 1 then
    python -m docs.tools.examples --write [PAGE.md …]     writes what they print into the pages

What a page may contain, in the order in which it runs:

    ```python                       a step of a notebook: the blocks of a page share their names; a ```text block right
                                    after it is what it prints
    ```python title="name.py"       a file for the commands below it (```toml too); it does not run by itself
    ```console                      commands behind `$ `, each followed by what it prints (its errors, too)
    ```sh                           set-up, which does not run

`…` in an output stands for anything: in a line for a part of it, alone in a line for any number of lines. Commands are
those of numaemu, run in this process so that all examples share one fork server; `> FILE` works.
"""

import contextlib
import io
import linecache
import os
import pathlib
import re
import shlex
import signal
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
COLUMNS = "80"
MOST_S = 120  # that an example may take


def pages():
    """Every page, as a path from the root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(path.relative_to(ROOT)) for path in found if path.exists()]


class Block:
    """A fenced block of a page: its language, title and text, and where the text stands."""

    def __init__(self, match):
        self.language, self.text, self.span = match[1], match[3], match.span(3)
        self.before = match.start()
        title = TITLE.search(match[2])
        self.title = title and title[1]


def blocks(text):
    """All blocks of a page."""
    return [Block(match) for match in BLOCK.finditer(text)]


def has_examples(text):
    """True if something of a page runs."""
    return any(b.language == "console" or b.language == "python" and not b.title for b in blocks(text))


def agrees(said, printed):
    """True if an output is what the page says, `…` standing for anything."""
    said, printed = ([line.rstrip() for line in text.strip("\n").splitlines()] for text in (said, printed))
    patterns = [None if line == "…" else re.compile(re.escape(line).replace("…", ".*")) for line in said]
    reached = {0}  # how many lines printed so far may be what has been said so far
    for pattern in patterns:
        if pattern is None:
            reached = set(range(min(reached, default=len(printed) + 1), len(printed) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(printed) and pattern.fullmatch(printed[n])}
    return len(printed) in reached


class Runner:
    """Runs the blocks of a page in a folder of its own, which has the repository's workloads."""

    def __init__(self, folder):
        self.names = {"__name__": "__main__", "__builtins__": __builtins__}
        self.folder = pathlib.Path(folder)
        os.symlink(ROOT / "workloads", self.folder / "workloads")

    def run(self, block, name):
        """What a Python block prints."""
        source = block.text
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(source, name, "exec"), self.names)
        return out.getvalue()

    def keep(self, block):
        """A file for later commands."""
        (self.folder / block.title).write_text(block.text)

    def command(self, line):
        """What a command prints, on both streams."""
        from numaemu.tools import cli

        words, target = shlex.split(line, comments=True), None
        if ">" in words:
            words, target = words[: words.index(">")], words[words.index(">") + 1]
        if words[:3] == ["python", "-m", "numaemu"]:
            words = words[2:]
        if words[0] != "numaemu":
            raise ValueError(f"a console example runs {words[0]}, must be numaemu: {line}")
        out, argv, handler = io.StringIO(), sys.argv, signal.getsignal(signal.SIGINT)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                cli.main(words[1:])
            except SystemExit:
                pass
        sys.argv = argv
        signal.signal(signal.SIGINT, handler)
        if target:
            (self.folder / target).write_text(out.getvalue())
            return ""
        return out.getvalue()


def commands(text):
    """[(command, what the page says that it prints)] of a console block."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [part.partition("\n")[::2] for part in parts]


def run_page(text, page):
    """(the page as it should be, [what differs]) after all of its examples have run."""
    from numaemu.machine import fork_server

    fork_server.launch()  # here, as the folder below goes
    edits, wrong, found = [], [], blocks(text)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        runner = Runner(folder)
        try:
            for i, block in enumerate(found):
                where = f"{page}:{text.count(chr(10), 0, block.before) + 1}"
                if block.title and block.language in ("python", "toml"):
                    runner.keep(block)
                elif block.language == "python":
                    printed = runner.run(block, where)
                    after = found[i + 1] if i + 1 < len(found) else None
                    if after and after.language == "text" and not text[block.span[1] + 3 : after.before].strip():
                        if not agrees(after.text, printed):
                            edits.append((after.span, printed.rstrip("\n") + "\n"))
                            wrong.append((where, after.text, printed))
                    elif printed:
                        wrong.append((where, "", printed))
                elif block.language == "console":
                    new = ""
                    for command, said in commands(block.text):
                        printed = runner.command(command)
                        good = agrees(said, printed)
                        new += f"$ {command}\n" + (said if good else printed.strip("\n") + "\n" if printed else "")
                        if not good:
                            wrong.append((f"{where}: {command}", said, printed))
                    if new != block.text:
                        edits.append((block.span, new))
        except Exception as error:
            raise RuntimeError(f"the example at {where} failed: {type(error).__name__}: {error}") from error
        finally:
            for value in runner.names.values():
                if type(value).__name__ == "Machine":
                    value.close()
    for (start, end), new in reversed(edits):
        text = text[:start] + new + text[end:]
    return text, wrong


def main(arguments):
    write = "--write" in arguments
    os.environ["COLUMNS"] = COLUMNS
    failed = False
    watchdog = threading.Timer(MOST_S * 5, os._exit, (9,))
    watchdog.daemon = True
    watchdog.start()
    for page in [a for a in arguments if not a.startswith("--")] or pages():
        text, start = (ROOT / page).read_text(), time.monotonic()
        if not has_examples(text):
            continue
        new, wrong = run_page(text, page)
        print(f"{page}: {time.monotonic() - start:.1f} s, {len(wrong)} differ", flush=True)
        for where, said, printed in wrong:
            print(f"--- {where}\n--- the page says\n{said}--- it prints\n{printed}", flush=True)
        if write and new != text:
            (ROOT / page).write_text(new)
        failed = failed or bool(wrong) and not write
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

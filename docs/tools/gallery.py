"""Runs every workload and draws what it prints: docs/gallery.md and the pictures in docs/images/.

    python -m docs.tools.gallery [NAME …]        the named workloads' pictures, or all; then the page
    python -m docs.tools.gallery --page          the page alone
    python -m docs.tools.gallery --outputs       what some experiments print, in docs/outputs/, where a test compares it

A picture is the workload's real output at 80 columns, drawn as SVG: each line of the terminal is a line of text.
"""

import ast
import contextlib
import io
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from html import escape

ROOT = pathlib.Path(__file__).parents[2]
IMAGES, PAGE = ROOT / "docs" / "images", ROOT / "docs" / "gallery.md"
OUTPUTS = ROOT / "docs" / "outputs"
COLUMNS = 80
FIRST = "compaction"  # the workload of the README's picture
CELL, LINE, SIZE, MARGIN = 8.4, 17, 14, 12  # of a character, in pixels
BACKGROUND, FOREGROUND, DIM = "#16191d", "#d8dee4", "#8b949e"
WORDS = re.compile(r"\S+(?: \S+)*")  # what is written without a gap
MOST_LINES = 110  # of one picture; what follows is left out, and said to be

# options of the command, where the workload alone would take long
OPTIONS = {"anti_fragmentation": "--memory-per-node 512MiB"}
SECTIONS = {
    "Placement and NUMA": "first_touch policies interleave_vs_bind node_overflow migration latency stream_triad",
    "Time": "cache_staircase false_sharing stream_knee loaded_latency migration_bandwidth",
    "Pages that follow their users": "following_pages hash_join memory_tiers wandering_hot_set tier_pingpong",
    "Translation": "page_fault_life pointer_chase page_table_cost shootdown_storm huge_pages gigantic_pages",
    "Reclaim and swap": "kswapd_watermarks swappiness_sweep swap_thrash thrashing zram_ratio oom_victim page_cache",
    "Replacement": "replacement_policies belady",
    "Fragmentation": "compaction lumpy_vs_compaction anti_fragmentation",
    "Address spaces and programs": "fork_cow shared_library elf_map",
    "Kernel memory": "kmalloc_waste slab_vs_buddy vmalloc_vs_kmalloc kmap percpu_counter",
    "malloc and garbage collection": "malloc_fits malloc_arenas gc_trees gc_cycle gc_eden gc_swap",
    "Everything at once": "stress",
}


def workloads():
    """Names of all workloads."""
    return sorted(path.stem for path in (ROOT / "workloads").glob("*.py"))


def docstring(name):
    return ast.get_docstring(ast.parse((ROOT / "workloads" / f"{name}.py").read_text()))


def command(name):
    """The command line that the picture shows."""
    return f"numaemu run {name}" + (f" {OPTIONS[name]}" if name in OPTIONS else "")


def run(name):
    """(what a workload prints, with colours; seconds)"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "numaemu", *command(name).split()[1:]],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise RuntimeError(f"{command(name)}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout, time.monotonic() - start


def lines_of(printed):
    """The lines worth a picture: no notes about the host."""
    lines = printed.strip("\n").split("\n")
    plain = [strip_colour(line) for line in lines]
    kept, note = [], False
    for line, text in zip(lines, plain):
        note = text.startswith("note: ") or note and text.startswith("      ")
        if not note:
            kept.append(line)
    return kept


def strip_colour(line):
    from rich.text import Text

    return Text.from_ansi(line).plain


def draw(lines, title):
    """An SVG of a terminal that shows these lines."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=open(os.devnull, "w"), force_terminal=True, color_system="truecolor", width=1000)
    cut = len(lines) - MOST_LINES
    texts = [Text.from_ansi(line) for line in lines[:MOST_LINES]]
    if cut > 0:
        texts.append(Text(f"… {cut} lines more", style="dim"))
    columns = max([COLUMNS, *(text.cell_len for text in texts)])
    width, height = round(columns * CELL + 2 * MARGIN), (len(texts) + 2) * LINE + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" rx="6" fill="{BACKGROUND}"/>',
        f'<g font-family="DejaVu Sans Mono,Menlo,Consolas,monospace" font-size="{SIZE}" fill="{FOREGROUND}" '
        'xml:space="preserve" style="white-space:pre">',
        f'<text x="{x(0)}" y="{y(0) + SIZE - 1}" fill="{DIM}">$ {escape(title, quote=False)}</text>',
    ]
    for number, text in enumerate(texts, 2):
        backs, words = runs_of(text, console)
        parts += [
            f'<rect x="{x(column):.1f}" y="{y(number)}" width="{len(word) * CELL:.1f}" height="{LINE}" fill="{colour}"/>'
            for column, word, colour in backs
        ]
        parts += [
            f'<text x="{x(column):.1f}" y="{y(number) + SIZE - 1}" textLength="{len(word) * CELL:.1f}"{look}>'
            f"{escape(word, quote=False)}</text>"
            for column, word, look in words
        ]
    return "\n".join([*parts, "</g>", "</svg>", ""])


def x(column):
    """The left edge of a column of the terminal."""
    return MARGIN + column * CELL


def y(number):
    """The upper edge of a line."""
    return MARGIN + number * LINE


def runs_of(text, console):
    """([(column, text, colour)] of what has a background, [(column, text, look)] of what is written) in a line."""
    backs, cells = [], []
    for segment in text.render(console):
        word, style = segment.text.rstrip("\n"), segment.style
        if style and style.bgcolor and word:
            backs.append((len(cells), word, style.bgcolor.get_truecolor(foreground=False).hex))
        cells += [(letter, look_of(style)) for letter in word]
    words, column = [], 0
    for look, group in itertools.groupby(cells, key=lambda cell: cell[1]):
        run = "".join(letter for letter, _ in group)
        words += [(column + match.start(), match[0], look) for match in WORDS.finditer(run)]
        column += len(run)
    return backs, words


def look_of(style):
    """The attributes of a text in this style."""
    look = ' font-weight="bold"' if style and style.bold else ""
    colour = DIM if style and style.dim else None
    if style and style.color and not style.color.is_default:
        colour = style.color.get_truecolor().hex
    return look + (f' fill="{colour}"' if colour else "")


def draw_first_picture():
    """The README's picture: the maps of memory that compaction.py draws."""
    printed, _ = run(FIRST)
    lines = lines_of(printed)
    plain = [strip_colour(line) for line in lines]
    first = next(i for i, text in enumerate(plain) if text.split() == ["before", "after"]) - 1
    last = next(i for i, text in enumerate(plain) if text.startswith("2 MiB each"))
    while plain[last].strip():
        last += 1
    (IMAGES / "first.svg").write_text(draw(lines[first:last], command(FIRST)))


def kept():
    """Names of the experiments whose output is kept: all that run in lockstep."""
    return [name for name in workloads() if "\nLOCKSTEP = True\n" in (ROOT / "workloads" / f"{name}.py").read_text()]


def output(name, *options):
    """What `numaemu run NAME -q` prints, without colours. It runs in this process, of which each costs a second to start."""
    from numaemu.tools import cli

    printed, said, argv, handler = io.StringIO(), io.StringIO(), sys.argv, signal.getsignal(signal.SIGINT)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        try:
            status = cli.main(["run", name, *OPTIONS.get(name, "").split(), "-q", *options])
        except SystemExit as end:
            status = end.code
    sys.argv = argv
    signal.signal(signal.SIGINT, handler)
    if status:
        raise RuntimeError(f"numaemu run {name} -q: exit status {status}\n{said.getvalue()}")
    return printed.getvalue()


def without_colours():
    """What `output` prints is as wide as a picture, and plain."""
    os.environ |= {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    os.chdir(ROOT)


def listen():
    """For tests: a line with a name and options, as JSON, is answered by one with what is printed, or with what went wrong."""
    for line in sys.stdin:
        try:
            answer = {"printed": output(*json.loads(line))}
        except Exception as error:
            answer = {"wrong": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def write_outputs():
    for name in kept():
        (OUTPUTS / f"{name}.txt").write_text(output(name))
        print(name, flush=True)


def section_of(name):
    return next((title for title, names in SECTIONS.items() if name in names.split()), "More")


def page():
    """docs/gallery.md: each workload with its purpose, its command and its picture."""
    lines = [
        "# Gallery",
        "",
        "Every workload that numaemu ships, with its purpose, its command and a picture of what it printed. The pictures are "
        "real output at 80 columns; `make pages` makes them anew. *Look for* says what to see in a picture.",
        "",
    ]
    titles = [*SECTIONS, *sorted({section_of(name) for name in workloads()} - set(SECTIONS))]
    for title in titles:
        names = [n for n in SECTIONS.get(title, "").split() if n in workloads()]
        names += [n for n in workloads() if section_of(n) == title and n not in names]
        lines += [f"- [{title}](#{title.lower().replace(' ', '-')}): " + ", ".join(f"[{n}](#{n})" for n in names)]
    for title in titles:
        names = [n for n in SECTIONS.get(title, "").split() if n in workloads()]
        names += [n for n in workloads() if section_of(n) == title and n not in names]
        lines += ["", f"## {title}"]
        for name in names:
            lines += ["", f"### {name}", "", *purpose(docstring(name)), "", "```sh", command(name), "```"]
            if (IMAGES / f"{name}.svg").exists():
                lines += ["", f"![Output of {name}](images/{name}.svg)"]
    return "\n".join(lines) + "\n"


def purpose(doc):
    """A docstring as Markdown: paragraphs, lists, and what is indented otherwise as it is drawn."""
    lines = []
    for indented, group in itertools.groupby(doc.split("\n"), key=lambda line: line.startswith("  ")):
        group = list(group)
        if not indented:
            lines += group
        elif group[0].startswith("  - "):
            lines += ["", *(line[2:] for line in group), ""]
        else:
            lines += ["", "```text", *group, "```", ""]
    while lines and not lines[-1]:
        lines.pop()
    return [line for i, line in enumerate(lines) if line or i and lines[i - 1]]


def main(arguments):
    if "--outputs" in arguments or "--listen" in arguments:
        without_colours()
        listen() if "--listen" in arguments else write_outputs()
        return
    IMAGES.mkdir(exist_ok=True)
    for name in () if "--page" in arguments else arguments or workloads():
        printed, seconds = run(name)
        svg = draw(lines_of(printed), command(name))
        (IMAGES / f"{name}.svg").write_text(svg)
        if name == FIRST:
            draw_first_picture()
        print(f"{name}: {seconds:.1f} s, {len(svg)} bytes", flush=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

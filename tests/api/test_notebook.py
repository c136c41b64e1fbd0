"""What a notebook shows of a machine and its tasks, and what help() says."""

import html.parser
import inspect
import pydoc
import re

import pytest

from numaemu import GFP_KERNEL, Machine, SegmentationFault
from numaemu.api.failure import PACKAGE
from numaemu.spec.machine_file import KEYWORDS


class Cells(html.parser.HTMLParser):
    """The texts of a page's cells, row by row."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, _):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_endtag(self, _):
        self.inside = False

    def handle_data(self, text):
        if self.inside:
            self.rows[-1][-1] += text


def rows(thing):
    return Cells(thing._repr_html_()).rows


def test_a_machine(machine):
    assert rows(machine) == [
        ["node", "CPUs", "memory", "distances"],
        ["0", "0, 1", "64MiB", "10, 21"],
        ["1", "2, 3", "64MiB", "21, 10"],
    ]
    assert "machine custom" in machine._repr_html_()


def test_its_figures(machine):
    machine.task(cpu=1).mmap(4096).touch()
    stats = machine.stats()
    shown = rows(stats)
    assert [row[0] for row in shown[:5]] == ["cpu", "0", "1", "2", "3"]
    assert f"{stats['cpus'][1]['stores']:,}" in shown[2]


def test_a_walk_and_a_trail(machine):
    task = machine.task()
    mapping = task.mmap(4096).touch()
    walk = task.walk(mapping.addr)
    shown = rows(walk)
    assert [row[0] for row in shown] == ["level", *(step["level"] for step in walk)]
    assert shown[-1][3] == f"{walk[-1]['entry']:#x}" and shown[-1][4] == walk[-1]["text"]
    pfn, trail = task.kernel.alloc_pages(GFP_KERNEL, explain=True)
    shown = rows(trail)
    assert len(shown) == len(trail) + 1 and trail.headline() in trail._repr_html_()
    assert shown[-1][0] == trail[-1].what and shown[-1][2] == trail[-1].figures()
    task.kernel.free_pages(pfn)
    task.exit()


def test_a_handle_shows_what_its_function_has_returned(machine):
    handle = machine.spawn(lambda task: {"a": {"x": 1}, "b": {"x": 2}})
    handle.result()
    assert rows(handle) == [["", "x"], ["a", "1"], ["b", "2"]]
    failed = machine.spawn(lambda task: 1 / 0)
    failed.future.exception()
    assert rows(failed)[1][1].startswith("ZeroDivisionError: ")


def bad(task):
    return task.load([0x1234])


@pytest.mark.parametrize("interactive", [False, True])
def test_an_error_of_a_task_shows_own_frames_only(machine, interactive):
    """As IPython asks for them, and as Python prints the error."""
    with pytest.raises(SegmentationFault) as caught:
        if interactive:
            machine.task().load([0x1234])
        else:
            machine.run(bad)
    try:
        raise caught.value
    except SegmentationFault as error:
        text = "\n".join(error._render_traceback_())
        notes = "".join(getattr(error, "__notes__", []))
    assert "test_notebook.py" in text and "SegmentationFault: " in text and PACKAGE not in text
    assert ("in bad" in text) == ("in bad" in notes) == (not interactive)


def test_help_lists_every_keyword():
    text = pydoc.render_doc(Machine, renderer=pydoc.plaintext)
    signature, rest = re.split(r"\n \| *\n", text, maxsplit=1)  # Python 3.13 prints no blanks there
    parameters = inspect.signature(Machine.__init__).parameters.values()
    own = [each.name for each in parameters if each.default is None]
    assert {"source", "sample"} <= set(own) and all(f"{name}=None" in signature for name in (*KEYWORDS, *own))
    listed = rest.partition("Methods defined here")[0]
    assert all(name in listed.replace(",", " ").split() for name in KEYWORDS)

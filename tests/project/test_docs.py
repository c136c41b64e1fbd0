"""The pages: every example prints what its page says, every table is what the source says, every link leads somewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from docs.tools import counters, examples, gallery, links  # noqa: E402
from numaemu.compiler.build import JIT  # noqa: E402
from numaemu.kernel.fs.sysfs import stats  # noqa: E402

PAGES = [page for page in examples.pages() if examples.has_examples((ROOT / page).read_text())]
GROUPS = {  # pages that run one after another in a process, of which each costs a second to start
    "first": [page for page in PAGES if "/" not in page or page.endswith("tutorial.md")],
    "guides": [page for page in PAGES if page.startswith("docs/guides/")],
}
GROUPS["guides"] += [page for page in PAGES if not any(page in pages for pages in GROUPS.values())]


@pytest.mark.parametrize("group", GROUPS)
def test_examples_print_what_the_pages_say(group):
    done = subprocess.run(
        [sys.executable, "-m", "docs.tools.examples", *GROUPS[group]],
        capture_output=True,
        text=True,
        timeout=280,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{page}: " in done.stdout for page in GROUPS[group])


@pytest.mark.parametrize(
    ("said", "printed", "agrees"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a\n", False),
        ("a …\n", "a 1 ms\n", True),
        ("a …\n", "b 1 ms\n", False),
        ("a\n…\nb\n", "a\n1\n2\nb\n", True),
        ("a\n…\nb\n", "a\nb\n", True),
        ("a\n…\nb\n", "a\n1\n2\n", False),
        ("…\nb\n", "a\nb\nc\n", False),
        ("", "a\n", False),
    ],
)
def test_dots_stand_for_anything_and_the_rest_must_agree(said, printed, agrees):
    assert examples.agrees(said, printed) is agrees


def test_tables_are_what_the_source_says():
    """Also that each key, setting and file of /proc and /sys has a meaning: `make pages` writes them."""
    done = subprocess.run(
        [sys.executable, "-m", "docs.tools.tables", "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_figure_of_a_cpu_has_a_meaning(two_nodes):
    assert list(counters.CPU) == list(stats.cpu_figures(two_nodes.machine, 0))


def test_every_counter_of_vmstat_has_a_meaning(two_nodes):
    assert {name for group in counters.VMSTAT.values() for name in group} == {
        *stats.vmstat(two_nodes.machine),
        "nr_unstable",
    }


def test_links_and_names_of_the_source_are_there():
    assert list(links.faults()) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("numaemu/mmu.py: refill", None),
        ("mmu.py: refill, tlb_walk", "mmu.py is not there"),  # a path has a folder
        ("kernel/arch/tlb.py: shoot_down, nothing", "kernel/arch/tlb.py has no nothing"),
        ("kernel/tlb.py", "kernel/tlb.py is not there"),
    ],
)
def test_a_wrong_name_is_found(text, fault):
    assert list(links.source_faults(text)) == ([fault] if fault and "/" in text else [])


def test_a_wrong_object_is_found():
    assert list(links.object_faults("numaemu.machine.Machine")) == list(links.object_faults("numaemu.errors")) == []
    assert list(links.object_faults("numaemu.machine.Engine")) == ["numaemu.machine.Engine is not there"]
    assert list(links.object_faults("numaemu.engine.Machine")) == ["numaemu.engine.Machine is not there"]


def test_a_wrong_link_is_found():
    page = ROOT / "docs" / "index.md"
    assert list(links.link_faults(page, "tutorial.md#1-a-machine")) == []
    assert list(links.link_faults(page, "nowhere.md")) == ["nowhere.md is not there"]
    assert list(links.link_faults(page, "tutorial.md#nowhere")) == ["tutorial.md#nowhere: no such heading"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("word", ["Huge pages of files", "Directories"])
def test_limits_are_named(word):
    limits = (ROOT / "docs" / "reference" / "limits.md").read_text()
    assert word in limits.partition("## What is not there yet")[2].partition("##")[0]


def test_every_page_is_in_the_menu():
    named = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}


def test_every_workload_is_in_the_gallery():
    assert gallery.page() == gallery.PAGE.read_text(), "run python -m docs.tools.gallery --page"
    assert [name for name in gallery.workloads() if not (gallery.IMAGES / f"{name}.svg").exists()] == []


def test_kernel_means_linux():
    """A function of the package is a compiled function, and a user's is a user kernel."""
    wrong = re.compile(r"compiled kernel|user's (compiled )?kernel", re.IGNORECASE)
    places = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    places += [path for room in ("numaemu", "workloads", "benchmarks") for path in (ROOT / room).rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in places if wrong.search(path.read_text())] == []


@pytest.mark.skipif(not JIT, reason="experiments take long without the JIT")
@pytest.mark.parametrize("name", gallery.kept())
def test_an_experiment_prints_to_the_byte_what_its_output_says(shown, name):
    """In lockstep; `make pages` writes docs/outputs anew. Which Python it is that elf_map draws does not matter."""
    printed, kept = shown(name).printed, (gallery.OUTPUTS / f"{name}.txt").read_text()
    assert re.sub(r"python3\.\d\d", "python3.nn", printed) == re.sub(r"python3\.\d\d", "python3.nn", kept)

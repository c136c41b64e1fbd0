"""The page of a run: one file, no network, drawn by a real browser, explained."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import pytest
from wanting import need_package

from numaemu.tools import cli
from numaemu.tools.page.sampler import MOST_SAMPLES, Sampler, free_blocks

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WORKLOAD = '''"""Swaps </script> & looks fine."""
MACHINE = {"nodes": 2, "cpus_per_node": 1, "memory_per_node": "16MiB"}

def work(task):
    memory = task.mmap("40MiB")
    for _ in range(3):
        memory.touch()
    return task.pid

def main(machine):
    machine.swapon("64MiB")
    keep = machine.task(cpu=1, name="</script>")
    keep.mmap("256KiB").touch()
    return {"pid": machine.run(work), "text": "<b>&</script>"}
'''


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    need_package("altair", "vl_convert")
    folder = tmp_path_factory.mktemp("page")
    (folder / "swapping.py").write_text(WORKLOAD)
    assert cli.main(["run", str(folder / "swapping.py"), "--report", str(folder / "r.html"), "-q"]) == 0
    return folder / "r.html"


class Reader(html.parser.HTMLParser):
    """What a page loads from elsewhere, its headings, and what it says to people."""

    def __init__(self):
        super().__init__()
        self.loads, self.headings, self.charts, self.inside = [], [], 0, None

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.loads += [attrs[name] for name in ("src", "href") if attrs.get(name)]
        self.charts += attrs.get("class") == "chart"
        self.inside = tag

    def handle_data(self, data):
        if self.inside == "h2":
            self.headings.append(data)
            self.inside = None


def test_everything_is_in_one_file(page):
    reader = Reader()
    reader.feed(page.read_text())
    assert reader.loads == []
    assert {"Result", "The machine", "Free memory", "Faults, reclaim, migration", "Where accesses went", "Latency of the machine",
            "Translation", "Memory in use at the end", "Tasks' memory by node", "Fragmentation"} <= set(reader.headings)  # fmt: skip
    text = page.read_text()
    specs = json.loads(re.search(r'<script id=specs type="application/json">(.*?)</script>', text, re.S)[1])
    assert len(specs) == reader.charts >= 9 and len(text) < 1_500_000
    assert "<title>swapping.py on" in text and "&lt;b&gt;" in text and "&lt;/script&gt; &amp; looks fine" in text
    rows = [row for spec in specs for row in spec.get("data", {}).get("values", [])]
    assert any(row.get("task", "").startswith("</script> (") for row in rows)


def browser():
    for name in BROWSERS:
        if shutil.which(name):
            return name
    pytest.skip(f"WANTING: none of {', '.join(BROWSERS)} is installed")


@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_draws_it(page, tmp_path, width):
    """Every chart is drawn, nothing is wider than a phone."""
    measured = page.read_text().replace("document.body.dataset.drawn = specs.length;", "document.body.dataset.drawn = specs.length;"
                                        "document.body.dataset.wide = document.documentElement.scrollWidth;")  # fmt: skip
    (tmp_path / "p.html").write_text(measured)
    done = subprocess.run(
        [browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900",
         "--virtual-time-budget=20000", "--dump-dom", (tmp_path / "p.html").as_uri()],
        capture_output=True, text=True, timeout=200)  # fmt: skip
    body = re.search(r"<body[^>]*>", done.stdout)[0]
    charts = int(re.search(r'data-drawn="(\d+)"', body)[1])
    assert charts >= 9 and "data-failed" not in body
    assert len(re.findall(r"<svg [^>]*class=\"marks\"", done.stdout)) == charts
    assert int(re.search(r'data-wide="(\d+)"', body)[1]) <= max(width, 500)  # a window of Chromium's is not narrower


def test_what_is_missing_is_told_before_the_run(tmp_path, capsys, monkeypatch):
    (tmp_path / "w.py").write_text("def main(machine):\n    open(__file__ + '.ran', 'w')\n")
    assert cli.main(["run", str(tmp_path / "w.py"), "--report", str(tmp_path / "no" / "r.html")]) == cli.USAGE
    assert "--report is" in capsys.readouterr().err
    import builtins

    real = builtins.__import__
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name, *a: (_ for _ in ()).throw(ModuleNotFoundError(name)) if name == "altair" else real(name),
    )
    assert cli.main(["run", str(tmp_path / "w.py"), "--report", str(tmp_path / "r.html")]) == cli.USAGE
    told = capsys.readouterr().err
    assert (
        told
        == "numaemu: the page of a run needs the package altair, which is not installed: pip install 'numaemu[report]'\n"
    )
    assert not pathlib.Path(f"{tmp_path}/w.py.ran").exists()


def test_samples_are_thinned(machine):
    sampler = Sampler()
    with sampler.of(machine):
        task = machine.task(cpu=0)
        for _ in range(3):
            task.sleep(1)
            assert sampler.sample()
    times = [sample["ns"] for sample in sampler.samples]
    assert times == sorted(set(times)) and len(times) >= 4
    sampler.samples = [dict(sampler.samples[0], ns=i) for i in range(MOST_SAMPLES)]
    task.sleep(1)
    sampler.machine = machine
    assert sampler.sample() and len(sampler.samples) == MOST_SAMPLES // 2 + 1 and sampler.samples[0]["ns"] == 0
    task.exit()


def test_free_blocks_are_free_memory(machine):
    free = sum(map(sum, free_blocks(machine).values()))
    assert free == machine.stats()["vmstat"]["nr_free_pages"]

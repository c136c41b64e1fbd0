"""The page of a run: one file, no network, drawn by a real browser, explained."""

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest
from wanting import need_package

from numaemu.kernel.fs.tracefs.events import EVENTS
from numaemu.kernel.include.trace import EVENT_BITS, trace_record_t
from numaemu.tools import cli
from numaemu.tools.page.charts import duration_text, latency_charts
from numaemu.tools.page.latencies import CHOSEN, KINDS, Latencies
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
            "How long page faults took", "How long direct reclaim took",
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


def records(*events):
    """Records of (name, pid, ns, word b)."""
    rows = np.zeros(len(events), trace_record_t.dtype)
    names = [event.name for event in EVENTS]
    for row, (name, pid, ns, word) in zip(rows, events):
        row["what"], row["clock_ns"], row["b"] = names.index(name) | pid << EVENT_BITS, ns, word
    return rows


def test_durations_are_counted_by_who_begins_and_ends():
    """Two tasks of a CPU whose faults overlap, a fault that failed, a shootdown and an answer to another one."""
    seen = Latencies()
    seen.fold(
        0, records(("page_fault_user", 1, 1000, 0), ("page_fault_user", 2, 1100, 0), ("page_fault_end", 2, 1150, 0))
    )
    seen.fold(0, records(("page_fault_end", 1, 1000 + 700_000, 0), ("page_fault_user", 1, 800_000, 0),
                         ("page_fault_user", 1, 900_000, 0), ("page_fault_end", 1, 900_150, 0)))  # fmt: skip
    seen.fold(
        1,
        records(
            ("tlb_flush", 3, 10, 4),
            ("tlb_flush", 0, 20, 1),
            ("shootdown_end", 3, 2010, 0),
            ("shootdown_end", 3, 5000, 0),
        ),
    )
    assert [seen.total(kind) for kind in range(len(KINDS))] == [3, 0, 0, 1]
    bins = [(low, high, count) for low, high, count in seen.bins(0) if count]
    assert bins == [(50, 100, 1), (100, 200, 1), (500_000, 1_000_000, 1)] and seen.bins(3) == [(2000, 5000, 1)]
    assert seen.longest == [700_000, 0, 0, 2000] and seen.bins(1) == []
    edges = [low for low, *_ in seen.bins(0)] + [seen.bins(0)[-1][1]]
    assert edges == sorted(set(edges)) and all(
        high == low for (_, high, _), (low, _, _) in zip(seen.bins(0), seen.bins(0)[1:])
    )


def test_histograms_say_what_they_show():
    need_package("altair")
    seen = Latencies()
    for ns in (30, 150, 150, 2_500_000):
        seen.add(0, ns)
    seen.lost = 12
    (chart,) = latency_charts(seen)
    assert (
        chart.title == "How long page faults took"
        and "4 of them, the longest 2.5 ms. 12 events were lost" in chart.text
    )
    rows = chart.spec.to_dict()["data"]["values"]
    assert (
        sum(row["count"] for row in rows) == 4
        and rows[0]["took"] == "20 ns to 50 ns"
        and rows[-1]["took"] == "2 ms to 5 ms"
    )
    assert latency_charts(Latencies()) == []
    assert [duration_text(ns) for ns in (0, 500, 2000, 10**10)] == ["0 ns", "500 ns", "2 us", "10 s"]
    assert all(kind.text.endswith(".") and kind.title.startswith("How long") for kind in KINDS)


def test_faults_of_a_run_are_all_counted(machine):
    """As many as the kernel counts, of a run that traces nothing else; and nothing is traced behind it."""
    sampler, task = Sampler(), machine.task(cpu=0)
    area = task.mmap("512KiB")
    with sampler.of(machine):
        before = machine.stats()["vmstat"]["pgfault"]
        area.touch()
        faults = machine.stats()["vmstat"]["pgfault"] - before
    assert sampler.latencies.total(0) == faults == 128 and sampler.latencies.longest[0] > 0
    assert machine.read("/sys/kernel/tracing/set_event") == "" and len(CHOSEN.split()) == 2 * len(KINDS)
    task.exit()


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

"""Heat maps: which parts of a task's memory are in use when, at intervals of emulated time."""

import shutil
import subprocess

import pytest

from numaemu import Machine

MIB, NS = 1 << 20, 100_000


@pytest.fixture(scope="module")
def walked():
    """A map of a task that uses the four MiB of an area one after the other, and when it was in which."""
    with Machine(nodes=1, cpus_per_node=1, memory_per_node="32MiB") as machine:
        task = machine.task(name="T0")
        area = task.mmap(4 * MIB)
        area.touch()
        seen, times = machine.heatmap(task, NS, area.addr, area.nbytes, piece=MIB), []
        for i in range(4):
            begin = task.clock_ns
            for _ in range(8):
                task.touch(area.addr + i * MIB, MIB)
            times.append((begin, task.clock_ns))
        seen.stop()
        whole = machine.heatmap(task, NS)
        area.touch()
        whole.stop()
        task.exit()
        yield seen, times, area.addr, whole


def test_pages_are_seen_where_and_when_they_are_used(walked):
    seen, times, addr, _ = walked
    assert len(seen.samples) >= 8 and seen.pieces == {addr + i * MIB: 256 for i in range(4)}
    for ns, used in seen.samples:
        for i, (begin, end) in enumerate(times):
            if begin + NS < ns < end:  # all of the interval before it was in this part
                assert used[addr + i * MIB] > 0 and all(n == 0 for at, n in used.items() if at != addr + i * MIB)
    assert all(any(used[addr + i * MIB] for _, used in seen.samples) for i in range(4))


def test_drawings_and_frames(walked):
    seen, _, addr, whole = walked
    lines = seen.text().splitlines()
    assert (
        len(lines) == 5 and lines[1].startswith(f"{addr:014x}     1MiB |") and "@" in lines[1] and lines[1] < lines[4]
    )
    assert repr(seen).endswith(f"{len(seen.samples)} samples, 4 pieces>") and "pages used" in seen._repr_html_()
    assert {"ns", "addr", "pages", "used"} == set(seen.rows()[0])
    assert (
        len(whole.pieces) > 4 and sum(n for _, used in whole.samples for n in used.values()) > 0
    )  # all mappings, the stack too


def test_frames(walked):
    pandas = pytest.importorskip("pandas", reason="WANTING: the package pandas is not installed")
    frame = walked[0].to_frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == 4 * len(walked[0].samples)


def test_a_task_that_ends_ends_it():
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="32MiB") as machine:
        task, other = machine.task(cpu=0), machine.task(cpu=1)
        area = other.mmap(2 * MIB)
        seen = machine.heatmap(task, NS)
        task.exit()
        for _ in range(4):
            area.touch()
        assert seen.samples == [] and seen.text() == "no samples\n"


def test_damo_reads_the_record(walked, tmp_path):
    """DAMON's user-space tool draws it."""
    damo = shutil.which("damo")
    if damo is None:
        pytest.skip("WANTING: the program damo is not installed")
    walked[0].write_damon(tmp_path / "damon.data")
    done = subprocess.run(
        [damo, "report", "heatmap", "--input", str(tmp_path / "damon.data")], capture_output=True, text=True, check=True
    )
    assert "(4.000 MiB)" in done.stdout

"""The map of an address space, as text."""

import io

import numpy as np
import pytest

from numaemu.tools.memmap import Area, areas, kinds, memory_map, resident, short, size_text


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 B"), (1023, "1023 B"), (4096, "4 KiB"), (1 << 20, "1 MiB"), (1536 << 10, "1.5 MiB"),
                                              ((1 << 47) - 4096, "127.9 TiB"), (1 << 62, "4194304 TiB")])  # fmt: skip
def test_sizes(nbytes, text):
    assert size_text(nbytes) == text


def test_names():
    assert [short(name) for name in ("", "[heap]", "/usr/bin/ls", "/lib/ld-linux-x86-64.so.2")] == [
        "anonymous",
        "[heap]",
        "ls",
        "ld-linux-x86-64.so.2",
    ]


def test_kinds_of_pages():
    words = np.array([0, 1 << 63, 1 << 63 | 1 << 61, 1 << 62], np.uint64)
    assert kinds(words).tolist() == ["·", "█", "▒", "s"]


def drawn(found, top=None):
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO(), color_system=None)
    console.print(memory_map(found, top))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_picture():
    low = Area(0x1000, 0x1000 + 40 * 4096, "r-xp", 0, "/bin/x", np.array(["▒"] * 3 + ["·"] * 37))
    high = Area(0x100000, 0x104000, "rw-p", 0, "[stack]", np.array(["·", "s", "█", "█"]))
    assert resident(low) == (0, 3) and resident(high) == (2, 0)
    assert drawn([low, high], 0x200000) == [
        "from                  size what          in memory pages",
        "                  1008 KiB gap",
        "000000100000 rw-p   16 KiB [stack]             2/4 ·s██",
        "                   860 KiB gap",
        "000000001000 r-xp  160 KiB x                  3/40 ▒········· ×4",
        "                     4 KiB gap down to 0",
        "█ the task's own   ▒ of a file, shared   · not in memory   s swapped",
    ]


def test_areas_of_a_task(machine):
    machine.create_file("/mnt/m", "16KiB")
    task = machine.task()
    area = task.mmap("16KiB").touch(stride=8192)
    file = task.mmap("16KiB", prot=1, flags=2, file=task.open("/mnt/m")).touch(write=False)
    found = {a.start: a for a in areas(machine, task.pid)}
    assert "".join(found[area.addr].kinds) == "█·█·" and "".join(found[file.addr].kinds) == "▒▒▒▒"
    assert found[file.addr].name == "/mnt/m" and drawn(list(found.values()))
    task.exit()

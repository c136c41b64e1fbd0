"""The map of pageblocks: signs, sums against the audit, what is printed."""

import io

from rich.console import Console

from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mmzone import MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE
from numaemu.kernel.mm.page_alloc.report.pageblocks import pageblocks
from numaemu.tools.blockmap import FREE, MAX_ROWS, block_map, legend, merged, side_by_side, sign


def printed(renderable, width=80):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


def test_signs():
    def shape(kind, used):
        return sign([kind], 512 - used, 512)[0]

    assert [shape(MIGRATE_MOVABLE, used) for used in (0, 1, 127, 128, 256, 384, 512)] == list("·░░▒▓██")
    assert [shape(MIGRATE_UNMOVABLE, used) for used in (0, 1, 255, 256)] == list("·uuU")
    assert [shape(MIGRATE_RECLAIMABLE, used) for used in (1, 256)] == list("rR")
    assert sign([MIGRATE_MOVABLE, MIGRATE_UNMOVABLE], 512, 1024)[0] == "U"


def test_pages_are_counted_where_they_lie(two_nodes):
    """Free, movable and other pages of all blocks are those of the zones; the kernel's are in blocks of their own."""
    task = two_nodes.task()
    task.mmap("3MiB").touch()
    task.kernel.alloc_pages(GFP_KERNEL, 3)
    two_nodes.audit()
    counted = two_nodes.audit()
    for zone in pageblocks(two_nodes.machine):
        figures = counted[f"node{zone['node']}/{zone['zone']}"]
        assert sum(zone["free"]) == figures["free"] + figures["pcp"]
        assert sum(zone["movable"]) <= figures["used"]
    movable = sum(sum(zone["movable"]) for zone in pageblocks(two_nodes.machine))
    assert movable == two_nodes.vmstat()["nr_inactive_anon"] + two_nodes.vmstat()["nr_active_anon"] >= 768


def test_map(machine):
    zones = machine.pageblocks()
    text = printed(block_map(zones))
    assert text.count("pageblocks free") == len(zones) and FREE * 10 in text and "2 MiB each" in text
    both = printed(side_by_side({"before": zones, "after": zones}))
    assert "before" in both and "after" in both and "→" in both
    assert max(map(len, both.splitlines())) <= 80


def test_large_zones_share_signs():
    zone = {
        "node": 3,
        "zone": "Normal",
        "first": 8192,
        "types": [MIGRATE_MOVABLE] * 4000,
        "free": [512] * 3999 + [0],
        "movable": [0] * 4000,
    }
    step = merged(zone, 64)
    text = printed(block_map([zone]), 90)
    assert step == 4 and len(text.splitlines()) <= MAX_ROWS + 4
    assert (
        "16.0 GiB" in text and "each sign 8 MiB" in text and text.count("▒") == 2
    )  # one block of four, and the legend


def test_legend_names_what_occurs():
    assert "reclaimable" in printed(legend([0, 2])) and "reclaimable" not in printed(legend([]))

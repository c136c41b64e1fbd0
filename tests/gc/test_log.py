"""Lines of the log as HotSpot 21 prints them with -XX:+UseSerialGC -Xlog:gc,gc+age=trace."""

import pytest

from numaemu.gc.log import CAUSES, KINDS, Collection, collection
from numaemu.gc.records import FAILURE, YOUNG


def test_a_young_collection_reads_as_hotspot_writes_it():
    words = [FAILURE, YOUNG, 51 << 20, 3 << 20, 247 << 20, 36_000_000, 2_345_678, 900, 100, 15, 2959976, 0, 4136, 0]
    assert collection(0, words).lines(details=True) == [
        "[0.038s][trace][gc,age] GC(0) Age table with threshold 15 (max threshold 15)",
        "[0.038s][trace][gc,age] GC(0) - age   1:    2959976 bytes,    2959976 total",
        "[0.038s][trace][gc,age] GC(0) - age   3:       4136 bytes,    2964112 total",
        "[0.038s][debug][gc,promotion] GC(0) Promoted 100 bytes",
        "[0.038s][info][gc] GC(0) Pause Young (Allocation Failure) 51M->3072K(247M) 2.346ms",
    ]


@pytest.mark.parametrize("cause", CAUSES.values())
def test_a_full_collection_has_one_line(cause):
    full = Collection(7, KINDS[0], cause, 19 << 20, 0, 38 << 20, 10**9, 9_188_000, 0, 0, 0, ())
    assert full.lines(details=True) == [f"[1.009s][info][gc] GC(7) Pause Full ({cause}) 19M->0K(38M) 9.188ms"]

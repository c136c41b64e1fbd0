"""Traces of three kinds, and lines that are none."""

import pytest

from numaemu.errors import ConfigError
from numaemu.malloc.trace import read_trace

REP = "20000\n2\n5\n1\na 0 100\na 1 50\nr 0 200\nf 1\nf 0\n"
MTRACE = """= Start
@ ./prog:(main+0x1d)[0x401156] + 0x1cf9260 0x64
@ ./prog:(main+0x2d)[0x401166] + 0x1cf92d0 0x32
@ ./prog:[0x401176] < 0x1cf9260
@ ./prog:[0x401176] > 0x1cf9310 0xc8
@ ./prog:[0x401186] - 0x1cf92d0
@ ./prog:[0x401196] - 0x1cf9310
@ ./prog:[0x401196] - 0x9999999
= End
"""
LTRACE = """__libc_start_main(0x401136, 1, 0x7ffd, 0x4011b0 <unfinished ...>
malloc(100)                                   = 0x1cf9260
calloc(5, 10)                                 = 0x1cf92d0
realloc(0x1cf9260, 200)                       = 0x1cf9310
[pid 12] free(0x1cf92d0)                      = <void>
free(0)                                       = <void>
malloc(70 <unfinished ...>
free(0x1cf9310)                               = <void>
+++ exited (status 0) +++
"""


@pytest.mark.parametrize(("text", "skipped"), [(REP, 0), (MTRACE, 3), (LTRACE, 3)], ids=["rep", "mtrace", "ltrace"])
def test_three_kinds_of_text_say_the_same(tmp_path, text, skipped):
    path = tmp_path / "trace"
    path.write_text(text)
    trace = read_trace(str(path))
    assert trace.requests.tolist() == [[0, 0, 100], [0, 1, 50], [1, 0, 200], [2, 1, 0], [2, 0, 0]]
    assert (trace.blocks, trace.peak_payload, trace.skipped) == (2, 250, skipped)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "trace trace: there is no request in it"),
        (REP.replace("f 1", "x 1"), "trace trace, line 8: 'x 1' is no request"),
        (REP.replace("a 1 50\n", ""), "trace trace: 4 requests, must be 5 as its header says"),
        (REP.replace("f 1", "f 0"), "trace trace, request 4: block 0 is not there"),
        (REP.replace("a 1", "a 7"), "trace trace, request 1: block 7 of 2 cannot be"),
    ],
)
def test_what_is_no_trace_is_told(tmp_path, text, message):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_trace(str(path))
    assert str(raised.value).startswith(message)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match="trace nowhere.rep: no such file"):
        read_trace("nowhere.rep")

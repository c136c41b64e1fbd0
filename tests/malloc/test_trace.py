"""Traces of three kinds, and lines that are none."""

import os
import threading

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


# ltrace -f -S -tt -T: calls that something else cuts in two, threads whose lines mix, names with their library
LTRACE_CUT = """7 1510622447.18 malloc(100 <unfinished ...>
7 1510622447.19 brk@SYS(nil)                            = 0xec59000 <0.000040>
8 1510622447.19 calloc@libc.so.6(5, 10 <unfinished ...>
8 1510622447.20 _int_malloc@libc.so.6(0x7fb8941ebc40, 552, 0, 0x1132010) = 0x1132260
7 1510622447.20 <... malloc resumed> )                  = 0x1cf9260 <0.000432>
8 1510622447.21 <... calloc resumed> )                  = 0x1cf92d0
7 1510622447.22 realloc(0x1cf9260, 200 <unfinished ...>
8 1510622447.23 free(0x1234 <unfinished ...>
7 1510622447.24 <... realloc resumed> )                 = 0x1cf9310
8 1510622447.25 <... free resumed> )                    = <void>
8 1510622447.26 free(0x1cf92d0 <unfinished ...>
7 1510622447.27 prog->free(0x1cf9310)                   = <void>
8 1510622447.28 <... free resumed> )                    = <void>
"""
PLAIN_MTRACE = """= Start
+ 0x1cf9260 0x64
@ ./prog:(main+0x2d)[0x401166] + 0x1cf92d0 0x32
@ /lib/libc.so.6:(getdelim+0x8c)[0x7f0b] ! 0x1cf9260 0x9999
< 0x1cf9260
> 0x1cf9310 0xc8
- 0x1cf92d0
@ ./prog:[0x401196] + (nil) 0x64
- 0x1cf9310
"""


@pytest.mark.parametrize(
    ("text", "skipped"),
    [(REP, 0), (MTRACE, 3), (LTRACE, 3), (LTRACE_CUT, 8), (PLAIN_MTRACE, 3), (REP.replace("\n", "\r\n"), 0)],
    ids=["rep", "mtrace", "ltrace", "ltrace-cut", "mtrace-plain", "rep-crlf"],
)
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
        (REP.replace("a 1", "a 7"), "trace trace, line 6: block 7 of 2 cannot be"),
        (REP.replace("a 1 50", "a 1 ٣"), "trace trace, line 6: '٣' is no number of a request"),
        (REP.replace("a 1 50", "a 1 " + "9" * 5000), "trace trace, line 6: '999"),
        ("9" * 5000 + "\n2\n5\n1\na 0 1\n", "trace trace, line 1: '999"),
        ("20000\n0\n0\n1\n", "trace trace: there is no request in it"),
        ("malloc(-5) = 0x55\n", "trace trace, request 0: 18446744073709551611 bytes cannot be"),
        ("calloc(1000000000000, 1000000000000) = 0x55\n", "trace trace, request 0: 10000000000000"),
        ("\0\x01\x02malloc(", "trace trace: there is no request in it"),
    ],
)
def test_what_is_no_trace_is_told(tmp_path, text, message):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_trace(str(path))
    assert str(raised.value).startswith(message)


def test_blocks_take_the_numbers_that_are_used(tmp_path):
    """A header may speak of more blocks than there are: nothing is made for them."""
    path = tmp_path / "trace"
    path.write_text("20000\n99999999999999\n3\n1\na 99999999999 5\na 7 6\nf 99999999999\n")
    trace = read_trace(str(path))
    assert (trace.requests.tolist(), trace.blocks, trace.peak_payload) == ([[0, 0, 5], [0, 1, 6], [2, 0, 0]], 2, 11)


def test_a_trace_may_come_through_a_pipe(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(REP,))
    writer.start()
    assert read_trace(str(path)).blocks == 2
    writer.join()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=f"trace {tmp_path}: is a directory"):
        read_trace(str(tmp_path))
    with pytest.raises(ConfigError, match="trace nowhere.rep: no such file"):
        read_trace("nowhere.rep")

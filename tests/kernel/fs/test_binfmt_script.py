"""The first line of scripts, as Linux reads it."""

import errno

import pytest

from numaemu.kernel.fs.binfmt_script import is_script, load_script


@pytest.mark.parametrize(("head", "answer"), [
    (b"#!/bin/sh\n", (b"/bin/sh", None)),
    (b"#! \t/bin/sh \t\necho", (b"/bin/sh", None)),
    (b"#!/usr/bin/env  python3 -u \n", (b"/usr/bin/env", b"python3 -u")),
    (b"#!/bin/sh", (b"/bin/sh", None)),
    (b"#!/bin/sh -e", (b"/bin/sh", b"-e")),
    (b"#!/bin/sh\0-e\n", (b"/bin/sh", None)),
    (b"#!/bin/sh -e\0x\n", (b"/bin/sh", b"-e")),
    (b"#!/bin/sh " + b"x" * 300, (b"/bin/sh", b"x" * (255 - 10))),
])  # fmt: skip
def test_an_interpreter_and_one_argument(head, answer):
    assert is_script(head) and load_script("/s", head) == answer


@pytest.mark.parametrize(("head", "why"), [
    (b"#!\n/bin/sh", "names no interpreter"), (b"#!  \t \n", "names no interpreter"),
    (b"#!" + b" " * 300, "has no end"), (b"#!/" + b"x" * 300 + b"\n", "has no end")])  # fmt: skip
def test_no_interpreter(head, why):
    with pytest.raises(OSError, match=why) as error:
        load_script("/s", head)
    assert error.value.errno == errno.ENOEXEC


def test_what_is_no_script():
    assert not is_script(b"\x7fELF") and not is_script(b"") and not is_script(b"#")

"""The compile cache: a change of any file that compiled code comes from is noticed, no change is a hit."""

import os
import pickle
import re
import subprocess
import sys

import pytest
from floors import copy_floors

from numaemu.compiler.build import JIT, PACKAGE

USER = """
import sys
import numba
from numaemu.spec.param import PAGE_SHIFT
from numaemu.hardware.tlb_sets import set_index
import numpy as np

@numba.njit(cache=True)
def user(page):
    return set_index(np.uint64(page), np.uint64(5), np.uint64(0))

print(user(13), sum(user.stats.cache_hits.values()))
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the ground floor and a user's file beside it."""
    copy_floors(tmp_path / "numaemu", "compiler", "host", "hardware", "spec", "errors.py", "mmu.py")
    (tmp_path / "numaemu" / "coordinator.py").write_text("import numaemu.mmu\n")  # all that an image holds here
    (tmp_path / "user.py").write_text(USER)
    return tmp_path


def run(where, **environment):
    """(answer, cache hits) of the user kernel in a fresh process."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "NUMAEMU_"))}
    done = subprocess.run(
        [sys.executable, "user.py"],
        cwd=where,
        capture_output=True,
        text=True,
        env={**keep, "PYTHONPATH": str(where), **environment},
    )
    assert done.returncode == 0, done.stderr
    answer, hits = done.stdout.split()
    return int(answer), int(hits)


@pytest.mark.skipif(not JIT, reason="there is no cache without compiled code")
def test_a_change_in_a_callees_file_is_noticed(package):
    """user() -> set_index() in tlb_sets.py: page 13 of 5 sets is set 3; the changed callee adds 100."""
    assert run(package) == (3, 0)
    assert run(package) == (3, 1)  # nothing changed: loaded
    callees = package / "numaemu" / "hardware" / "tlb_sets.py"
    text = callees.read_text()
    changed = text.replace("else np.int64(page_number % sets)", "else np.int64(page_number % sets) + 100")
    assert changed != text
    callees.write_text(changed)
    assert run(package) == (103, 0)
    assert run(package) == (103, 1)
    (package / "numaemu" / "cli.py").write_text("import numaemu.mmu  # above the compiled floors\n")
    assert run(package) == (103, 1)
    (package / "numaemu" / "kernel.py").write_text("@kernel()\n")
    assert run(package) == (103, 0)


@pytest.mark.skipif(not JIT, reason="there is no cache without compiled code")
def test_the_debug_build_keeps_a_cache_of_its_own(package):
    assert run(package) == (3, 0)
    assert run(package, NUMAEMU_DEBUG="1") == (3, 0)
    assert run(package) == run(package, NUMAEMU_DEBUG="1") == (3, 1)


@pytest.mark.skipif(not JIT, reason="there is no cache without compiled code")
def test_a_cache_that_names_what_is_gone_holds_nothing(package):
    """As one of an older version of the package, whose structs had other names or places."""
    assert run(package) == (3, 0)
    (index,) = package.rglob("user.user-*.nbi")
    with open(index, "rb") as file:
        version = pickle.load(file)
    for gone in (b"cnumaemu.compiler.pointer\n_gone\n.", b"cnumaemu.compiler.gone\nname\n."):
        index.write_bytes(pickle.dumps(version) + gone)
        assert run(package) == (3, 0)
    assert run(package) == (3, 1)


def test_in_each_file_what_is_called_is_declared_before():
    """Functions are linked as they are declared, callees first: an image that holds a caller would not find the symbol."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for match in re.finditer(r"^@(?:kernel|callback)\(.*\)\ndef (\w+)\(", text, re.M):
            assert not re.search(rf"(?<![.\w])(?<!def ){match[1]}\(", text[: match.start()]), (
                f"{match[1]} in {path.name} is called above"
            )


def test_a_driver_loads_no_compiler():
    """It starts half a second sooner: what is compiled runs in other processes."""
    program = "import sys, numaemu.tools.cli, numaemu.machine; print([m for m in sys.modules if m.startswith(('numba', 'llvmlite'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.stdout, done.stderr) == ("[]\n", "")

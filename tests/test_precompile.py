"""Sharing out the first compilation: progress, the marker of a complete cache, and processes that fail."""
import subprocess
import sys

import pytest

from numaemu import precompile
from numaemu.build import JIT

pytestmark = pytest.mark.skipif(not JIT, reason="nothing is compiled")


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """precompile with a marker of its own and workers that run a line of Python; what was started, by share."""
    started = []

    def start(code):
        def compile_share(i, n):
            started.append((i, n))
            return subprocess.Popen([sys.executable, "-c", code.format(i=i)], stdout=subprocess.PIPE, text=True)
        monkeypatch.setattr(precompile, "compile_share", compile_share)
        return started
    monkeypatch.setattr(precompile, "marker", lambda: tmp_path / "cache" / "stamp.compiled")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.delenv("NUMAEMU_COMPILE_SHARE", raising=False)
    return start


def test_every_share_is_compiled_once_and_never_again(workers):
    started, told = workers("print('one'); print('two')"), []
    precompile.precompile(told.append)
    assert started == [(0, 3), (1, 3), (2, 3)] and told == ["one", "two"] and precompile.marker().exists()
    precompile.precompile(told.append)
    assert len(started) == 3 and len(told) == 2


def test_a_process_that_fails_leaves_the_cache_incomplete(workers):
    started = workers("import sys; sys.exit({i})")
    precompile.precompile(lambda _: None)
    assert len(started) == 3 and not precompile.marker().exists()


def test_who_compiles_a_share_starts_nobody(workers, monkeypatch):
    started = workers("")
    monkeypatch.setenv("NUMAEMU_COMPILE_SHARE", "0/2")
    precompile.precompile(lambda _: None)
    assert not started


def test_nothing_is_kept_running_when_the_driver_goes(workers):
    workers("import time; print('begun', flush=True); time.sleep(600)")

    def gone(_):
        raise SystemExit(0)
    with pytest.raises(SystemExit):
        precompile.precompile(gone)          # returns at once, its workers waited for
    assert not precompile.marker().exists()

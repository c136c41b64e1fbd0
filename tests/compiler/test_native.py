"""Raw host memory from compiled code."""

import numba
import numpy as np
import pytest

from numaemu.compiler.native import copy_page

PAGE = 4096


@numba.njit
def copy(target, source):
    copy_page(target, source)


@pytest.mark.interpreted
def test_a_page_is_copied_and_nothing_beside_it():
    source = np.frombuffer(np.random.default_rng(5).bytes(3 * PAGE), np.uint8)
    target = np.full(3 * PAGE, 7, np.uint8)
    copy(np.uint64(target.ctypes.data + PAGE), np.uint64(source.ctypes.data + PAGE))
    assert (target[PAGE : 2 * PAGE] == source[PAGE : 2 * PAGE]).all()
    assert (target[:PAGE] == 7).all() and (target[2 * PAGE :] == 7).all()

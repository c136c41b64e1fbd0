"""A few seeds of random_programs.py, which compares what random programs read with byte arrays."""

import pytest
from random_programs import PAGINGS, run_alone, run_together, shape_of

from numaemu.compiler.build import JIT

pytestmark = [pytest.mark.concurrent, pytest.mark.skipif(not JIT, reason="fills machines")]


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_one_program_reads_what_it_wrote(seed):
    nbytes, steps = run_alone(seed, 120)
    assert nbytes > 0 and len(steps) > 20


@pytest.mark.parametrize("seed", [5, 6])
def test_programs_that_run_at_once_read_what_they_wrote(seed):
    nbytes, steps = run_together(seed, steps=60, worlds=3)
    assert nbytes > 0 and len(steps) > 15


def test_the_seeds_cover_every_format_of_page_tables_and_ids():
    shapes = [shape_of(seed)[0] for seed in range(40)]
    assert {shape["paging"] for shape in shapes} == set(PAGINGS)
    assert {shape["asids"] for shape in shapes} == {0, 1, 2, 6}

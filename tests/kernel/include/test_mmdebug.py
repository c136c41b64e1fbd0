"""VM_BUG_ON: silent in the release build, loud in the debug build, with the JIT on and off."""

import sys

import pytest

from numaemu.compiler.build import DEBUG
from numaemu.kernel.include.gfp import GFP_KERNEL
from numaemu.kernel.include.mmdebug import VM_BUG_ON, VM_BUG_ON_PAGE
from numaemu.kernel.mm.fault.rmap import folio_remove_rmap
from numaemu.kernel.mm.migrate.migrate import putback_page
from numaemu.kernel.mm.page_alloc.node_side import alloc_block, free_block
from numaemu.kernel.mm.page_alloc.page_alloc import free_unref_page, put_page

pytestmark = pytest.mark.interpreted


def raised(function, *args):
    """The exceptions of a kernel: it cannot raise when compiled, what is left is told to sys.unraisablehook."""
    found, hook = [], sys.unraisablehook
    sys.unraisablehook = lambda unraisable: found.append(unraisable.exc_value)
    try:
        function(*args)
    except AssertionError as error:
        found.append(error)
    finally:
        sys.unraisablehook = hook
    return found


def test_it_raises_in_the_debug_build_only(two_nodes):
    page = two_nodes.page(100)
    page.refcount = 3
    assert [type(e) for e in raised(VM_BUG_ON, True)] == [AssertionError] * DEBUG
    assert raised(VM_BUG_ON, False) == raised(VM_BUG_ON_PAGE, False, page) == []
    if DEBUG:
        assert [int(word) for word in raised(VM_BUG_ON_PAGE, True, page)[0].args[1:]] == [0, 3, 0]


@pytest.mark.skipif(not DEBUG, reason="the debug build's")
def test_wrong_use_of_pages_is_caught(two_nodes):
    """Freed with a reference, freed twice, put too often, unmapped too often, unlocked though not locked."""
    loop, cpu, kernel = two_nodes, two_nodes.cpu(), two_nodes.task().kernel
    pfn = kernel.alloc_pages(GFP_KERNEL)
    assert raised(free_unref_page, cpu, pfn)
    pfn = kernel.alloc_pages(GFP_KERNEL)
    put_page(cpu, pfn)
    assert raised(put_page, cpu, pfn)
    loop.page(pfn).refcount = 0
    pfn = kernel.alloc_pages(GFP_KERNEL)
    assert raised(folio_remove_rmap, loop.machine, cpu, pfn)
    pfn = kernel.alloc_pages(GFP_KERNEL)
    assert raised(putback_page, cpu, pfn, False)
    block = alloc_block(loop.machine, loop.zones()[0].number, 3, 0, 0)
    free_block(loop.machine, block, 3)
    assert raised(free_block, loop.machine, block, 3)

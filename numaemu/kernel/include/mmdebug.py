"""Assertions of the debug build (NUMAEMU_DEBUG=1): Linux's include/linux/mmdebug.h. Elsewhere they cost nothing.

A condition reads plain words only: an atomic load in it would stay in the release build.
"""

from numaemu.compiler.build import DEBUG
from numaemu.compiler.decorators import hot

if DEBUG:

    @hot
    def VM_BUG_ON(condition):
        """Raise if something is true that must not be."""
        if condition:
            raise AssertionError("VM_BUG_ON")

    @hot
    def VM_BUG_ON_PAGE(condition, page):
        """The same, about a page: its flags, refcount and mapcount are told."""
        if condition:
            raise AssertionError("VM_BUG_ON_PAGE: flags, refcount, mapcount", page.flags, page.refcount, page.mapcount)
else:

    @hot
    def VM_BUG_ON(condition):
        """Nothing, in this build."""

    @hot
    def VM_BUG_ON_PAGE(condition, page):
        """Nothing, in this build."""

"""Counts of references that only a holder may raise: Linux's include/linux/refcount.h."""

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.decorators import hot


@hot
def refcount_inc_not_zero(words):
    """Count one reference more in words[0], unless the last one is gone: success."""
    while True:
        seen = load_acquire(words, 0)
        if seen <= 0:
            return False
        if compare_exchange(words, 0, seen, seen + 1) == seen:
            return True

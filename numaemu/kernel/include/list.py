"""Doubly linked lists of numbered structs: Linux's include/linux/list.h.

An entry (a page, a slot of swap) has `lru_prev` and `lru_next`, numbers in the array `entries`; 0 ends a list. The list itself is the
numbers of its first and last entry, which stand where their owner has them: each function takes and answers both.
"""

from numaemu.compiler.decorators import hot


@hot
def list_add(entries, number, first, last):
    """Link an entry in front of a list; the list's (first, last) then."""
    entry = entries[number]
    entry.lru_prev, entry.lru_next = 0, first
    if first == 0:
        return number, number
    entries[first].lru_prev = number
    return number, last


@hot
def list_add_tail(entries, number, first, last):
    """Link an entry behind a list; the list's (first, last) then."""
    entry = entries[number]
    entry.lru_prev, entry.lru_next = last, 0
    if last == 0:
        return number, number
    entries[last].lru_next = number
    return first, number


@hot
def list_del(entries, number, first, last):
    """Unlink an entry, whose own links stay as they are; the list's (first, last) then."""
    entry = entries[number]
    before, after = entry.lru_prev, entry.lru_next
    if before != 0:
        entries[before].lru_next = after
    else:
        first = after
    if after != 0:
        entries[after].lru_prev = before
    else:
        last = before
    return first, last

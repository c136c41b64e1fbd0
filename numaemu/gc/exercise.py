"""Random work on a graph of objects with a model of it beside, in the host's memory: what tests and measurements let a mutator do."""

import numpy as np

from numaemu.compiler.library import library
from numaemu.gc.calls import (
    get_ref,
    get_root,
    get_value,
    new,
    poll,
    pop_frame,
    push_frame,
    set_ref,
    set_root,
    set_value,
)

REFS, ID = 3, 3  # each object has three references, then its number, then up to WORDS values that repeat it
WORDS = 12
NOTHING, NO_MEMORY = -1, -2


@library
def next_random(state):
    """Another number of 31 bits (a linear congruential generator)."""
    return (state * 1103515245 + 12345) & 0x7FFFFFFF


@library
def is_right(cpu, mutator, thing, number):
    """True if an object is the one of a number: its values say so."""
    words = number % WORDS + 1
    for i in range(words):
        if get_value(cpu, mutator, thing, ID + i) != number:
            return False
    return True


@library
def make(cpu, mutator, number):
    """A new object that says its number; 0: no memory."""
    words = number % WORDS + 1
    thing = new(cpu, mutator, number & 255, REFS, words)
    if thing != 0:
        for i in range(words):
            set_value(cpu, mutator, thing, ID + i, number)
    return thing


@library
def follow(cpu, mutator, thing, number, links, steps, state):
    """Walk along random references from an object of a number; NOTHING if model and graph agree, else the number where they do not."""
    for _ in range(steps):
        if not is_right(cpu, mutator, thing, number):
            return number
        state = next_random(state)
        i = (state >> 16) % REFS
        thing, expected = get_ref(cpu, mutator, thing, i), links[number, i]
        if (thing == 0) != (expected == NOTHING):
            return number
        if thing == 0:
            return NOTHING
        number = expected
    return NOTHING


@library
def churn(cpu, mutator, steps, roots, seed):
    """`steps` random operations with so many roots: NOTHING, NO_MEMORY, or the number of the first object that is wrong."""
    links, held = np.full((steps, REFS), NOTHING, np.int64), np.full(roots, NOTHING, np.int64)
    state, wrong = seed, NOTHING
    if push_frame(cpu, mutator, roots) == 0:
        return NO_MEMORY
    for step in range(steps):
        state = next_random(state)
        what, at = state >> 8 & 15, (state >> 12) % roots
        state = next_random(state)
        other, i = (state >> 12) % roots, (state >> 8) % REFS
        if what < 6:
            thing = make(cpu, mutator, step)
            if thing == 0:
                wrong = NO_MEMORY
                break
            if what < 3 and held[at] != NOTHING:  # it leads to what was held, so that lists grow
                set_ref(cpu, mutator, thing, i, get_root(cpu, mutator, at))
                links[step, i] = held[at]
            set_root(cpu, mutator, at, thing)
            held[at] = step
        elif what < 10 and held[at] != NOTHING:
            set_ref(cpu, mutator, get_root(cpu, mutator, at), i, get_root(cpu, mutator, other))
            links[held[at], i] = held[other]
        elif what < 12:
            set_root(cpu, mutator, at, 0)
            held[at] = NOTHING
        elif held[at] != NOTHING:
            wrong = follow(cpu, mutator, get_root(cpu, mutator, at), held[at], links, 8, state)
            if wrong != NOTHING:
                break
        poll(cpu, mutator)
    pop_frame(cpu, mutator, roots)
    return wrong


@library
def make_tree(cpu, mutator, depth):
    """A binary tree of so many levels below its root, made from the top down as GCBench's Populate does; in root 0. False: no memory.

    Each level is a list through reference 2 while it is made: root 1 the level that is made, root 2 the one above.
    """
    thing = new(cpu, mutator, 1, REFS, 1)
    if thing == 0 or push_frame(cpu, mutator, 2) == 0:
        return False
    set_root(cpu, mutator, 2, thing)  # the caller's root 0
    set_root(cpu, mutator, 1, thing)
    for _ in range(depth):
        set_root(cpu, mutator, 0, 0)
        while get_root(cpu, mutator, 1) != 0:
            for side in range(2):
                child = new(cpu, mutator, 1, REFS, 1)
                if child == 0:
                    return False
                set_ref(cpu, mutator, get_root(cpu, mutator, 1), side, child)
                set_ref(cpu, mutator, child, 2, get_root(cpu, mutator, 0))
                set_root(cpu, mutator, 0, child)
            parent = get_root(cpu, mutator, 1)  # its own parent, or root 0 of the caller, holds it, too
            set_root(cpu, mutator, 1, get_ref(cpu, mutator, parent, 2))
            set_ref(cpu, mutator, parent, 2, 0)
        set_root(cpu, mutator, 1, get_root(cpu, mutator, 0))
    while get_root(cpu, mutator, 1) != 0:
        parent = get_root(cpu, mutator, 1)
        set_root(cpu, mutator, 1, get_ref(cpu, mutator, parent, 2))
        set_ref(cpu, mutator, parent, 2, 0)
    pop_frame(cpu, mutator, 2)
    return True


@library
def make_trees(cpu, mutator, depth, trees):
    """Make trees and drop each at once; how many could be made."""
    for i in range(trees):
        push_frame(cpu, mutator, 1)
        if not make_tree(cpu, mutator, depth):
            return i
        pop_frame(cpu, mutator, 1)
    return trees

"""Locks in user mode, in a word of a task's memory: 0, or the key of the thread that has it.

A thread that waits looks without storing until the word changes, and yields from time to time. A fault in the middle of a call, in a heap
that something has overwritten, leaves the lock to its owner: the same thread goes on with it, and others take it once the owner has ended.
"""

from numaemu.api.access import cmpxchg_i64, get, put
from numaemu.compiler.library import library
from numaemu.kernel.syscalls.user import relax, thread_key, thread_lives

LOOKS = 100  # at a lock, before a thread asks whether the owner still lives


@library
def take_now(cpu, word):
    """Take a lock that is free, or this thread's own. False: another thread has it."""
    me = thread_key(cpu)
    owner = cmpxchg_i64(cpu, word, 0, me)
    return owner == 0 or owner == me


@library
def look(cpu, word, tries):
    """Another look at a lock of another thread: the owner, or 0: it is free, or its owner has ended and this one has freed it."""
    relax(cpu, tries)
    owner = get(cpu, word)
    if owner != 0 and tries % LOOKS == LOOKS - 1 and not thread_lives(cpu, owner):
        cmpxchg_i64(cpu, word, owner, 0)
        return 0
    return owner


@library
def take(cpu, word):
    """Take a lock, when it is free."""
    tries = 0
    while not take_now(cpu, word):
        while look(cpu, word, tries) != 0:
            tries += 1


@library
def give(cpu, word):
    """Let others have it."""
    put(cpu, word, 0)

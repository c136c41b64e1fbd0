"""PID 1 of a recorded machine, whose descendants all tasks are: a small static program with a heap, a stack and a shared log.

That decides where mmap finds room, and what a fork costs.
"""

import numpy as np

from numaemu import uapi
from numaemu.conform.files import PAGE, write_pages

# PID 1: (address, pages, shared, pages written from the start on)
IMAGE = (
    (0x4C5000, 7, False, 5),  # data
    (0x4CC000, 58, False, 58),  # heap
    (0x7FFFF78D0000, 0x729, True, 16),  # log buffer; new mappings go below it
    (0x7FFFF7FF9000, 4, True, 1),  # vvar
    (0x7FFFF7FFD000, 2, False, 0),  # vdso
)
HEAP, HEAP_PAGES, LOG = 0x4CC000, 58, 0x7FFFF78D0000
STACK, STACK_PAGES = 0x7FFFFFFDE000, 33
CHILD_WRITES, PARENT_WRITES = 4, 3  # pages of the stack written soon after a fork, by each side; measured


def boot_init(machine):
    """PID 1, on CPU 0. Its heap is where brk has put it."""
    init = machine.task(cpu=0, name="init")
    for address, pages, shared, written in IMAGE:
        flags = uapi.MAP_ANONYMOUS | uapi.MAP_FIXED | (uapi.MAP_SHARED if shared else uapi.MAP_PRIVATE)
        init.mmap(pages * PAGE, flags=flags, addr=address)
        write_pages(init, address, written)
    for option, address in ((uapi.PR_SET_MM_START_BRK, HEAP), (uapi.PR_SET_MM_BRK, HEAP + HEAP_PAGES * PAGE)):
        init.prctl(uapi.PR_SET_MM, option, address)
    write_pages(init, STACK, STACK_PAGES)
    return init


def use_stack(task):
    """What a running program does all the time: it uses the top of its stack, its heap and its data."""
    task.store([STACK + (STACK_PAGES - 1) * PAGE, HEAP, IMAGE[0][0]], np.zeros(1, np.uint8))


def fork(parent, cpu):
    """A child on a CPU; both sides go on and copy what they write of stack and heap, the child reads the log."""
    child = parent.fork(cpu=cpu)
    top = STACK + STACK_PAGES * PAGE
    for task, pages in ((child, CHILD_WRITES), (parent, PARENT_WRITES)):
        write_pages(task, top - pages * PAGE, pages)
        write_pages(task, HEAP, 1)
    child.load([LOG, IMAGE[3][0]], np.uint8)
    return child

"""Random numbers of the kernel: Linux's drivers/char/random.c, with a generator that repeats itself.

Draws come from the machine's seed (`random_seed` in the machine file's [kernel]), in the order in which they are asked for.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add
from numaemu.compiler.decorators import kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.fs.disk import pattern_word
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64


@kernel("u64(cpu_t*)")
def get_random_u64(cpu):
    """The next word of the seed's pattern."""
    machine = machine_of(cpu)
    return pattern_word(machine.random_seed, fetch_add(machine, "random_drawn", 1))


@kernel("u64(cpu_t*, u64, u64)")
def randomize_page(cpu, start, nbytes):
    """A random page of the `nbytes` from `start` on; `start` and `nbytes` are whole pages."""
    return start + (get_random_u64(cpu) % (nbytes >> U(PAGE_SHIFT)) << U(PAGE_SHIFT)) if nbytes != U(0) else start

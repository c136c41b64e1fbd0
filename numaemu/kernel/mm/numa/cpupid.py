"""Who used a page last, in its flags: folio_last_cpupid of Linux's include/linux/mm.h, with the widths of a kernel for 8192 CPUs.

    63 ........ 51  50 ...... 43  42 ... 0
    CPU             pid & 0xFF    flags            complemented, so that all bits are set (unset) in a page just allocated

Of a page in a slow memory tier the same 21 bits say when it was scanned, in ms (NUMA_BALANCING_MEMORY_TIERING).
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.decorators import hot

U = np.uint64
LAST_CPUPID_PGSHIFT = U(43)
LAST_CPUPID_MASK = (1 << 21) - 1
LAST__PID_SHIFT, LAST__PID_MASK, LAST__CPU_MASK = 8, 0xFF, 0x1FFF
PAGE_ACCESS_TIME_MASK = LAST_CPUPID_MASK
_OTHERS = (U(1) << LAST_CPUPID_PGSHIFT) - U(1)


@hot
def folio_last_cpupid(page):
    return np.int64((~load_acquire(page, "flags")) >> LAST_CPUPID_PGSHIFT)


@hot
def folio_xchg_last_cpupid(page, cpupid):
    """Note a cpupid; the one that was noted before."""
    while True:
        flags = load_acquire(page, "flags")
        wanted = (flags & _OTHERS) | (~U(cpupid) << LAST_CPUPID_PGSHIFT)
        if wanted == flags or compare_exchange(page, "flags", flags, wanted) == flags:
            return np.int64((~flags) >> LAST_CPUPID_PGSHIFT)


@hot
def folio_xchg_access_time(page, time_ms):
    """Note a time; the one that was noted before, both cut to 21 bits."""
    return folio_xchg_last_cpupid(page, time_ms & PAGE_ACCESS_TIME_MASK)


@hot
def cpu_pid_to_cpupid(cpu_number, pid):
    return ((cpu_number & LAST__CPU_MASK) << LAST__PID_SHIFT) | (pid & LAST__PID_MASK)


@hot
def cpupid_to_cpu(cpupid):
    return (cpupid >> LAST__PID_SHIFT) & LAST__CPU_MASK


@hot
def cpupid_pid_unset(cpupid):
    return cpupid & LAST__PID_MASK == LAST__PID_MASK


@hot
def cpupid_match_pid(pid, cpupid):
    """True if the task of this pid used the page last, as far as eight bits tell."""
    return pid & LAST__PID_MASK == cpupid & LAST__PID_MASK

"""Linux 6.12: hot is what is used soon after it was scanned, promoted at a limited rate (kernel/sched/fair.c:
should_numa_migrate_memory). Built into the kernel: kernel/mm/numa/promotion.py.
"""

from numaemu.kernel.mm.numa.tiering import LINUX

SAMPLES = LINUX

"""What the host has for a machine's memory: it is shared memory, so /dev/shm and the host's RAM both bound it."""

import os
import warnings

import psutil

from numaemu.errors import HostMemoryWarning
from numaemu.spec.units import GiB, MiB, format_size

SHM = "/dev/shm"
_told = []  # once in a process is enough


def free_bytes():
    """Bytes that machines may still touch on this host."""
    shm = os.statvfs(SHM)
    return min(psutil.virtual_memory().available, shm.f_bavail * shm.f_frsize)


def warn_if_larger(machine_bytes):
    """Say once if a machine has more memory than the host has free: it boots, as only what is touched takes any."""
    free = free_bytes()
    unit = GiB if free >= 10 * GiB else MiB
    if machine_bytes <= free or _told:
        return
    _told.append(machine_bytes)
    warnings.warn(
        f"the machine has {format_size(machine_bytes)} of memory, this host {format_size(free // unit * unit)} free for it "
        f"({SHM}): a machine that touches more than that ends",
        HostMemoryWarning,
        stacklevel=3,
    )

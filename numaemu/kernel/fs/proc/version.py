"""/proc/version, filesystems, mounts, and what /proc/sys/kernel says of the kernel itself.

Linux's fs/proc/version.c, fs/filesystems.c, fs/proc_namespace.c, kernel/{utsname_sysctl,sysctl}.c.
"""

import numaemu
from numaemu.spec.param import MAX_TASKS

OSRELEASE = "6.12.0-numaemu"  # the Linux that is imitated
PID_MAX = 4194304  # PID_MAX_LIMIT of a 64-bit kernel
FILESYSTEMS = (
    ("nodev", "sysfs"),
    ("nodev", "tmpfs"),
    ("nodev", "proc"),
    ("nodev", "cgroup2"),
    ("nodev", "debugfs"),
    ("nodev", "tracefs"),
    ("nodev", "hugetlbfs"),
    ("", "ext4"),
)
MOUNTS = (  # what is there in any machine; the disk's one file system keeps its blocks in buffer heads, as ext4 does
    ("/dev/vda", "/", "ext4", "rw,relatime"),
    ("proc", "/proc", "proc", "rw,nosuid,nodev,noexec,relatime"),
    ("sysfs", "/sys", "sysfs", "rw,nosuid,nodev,noexec,relatime"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", "rw,nosuid,nodev,noexec,relatime"),
    ("debugfs", "/sys/kernel/debug", "debugfs", "rw,nosuid,nodev,noexec,relatime"),
    ("tracefs", "/sys/kernel/tracing", "tracefs", "rw,nosuid,nodev,noexec,relatime"),
    ("tmpfs", "/dev/shm", "tmpfs", "rw,nosuid,nodev"),
)


def text(value):
    """A file that says always the same."""
    return lambda system: f"{value}\n"


def show_version(_system):
    """/proc/version, made as linux_proc_banner is"""
    return f"Linux version {OSRELEASE} (numaemu {numaemu.__version__}) #1 SMP\n"


def show_hostname(system):
    """The machine's name, as far as a host may be called so."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in system.topology.name)
    return name[:64] + "\n"


def show_filesystems(_system):
    return "".join(f"{nodev}\t{name}\n" for nodev, name in FILESYSTEMS)


def show_mounts(_system):
    return "".join(f"{device} {place} {kind} {options} 0 0\n" for device, place, kind, options in MOUNTS)


FILES = {
    "/proc/version": show_version,
    "/proc/filesystems": show_filesystems,
    "/proc/mounts": show_mounts,
    "/proc/cmdline": text(""),
    "/proc/sys/kernel/ostype": text("Linux"),
    "/proc/sys/kernel/osrelease": text(OSRELEASE),
    "/proc/sys/kernel/version": text("#1 SMP"),
    "/proc/sys/kernel/hostname": show_hostname,
    "/proc/sys/kernel/pid_max": text(PID_MAX),
    "/proc/sys/kernel/threads-max": text(MAX_TASKS),
}

"""The machine's disks as Linux's block/genhd.c shows them: /proc/partitions, /proc/diskstats, /sys/block.

vda is the disk with the files. A swap area on disk is a disk of its own, one on zram a device of compressed memory.
"""

import functools

from numaemu.hardware.processor import cpu_t
from numaemu.kernel.fs.disk import SECTOR_SHIFT
from numaemu.kernel.mm.swap.swapfile import SWAP_ZRAM
from numaemu.kernel.mm.swap.swapon import area_name, areas
from numaemu.spec.param import PAGE_SHIFT

VIRTBLK_MAJOR = 254  # the first of those that the kernel gives away, from 254 down
ZRAM_MAJOR = 252  # another of them; assumed
MINORS = 16  # of a disk: 1 << PART_BITS of virtio_blk
PAGE_SECTORS = 1 << PAGE_SHIFT - SECTOR_SHIFT
NS_PER_MS = 1_000_000
NO_MORE = (0,) * 6  # discards (4) and flushes (2)


class Disk:
    """A disk: its name and numbers, its size in sectors, and {"read": …, "write": …}, each (requests, sectors, ns)."""

    def __init__(self, name, major, minor, sectors, done):
        self.name, self.major, self.minor, self.sectors, self.done = name, major, minor, sectors, done

    def stats(self):
        """The seventeen figures of diskstats_show: nothing is merged, nothing is in flight between two operations."""
        words = []
        for requests, sectors, ns in self.done:
            words += [requests, 0, sectors, ns // NS_PER_MS]
        busy = sum(ns for _, _, ns in self.done) // NS_PER_MS
        return [*words, 0, busy, busy, *NO_MORE]


def file_disk(system):
    """vda, whose requests each context counts for itself."""
    machine, sums = system.machine, [[0, 0, 0], [0, 0, 0]]
    for number in range(machine.nr_cpu_ids):
        cpu = cpu_t.array(machine.cpus)[number]
        for kind in (0, 1):
            for i, field in enumerate((cpu.disk_ios, cpu.disk_sectors, cpu.disk_ns)):
                sums[kind][i] += int(field[kind])
    return Disk("vda", VIRTBLK_MAJOR, 0, system.topology.disk.size >> SECTOR_SHIFT, sums)


def swap_disk(system, info):
    """The disk of a swap area: each page is a request, which takes its bytes' time. Latencies are the machine's only."""
    name, pages = area_name(info).removeprefix("/dev/"), (int(info.nr_reads), int(info.nr_writes))
    done = [(n, n * PAGE_SECTORS, n * int(system.machine.disk_page_ns)) for n in pages]
    zram = info.kind == SWAP_ZRAM
    minor = int(name.removeprefix("zram") or 0) if zram and name.startswith("zram") else MINORS * (int(info.type) + 1)
    return Disk(
        name.replace("/", "!"), ZRAM_MAJOR if zram else VIRTBLK_MAJOR, minor, int(info.max) * PAGE_SECTORS, done
    )


def disks(system):
    return [file_disk(system), *(swap_disk(system, info) for info in areas(system.machine))]


def show_partitions(system):
    """show_partition"""
    rows = [f"{d.major:4d}  {d.minor:7d} {d.sectors >> 1:10d} {d.name}\n" for d in disks(system)]
    return "major minor  #blocks  name\n\n" + "".join(rows)


def show_diskstats(system):
    """diskstats_show"""
    return "".join(f"{d.major:4d} {d.minor:7d} {d.name} {' '.join(map(str, d.stats()))}\n" for d in disks(system))


FILES = {"/proc/partitions": show_partitions, "/proc/diskstats": show_diskstats}


# -- /sys/block ----------------------------------------------------------------------------------------------


def show_block_stat(_system, disk):
    return " ".join(f"{word:8d}" for word in disk.stats()) + "\n"


def disk_files(disk, rotates):
    """{name: (reader, None)} of a disk's directory."""
    texts = {
        "dev": f"{disk.major}:{disk.minor}\n",
        "size": f"{disk.sectors}\n",
        "ro": "0\n",
        "removable": "0\n",
        "queue/rotational": f"{int(rotates)}\n",
        "queue/logical_block_size": "512\n",
        "queue/physical_block_size": "512\n",
    }
    found = {name: (lambda system, text=text: text, None) for name, text in texts.items()}
    return found | {"stat": (functools.partial(show_block_stat, disk=disk), None)}


def files(system):
    """{path: (reader, None)} of /sys/block."""
    return {
        f"/sys/block/{disk.name}/{name}": file
        for disk in disks(system)
        for name, file in disk_files(disk, disk.major == VIRTBLK_MAJOR and system.topology.disk.rotational).items()
    }

"""The emulated /proc and /sys: which files there are, and reading, writing and listing them by path.

Each file's text is made by the module named after the part of Linux that makes it: proc_vmstat, proc_meminfo,
proc_task, node_sysfs, sysctl. A reader takes the System, a writer the System and the text. Some files have a word for each
frame or page: they are read by ranges (RANGES). Symbolic links are followed.
"""

import difflib
import errno
import functools
import os
import re

from numaemu.kernel.fs import genhd
from numaemu.kernel.fs.inode import I_LIVE, inode_name, inode_t
from numaemu.kernel.fs.proc import base as proc_base
from numaemu.kernel.fs.proc import cpuinfo as proc_cpuinfo
from numaemu.kernel.fs.proc import meminfo as proc_meminfo
from numaemu.kernel.fs.proc import page as proc_page
from numaemu.kernel.fs.proc import pressure as proc_pressure
from numaemu.kernel.fs.proc import slabinfo as proc_slabinfo
from numaemu.kernel.fs.proc import smaps as proc_smaps
from numaemu.kernel.fs.proc import stat as proc_stat
from numaemu.kernel.fs.proc import task as proc_task
from numaemu.kernel.fs.proc import version as proc_version
from numaemu.kernel.fs.proc import vmallocinfo as proc_vmallocinfo
from numaemu.kernel.fs.proc import vmstat as proc_vmstat
from numaemu.kernel.fs.sysfs import cgroup, page_idle, sysctl
from numaemu.kernel.fs.sysfs import cpu as cpu_sysfs
from numaemu.kernel.fs.sysfs import damon as damon_sysfs
from numaemu.kernel.fs.sysfs import huge as huge_sysfs
from numaemu.kernel.fs.sysfs import memory as memory_sysfs
from numaemu.kernel.fs.sysfs import node as node_sysfs
from numaemu.kernel.fs.sysfs import numa as numa_sysfs
from numaemu.kernel.fs.sysfs import thp as thp_sysfs
from numaemu.kernel.fs.sysfs import zswap as zswap_sysfs
from numaemu.kernel.fs.sysfs.sysctl import System  # noqa: F401  (what read, write and listdir take)
from numaemu.kernel.fs.tracefs import files as tracefs
from numaemu.kernel.include.mm_types import mapping_t, pool_t
from numaemu.kernel.include.mmzone import ZONE_NAMES
from numaemu.kernel.mm.swap import swapon
from numaemu.spec.param import PAGE_SHIFT

FIXED = {
    path: (read, None)
    for module in (
        proc_vmstat,
        proc_meminfo,
        proc_slabinfo,
        proc_vmallocinfo,
        proc_stat,
        proc_pressure,
        proc_cpuinfo,
        proc_version,
        genhd,
        node_sysfs,
    )
    for path, read in module.FILES.items()
}
FIXED |= (
    tracefs.FILES
    | sysctl.FILES
    | swapon.FILES
    | huge_sysfs.SYSCTLS
    | thp_sysfs.FILES
    | zswap_sysfs.FILES
    | numa_sysfs.FILES
)
PID_FILES = proc_task.PID_FILES | proc_base.PID_FILES | proc_smaps.PID_FILES | cgroup.PID_FILES
PID_WRITERS = proc_task.PID_WRITERS | proc_base.PID_WRITERS
THREAD_FILES = {name: make for name, make in PID_FILES.items() if make} | proc_base.THREAD_FILES
RANGES = proc_page.RANGES | {page_idle.BITMAP: page_idle.read}
MOST_AT_ONCE = 64 << 20  # bytes of such a file that are read without saying where: of 32 GiB of memory
NEAREST = 3  # names that are told when there is no such file
_PID = re.compile(r"/proc/(\d+)/(?:task/(\d+)/)?(\w+)")
_TASKS = re.compile(r"/proc/(\d+)/task")
_NODE = re.compile(rf"{node_sysfs.ROOT}/node(\d+)/(\w+)")
_WEIGHT = re.compile(rf"{sysctl.WEIGHTS}/node(\d+)")


def find(system, path):
    """The reader and the writer of a file (None: not permitted), or None: there is no such file."""
    path = resolve(system, path)
    if path in FIXED:
        return FIXED[path]
    if path in RANGES:
        return functools.partial(read_whole, path=path), page_idle.write_text if path == page_idle.BITMAP else None
    if "/hugepages/" in path:
        return huge_sysfs.files(system).get(path)
    if (match := _PID.fullmatch(path)) and match[3] in (PID_FILES if match[2] is None else THREAD_FILES):
        pid = thread_of(system.machine, int(match[1]), match[2])
        if pid:
            make, write = (PID_FILES if match[2] is None else THREAD_FILES)[match[3]], PID_WRITERS.get(match[3])
            return (
                make and functools.partial(proc_task.show, pid=pid, name=match[3], make=make),
                write and (lambda system, text: write(system, pid, text)),
            )
    if (match := _NODE.fullmatch(path)) and int(match[1]) < system.machine.nr_nodes:
        node, read, write = int(match[1]), node_sysfs.NODE_FILES.get(match[2]), node_sysfs.NODE_WRITERS.get(match[2])
        if read or write:
            return (
                read and functools.partial(read, node=node),
                write and (lambda system, text: write(system, node, text)),
            )
    if (match := _WEIGHT.fullmatch(path)) and int(match[1]) < system.machine.nr_nodes:
        node = int(match[1])
        return (
            functools.partial(sysctl.read_weight, node=node),
            lambda system, text: sysctl.write_weight(system, node, text),
        )
    if path.startswith(tracefs.ROOT):
        return tracefs.cpu_files(system).get(path)
    if path.startswith(damon_sysfs.ROOT):
        return damon_sysfs.find(system, path)
    if path.startswith("/sys/block/"):
        return genhd.files(system).get(path)
    if path in (fixed := shape(system).files):
        return lambda system: fixed[path], None
    return cgroup.find(system, path)


class Shape:
    """What follows from the machine's shape and never changes: texts of files, and targets of symbolic links."""

    def __init__(self, system):
        zones = [
            (
                zone.node,
                zone.start_pfn << PAGE_SHIFT,
                zone.start_pfn + zone.spanned_pages << PAGE_SHIFT,
                ZONE_NAMES[zone.type],
            )
            for zone in proc_page.zones(system.machine)
        ]
        self.files = cpu_sysfs.files(system) | memory_sysfs.files(system, zones) | numa_sysfs.files(system)
        self.links = cpu_sysfs.links(system) | memory_sysfs.links(system)


def shape(system):
    """The Shape, made when it is first asked for."""
    if system.shape is None:
        system.shape = Shape(system)
    return system.shape


def readlink(system, path):
    """The target of a symbolic link, or None: it is none."""
    return shape(system).links.get(path)


def resolve(system, path):
    """A path without symbolic links on the way."""
    links, steps = shape(system).links, path.split("/")
    for i in range(5, len(steps) + 1):  # none is nearer to the root than /sys/devices/system/cpu/cpu0/node0
        here = "/".join(steps[:i])
        if here in links:
            return resolve(system, os.path.normpath(f"{os.path.dirname(here)}/{links[here]}/{'/'.join(steps[i:])}"))
    return path


def thread_of(machine, tgid, tid):
    """The pid that /proc/<tgid> or (`tid` given) /proc/<tgid>/task/<tid> is about; 0: there is no such task."""
    if tid is None:
        return tgid if proc_task.number_of_pid(machine, tgid) else 0
    return int(tid) if int(tid) in proc_task.threads(machine, tgid) else 0


def read_whole(system, path):
    """All of a file that is read by ranges, unless it is too large for that."""
    nbytes = (
        -(-int(system.machine.max_pfn) // 64) * 8
        if path == page_idle.BITMAP
        else int(system.machine.max_pfn) * proc_page.KPM_SIZE
    )
    if nbytes > MOST_AT_ONCE:
        raise OSError(errno.EFBIG, f"machine.pread reads a range of it, all of it has {nbytes} bytes", path)
    return RANGES[path](system, 0, nbytes)


def pwrite(system, path, data, offset):
    """Write bytes to a file from an offset on, of the few that are written so: what CPU 0 has to do for it."""
    path = resolve(system, path)
    if path == page_idle.BITMAP:
        return page_idle.write(system, offset, data)
    open_file(system, path, 1)
    raise OSError(errno.EINVAL, "cannot be written by ranges", path)


def pread(system, path, nbytes, offset):
    """Bytes of a file from an offset on, or what CPU 0 has to do for them. What lies in a task's memory is not read so."""
    path = resolve(system, path)
    if path in RANGES:
        return RANGES[path](system, offset, nbytes)
    if match := re.fullmatch(r"/proc/(\d+)(?:/task/\d+)?/pagemap", path):
        return proc_smaps.pread_pagemap(system, int(match[1]), nbytes, offset)
    text = read(system, path)
    if isinstance(text, tuple):
        raise OSError(errno.EINVAL, "cannot be read by ranges", path)
    return (text if isinstance(text, bytes) else text.encode())[offset : offset + nbytes]


def error(number, path):
    return OSError(number, os.strerror(number), path)  # the subclass that fits the number


def missing(system, path):
    """The error of a file that is not there, with the nearest names: elsewhere, or in its directory."""
    known, (directory, _, name) = list(paths(system)), str(path).rstrip("/").rpartition("/")
    while directory and not any(file.startswith(directory + "/") for file in known):
        directory, _, name = directory.rpartition("/")
    here = {
        f"{directory}/{file[len(directory) + 1 :].split('/')[0]}" for file in known if file.startswith(directory + "/")
    }
    elsewhere = [file for file in known if file.rpartition("/")[2] == str(path).rpartition("/")[2]]
    near = elsewhere[:NEAREST] or difflib.get_close_matches(f"{directory}/{name}", here, NEAREST, 0.0)
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT) + hint, path)


def paths(system):
    """The path of every file there is now."""
    nodes = range(system.machine.nr_nodes)
    yield from FIXED
    yield from huge_sysfs.files(system)
    names = (*node_sysfs.NODE_FILES, *node_sysfs.NODE_WRITERS)
    yield from (f"{node_sysfs.ROOT}/node{node}/{name}" for node in nodes for name in names)
    yield from (f"{sysctl.WEIGHTS}/node{node}" for node in nodes)
    yield from RANGES
    yield from shape(system).files
    yield from shape(system).links
    yield from genhd.files(system)
    yield from tracefs.cpu_files(system)
    yield from cgroup.paths(system)
    yield from damon_sysfs.paths(system)
    for pid in proc_task.pids(system.machine):
        yield from (f"/proc/{pid}/{name}" for name in PID_FILES)
        threads = proc_task.threads(system.machine, pid)
        yield from (f"/proc/{pid}/task/{tid}/{name}" for tid in threads for name in THREAD_FILES)


def is_directory(system, path):
    path = resolve(system, path)
    return path in ("", "/") or any(file.startswith(path.rstrip("/") + "/") for file in paths(system))


def kind(system, path):
    """What is at a path: ("link", target), ("dir", ""), ("file", of "r" and "w" what is allowed), or ("", "")."""
    if target := readlink(system, path):
        return "link", target
    found = find(system, path)
    if found is not None:
        return "file", ("r" if found[0] else "") + ("w" if found[1] else "")
    return ("dir", "") if is_directory(system, path) else ("", "")


def open_file(system, path, mode):
    """The reader (mode 0) or the writer (mode 1) of a file."""
    found = find(system, path)
    if found is None:
        raise error(errno.EISDIR, path) if is_directory(system, path) else missing(system, path)
    if found[mode] is None:
        raise error(errno.EACCES, path)
    return found[mode]


def read(system, path):
    """The text of a file, the bytes of a binary one, or what a CPU has to do for it, as for `write`."""
    return open_file(system, path, 0)(system)


def write(system, path, text):
    """Write to a file; None, a generator of steps that only the coordinator can do, or what a CPU has to do for it:
    (method of FileOperations.system, arguments …).
    """
    return open_file(system, path, 1)(system, text)


def files(machine):
    """The files of the disk: {name: bytes, pages in the cache, dirty pages}."""
    table, found = inode_t.array(machine.inodes), {}
    for number in range(1, pool_t.at(machine.inode_pool).used + 1):
        inode = table[number]
        if inode.state == I_LIVE and inode.nlink:
            cached = mapping_t.array(machine.mappings)[inode.object or inode.mapping].nr_pages
            found[inode_name(inode)] = {"size": inode.i_size, "cached": cached, "dirty": inode.nr_dirty}
    return found


# -- directories ---------------------------------------------------------------------------------------------


def listdir(system, path):
    """The names in a directory, sorted."""
    prefix = resolve(system, path).rstrip("/") + "/"
    names = {file[len(prefix) :].split("/")[0] for file in paths(system) if file.startswith(prefix)}
    if not names:
        raise missing(system, path) if find(system, path) is None else error(errno.ENOTDIR, path)
    return sorted(names)


def mkdir(system, path):
    """A new directory: only control groups are made so."""
    cgroup.mkdir(system, path)


def rmdir(system, path):
    cgroup.rmdir(system, path)

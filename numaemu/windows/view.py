"""A machine's /proc and /sys as a real tool expects to find them: the machine's own files, and what a reader finds of itself.

A tool looks into /proc/self, and under its own number, but it is no task of the machine. So the tree has a process that stands for
the reader: it may run on every CPU, use every node, and has no memory. Where nobody knows who reads, it is process 1. A task of
the machine with the reader's number comes first.
"""

import collections
import errno
import os
import re

from numaemu.kernel.fs.sysfs.node import mask_text
from numaemu.spec.param import MAX_NODES
from numaemu.spec.units import list_text

TOPS = ("proc", "sys")  # what a tree begins with
SELF = re.compile(r"/proc/(\d+)(?:/task/(\d+))?(?:/(\w+))?")

Reader = collections.namedtuple("Reader", "pid name")
SOMEBODY = Reader(1, "onlooker")


def status(topology, reader):
    """/proc/self/status: what libnuma and others take their masks from."""
    cpus, nodes = topology.cpus, range(topology.nr_nodes)
    uid, gid = "\t".join([str(os.getuid())] * 4), "\t".join([str(os.getgid())] * 4)
    return (
        f"Name:\t{reader.name}\nUmask:\t0022\nState:\tR (running)\nTgid:\t{reader.pid}\nNgid:\t0\nPid:\t{reader.pid}\nPPid:\t0\n"
        f"TracerPid:\t0\nUid:\t{uid}\nGid:\t{gid}\nVmSize:\t       0 kB\nVmRSS:\t       0 kB\nThreads:\t1\n"
        f"Cpus_allowed:\t{mask_text(cpus, topology.nr_cpu_ids)}\nCpus_allowed_list:\t{list_text(cpus)}\n"
        f"Mems_allowed:\t{mask_text(nodes, MAX_NODES)}\nMems_allowed_list:\t{list_text(nodes)}\n"
        "voluntary_ctxt_switches:\t0\nnonvoluntary_ctxt_switches:\t0\n"
    )


def mountinfo(mounts):
    """/proc/self/mountinfo from /proc/mounts."""
    rows = [line.split() for line in mounts.splitlines()]
    return "".join(
        f"{20 + i} {20 if i else 1} 0:{20 + i} / {place} {options} - {kind} {device} {options}\n"
        for i, (device, place, kind, options, *_) in enumerate(rows)
    )


class View:
    """A machine's tree below "/": the directories proc and sys."""

    def __init__(self, machine):
        self.machine = machine
        mounts = machine.read("/proc/mounts")
        self.same = {  # a reader's files that say the same of all
            "statm": "0 0 0 0 0 0 0\n",
            "mounts": mounts,
            "mountinfo": mountinfo(mounts),
            "cgroup": "0::/\n",
            **dict.fromkeys(("maps", "smaps", "numa_maps", "environ"), ""),
        }

    def files_of(self, reader):
        """{name: text} of the reader's directory."""
        return self.same | {
            "status": status(self.machine.topology, reader),
            "stat": f"{reader.pid} ({reader.name}) R 0 {reader.pid} {reader.pid} 0 -1"
            + " 0" * 9
            + " 20 0 1"
            + " 0" * 32
            + "\n",
            "comm": reader.name + "\n",
            "cmdline": reader.name + "\0",
        }

    def own(self, path, reader):
        """(thread, name) of what lies in the reader's directory, each "" if the path has none; None: it lies elsewhere."""
        match = SELF.fullmatch(path)
        if match is None or int(match[1]) != reader.pid or self.machine.kind(f"/proc/{reader.pid}")[0]:
            return None
        return match[2] or "", match[3] or ""

    def kind(self, path, reader=SOMEBODY):
        """As Machine.kind."""
        if path in ("", "/"):
            return "dir", ""
        if path in ("/proc/self", "/proc/thread-self"):
            return "link", str(reader.pid) if path.endswith("/self") else f"{reader.pid}/task/{reader.pid}"
        if (own := self.own(path, reader)) is not None:
            thread, name = own
            if thread not in ("", str(reader.pid)):
                return "", ""
            if name == "" or name == "task" and not thread:
                return "dir", ""
            return ("file", "r") if name in self.files_of(reader) else ("", "")
        return self.machine.kind(path) if path.split("/")[1] in TOPS else ("", "")

    def listdir(self, path, reader=SOMEBODY):
        """The names in a directory."""
        if path in ("", "/"):
            return list(TOPS)
        if (own := self.own(path, reader)) is not None:
            if self.kind(path, reader)[0] != "dir":
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if own[1] == "task":
                return [str(reader.pid)]
            return sorted([*self.files_of(reader), *([] if own[0] else ["task"])])
        names = set(self.machine.listdir(path))
        if path.rstrip("/") == "/proc":
            names |= {"self", "thread-self", str(reader.pid)}
        return sorted(names)

    def read(self, path, reader=SOMEBODY):
        """The bytes of a file."""
        own = self.own(path, reader)
        text = self.files_of(reader)[own[1]] if own is not None and own[1] else self.machine.read(path)
        return text if isinstance(text, bytes) else os.fsencode(text)

"""What the driver asks the coordinator for, of what people and tools see: files of /proc and /sys, figures, the audit, swap."""

import os

from numaemu.kernel.audit.frames import audit
from numaemu.kernel.core.smp import actor_of_cpu, actor_of_node
from numaemu.kernel.fs.proc import smaps as proc_smaps
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs import stats
from numaemu.kernel.fs.tracefs.ring import drain, learn_names, names_of
from numaemu.kernel.mm.page_alloc.report.pageblocks import pageblocks
from numaemu.kernel.mm.swap import swapon
from numaemu.process.actor import Actor


class Requests(Actor):
    """A part of the Coordinator: a method rpc_NAME for each request. What it answers, or the Futures that it yields until then."""

    system: proc.System
    children: dict[int, str]  # processes that it has forked: {pid: name}
    cpus: tuple[int, ...]  # numbers of CPUs

    def rpc_read(self, path):
        """A file of /proc or /sys; what lies in a task's memory is read by CPU 0."""
        found = proc.read(self.system, path)
        return self.rpc_system(*found) if isinstance(found, tuple) else found

    def rpc_write(self, path, value, writer=0):
        """Write to a file of /proc or /sys, as a task (0: none). What has to be done for it: (method, *args) by CPU 0, or the
        coordinator's own steps.
        """
        self.system.writer = writer
        work = proc.write(self.system, path, value)
        return self.rpc_system(*work) if isinstance(work, tuple) else work

    def rpc_system(self, method, *args):
        """Something with files, by CPU 0."""
        return self.ask(actor_of_cpu(self.machine, 0), "system", method, *args)

    def rpc_files(self):
        return proc.files(self.machine)

    def rpc_pagemap(self, pid, addr, nbytes):
        return proc_smaps.pagemap(self.system, pid, addr, nbytes)

    def rpc_pread(self, path, nbytes, offset):
        found = proc.pread(self.system, path, nbytes, offset)
        return self.rpc_system(*found) if isinstance(found, tuple) else found

    def rpc_pwrite(self, path, data, offset):
        return self.rpc_system(*proc.pwrite(self.system, path, data, offset))

    def rpc_trace(self):
        """Records of tracepoints that nobody has taken yet: ([(context, bytes)], how many were lost, {pid: name})."""
        parts, lost = drain(self.system)
        for _, records in parts:
            learn_names(names_of(self.system), records)
        return [(context, records.tobytes()) for context, records in parts], lost, dict(names_of(self.system))

    def rpc_kind(self, path):
        return proc.kind(self.system, path)

    def rpc_listdir(self, path):
        return proc.listdir(self.system, path)

    def rpc_mkdir(self, path):
        proc.mkdir(self.system, path)

    def rpc_rmdir(self, path):
        proc.rmdir(self.system, path)

    def rpc_stats(self):
        return stats.collect(self.machine, self.world.topology)

    def rpc_pageblocks(self):
        return pageblocks(self.machine)

    def rpc_processes(self):
        return {name: pid for pid, name in self.children.items()} | {"coordinator": os.getpid()}

    def rpc_check(self):
        """Hold every CPU between two operations, let the nodes finish, and audit."""
        cpus = [actor_of_cpu(self.machine, c) for c in self.cpus]
        nodes = [actor_of_node(n) for n in range(self.machine.nr_nodes)]
        for actors in (cpus, nodes):
            for future in [self.ask(actor, "hold") for actor in actors]:
                yield future
        try:
            for future in [self.ask(actor, "sync") for actor in nodes]:
                yield future
            return audit(self.machine)
        finally:
            for actor in cpus + nodes:
                self.tell(actor, "release")

    def rpc_settle(self):
        """Every node's kernel threads do what they have been woken for."""
        for future in [self.ask(actor_of_node(n), "settle") for n in range(self.machine.nr_nodes)]:
            yield future

    # -- swap

    def rpc_swapon(self, name, nbytes, priority, kind):
        return swapon.swapon(self.machine, name, nbytes, priority, kind)

    def rpc_swapoff(self, name):
        """Everything that the area holds comes back first, on CPU 0."""
        kind = swapon.swapoff_begin(self.machine, name)
        yield self.ask(actor_of_cpu(self.machine, 0), "unuse", kind)
        swapon.swapoff_end(self.machine, kind)

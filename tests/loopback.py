"""A whole machine in one process: the kernel, its nodes and its coordinator, each served the moment it is rung.

    CPU code -- send() --> mailbox -- on_ring --> Loopback.ring(actor) --> the actor's own handlers, at once
             -- wait ---> on_wait --> Loopback.deliver(): CPUs that stand inside accesses answer their shootdowns

Node and Coordinator are the real classes; only bells are calls, so there is one order of events, no process, no
waiting, and it runs with the JIT off too. `task()` gives the usual Task objects.
"""

import contextlib
import errno
import faulthandler
import os
import sys
import traceback
import types
from concurrent.futures import Future

import numpy as np

from numaemu import cpu as cpu_process
from numaemu.api.task import Task
from numaemu.coordinator import Coordinator
from numaemu.hardware.mailbox import fall_asleep
from numaemu.hardware.paging import entry_load
from numaemu.hardware.processor import cpu_t
from numaemu.host import shm
from numaemu.kernel.arch.init_mm import reserved_pages
from numaemu.kernel.arch.pgtable import pte_offset, pte_pfn
from numaemu.kernel.arch.tlb import answer_ipi
from numaemu.kernel.audit.frames import audit
from numaemu.kernel.boot import boot
from numaemu.kernel.core.kthread import run_kthreads
from numaemu.kernel.core.smp import MSG_NONE, actor_of_cpu
from numaemu.kernel.fs.file import FILE, files_of
from numaemu.kernel.fs.inode import file_of
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.proc import vmstat as proc_vmstat
from numaemu.kernel.fs.sysfs import stats
from numaemu.kernel.fs.sysfs.sysctl import System
from numaemu.kernel.include.mm_types import mm_t, page_t, task_t, vma_t
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, zone_of
from numaemu.kernel.layout import control_layout
from numaemu.kernel.mm.migrate.kcompactd import compact_node_now
from numaemu.kernel.mm.space.vma_index import vma_index
from numaemu.kernel.syscalls import common as syscalls
from numaemu.node import Node
from numaemu.operations.allocators import Constructors
from numaemu.operations.base import Operations
from numaemu.process.actor import Actor, Message, World
from numaemu.process.wire import Failure
from numaemu.spec.param import PAGE_SIZE
from numaemu.spec.topology import load_topology

FRUITLESS_WAITS = 10_000  # in one process nobody else can end a wait: more of them are a deadlock
OUTSIDE = sys.stderr  # where the last words of a process that ends at once can be read; conftest.py
SMALL_TLB = dict(l1={"entries": 4, "ways": 2}, l2={"entries": 8, "ways": 4})  # quick to flush with the JIT off


@contextlib.contextmanager
def if_there_is_room():
    """Pages move as far as their new node has room: -ENOMEM behind that."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise


class CallBell:
    """Stands for an actor's semaphore: ringing it runs the actor."""

    def __init__(self, ring):
        self.release = ring


class LoopbackWorld(World):
    def __init__(self, topology, machine, blocks, ring):
        self.topology, self.machine, self.blocks = topology, machine, blocks
        self.lockstep = 0  # one order of events by itself
        self.waiting = []  # what is done after what an actor is just doing
        self.bells = [CallBell(lambda n=n: ring(n)) for n in range(machine.nr_actors)]
        self.due = []  # nodes whose kernel threads have been woken
        self.kthread_bells = [CallBell(lambda n=n: self.due.append(n)) for n in range(machine.nr_nodes)]

    def later(self, action):
        """The Future of an action that needs actors which are busy now."""
        done = Future()
        self.waiting.append((action, done))
        return done


class LoopbackCpu(cpu_process.Cpu):
    """A CPU without its process: what Operations and the coordinator's calls need."""

    def __init__(self, world, number):
        Actor.__init__(self, world, actor_of_cpu(world.machine, number))
        self.cpu_number, self.state = number, cpu_t.array(world.machine.cpus)[number]
        self.turn = cpu_process.RunQueue(self.state)
        self.operations = Operations(self)

    def rpc_op(self, number, pid, method, args):
        return self.world.later(lambda: self.do_op(number, pid, method, args))

    def rpc_compact_node(self, node):
        """Left to the node's kernel threads: the coordinator, which asks, would be waited for."""
        return False

    def rpc_system(self, method, *args):
        """Done when the coordinator, which asks, has nothing else to do."""
        return self.world.later(lambda: self.operations.system(method, args))

    threads = types.SimpleNamespace(submit=lambda *_: None)  # what cannot be done at once happens later, by itself


class LoopbackNode(Node):
    """A node that compacts after what it is just doing: compaction needs its answers."""

    def rpc_compact_node(self):
        return self.world.later(lambda: compact_node_now(int(self.context.address), self.node))


class Loopback:
    """A machine of this shape (as load_topology takes it), booted in this process until `close`."""

    def __init__(self, source=None, reserve=None, free_lists=None, **keywords):
        self.topology = load_topology(source, **keywords)
        self.machine, self.blocks = boot(self.topology, reserve, free_lists)
        self.world = LoopbackWorld(self.topology, self.machine, self.blocks, self.ring)
        present = self.topology.cpus
        self.cpus = [LoopbackCpu(self.world, n) if n in present else None for n in range(self.machine.nr_cpus)]
        nodes = [LoopbackNode(self.world, n) for n in range(self.machine.nr_nodes)]
        self.actors = [Coordinator(self.world, None, {}), *nodes, *self.cpus]
        self.fruitless = 0
        self._keep = []
        self.machine.on_ring = self._callback(lambda actor, _b, _c: self.ring(actor))
        self.machine.on_wake = self._callback(lambda *_: None)
        self.machine.on_wait = self._callback(lambda *_: self.deliver())
        cpu_process.install_ways_up(self.machine)
        cpu_process.install_tiering(self.machine, self.topology.kernel["tiering"])
        self.working = False
        self.world.constructors = Constructors(self.machine)
        self.machine.on_ctor = cpu_process._address_of(self.world.constructors)
        self.present = [cpu for cpu in self.cpus if cpu is not None]
        for cpu in self.present:
            cpu_process.install_entries(cpu.state)
        for actor in self.actors:
            if actor is not None:
                fall_asleep(actor.mailbox)

    def _callback(self, function):
        def answer(*args):
            try:
                function(*args)
            except BaseException:  # it must not come up inside compiled code
                traceback.print_exc(file=OUTSIDE)
                os._exit(70)
            return 0

        return cpu_process._address_of(answer)

    # -- the bells

    def ring(self, number):
        """Serve an actor's mailbox until it is empty."""
        actor = self.actors[number]
        while True:
            while actor.fetch() != MSG_NONE:
                actor.dispatch(Message(*actor._words.tolist()))
            if fall_asleep(actor.mailbox):
                return

    def deliver(self):
        """Somebody waits: CPUs that are inside and have a shootdown pending answer it now."""
        self.run_kthreads()
        pending = [cpu for cpu in self.present if cpu.state.ipi_pending and cpu.state.inside]
        for cpu in pending:
            answer_ipi(int(cpu.state.address), 0, 0)
        self.fruitless = 0 if pending else self.fruitless + 1
        if self.fruitless > FRUITLESS_WAITS:
            print(f"a wait of the loopback machine was looked at {FRUITLESS_WAITS} times in vain", file=OUTSIDE)
            faulthandler.dump_traceback(OUTSIDE)
            os._exit(71)

    def run_kthreads(self):
        """Kernel threads run when somebody waits, and between two operations."""
        while self.world.due and not self.working:
            self.working = True
            node = self.world.due.pop(0)
            run_kthreads(int(cpu_t.array(self.machine.cpus)[self.machine.nr_cpus + node].address))
            self.working = False

    # -- tasks: this object is their site

    def task(self, cpu=0, name="task"):
        """A new task on a CPU."""
        number = self.cpus[cpu].start_task(name)
        return Task(number, self.cpus[cpu].pid_of(number), self)

    def call_op(self, number, pid, method, args):
        try:
            return self.cpus[task_t.array(self.machine.tasks)[number].cpu].call_op(number, pid, method, args)
        finally:
            self.run_kthreads()

    def where(self, number):
        cpu = task_t.array(self.machine.tasks)[number].cpu
        return cpu, self.topology.node_of_cpu(cpu)

    def system(self, method, *args):
        """What the driver asks of CPU 0: create_file, unlink, sync, drop_caches."""
        return self.cpus[0].operations.system(method, args)

    def create_file(self, path, content, seed=0):
        data = content if isinstance(content, bytes) else None
        self.system("create_file", path, len(data) if data is not None else content, data, seed)

    # -- what tests look at

    def cpu(self, number=0):
        """cpu_t of a CPU."""
        return self.cpus[number].state

    def page(self, pfn):
        return page_t.array(self.machine.mem_map)[pfn]

    def mm(self, task):
        return mm_t.array(self.machine.mms)[task_t.array(self.machine.tasks)[task._number].mm]

    def open_file(self, file):
        """The file_t behind a task's File."""
        task = task_t.array(self.machine.tasks)[file.task._number]
        return file_of(self.machine, files_of(self.machine, task.files).fd[file.fd] & FILE)

    def vmas(self, task):
        """The VMAs of a task, in the order of its index."""
        number = task_t.array(self.machine.tasks)[task._number].mm
        index = vma_index(self.machine, number)
        return [vma_t.array(self.machine.vmas)[index[i]] for i in range(self.mm(task).map_count)]

    def pte(self, task, address):
        """The leaf entry of an address, 0 if its table is missing."""
        ptep = int(pte_offset(self.machine, self.mm(task), address))
        return int(entry_load(np.uint64(ptep))) if ptep else 0

    def pfn(self, task, address):
        """The frame that an address is mapped to."""
        return int(pte_pfn(np.uint64(self.pte(task, address))))

    def zones(self):
        """The zones that have memory."""
        zones = [zone_of(self.machine, n) for n in range(self.machine.nr_nodes * MAX_NR_ZONES)]
        return [zone for zone in zones if zone.present_pages]

    def buddyinfo(self):
        return proc_vmstat.buddyinfo(System(self.machine, self.topology))

    def vmstat(self):
        return stats.vmstat(self.machine)

    def read(self, path):
        """A file of /proc or /sys, by the coordinator."""
        answers = []
        self.actors[0].serve("read", (path,), answers.append)
        while self.world.waiting:
            action, done = self.world.waiting.pop(0)
            done.set_result(action())
        return answers[0]

    def pread(self, path, nbytes, offset=0):
        """Bytes of a file of /proc or /sys from an offset on, as machine.pread."""
        found = proc.pread(self.actors[0].system, path, nbytes, offset)
        return self.system(*found) if isinstance(found, tuple) else found

    def pwrite(self, path, data, offset=0):
        """Write them, as machine.pwrite."""
        return self.system(*proc.pwrite(self.actors[0].system, path, data, offset))

    def write(self, path, text, task=None):
        """Write to a file of /proc or /sys, by the coordinator; as a task."""
        answers = []
        self.actors[0].serve("write", (path, text, *([] if task is None else [task._number])), answers.append)
        while self.world.waiting:
            action, done = self.world.waiting.pop(0)
            try:
                done.set_result(action())
            except Exception as error:
                done.set_exception(error)
        assert answers and not isinstance(answers[0], Failure), answers

    def audit(self):
        for cpu in self.present:
            syscalls.drain_lru(int(cpu.state.address))
        return audit(self.machine)

    def drain(self):
        """Every page that nobody uses goes back to its node's free lists."""
        for cpu in self.present:
            syscalls.drain_pages(int(cpu.state.address))
        for actor in self.actors:
            if isinstance(actor, Node):
                actor.rpc_drain_all()

    # -- the end

    def close(self):
        """Give the host its memory back."""
        machine, nbytes = (
            self.machine,
            control_layout(self.topology, self.machine.max_pfn, self.machine.nr_actors).nbytes,
        )
        memory, mem_map, frames = int(machine.memory), int(machine.mem_map), machine.max_pfn
        reserved = machine.nr_nodes * reserved_pages(self.topology)
        for address, size in (
            (memory, (frames + reserved) * PAGE_SIZE),
            (mem_map, frames * page_t.nbytes),
            (int(machine.disk), self.topology.disk.size),
            (int(machine.address), nbytes),
        ):
            shm._libc.munmap(address, size)
        self.machine = machine.struct.at(0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

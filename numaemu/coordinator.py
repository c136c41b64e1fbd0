"""The coordinator's process: it boots and supervises the others and decides what concerns more than one node.

For the kernel: cross-node fallback, TLB shootdowns, draining of per-CPU pages. For the driver: it starts tasks, hands
operations to the CPU a task is on, reads /proc, audits the machine. The driver's frames are read by a thread that only
puts them into a queue and rings: it posts nothing, for the mailbox may be full, and only the loop of `Actor.run` empties it.
Everything is decided by that loop. What users pass to tasks and get from them goes through here sealed (wire.py).
"""

import collections
import contextlib
import faulthandler
import functools
import itertools
import os
import pickle
import signal
import threading
import traceback
from concurrent.futures import Future

import setproctitle

from numaemu import cpu as cpu_process
from numaemu import lockstep
from numaemu import node as node_process
from numaemu.compiler.atomic import load_acquire
from numaemu.compiler.decorators import die_on_unraisable
from numaemu.errors import MachineCheck
from numaemu.hardware.mailbox import has_mail
from numaemu.hardware.processor import cpu_t
from numaemu.host.children import ended_children
from numaemu.host.shm import die_with_parent, entitle
from numaemu.kernel.arch.tlb import serve_shootdowns
from numaemu.kernel.boot import boot
from numaemu.kernel.core.lockstep import handovers, schedule_steps
from numaemu.kernel.core.sched import clock
from numaemu.kernel.core.smp import (
    MSG_DRAIN_ALL,
    MSG_FALLBACK,
    MSG_FILL,
    MSG_LRU_DRAIN_ALL,
    MSG_NONE,
    MSG_OOM,
    MSG_WAKE_KTHREAD,
    MSG_WARN_ALLOC,
    actor_of_cpu,
    actor_of_node,
    reply,
)
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs import stats
from numaemu.kernel.include.internal import unpack_zone
from numaemu.kernel.include.mm_types import task_name, task_t
from numaemu.kernel.include.mmzone import zone_of
from numaemu.kernel.mm.page_alloc.report.show_mem import AllocationWarnings
from numaemu.kernel.mm.reclaim.lru_batches import cpu_needs_drain
from numaemu.kernel.mm.reclaim.oom_kill import AGAIN, OomKiller, Panic
from numaemu.process import lines
from numaemu.process.actor import COORDINATOR, World
from numaemu.process.due import Due
from numaemu.process.strands import let_time_pass
from numaemu.process.wire import Failure, Outlet, dumps, failure, in_words, receive_frame, sealed, send_frame
from numaemu.spec.units import choice_text

MOST_NAMED = 3  # tasks of a CPU that has died
FLUSH_S = 5.0  # how long a machine that ends waits for its driver to take what it is told
PRINT_FRAMES = 64  # in lockstep, that wait for the driver before a task that prints waits with the machine
SUPERVISE_S = 0.5  # how often at the latest dead children are looked for, should a signal get lost


class Coordinator(Due):
    def __init__(self, world, link, children):
        super().__init__(world, COORDINATOR)
        self.link, self.children = link, children  # socket to the driver; {pid: name}
        self.cpus = world.topology.cpus
        self.system = proc.System(world.machine, world.topology)
        self.system.compact_nodes, self.system.drain_all = self.compact_nodes, self.rpc_drain_all
        self.system.call_task = self.rpc_op
        self.system.damon_changed = self.set_every
        self.driver_every_ns = 0  # when functions of the driver are due; 0: none are
        self.system.wake_kthreads = lambda node: world.kthread_bells[node].release()
        self.oom, self.warnings = OomKiller(self.system), AllocationWarnings(self.system)
        self.outlet = Outlet(link, lambda: os._exit(0))  # the driver has gone: so does its machine
        self.shows, self.show_numbers = {}, itertools.count(1)  # Futures: printed, not shown by the driver yet
        # what the driver asks: (tail of the mailbox when it came, who answers, pickled method and arguments)
        self.frames = collections.deque()
        self.child_ended = self.halting = False
        self.driver = lockstep.Driver(self) if self.lockstep else None  # takes turns with us
        self.threads = self.new_threads("coordinator")
        self.handlers = {
            MSG_FALLBACK: self.on_fallback,
            MSG_DRAIN_ALL: self.on_drain_all,
            MSG_LRU_DRAIN_ALL: self.on_lru_drain_all,
            MSG_WAKE_KTHREAD: self.on_wake_kthread,
            MSG_OOM: self.on_oom,
            MSG_WARN_ALLOC: self.on_warn_alloc,
        }

    # -- for the kernel

    def fetch(self):
        """The next message; before it, what has come from elsewhere, so that it need not wait until there are no messages."""
        if self.child_ended:
            self.child_ended = False
            self.reap()
        while True:
            if self.frames:
                self.on_driver()
            kind = serve_shootdowns(self.machine, self.mailbox, self._pointer)
            if kind != MSG_NONE or not self.frames or self.frames[0][0] > self.mailbox.head:
                return kind

    def on_fallback(self, message):
        """A CPU may not be served by its preferred node: the owner of the zone it falls back to fills its shelf."""
        node = zone_of(self.machine, unpack_zone(message.a)[0]).node
        self.send(actor_of_node(node), MSG_FILL, message.a, message.b, message.c, message.d)

    def on_drain_all(self, message):
        """drain_all_pages: idle CPUs return their lists, nodes take shelves back; the asking CPU learns how many came."""
        self.serve("drain_all", (message.a,), lambda pages: reply(self.machine, message.d, message.token, pages))

    def rpc_drain_all(self, but=-1):
        """Pages that came back to the free lists. CPU `but` has drained itself and waits for the answer."""
        for future in [self.ask(actor_of_cpu(self.machine, c), "drain") for c in self.cpus if c != but]:
            yield future
        pages = 0
        for future in self.take_back():
            pages += yield future
        return pages

    def take_back(self):
        """Nodes take in what is on its way to them, which Linux's free lists would have already: Futures of how many pages."""
        return [self.ask(actor_of_node(n), "drain_all") for n in range(self.machine.nr_nodes)]

    def on_wake_kthread(self, message):
        """A node is short of something: its kernel threads have work."""
        self.world.kthread_bells[message.a].release()

    def on_lru_drain_all(self, message):
        """lru_add_drain_all: CPUs with pages on their way to the LRU lists put them there."""
        self.serve("lru_drain_all", (message.a,), lambda _: reply(self.machine, message.d, message.token, 0))

    def rpc_lru_drain_all(self, but=-1):
        """CPU `but` has drained itself and waits for the answer."""
        behind = [c for c in self.cpus if c != but and cpu_needs_drain(self.machine, c)]
        for future in [self.ask(actor_of_cpu(self.machine, c), "drain_lru") for c in behind]:
            yield future

    def compact_nodes(self, nodes):
        """compact_nodes, compact_node of mm/compaction.c: who writes does it, a CPU of the node if one is idle.

        Else the node's kernel threads do: for their process the host has to map every frame first.
        """
        yield from self.rpc_lru_drain_all()
        for node in nodes:
            done = False
            for cpu in self.world.topology.nodes[node].cpus:
                done = yield self.ask(actor_of_cpu(self.machine, cpu), "compact_node", node)
                if done:
                    break
            if not done:
                yield self.ask(actor_of_node(node), "compact_node")

    def on_warn_alloc(self, message):
        """An allocation has failed: the kernel's log says so."""
        self.warnings.warn(message.a, message.b, message.c, message.d)

    def on_oom(self, message):
        """Nothing is left for an allocation: find a victim. The CPU learns whose memory it may take (oom_kill.py)."""
        self.serve("oom", (message.a, message.b, message.c, message.d), lambda answer: self.answer_oom(message, answer))

    def answer_oom(self, message, answer):
        if isinstance(answer, Failure):  # the CPU would wait for ever
            self.panic(answer.where)
        reply(self.machine, message.d, message.token, answer)

    def rpc_oom(self, gfp, order, nodemask, cpu_number):
        """The victim's mm, after its idle CPUs have ended its tasks; or AGAIN."""
        if self.oom.busy:
            return AGAIN
        self.oom.busy = True
        try:
            for future in self.take_back():
                yield future
            answer, victims = self.oom.out_of_memory(gfp, order, nodemask, cpu_number)
            for future in [self.ask(actor_of_cpu(self.machine, c), "oom_exit", victims) for c in self.cpus if victims]:
                yield future
            return answer
        except Panic as error:
            self.panic(str(error))
        finally:
            self.oom.busy = False

    def panic(self, text):
        """The end of the machine, in Linux's words."""
        self.tell_driver("panic", f"Kernel panic - not syncing: {text}")
        self.end(3)

    def end(self, status, but=None):
        """End every process of the machine, but for the one that has ended already; what the driver is told comes first."""
        for pid in self.children:
            if pid != but:
                os.kill(pid, signal.SIGKILL)
        self.outlet.flush(FLUSH_S)
        os._exit(status)

    # -- the driver

    def on_driver(self):
        """What the driver asks for, behind the mail that was here before it."""
        while self.frames and self.frames[0][0] <= self.mailbox.head:
            _, respond, body = self.frames.popleft()
            try:
                method, args = pickle.loads(body)
            except Exception as error:
                respond(failure(TypeError(f"the arguments cannot be unpickled here: {in_words(error)}")))
                continue
            self.serve(method, args, respond)

    def respond(self, request, answer):
        if request:
            self.tell_driver("answer", request, sealed(answer))
            if self.driver:
                self.driver.answered(request)

    def tell_driver(self, *thing):
        self.outlet.send(dumps(thing))

    def queue(self, respond, body):
        """A request of the driver's is here. What was posted before it is handled first: a CPU may have told the driver on a direct
        line (lines.py) that an operation is done, which has posted something to us.
        """
        self.frames.append((load_acquire(self.mailbox, "tail"), respond, body))
        self.bell.release()

    def rpc_ask_line(self, name):
        """The driver lays a direct line to us: what it asks there is answered there."""
        lines.connect(name, self.serve_line)

    def serve_line(self, sock):
        """The thread of a line: as `read_link`, it only puts requests into the queue, and rings."""
        outlet = Outlet(sock, lambda: None)
        lines.each_frame(sock, lambda frame: self.queue(lambda answer: outlet.send(lines.answer(answer)), frame))

    def read_link(self):
        """The link thread: frames go into the queue, the end of the stream ends the machine."""
        while True:
            frame = receive_frame(self.link)
            if frame is None:
                os._exit(0)
            request, body = pickle.loads(frame)
            self.queue(functools.partial(self.respond, request), body)

    def rpc_stop(self):
        """End every process of the machine in good order."""
        self.halting = True
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)
        for pid in self.children:
            with contextlib.suppress(ChildProcessError):  # lockstep's thread may have
                os.waitpid(pid, 0)
        self.tell_driver("stopped")
        self.outlet.flush(FLUSH_S)
        os._exit(0)

    # -- tasks

    def cpu_actor(self, cpu_number):
        if cpu_number not in self.cpus:
            raise ValueError(f"cpu {cpu_number} is not one of {choice_text(self.cpus)}")
        return actor_of_cpu(self.machine, cpu_number)

    def rpc_spawn(self, run, cpu_number, name, payload):
        """Start a function as a new task on a CPU: (task number, pid)."""
        return self.ask(self.cpu_actor(cpu_number), "spawn", COORDINATOR, run, name, payload)

    def rpc_new_task(self, cpu_number, name):
        """An interactive task: (task number, pid)."""
        return self.ask(self.cpu_actor(cpu_number), "new_task", name)

    def rpc_op(self, number, pid, method, args):
        """An operation of a task, wherever it is."""
        cpu = task_t.array(self.machine.tasks)[number].cpu
        return self.ask(self.cpu_actor(cpu), "op", number, pid, method, args)

    def rpc_line(self, cpu_number, name):
        """The driver lays a direct line to a CPU (lines.py)."""
        return self.ask(self.cpu_actor(cpu_number), "line", name)

    def rpc_where(self, number):
        """(cpu, node) of a task."""
        cpu = task_t.array(self.machine.tasks)[number].cpu
        return cpu, self.world.topology.node_of_cpu(cpu)

    def rpc_adopt(self, run, cpu_number, task_number, payload, keep=False):
        """Start a function as a task that the driver's task has forked or cloned."""
        return self.ask(self.cpu_actor(cpu_number), "adopt", COORDINATOR, run, task_number, payload, 0, keep)

    def rpc_finished(self, run, answer, _now_ns):
        """A spawned function has returned or raised: sealed."""
        self.tell_driver("finished", run, answer)
        if self.driver:
            self.driver.answered(run)

    def rpc_printk(self, lines):
        """A CPU's lines for the kernel's log."""
        self.system.kmsg.extend(lines)

    def rpc_handovers(self):
        """How often one strand has handed over to another in lockstep."""
        return handovers(self.lockstep) if self.lockstep else 0

    def rpc_schedule_steps(self):
        """How often a drawn schedule has been asked who runs next."""
        return schedule_steps(self.lockstep) if self.lockstep else 0

    def rpc_pass_time(self):
        """The answer comes a little later in emulated time: the driver looks again and again whether something has happened."""
        return self.threads.submit(let_time_pass, self.lockstep)

    def rpc_whereabouts(self, cpu):
        """What the tasks of a CPU's process do."""
        return self.ask(self.cpu_actor(cpu), "whereabouts")

    def rpc_doing(self, name):
        return self.doing(name)

    def rpc_compiled(self, name, where):
        """A CPU has compiled a user's function."""
        self.tell_driver("compiled", name, where)

    def rpc_printed(self, text):
        """A CPU's tasks have printed; the answer comes when the driver has shown it, so that no more of it piles up here."""
        if self.lockstep:  # how fast the driver shows it must not matter
            self.tell_driver("printed", 0, text)
            self.outlet.flush_above(PRINT_FRAMES)
            return None
        number, future = next(self.show_numbers), Future()
        self.shows[number] = future
        self.tell_driver("printed", number, text)
        return future

    def rpc_shown(self, number):
        """The driver has."""
        self.shows.pop(number).set_result(None)

    def rpc_clock(self):
        """The time of the CPU that is ahead of all others."""
        return max(clock(int(cpu_t.array(self.machine.cpus)[cpu].address)) for cpu in self.cpus)

    # -- supervision

    def on_child_ended(self, *_):
        """SIGCHLD: the loop looks after it, also when it never has to wait."""
        self.child_ended = True
        self.bell.release()

    def wait(self, seconds=None):
        """Sleep until a message comes, at most SUPERVISE_S, and look after the children that have ended. A bell that
        was lost is counted. In lockstep a thread looks after the children (Driver.reap).
        """
        if self.lockstep:
            return super().wait(seconds)
        rung = super().wait(min(seconds or SUPERVISE_S, SUPERVISE_S))
        if (
            not rung
            and not self.late
            and (self.frames or has_mail(self.mailbox))
            and not super().wait(cpu_process.GRACE_S)
        ):
            self.world.lost[self.machine.nr_cpus + self.machine.nr_nodes] += 1
        self.reap()

    def rpc_lost_wakeups(self):
        """How often a wait ended by its time limit though what it waited for was there. 0, if nothing is wrong."""
        return sum(self.world.lost[n] for n in range(self.machine.nr_cpus + self.machine.nr_nodes + 1))

    def reap(self):
        """A dead child is the end of the machine: tell the driver who, end the others."""
        for pid, status in () if self.halting else ended_children():
            if pid not in self.children:
                continue  # compilers that this process has started (compiler/foreman.py)
            name = self.children[pid]
            self.tell_driver("died", name, pid, status, self.doing(name))
            self.end(3, pid)

    def doing(self, name):
        """What a process was busy with, as far as shared memory tells."""
        kind, _, number = name.partition(" ")
        if kind != "cpu":
            return ""
        cpu, tasks = cpu_t.array(self.machine.cpus)[int(number)], task_t.array(self.machine.tasks)
        if cpu.task:
            where = "in memory accesses of" if cpu.inside else "with"
            return f" ({where} task {tasks[cpu.task].pid} ({task_name(tasks[cpu.task])}))"
        here = [tasks[n] for n in stats.task_numbers(self.machine) if tasks[n].cpu == cpu.id]
        if not here:
            return " (no task was running on it)"
        named = ", ".join(f"{task.pid} ({task_name(task)})" for task in here[:MOST_NAMED])
        more = f" and {len(here) - MOST_NAMED} more" if len(here) > MOST_NAMED else ""
        return f" (between operations of task{'s' * (len(here) > 1)} {named}{more})"


def fork_child(link, title, run):
    """A child process of the machine that dies with it; its pid. The link to the driver is the coordinator's alone: so it
    ends with the coordinator.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        die_with_parent()
        link.close()
        setproctitle.setproctitle(f"numaemu: {title}")
        run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(70)


def fork_children(world, link):
    """Nodes and CPUs: {pid: name}"""
    children, topology = {}, world.topology
    try:
        for node in range(topology.nr_nodes):
            children[fork_child(link, f"node {node}", lambda: node_process.Node(world, node).run())] = f"node {node}"
        for number in topology.cpus:
            children[fork_child(link, f"cpu {number}", lambda: cpu_process.Cpu(world, number).run())] = f"cpu {number}"
    except OSError as error:
        of = topology.nr_nodes + len(topology.cpus)
        raise MachineCheck(f"the host allows {len(children)} of {of} processes for nodes and CPUs: {error}") from None
    return children


def main(link, topology, memory):
    """The life of a coordinator, forked by the fork server: boot, fork nodes and CPUs, serve. `memory`: what `boot` takes
    besides the topology.
    """
    entitle("numaemu: coordinator")
    faulthandler.enable()  # a crash of compiled code shows where Python was
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # no bug of ours: /dev/shm is full, which the driver says in a line
    faulthandler.register(signal.SIGUSR1)  # and kill -USR1 shows where a process is
    die_on_unraisable()
    try:
        machine, blocks = boot(topology, *memory)
        if topology.lockstep:
            lockstep.pin()
        world = World(topology, machine, blocks)
        (lockstep if topology.lockstep else cpu_process).install_bells(world)
        cpu_process.install_callbacks(world)
        children = fork_children(world, link)
    except Exception as error:
        send_frame(link, dumps(("failed", failure(error))))
        return
    setproctitle.setproctitle("numaemu: coordinator")  # it forks no more
    coordinator = Coordinator(world, link, children)
    coordinator.tell_driver("booted", coordinator.rpc_processes())
    if coordinator.driver:
        coordinator.driver.start()
    else:
        signal.signal(signal.SIGCHLD, coordinator.on_child_ended)
        threading.Thread(target=coordinator.read_link, daemon=True, name="link").start()
    coordinator.run()

"""Several contexts of one machine, and who of them runs when: drawn by a seed, or every order of a short program.

    with Stage(nodes=1, cpus_per_node=2, memory_per_node="4MiB") as stage:      a Loopback machine of the interpreted build
        a = stage.task(cpu=0) ...                                               prepared in the test's own thread
        stage.keep()                                                            every schedule begins from here
        explore(stage, {"mprotect": f, "store": g}, seeds=range(40))            f and g are contexts, each on a CPU of its own

Each context is a thread of the test's process; one holds the baton and runs. Before every atomic operation (so at every
lock, every message, every flush, every access), and where it waits, it may have to hand the baton on: a *schedule* says so.

    Pct            random priorities, lowered at a few points of the run (Burckhardt et al., ASPLOS 2010)
    Random         a switch at each point with a probability that the seed gives
    Given          exactly these switches; what `every` goes through, with at most so many preemptions (CHESS, OSDI 2008)

Coordinator, nodes, the CPUs' mailboxes and the nodes' kernel threads are contexts of their own as well, which wait for
work. A run ends when all contexts of the test are done and nobody has work any more. Then the machine is audited. What
goes wrong (an exception, a deadlock, a lost wake-up, an audit) is raised with the schedule that shows it again.

After each schedule the machine's memory is put back as it was at `keep`.
"""

import ctypes
import inspect
import os
import random
import sys
import threading
import traceback
from concurrent.futures import Future

import pytest
from loopback import SMALL_TLB, CallBell, Loopback

from numaemu import cpu as cpu_process
from numaemu.api.vectors import LOAD_MANY, STORE_MANY
from numaemu.compiler import atomic
from numaemu.compiler.pointer import Pointer
from numaemu.hardware.mailbox import fall_asleep
from numaemu.hardware.processor import cpu_t
from numaemu.host import shm
from numaemu.kernel.core import smp
from numaemu.kernel.core.kthread import run_kthreads
from numaemu.kernel.core.smp import FOR_BELL, MSG_NONE
from numaemu.kernel.include import mmdebug
from numaemu.kernel.syscalls import common as syscalls
from numaemu.process import actor as actor_module
from numaemu.process.actor import Message

STUCK = 60_000  # points of one run: more of them are a livelock
ALONE = 1_000  # a context that nobody can help looks so often in vain: a deadlock
NEVER = 1 << 62
SERVING = 4  # so much less often than others is a context that serves held up


class Failed(AssertionError):
    """A schedule that shows a fault; its text says how to show it again."""


class Stuck(BaseException):
    """A run that does not end. No code of the product catches it."""


class Abandoned(BaseException):
    """The run is over: a context's thread ends where it stands."""


# -- who runs next -----------------------------------------------------------------------------------------------------


class Pct:
    """The runnable context of the highest priority runs; `depth` - 1 times the one that runs becomes the lowest.

    When is drawn over the contexts first and then over a context's own points (`lengths`: how many each had, by number), so
    that a short one is as likely to be held up as a long one. Those that serve the others are drawn less often.
    """

    def __init__(self, seed, depth, lengths):
        self.name, self.random = f"Pct({seed}, {depth}, {lengths})", random.Random(seed)
        self.depth, self.lengths = depth, lengths
        self.priority, self.lowest = {}, 0.0

    def begin(self, contexts):
        self.changes = {context: [] for context in contexts}
        for context in contexts:
            self.priority[context] = 1 + self.random.random()
        weights = [min(self.lengths.get(c.number, 0), 1) / (SERVING if c.serves else 1) for c in contexts]
        for context in self.random.choices(contexts, weights, k=self.depth - 1) if any(weights) else ():
            self.changes[context].append(self.random.randint(1, self.lengths[context.number]))
        for changes in self.changes.values():
            changes.sort(reverse=True)

    def due(self, step, context):
        """The next point at which `at_point` wants to be asked, if this context runs from now on."""
        changes = self.changes[context]
        return step + max(changes[-1] - context.points, 1) if changes else NEVER

    def lower(self, context):
        self.lowest -= 1.0
        self.priority[context] = self.lowest

    def at_point(self, current, runnable, step):
        changes = self.changes[current]
        while changes and changes[-1] <= current.points:
            changes.pop()
            self.lower(current)
        return max(runnable, key=self.priority.get)

    def forced(self, current, runnable, waits):
        """Who runs when `current` cannot, or (not waits) only looks in vain at what others must do."""
        if not waits:
            self.lower(current)
        return max(runnable, key=self.priority.get)


class Random:
    """At each point somebody else runs with a probability that is drawn first."""

    def __init__(self, seed):
        self.name, self.random = f"Random({seed})", random.Random(seed)
        self.often = self.random.choice((2, 8, 32, 128))

    def begin(self, contexts):
        self.next = 1 + self.gap()

    def gap(self):
        return int(self.random.expovariate(1 / self.often))

    def due(self, step, _context):
        return max(self.next, step + 1)

    def at_point(self, current, runnable, step):
        if step < self.next:
            return current
        self.next = step + 1 + self.gap()
        return self.random.choice(runnable)

    def forced(self, current, runnable, waits):
        return self.random.choice(runnable)


class Given:
    """The switches of a list, [(point, number of the context)]; elsewhere a context runs until it waits, then the next one.

    For `every` it notes where else a switch to a context of the test would have been possible: `chances`, (place in the trace,
    point, context, whether it is a preemption).
    """

    def __init__(self, switches=(), chances=False):
        self.switches, self.chances = list(switches), [] if chances else None
        self.name, self.at, self.trace = f"Given({self.switches})", 0, []

    def begin(self, contexts):
        pass

    def due(self, step, _context):
        if self.chances is not None:
            return step + 1
        return self.switches[self.at][0] if self.at < len(self.switches) else NEVER

    def given(self, step, current, runnable, default, preempting):
        if self.at < len(self.switches):
            when, number, preempts = self.switches[self.at]
            if when == step and preempts == preempting:
                self.at += 1
                chosen = next((c for c in runnable if c.number == number), default)
                self.trace.append((step, chosen.number, preempting))
                return chosen
            if when > step or preempting:
                return default
            self.at += 1  # it no longer fits: the program runs otherwise
        if self.chances is not None:
            for context in runnable:
                if context is not default and not context.serves:
                    self.chances.append((len(self.trace), step, context.number, preempting))
        return default

    def at_point(self, current, runnable, step):
        return self.given(step, current, runnable, current, True)

    def forced(self, current, runnable, waits):
        behind = [c for c in runnable if c.number > current.number]
        return self.given(current.run.steps, current, runnable, (behind or runnable)[0], False)


# -- the contexts ------------------------------------------------------------------------------------------------------


class Context:
    """A thread that runs when it has the baton. `serves`: it waits for work for ever, and nobody waits for its end."""

    def __init__(self, run, number, name, function, serves):
        self.run, self.number, self.name, self.function, self.serves = run, number, name, function, serves
        self.gate, self.waits_for, self.done = threading.Lock(), None, False
        self.points, self.since = 0, 0  # its own points, up to the run's step `since`
        self.gate.acquire()
        self.thread = threading.Thread(target=self.live, daemon=True, name=name)

    def live(self):
        self.gate.acquire()
        try:
            if not self.run.over:
                self.function()
        except Abandoned:
            pass
        except BaseException as error:
            self.run.fail(error, self)
        self.done = True
        self.run.ended(self)

    def __repr__(self):
        if self.done or self.waits_for is not None:
            return f"{self.name}: {'done' if self.done else f'waits for {self.waits_for}'}"
        return f"{self.name}: in {' < '.join(self.where())}"

    def where(self):
        """The functions of the package in which it stands, the innermost first."""
        frame, names = sys._current_frames().get(self.thread.ident), []
        while frame is not None and len(names) < 12:
            if "numaemu" in frame.f_code.co_filename and frame.f_code.co_name not in ("call", "_atomic"):
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        return names


class Run:
    """One schedule of some contexts, from their start to their end."""

    def __init__(self, policy, visible=None):
        self.policy, self.visible, self.contexts = policy, visible, []
        self.current, self.steps, self.asked, self.held, self.alone = None, 0, NEVER, 0, 0
        self.error, self.failed_in, self.over = None, None, False
        self.end = threading.Lock()
        self.end.acquire()
        self.touched = None  # {address: {context: wrote}} if somebody wants to know

    def add(self, name, function, serves=False, waits_for=None):
        context = Context(self, len(self.contexts), name, function, serves)
        context.waits_for = waits_for
        self.contexts.append(context)
        return context

    def go(self):
        """Run to the end; the error, or None."""
        self.policy.begin(self.contexts)
        for context in self.contexts:
            context.thread.start()
        first = self.policy.forced(self.contexts[-1], self.runnable(), True)
        self.resume(first)
        self.end.acquire()
        self.over, self.current = True, None
        for context in self.contexts:
            if not context.done:
                context.gate.release()
            context.thread.join()
        return self.error

    def fail(self, error, context):
        if self.error is None:
            self.error, self.failed_in = error, context

    # -- by the context that has the baton

    def runnable(self):
        return [c for c in self.contexts if not c.done and c.waits_for is None]

    def point(self, address=0, writes=False):
        """Before an operation that others may see."""
        current = self.current
        if current is None or self.held:
            return
        if self.touched is not None:
            seen = self.touched.setdefault(address, {})
            seen[current] = seen.get(current, False) or writes
        if self.visible is not None and address not in self.visible:
            return
        self.steps += 1
        if self.steps >= self.asked:
            self.ask(current)

    def ask(self, current):
        if self.steps > STUCK:
            raise Stuck(f"no end after {STUCK} points: {self.contexts}")
        self.count(current)
        chosen = self.policy.at_point(current, self.runnable(), self.steps)
        if chosen is not current:
            self.hand_over(current, chosen)
        else:
            self.asked = min(self.policy.due(self.steps, current), STUCK + 1)

    def count(self, context):
        context.points += self.steps - context.since
        context.since = self.steps

    def resume(self, context):
        self.current, context.since = context, self.steps
        self.asked = min(self.policy.due(self.steps, context), STUCK + 1)
        context.gate.release()

    def hand_over(self, current, chosen):
        self.count(current)
        self.resume(chosen)
        current.gate.acquire()
        if self.over:
            raise Abandoned

    def wait(self, what):
        """Until somebody calls `wake` with the same words."""
        current = self.current
        if self.held:
            raise RuntimeError(f"{current.name} would wait for {what} where nobody else may run")
        current.waits_for = what
        self.step_aside(current, True)

    def wake(self, what):
        for context in self.contexts:
            if context.waits_for == what:
                context.waits_for, self.alone = None, 0
                self.asked = self.steps + 1
                return

    def give_way(self):
        """The running context looks in vain: others run, if there are any."""
        if self.current is not None and not self.held:
            self.steps += 1
            if self.steps > STUCK:
                raise Stuck(f"no end after {STUCK} points: {self.contexts}")
            self.step_aside(self.current, False)

    def step_aside(self, current, waits):
        others = [c for c in self.runnable() if c is not current]
        if not others and not waits:
            self.alone += 1
            if self.alone > ALONE:
                raise Stuck(f"deadlock: {current.name} looks for ever, nobody else can run: {self.contexts}")
            return
        if not others:
            if all(c.serves for c in self.contexts if not c.done):
                self.end.release()
            else:
                self.fail(Stuck(f"deadlock, or a wake-up was lost: {self.contexts}"), current)
                self.end.release()
            current.gate.acquire()
            raise Abandoned
        self.alone = 0
        chosen = self.policy.forced(current, others, waits)
        self.hand_over(current, chosen)

    def ended(self, context):
        """Its thread is about to end: hand the baton on, or end the run."""
        if self.over:
            return
        others = self.runnable()
        if self.error is not None or not others:
            if self.error is None and not all(c.serves for c in self.contexts if not c.done):
                self.fail(Stuck(f"deadlock, or a wake-up was lost: {self.contexts}"), context)
            self.over, self.current = True, None
            self.end.release()
            return
        chosen = self.policy.forced(context, others, True)
        self.count(context)
        self.resume(chosen)


class Alone:
    """In place of a lock of Python whose holder must not be held up."""

    def __init__(self, stage):
        self.stage = stage

    def __enter__(self):
        self.stage.run.held += 1

    def __exit__(self, *_):
        self.stage.run.held -= 1


class Turn:
    """In place of a CPU's run queue: one operation at a time, the others wait."""

    def __init__(self, stage, number):
        self.stage, self.what, self.busy = stage, f"the turn of cpu {number}", False

    def enter(self, _task=None):
        while self.busy:
            self.stage.run.wait(self.what)
        self.busy = True

    def try_enter(self):
        free, self.busy = not self.busy, True
        return free

    def leave(self, _task=None, _stays=False):
        self.busy = False
        self.stage.run.wake(self.what)

    def give_way(self, _task):
        return False

    def sleep(self, _task, _until):
        return False

    def __enter__(self):
        self.enter()

    def __exit__(self, *_):
        self.leave()


# -- functions of the package, replaced ----------------------------------------------------------------------------------


def put_in_place(patches, function, other):
    """Let every module of the package that has a function have another one instead."""
    found = 0
    for name, module in list(sys.modules.items()):
        if name.startswith("numaemu."):
            for attribute, value in list(vars(module).items()):
                if value is function:
                    patches.setattr(module, attribute, other)
                    found += 1
    assert found, f"no module has {function}"


# -- the machine -------------------------------------------------------------------------------------------------------


def plain_atomics(stage):
    """_atomic of the interpreted build where one thread runs at a time: a point, then plain reading and writing."""

    def _atomic(op, target, where, *values):
        if isinstance(target, Pointer):
            struct = target.struct
            address, kind = target.address + struct.offsets[where], struct.kinds[where]
        else:
            address, kind = target._at(where), target.kind
        stage.run.point(address, op != "load")
        word = kind.ctype.from_address(address)
        before = word.value
        if op == "cas":
            if kind.ctype(int(values[0])).value == before:
                word.value = int(values[1])
        elif op == "add":
            word.value = before + int(values[0])
        elif op == "or":
            word.value = before | int(values[0])
        elif op == "and":
            word.value = before & int(values[0])
        elif op != "load":
            word.value = int(values[0])
        return kind.dtype.type(before) if kind.dtype.kind == "u" else before

    return _atomic


def vm_bug_on(condition):
    """VM_BUG_ON of the debug build."""
    assert not condition, "VM_BUG_ON"


def vm_bug_on_page(condition, page):
    """VM_BUG_ON_PAGE of the debug build."""
    assert not condition, f"VM_BUG_ON_PAGE: flags {page.flags:#x}, refcount {page.refcount}, mapcount {page.mapcount}"


class Kept:
    """What the machine's shared memory holds, to be put back."""

    def __init__(self, segments):
        self.segments = segments
        self.saved = [(address, ctypes.string_at(address, size)) for address, size in self.used()]

    def used(self):
        """(address, bytes) of what somebody has written to."""
        for fd, start, address, nbytes in self.segments:
            at, end = start, start + nbytes
            while at < end:
                try:
                    data = os.lseek(fd, at, os.SEEK_DATA)
                except OSError:  # nothing behind it
                    break
                if data >= end:
                    break
                at = min(os.lseek(fd, data, os.SEEK_HOLE), end)
                yield address + data - start, at - data

    def put_back(self):
        kept = {address: len(data) for address, data in self.saved}
        for address, size in self.used():
            if kept.get(address) != size:
                shm.punch(address, size)
        for address, data in self.saved:
            ctypes.memmove(address, data, len(data))


class Stage(Loopback):
    """A Loopback machine on which contexts run under schedules."""

    def __init__(self, source=None, **keywords):
        self.run, self.segments, map_at = Run(Given()), [], shm.Segment.map_at

        def mapped(segment, address, nbytes=None, offset=0):
            self.segments.append((os.dup(segment.fd), offset, address, nbytes or segment.nbytes))
            return map_at(segment, address, nbytes, offset)

        shm.Segment.map_at = mapped
        try:
            super().__init__(source, **{**SMALL_TLB, **keywords})
        finally:
            shm.Segment.map_at = map_at
        self.bells, self.kept, self.prepared = {}, None, None
        self.machine.on_ring = cpu_process._address_of(lambda actor, _b, _c: self.ring(int(actor)) or 0)
        self.machine.on_wake = cpu_process._address_of(lambda cpu, _b, _c: self.on_wake(int(cpu)) or 0)
        self.machine.on_wait = cpu_process._address_of(lambda cpu, what, _c: self.on_wait(int(cpu), what) or 0)
        for node in range(self.machine.nr_nodes):
            self.world.kthread_bells[node] = CallBell(lambda node=node: self.wake_kthreads(node))
        for cpu in self.present:
            cpu.turn = Turn(self, cpu.cpu_number)
        for actor in self.actors:
            if actor is not None:
                actor.sending = Alone(self)
        stage = self

        class Answer(Future):
            """What `ask` gives: who waits for it lets the other contexts run."""

            def result(self, timeout=None):
                while not self.done() and stage.run.current is not None:
                    stage.run.give_way()
                return super().result(0)

        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(smp, "SPINS", 1)
        self.patches.setattr(smp, "PATIENCE", 2)
        self.patches.setattr(atomic, "_atomic", plain_atomics(self))
        self.patches.setattr(actor_module, "Future", Answer)
        put_in_place(self.patches, mmdebug.VM_BUG_ON, vm_bug_on)
        put_in_place(self.patches, mmdebug.VM_BUG_ON_PAGE, vm_bug_on_page)

    def close(self):
        self.patches.undo()
        super().close()
        for fd, *_ in self.segments:
            os.close(fd)

    # -- bells: in a run they make a context runnable, outside of it they are calls, as in every Loopback

    def ring(self, number):
        if self.run.current is not None:
            self.run.wake(f"mail of actor {number}")
        elif not self.run.over:
            super().ring(number)

    def wake_kthreads(self, node):
        self.world.due.append(node)
        if self.run.current is not None:
            self.run.wake(f"work of node {node}")

    def on_wake(self, cpu):
        if self.run.current is not None:
            self.bells[cpu] = self.bells.get(cpu, 0) + 1
            self.run.wake(f"the bell of cpu {cpu}")

    def on_wait(self, cpu, what):
        if self.run.current is None:
            if self.run.over:
                raise Abandoned
            self.deliver()
        elif what == FOR_BELL:
            while self.bells.get(cpu, 0) == 0:
                self.run.wait(f"the bell of cpu {cpu}")
            self.bells[cpu] = 0
        else:
            self.run.give_way()

    def others_run(self):
        """What a context says that waits in a loop of its own for what others do."""
        self.run.give_way()

    def run_kthreads(self):
        if self.run.current is None and not self.run.over:
            super().run_kthreads()

    # -- contexts that serve

    def serve_actor(self, actor):
        run, what = self.run, f"mail of actor {actor.number}"
        while True:
            while actor.fetch() != MSG_NONE:
                actor.dispatch(Message(*actor._words.tolist()))
            if fall_asleep(actor.mailbox):
                run.wait(what)

    def serve_kthreads(self, node):
        while True:
            while node in self.world.due:
                self.world.due.remove(node)
                run_kthreads(self.context(node))
            self.run.wait(f"work of node {node}")

    def context(self, node=0):
        """The address of the cpu_t in which a node's kernel threads run."""
        return int(cpu_t.array(self.machine.cpus)[self.machine.nr_cpus + node].address)

    # -- schedules

    def keep(self):
        """Every schedule begins with what there is now."""
        for cpu in self.present:
            syscalls.drain_lru(int(cpu.state.address))
        self.kept = Kept(self.segments)
        self.outboxes = [(a.outbox, a.outbox.head, a.outbox.tail) for a in self.actors if a is not None]

    def put_back(self):
        self.kept.put_back()
        for outbox, outbox.head, outbox.tail in self.outboxes:
            pass
        self.bells.clear()
        self.world.due.clear()
        self.world.waiting.clear()
        for cpu in self.present:
            cpu.turn.busy, cpu.operations.preempt_count, cpu.operations.running_alone = False, 0, None

    def schedule(self, policy, contexts, visible=None, touched=None, kthreads=True):
        """Run contexts, {name: function without arguments}, once; the error, or None. The Run is in `self.run`."""
        self.run = run = Run(policy, visible)
        run.touched = touched
        for name, function in contexts.items():
            run.add(name, function)
        for actor in self.actors:
            if actor is not None:
                what = f"mail of actor {actor.number}"
                run.add(type(actor).__name__, lambda actor=actor: self.serve_actor(actor), True, what)
        for node in range(self.machine.nr_nodes if kthreads else 0):
            run.add(f"kthreads {node}", lambda node=node: self.serve_kthreads(node), True, f"work of node {node}")
        error = run.go()
        self.run = Run(Given())
        self.last = run
        return error


def failure(error, run, schedule):
    """The Failed of a run that went wrong."""
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    name = run.failed_in.name if run.failed_in is not None else "the look at the end"
    return Failed(f"under {schedule}, in {name}:\n{''.join(lines[-12:])}")


class Exploration:
    """Schedules of one program on one stage. `program(stage)` gives ({name: function}, a look at the end or None)."""

    def __init__(self, stage, program, kthreads=True, audit=True, visible=None):
        self.stage, self.program, self.kthreads, self.audit = stage, program, kthreads, audit
        self.runs, self.points, self.shared = 0, 0, None
        self.visible = visible and frozenset(visible)  # the words before which others may run; None: all
        if stage.kept is None:
            stage.keep()

    def once(self, policy, visible=None, touched=None, why="a fixed schedule"):
        """One schedule; raises Failed, which says why it was tried."""
        stage = self.stage
        contexts, look = self.program(stage)
        self.runs += 1
        try:
            error = stage.schedule(policy, contexts, visible, touched, self.kthreads)
            if error is None:
                try:
                    if look is not None:
                        look()
                    if self.audit:
                        stage.audit()
                except Exception as late:
                    error = late
            if error is not None:
                points = "all points" if visible is None else f"before {len(visible)} words"
                raise failure(error, stage.last, f"{why}: {policy.name}, {points}") from None
        finally:
            self.points += stage.last.steps
            stage.put_back()

    def measure(self):
        """The words that two contexts touch and one writes, and how many points each context has: from a few runs that are
        fixed.
        """
        if self.shared is not None:
            return
        words, self.lengths = {}, {}
        for policy in (Given(), Random(0), Random(1)):
            touched = {}
            self.once(policy, self.visible, touched)
            self.note_lengths(self.lengths)
            for address, seen in touched.items():
                for context, wrote in seen.items():
                    known = words.setdefault(address, {})
                    known[context.number] = known.get(context.number, False) or wrote
        self.shared = frozenset(a for a, seen in words.items() if len(seen) > 1 and any(seen.values()))
        self.lengths_shared = {}
        for policy in (Given(), Random(1)):
            self.once(policy, self.shared)
            self.note_lengths(self.lengths_shared)

    def note_lengths(self, lengths):
        for context in self.stage.last.contexts:
            lengths[context.number] = max(lengths.get(context.number, 0), context.points)

    def policy(self, seed, depth):
        """(policy, visible points) of a seed: a third random, the others PCT, half of these over shared words only."""
        if seed % 3 == 0:
            return Random(seed), self.visible
        if seed % 3 == 1:
            return Pct(seed, depth, self.lengths), self.visible
        return Pct(seed, depth, self.lengths_shared), self.shared

    def seeds(self, seeds, depth=3):
        """Schedules that seeds draw."""
        self.measure()
        for seed in seeds:
            self.once(*self.policy(seed, depth), why=f"seed {seed}")
        return self

    def every(self, preemptions, limit=10_000):
        """Every schedule with at most so many preemptions, before the visible words or those that others use, too, but no more
        than `limit`; True if these were all.
        """
        if self.visible is None:
            self.measure()
        todo = [((), 0)]
        while todo:
            switches, used = todo.pop()
            if self.runs >= limit:
                return False
            policy = Given(switches, chances=True)
            self.once(policy, self.visible or self.shared, why=f"run {self.runs}")
            for place, step, number, preempting in policy.chances:
                if place == len(switches) and used + preempting <= preemptions:
                    todo.append(((*policy.trace[:place], (step, number, preempting)), used + preempting))
        return True


def explore(stage, program, seeds=range(30), depth=3, **keywords):
    """Schedules of a program that seeds draw; raises Failed with the first that shows a fault."""
    return Exploration(stage, program, **keywords).seeds(seeds, depth)


# -- what contexts do ----------------------------------------------------------------------------------------------------


class Inside:
    """A task in the middle of its accesses, one after the other, as in a user kernel: its CPU stays inside between them."""

    def __init__(self, stage, task):
        self.stage, self.task = stage, task
        self.cpu = stage.cpus[stage.where(task._number)[0]]
        self.address = int(self.cpu.state.address)
        self.word = (ctypes.c_uint64 * 2)()

    def __enter__(self):
        self.begin()
        return self

    def __exit__(self, *_):
        self.end()

    def begin(self):
        self.cpu.turn.enter()
        syscalls.begin_access(self.address, self.task._number)

    def end(self):
        syscalls.end_access(self.address)
        self.cpu.turn.leave()

    def load(self, address):
        self.word[0] = address
        at = ctypes.addressof(self.word)
        LOAD_MANY[8](self.address, at, at + 8, 1)
        return self.word[1]

    def store(self, address, value):
        self.word[0], self.word[1] = address, value
        at = ctypes.addressof(self.word)
        STORE_MANY[8](self.address, at, at + 8, 1, 0)


# -- faults that are put back -------------------------------------------------------------------------------------------


def spoil(monkeypatch, function, *changes):
    """Put a fault back: a function with other words in its text, each change (what is right, what is wrong)."""
    source = inspect.getsource(function)
    for right, wrong in changes:
        assert right in source, f"{function.__name__} no longer says {right}"
        source = source.replace(right, wrong)
    names = dict(vars(sys.modules[function.__module__]))
    exec(source, names)
    put_in_place(monkeypatch, function, names[function.__name__])

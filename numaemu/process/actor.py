"""The actor layer that coordinator, nodes and CPUs share: a mailbox, handlers, requests and answers.

A message is seven words (mailbox.py); `on_fill`, `on_shootdown`, … handle those of the kernel. A *call* is Python:
method and arguments, pickled into the sender's outbox in shared memory; `rpc_<method>` handles it and what it returns
goes back to the caller, whose `ask` gave a Future. A handler may wait without blocking its process: it is a generator
that yields the Future and is resumed with its value, as a SimPy process is.

The outbox: each process has a sparse ring of its own in shared memory. Only its owner allocates in it; the receiver
copies a block out and marks it done; the owner takes finished blocks back in order when it needs room.

A mailbox or an outbox may be full. The thread that serves this process's mailbox never waits then: it keeps what it has to
say until later (`late`) and goes on serving, so every mailbox is emptied in the end. Other threads wait, without Python's lock.
"""

import collections
import itertools
import pickle
import threading
import time
import types
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import posix_ipc

from numaemu.compiler.atomic import load_acquire, store_release
from numaemu.compiler.pointer import i64, u8
from numaemu.hardware.mailbox import FULL, RING, fall_asleep, fetch, mailbox_t, post
from numaemu.host import shm
from numaemu.host.threads import Threads
from numaemu.kernel.core.lockstep import begin_strand, init_lockstep, serve_strands, spin_strand
from numaemu.kernel.core.smp import MSG_CALL, MSG_NONE, MSG_RESULT, actor_of_cpu
from numaemu.kernel.core.strand import DRIVER
from numaemu.process.strands import StrandBell, StrandFuture, StrandThreads, set_schedule
from numaemu.process.wire import Failure, Sealed, dumps, failure, in_words, outcome, sealed, settle
from numaemu.spec.param import OUTBOX_BYTES, PAGE_SIZE

COORDINATOR = 0
_HEADER = 64  # bytes before a block: its size, and 1 when the receiver is done with it
_BIG = 1 << 20  # blocks from this size on are given back to the host
LONGEST = OUTBOX_BYTES - _HEADER
FULL_S = 0.0005  # until a full mailbox or outbox is tried again; assumed


class Message(NamedTuple):
    kind: int
    sender: int
    token: int
    a: int
    b: int
    c: int
    d: int


class World:
    """What every process of a machine inherits: the machine, its doorbells, its outboxes."""

    def __init__(self, topology, machine, blocks):
        self.topology, self.machine, self.blocks = topology, machine, blocks
        nodes, cpus = range(machine.nr_nodes), topology.cpus
        actors = [COORDINATOR, *(1 + node for node in nodes), *(actor_of_cpu(machine, cpu) for cpu in cpus)]
        contexts = [*cpus, *(machine.nr_cpus + node for node in nodes)]
        self.lockstep = int(machine.lockstep)
        # an actor's mailbox has mail; a node's kernel threads have work; what a CPU waits for may have come
        if self.lockstep:
            strands = 1 + max(actors)
            self.bells = {actor: StrandBell(self.lockstep, strand_of_actor(actor)) for actor in actors}
            self.kthread_bells = [StrandBell(self.lockstep, 1 + strands + node) for node in nodes]
            self.wait_bells = {}
            init_lockstep(self.lockstep, 1 + strands + len(nodes), topology.quantum_ns, topology.schedule_seed)
            set_schedule(self.lockstep, topology.schedule)
            for actor in actors:
                fall_asleep(mailbox_of_python(machine, actor))
        else:
            self.bells = {actor: shm.doorbell() for actor in actors}
            self.kthread_bells = [shm.doorbell() for _ in nodes]
            self.wait_bells = {context: shm.doorbell() for context in contexts}
        # wake-ups that never came, of each context and last of the coordinator: waits that ended by their time limit though
        # what they waited for was there. Its own process writes each word; it can only be an error of this program.
        self.lost = i64.array(shm.shared_block(8 * (machine.nr_cpus + machine.nr_nodes + 1)))

    def outbox(self, actor):
        return self.blocks["outboxes"] + actor * OUTBOX_BYTES

    def take(self, actor, offset, nbytes):
        """Copy a block out of a sender's outbox and hand it back."""
        address = self.outbox(actor) + offset
        data = bytes(u8.array(address + _HEADER).as_numpy(nbytes)) if nbytes else b""
        store_release(i64.array(address), 1, 1)
        return data


class Outbox:
    """This process's ring of blocks on their way to others."""

    def __init__(self, address):
        self.address, self.head, self.tail = address, 0, 0  # blocks lie in [tail, head), positions only grow

    def _reclaim(self):
        while self.tail < self.head:
            header = i64.array(self.address + self.tail % OUTBOX_BYTES)
            if load_acquire(header, 1) == 0:
                break
            size = header[0]
            if size >= _BIG:
                shm.punch(
                    (header.address + _HEADER + PAGE_SIZE - 1) & -PAGE_SIZE, (size - _HEADER - PAGE_SIZE) & -PAGE_SIZE
                )
            self.tail += size

    def put(self, payload):
        """Copy bytes in, LONGEST at most; their offset in the ring, or None: there is no room now."""
        size = (len(payload) + _HEADER + 63) & ~63
        self._reclaim()
        if self.head == self.tail:  # an empty ring begins at its start, so that any fits
            self.head = self.tail = 0
        gap = OUTBOX_BYTES - self.head % OUTBOX_BYTES
        skip = gap if gap < size else 0  # a block never wraps around the end
        if size + skip > OUTBOX_BYTES - (self.head - self.tail):
            return None
        if skip:
            self._header(skip, 1)
        offset = self._header(size, 0)
        u8.array(self.address + offset + _HEADER).as_numpy(len(payload))[:] = np.frombuffer(payload, np.uint8)
        return offset

    def _header(self, size, done):
        offset = self.head % OUTBOX_BYTES
        header = i64.array(self.address + offset)
        header[0], header[1] = size, done
        self.head += size
        return offset


class Actor:
    """One process of a machine: `run` serves its mailbox for ever."""

    def __init__(self, world, number):
        self.world, self.number = world, number
        self.machine = world.machine
        self.mailbox = mailbox_of_python(world.machine, number)
        self.bell = world.bells[number]
        self.outbox = Outbox(world.outbox(number))
        self.lockstep = world.lockstep  # address of lockstep_t, or 0
        self.handlers = {}  # message kind -> method
        self.futures, self.tokens = {}, itertools.count(1)
        self.sending = threading.Lock()  # the outbox has one owner at a time
        self.server, self.late = None, collections.deque()  # the thread that serves the mailbox; what it could not post
        self._words = np.zeros(7, np.int64)
        self._pointer = i64.array(self._words.ctypes.data)

    # -- sending

    def send(self, to, kind, a=0, b=0, c=0, d=0, token=0):
        """Post a message."""
        self._dispatch((to, kind, token, a, b, c, d, None))

    def _send_bulk(self, to, kind, token, thing):
        payload = dumps(thing)
        if len(payload) > LONGEST:
            raise MemoryError(
                f"{len(payload)} bytes are too long for a message between processes: {LONGEST} at most (OUTBOX_BYTES)"
            )
        self._dispatch((to, kind, token, 0, len(payload), 0, 0, payload))

    def _dispatch(self, letter):
        """Post a letter, in the order of this thread's; see above for who waits while it cannot be posted."""
        if self.server == threading.get_ident():
            self.late.append(letter)
            self.send_late()
            return
        while (letter := self._try(letter)) is not None:
            if self.lockstep:
                spin_strand(self.lockstep)
            else:
                time.sleep(FULL_S)
        if self.lockstep:
            serve_strands(self.lockstep)

    def _try(self, letter):
        """Post a letter: None, or what is left to be done."""
        to, kind, token, a, b, c, d, payload = letter
        if payload is not None:
            with self.sending:
                a = self.outbox.put(payload)
            if a is None:
                return letter
        posted = post(mailbox_of_python(self.machine, to), kind, self.number, token, a, b, c, d)
        if posted == FULL:
            return to, kind, token, a, b, c, d, None
        if posted == RING:
            self.world.bells[to].release()
        return None

    def send_late(self):
        """Post what could not be posted before, as far as it can be now."""
        while self.late:
            left = self._try(self.late[0])
            if left is not None:
                self.late[0] = left
                return
            self.late.popleft()

    def new_future(self):
        """A Future that a thread of this process may wait for."""
        return StrandFuture(self.lockstep) if self.lockstep else Future()

    def new_threads(self, name):
        """Threads for what has to wait."""
        return StrandThreads(name, self.lockstep) if self.lockstep else Threads(name)

    def ask(self, to, method, *args):
        """Call rpc_<method> of another actor; the Future of its answer."""
        future, token = self.new_future(), next(self.tokens)
        self.futures[token] = future
        try:
            self._send_bulk(to, MSG_CALL, token, (method, args))
        except BaseException:
            del self.futures[token]
            raise
        return future

    def tell(self, to, method, *args):
        """Call rpc_<method> of another actor, without an answer."""
        self._send_bulk(to, MSG_CALL, 0, (method, args))

    # -- receiving

    def run(self):
        """Serve messages; sleep on the bell when there are none."""
        self.server = threading.get_ident()
        if self.lockstep:
            begin_strand(self.lockstep, strand_of_actor(self.number))
        while True:
            while self.fetch() != MSG_NONE:
                self.dispatch(Message(*self._words.tolist()))
                self.send_late()
            self.send_late()
            if fall_asleep(self.mailbox):
                self.wait(FULL_S if self.late else None)

    def fetch(self):
        """Take the next message that Python has to see; its kind. Compiled loops serve the frequent kinds below this."""
        return fetch(self.mailbox, self._pointer)

    def wait(self, seconds=None):
        """Sleep until the bell rings, or so long: False if that was the reason."""
        if self.lockstep:
            if self.late:
                spin_strand(self.lockstep)
            else:
                self.bell.acquire()
            return True
        try:
            self.bell.acquire(seconds)
        except posix_ipc.SignalError:
            pass
        except posix_ipc.BusyError:
            return False
        return True

    def dispatch(self, message):
        """Handle one message: a call, the answer to one, or what a kind's handler is there for."""
        if message.kind == MSG_CALL:
            method, args = pickle.loads(self.world.take(message.sender, message.a, message.b))
            self.serve(method, args, lambda answer: self._answer(message, answer))
        elif message.kind == MSG_RESULT:
            answer = pickle.loads(self.world.take(message.sender, message.a, message.b))
            settle(self.futures.pop(message.token), answer)
        else:
            self.handlers[message.kind](message)

    def _answer(self, message, answer):
        """Somebody waits for it: what cannot be sent is told in words."""
        if not message.token:
            return
        try:
            self._send_bulk(message.sender, MSG_RESULT, message.token, answer)
        except Exception as error:
            what = answer.what if isinstance(answer, Sealed) else f"an answer of type {type(answer).__name__}"
            self._send_bulk(
                message.sender,
                MSG_RESULT,
                message.token,
                sealed(failure(type(error)(f"{what} cannot be sent: {in_words(error)}"))),
            )

    def serve(self, method, args, respond):
        """Run rpc_<method>; `respond` gets its value, at once, or when a generator or Future has come to its end."""
        try:
            value = getattr(self, f"rpc_{method}")(*args)
        except Exception as error:
            respond(failure(error))
            return
        if isinstance(value, types.GeneratorType):
            self.step(value, None, respond)
        elif isinstance(value, Future):
            value.add_done_callback(lambda f: respond(outcome(f)))
        else:
            respond(value)

    def step(self, generator, sent, respond):
        """Run a generator handler until it yields an unfinished Future, which will resume it, or ends."""
        try:
            while True:
                if isinstance(sent, Failure):
                    future = generator.throw(sent.error)
                else:
                    future = generator.send(sent)
                if not future.done():
                    future.add_done_callback(lambda f: self.step(generator, outcome(f), respond))
                    return
                sent = outcome(future)
        except StopIteration as end:
            respond(end.value)
        except Exception as error:
            respond(failure(error))


def strand_of_actor(actor):
    """The number in lockstep of an actor's main thread, behind the driver's."""
    return DRIVER + 1 + actor


def mailbox_of_python(machine, actor):
    """The mailbox of an actor, for Python code."""
    return mailbox_t.array(machine.mailboxes)[actor]

"""The actor layer that coordinator, nodes and CPUs share: a mailbox, handlers, requests and answers.

A message is seven words (mailbox.py); `on_fill`, `on_shootdown`, … handle those of the kernel. A *call* is Python:
method and arguments, pickled into the sender's outbox in shared memory; `rpc_<method>` handles it and what it returns
goes back to the caller, whose `ask` gave a Future. A handler may wait without blocking its process: it is a generator
that yields the Future and is resumed with its value, as a SimPy process is.

The outbox: each process has a sparse ring of its own in shared memory. Only its owner allocates in it; the receiver
copies a block out and marks it done; the owner takes finished blocks back in order when it needs room.
"""
import itertools
import pickle
import types
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import posix_ipc

from numaemu import shm
from numaemu.atomic import load_acquire, store_release
from numaemu.kernel.smp import MSG_CALL, MSG_NONE, MSG_RESULT, actor_of_cpu
from numaemu.mailbox import fall_asleep, fetch, mailbox_t, post
from numaemu.param import OUTBOX_BYTES
from numaemu.pointer import i64, u8
from numaemu.wire import Failure, dumps, failure, outcome, settle

COORDINATOR = 0
_HEADER = 64                 # bytes before a block: its size, and 1 when the receiver is done with it
_BIG = 1 << 20               # blocks from this size on are given back to the host


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
        self.bells = {actor: shm.doorbell() for actor in actors}                 # an actor's mailbox has mail
        self.kthread_bells = [shm.doorbell() for _ in nodes]                     # a node's kernel threads have work
        self.wait_bells = {context: shm.doorbell() for context in contexts}      # what a CPU waits for may have come

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
        self.address, self.head, self.tail = address, 0, 0       # blocks lie in [tail, head), positions only grow

    def _reclaim(self):
        while self.tail < self.head:
            header = i64.array(self.address + self.tail % OUTBOX_BYTES)
            if load_acquire(header, 1) == 0:
                break
            size = header[0]
            if size >= _BIG:
                shm.punch((header.address + _HEADER + 4095) & ~4095, (size - _HEADER - 4096) & ~4095)
            self.tail += size

    def put(self, payload):
        """Copy bytes in; their offset in the ring."""
        size = (len(payload) + _HEADER + 63) & ~63
        gap = OUTBOX_BYTES - self.head % OUTBOX_BYTES
        skip = gap if gap < size else 0                          # a block never wraps around the end
        self._reclaim()
        if size + skip > OUTBOX_BYTES - (self.head - self.tail):
            raise MemoryError(f"a message of {len(payload)} bytes does not fit, {OUTBOX_BYTES} bytes may be on their way")
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
        self.handlers = {}                   # message kind -> method
        self.futures, self.tokens = {}, itertools.count(1)
        self._words = np.zeros(7, np.int64)
        self._pointer = i64.array(self._words.ctypes.data)

    # -- sending

    def send(self, to, kind, a=0, b=0, c=0, d=0, token=0):
        """Post a message."""
        if post(mailbox_of_python(self.machine, to), kind, self.number, token, a, b, c, d):
            self.world.bells[to].release()

    def _send_bulk(self, to, kind, token, thing):
        payload = dumps(thing)
        self.send(to, kind, self.outbox.put(payload), len(payload), token=token)

    def ask(self, to, method, *args):
        """Call rpc_<method> of another actor; the Future of its answer."""
        future, token = Future(), next(self.tokens)
        self.futures[token] = future
        self._send_bulk(to, MSG_CALL, token, (method, args))
        return future

    def tell(self, to, method, *args):
        """Call rpc_<method> of another actor, without an answer."""
        self._send_bulk(to, MSG_CALL, 0, (method, args))

    # -- receiving

    def run(self):
        """Serve messages; sleep on the bell when there are none."""
        while True:
            while self.fetch() != MSG_NONE:
                self.dispatch(Message(*self._words.tolist()))
            if fall_asleep(self.mailbox):
                self.wait()

    def fetch(self):
        """Take the next message that Python has to see; its kind. Compiled loops serve the frequent kinds below this."""
        return fetch(self.mailbox, self._pointer)

    def wait(self):
        """Sleep until the bell rings."""
        try:
            self.bell.acquire()
        except posix_ipc.SignalError:
            pass

    def dispatch(self, message):
        if message.kind == MSG_CALL:
            method, args = pickle.loads(self.world.take(message.sender, message.a, message.b))
            self.serve(method, args, lambda answer: self._answer(message, answer))
        elif message.kind == MSG_RESULT:
            answer = pickle.loads(self.world.take(message.sender, message.a, message.b))
            settle(self.futures.pop(message.token), answer)
        else:
            self.handlers[message.kind](message)

    def _answer(self, message, answer):
        if message.token:
            self._send_bulk(message.sender, MSG_RESULT, message.token, answer)

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


def mailbox_of_python(machine, actor):
    """The mailbox of an actor, for Python code."""
    return mailbox_t.array(machine.mailboxes)[actor]

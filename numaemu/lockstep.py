"""What lockstep changes in a machine: what compiled code calls to ring, wake and wait, and the driver, which takes turns, too.

What a CPU asks of a node or of the coordinator's compiled loop is done where it is rung: at most one process runs, so nobody
can tell, and no process has to be handed over to. Only what Python has to see wakes the strand of that process.

    driver's process                        coordinator's process
    Machine._request ----- frame ---------> Driver.read, a thread of the host's: puts it into a queue
    Machine.let_run ------ "wait n" ------> Driver.run, strand 0: while it runs the machine stands still. It passes on what
                                            the driver asks for, in its order, and waits when the driver does, until n is answered
"""

import functools
import os
import pickle
import queue
import threading

import numpy as np

from numaemu.compiler.decorators import callback, kernel
from numaemu.compiler.pointer import i64
from numaemu.hardware.mailbox import MAILBOX_SLOTS, RING, fall_asleep, fetch, has_mail, post
from numaemu.hardware.processor import cpu_t
from numaemu.host.children import wait_for_child
from numaemu.host.threads import current_cpu
from numaemu.kernel.arch.tlb import answer_ipi, post_shootdown
from numaemu.kernel.core.lockstep import block_strand, lockstep_wake, spin, wait_inside, wake, wake_outside, wake_strand
from numaemu.kernel.core.smp import (
    FOR_BELL,
    FOR_OTHERS,
    MSG_CALL,
    MSG_FALLBACK,
    MSG_FILL,
    MSG_RESULT,
    MSG_SHOOTDOWN,
    MSG_WAKE_KTHREAD,
    U,
    actor_of_node,
    mailbox_of,
)
from numaemu.kernel.core.strand import DRIVER, lockstep_t
from numaemu.kernel.include.internal import unpack_zone
from numaemu.kernel.include.mm_types import machine_t
from numaemu.kernel.include.mmzone import zone_of
from numaemu.node import serve_message
from numaemu.process.actor import COORDINATOR, mailbox_of_python
from numaemu.process.wire import receive_frame


@kernel("i64(mailbox_t*)")
def next_kind(mailbox):
    """The kind of the message that waits first."""
    return mailbox.messages[mailbox.head % MAILBOX_SLOTS].kind


@kernel("bool(machine_t*, lockstep_t*, i64)")
def serve_node_here(machine, lockstep, actor):
    """Do what waits in a node's mailbox; False if Python has to see the next message. Else its receiver sleeps."""
    mailbox, words = mailbox_of(machine, actor), i64.array(lockstep.words.address)
    while has_mail(mailbox):
        kind = next_kind(mailbox)
        if kind == MSG_CALL or kind == MSG_RESULT:
            return False
        fetch(mailbox, words)
        serve_message(machine, words)
    fall_asleep(mailbox)
    return True


@kernel("void(machine_t*, i64)")
def shoot_down_here(machine, initiator):
    """A shootdown, with its answers: those inside stand between two accesses, and answer there."""
    post_shootdown(machine, initiator)
    for number in range(machine.nr_cpus):
        cpu = cpu_t.array(machine.cpus)[number]
        if cpu.ipi_pending != U(0) and cpu.inside != U(0):
            answer_ipi(cpu.address, U(0), U(0))


@kernel("bool(machine_t*, lockstep_t*)")
def serve_coordinator_here(machine, lockstep):
    """The same for the coordinator's mailbox."""
    mailbox, words = mailbox_of(machine, COORDINATOR), i64.array(lockstep.words.address)
    while has_mail(mailbox):
        kind = next_kind(mailbox)
        if kind == MSG_SHOOTDOWN:
            fetch(mailbox, words)
            shoot_down_here(machine, words[1])
        elif kind == MSG_WAKE_KTHREAD:
            fetch(mailbox, words)
            wake(lockstep, lockstep.first_free - machine.nr_nodes + words[3])
        elif kind == MSG_FALLBACK:
            fetch(mailbox, words)
            node = actor_of_node(zone_of(machine, unpack_zone(words[3])[0]).node)
            sender, a, b, c, d = words[1], words[3], words[4], words[5], words[6]
            if post(mailbox_of(machine, node), MSG_FILL, sender, 0, a, b, c, d) == RING:
                if not serve_node_here(machine, lockstep, node):
                    wake(lockstep, DRIVER + 1 + node)
        else:
            return False
    fall_asleep(mailbox)
    return True


@callback("u64(u64, u64, u64)")
def lockstep_ring(actor, machine_address, _c):
    """machine.on_ring: an actor's mailbox has mail. Its `bell` is the machine's address."""
    machine = machine_t.at(machine_address)
    lockstep, actor_number = lockstep_t.at(machine.lockstep), np.int64(actor)
    if actor_number == COORDINATOR:
        done = serve_coordinator_here(machine, lockstep)
    elif actor_number <= machine.nr_nodes:
        done = serve_node_here(machine, lockstep, actor_number)
    else:
        done = False
    if not done:
        wake(lockstep, DRIVER + 1 + actor_number)
    return U(0)


@callback("u64(u64, u64, u64)")
def lockstep_wait(context, what, machine_address):
    """machine.on_wait"""
    lockstep = lockstep_t.at(machine_t.at(machine_address).lockstep)
    if what == U(FOR_OTHERS):
        spin(lockstep)
    elif what == U(FOR_BELL):
        wait_inside(lockstep, np.int64(context))
    return U(0)


# -- set up


def pin():
    """The whole machine on one CPU of the host: who is woken there need not wait for another one to wake up. It is the one where
    the host has put this process, which has just begun, as least was going on there.
    """
    cpu, allowed = current_cpu(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu if cpu in allowed else min(allowed)})


def install_bells(world):
    """Before the children fork, instead of those that ring doorbells and wait for them."""
    machine = world.machine
    for actor in world.bells:
        mailbox_of_python(machine, actor).bell = machine.address
    for number in (*world.topology.cpus, *(machine.nr_cpus + node for node in range(machine.nr_nodes))):
        cpu_t.array(machine.cpus)[number].wait_bell = machine.lockstep
    machine.on_ring, machine.on_wake, machine.on_wait = (
        lockstep_ring.address,
        lockstep_wake.address,
        lockstep_wait.address,
    )


class Driver:
    """The driver's strand, in the coordinator's process. It runs while the driver does, until that waits for an answer."""

    def __init__(self, coordinator):
        self.coordinator, self.lockstep = coordinator, coordinator.lockstep
        self.frames = queue.SimpleQueue()
        self.done = set()  # numbers of answers that nobody has waited for
        self.waits = set()  # those the driver waits for
        self.calls = set()  # numbers of functions that the driver runs just now while it waits
        self.blocked = False

    def start(self):
        for work in (self.read, self.run, self.reap):
            threading.Thread(target=work, daemon=True, name=f"driver: {work.__name__}").start()

    def read(self):
        """Take frames from the socket, whoever runs; the end of the stream, or `stop`, ends the machine at once."""
        while True:
            frame = receive_frame(self.coordinator.link)
            if frame is None:
                os._exit(0)
            request, body = pickle.loads(frame)
            if request:
                self.put(request, body)
                continue
            method, args = pickle.loads(body)
            if method == "stop":
                self.coordinator.rpc_stop()
            elif method == "wait":
                self.put(0, args)

    def put(self, request, body):
        self.frames.put((request, body))
        if self.blocked:  # it does not wait for all that it said it would: a time limit, or another thread of its
            wake_outside(self.lockstep, DRIVER)

    def run(self):
        """The strand."""
        while True:
            if self.waits and not self.calls:
                self.wait(self.waits)
            request, body = self.frames.get()  # the machine stands still meanwhile
            if request:
                respond = functools.partial(self.coordinator.respond, request)
                self.coordinator.frames.append((0, respond, body))  # whoever runs, runs alone
                self.coordinator.bell.release()
            else:
                asked = set(body) - self.done
                self.waits |= asked
                self.done -= set(body)
                self.wait(asked)

    def wait(self, numbers):
        """Let the machine run until the driver has the answers with these numbers, or says something else."""
        self.blocked, calls = True, set(self.calls)
        while numbers & self.waits and self.frames.empty() and self.calls == calls:
            block_strand(self.lockstep)
        self.blocked = False

    def call(self, number):
        """The driver runs functions of its own (machine.every) while it waits for something; `called`: it has."""
        self.calls.add(number)
        wake_strand(self.lockstep, DRIVER)

    def called(self, number):
        self.calls.discard(number)

    def answered(self, number):
        """The driver has got an answer."""
        if number not in self.waits:
            self.done.add(number)
            return
        self.waits.discard(number)
        if not self.waits or self.calls:
            wake_strand(self.lockstep, DRIVER)

    def reap(self):
        """A child that dies is seen whoever runs."""
        while wait_for_child():
            self.coordinator.reap()

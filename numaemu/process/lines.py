"""Direct lines between a driver and its machine: an operation of an interactive task goes to its CPU and back in two steps.

    driver's thread --- frame ---> thread `line` of the CPU's process: takes the CPU's turn, runs the operation
                    <-- frame ---

By the coordinator it takes seven: a thread there that reads the link, the coordinator's loop, the CPU's, a thread for the
operation, the loop again, the thread in the driver that reads, and who waits. A line is a socket; it is laid when a task on that
CPU first does something. One to the coordinator spares what is asked there (files of /proc and /sys) the thread that reads in the driver.

Who uses what: one operation at a time is on a line, under its lock. An operation that finds the line in use goes by the coordinator,
so nobody waits for an operation of another task (which may wait for this very one), and a line never makes a deadlock that was
not there. The driver believes that a task is where it was last; the CPU looks, and says where it is instead.

What a CPU has told the coordinator during an operation is in the coordinator's mailbox before the answer is on the line. So a
request of the driver's that comes behind the answer finds it done: the coordinator takes up a request only when it has handled what
was in its mailbox when the request came (Coordinator.queue).

A call that is interrupted (Ctrl-C) leaves its line: the operation goes on, nobody reads its answer, and the next one lays another.
"""

import contextlib
import pickle
import socket
import struct
import threading

from numaemu.process.wire import Sealed, dumps, failure, is_plain, opened, sealed, send_frame

NOT_LAID = object()  # None: there is none to be had
ANSWER, MOVED = 0, 1  # what a CPU says first: it follows; the CPU where the task is
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_SIZE = struct.Struct("!Q")
_CHUNK = 1 << 16


class Reader:
    """Frames of a stream socket, most of them by one call of the host."""

    def __init__(self, sock):
        self.sock, self.rest = sock, b""

    def next(self):
        """The next frame, or None at the end of the stream."""
        data = self.rest
        while len(data) < 8:
            data += (part := self.receive(_CHUNK))
            if not part:
                return None
        end = 8 + _SIZE.unpack_from(data)[0]
        if len(data) < end:
            parts = bytearray(data)
            while len(parts) < end:
                part = self.receive(min(end - len(parts), 1 << 20))
                if not part:
                    return None
                parts += part
            data = bytes(parts)
        self.rest = data[end:]
        return data[8:end]

    def receive(self, most):
        try:
            return self.sock.recv(most)
        except ConnectionError:
            return b""


class Line:
    """The driver's end."""

    def __init__(self, sock):
        self.sock, self.reader, self.lock = sock, Reader(sock), threading.Lock()

    def call(self, payload):
        """What comes back for a frame; None: the CPU has gone."""
        try:
            send_frame(self.sock, payload)
        except OSError:
            return None
        answer = self.reader.next()
        return None if answer is None else pickle.loads(answer)


class Lines:
    """A driver's lines: one to each CPU that its interactive tasks have used, and one to the coordinator."""

    def __init__(self):
        self.lines, self.cpus, self.laying = {}, {}, threading.Lock()  # by process; {task number: CPU}

    def call(self, machine, number, pid, method, args):
        """The answer of an operation in a tuple; None: it has to go by the coordinator, which also tells of a machine that has died."""
        cpu = self.cpus.get(number)
        if cpu is None:
            cpu = self.cpus[number] = machine.where(number)[0]
        args = args if is_plain(args) else Sealed(dumps(args), f"the arguments of {method}")
        answer = self.talk(machine, f"cpu {cpu}", ("line", cpu), (number, pid, method, args))
        if answer is None:
            return None
        if answer[0] == MOVED:
            self.cpus[number] = answer[1]
            return None
        return (opened(answer[1]),)

    def ask(self, machine, method, args):
        """The coordinator's answer in a tuple; None: it has to be asked by its link."""
        answer = self.talk(machine, "coordinator", ("ask_line",), (method, args))
        return None if answer is None else (opened(answer[1]),)

    def talk(self, machine, process, lay, thing):
        """Say something on the line to a process, and hear what comes back. None: there is no line that is free."""
        machine.check_owner()
        if machine.death is not None or machine.closed:
            return None
        payload = dumps(thing)
        line = self.lines.get(process, NOT_LAID)  # in one step: another thread may just leave it
        if line is NOT_LAID:
            line = self.lay(machine, process, lay)
        if line is None or not line.lock.acquire(blocking=False):
            return None
        try:
            return line.call(payload)
        except BaseException:
            self.lines.pop(process, None)
            line.sock.close()
            raise
        finally:
            line.lock.release()

    def lay(self, machine, process, request):
        """A new line to a process, which is asked for it by `request`; None if there is none to be had, or a thread is about it."""
        if not self.laying.acquire(blocking=False):
            return None
        line = None
        try:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as listener:
                listener.bind("")  # a name of the host's choice, in no directory
                listener.listen()
                machine._ask(*request, listener.getsockname())
                sock, _ = listener.accept()
                while _peer(sock) != machine.processes[process]:
                    sock.close()
                    sock, _ = listener.accept()
                line = Line(sock)
            self.lines[process] = line
        finally:
            self.laying.release()
        return line

    def close(self):
        """In a process that was forked from the driver, and at the end."""
        for line in list(self.lines.values()):
            if line is not None:
                with contextlib.suppress(OSError):
                    line.sock.close()
        self.lines = {}

    __del__ = close  # of a machine to which nobody refers any more


def _peer(sock):
    """The pid of the process at the other end."""
    return _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]


def connect(name, function):
    """The other end: function(socket) in a thread of its own. The driver has told the name of the line."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(name)
        threading.Thread(target=function, args=(sock,), daemon=True, name="line").start()
    except BaseException:
        sock.close()
        raise


def each_frame(sock, function):
    """Call function(frame) for each that comes, until the driver leaves the line."""
    reader = Reader(sock)
    with sock, contextlib.suppress(OSError):
        while (frame := reader.next()) is not None:
            function(frame)


def answer(value):
    """An answer as a frame: sealed unless it is plain."""
    return dumps((ANSWER, value if is_plain(value) else sealed(value)))


def serve(cpu, sock):
    """The thread in a CPU's process: one operation after the other."""
    tasks = cpu.operations.tasks

    def run(frame):
        number, pid, method, args = pickle.loads(frame)
        place = tasks[number].cpu
        moved = place != cpu.cpu_number
        send_frame(sock, dumps((MOVED, place)) if moved else answer(operate(cpu, number, pid, method, args)))

    each_frame(sock, run)


def operate(cpu, number, pid, method, args):
    """What an operation answers, or a Failure."""
    try:
        return cpu.call_op(number, pid, method, opened(args) if isinstance(args, Sealed) else args)
    except BaseException as error:
        return failure(error)

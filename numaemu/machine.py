"""The driver's side: boot a machine, start tasks on it, read what it shows, end it.

Everything goes through one socket to the machine's coordinator. A thread per machine reads what comes back: answers,
results of tasks, printed text, the news of a death.
"""

import atexit
import collections
import contextlib
import inspect
import itertools
import os
import pickle
import threading
import time
import weakref
import zlib
from concurrent.futures import Future, wait

from numaemu.api.arguments import runnable
from numaemu.api.every import Timers
from numaemu.api.failure import show_own_frames
from numaemu.api.heatmap import HeatMap
from numaemu.api.samples import Samples, parse_interval
from numaemu.api.tables import Figures, Table, html
from numaemu.api.task import Handle, Task
from numaemu.errors import MachineCheck, note
from numaemu.process import host_memory, lifetime
from numaemu.process.fork_server import END_S, ForkServer, describe
from numaemu.process.lines import Lines
from numaemu.process.payload import dump_function
from numaemu.process.screen import Screen
from numaemu.process.wire import Sealed, dumps, opened, receive_frame, send_frame, settle
from numaemu.spec.buddyinfo import read_free_lists
from numaemu.spec.machine_file import KEYWORDS
from numaemu.spec.topology import load_topology
from numaemu.spec.units import choice_text, format_size, parse_int, parse_size
from numaemu.windows.tree import Tree

SHOW_S = 0.3  # how long a death is kept back at most for printed text, and results behind it, that came before
TELL_S = 0.5  # how long the fork server may take to tell how a coordinator has ended, that is known to have
ASKED_S = 1.0  # how long CPUs have to say where their tasks are


fork_server = lifetime.own(ForkServer())
_machines = weakref.WeakSet()


@atexit.register
def _close_all():
    for machine in list(_machines):
        machine.close()
    fork_server.stop()


NodeView = collections.namedtuple("NodeView", "id cpus distances memory_bytes")
CpuView = collections.namedtuple("CpuView", "id node")


class Machine(Tree):
    """An emulated machine, booted when it is made: Machine("preset"), Machine("file.toml"), Machine(nodes=4, …).

    source          a preset's name, the path of a machine file (.toml), a dict of one, or None: then two nodes of two CPUs
    The other keywords change the source; None leaves what it says. Sizes are bytes or text, as "64MiB".
    nodes           how many, all like the source's first node with CPUs, with default distances and latencies
    cpus_per_node   CPUs of each node that has any
    memory_per_node          size of each node's memory that has any
    memory_only_nodes        how many more nodes there are, without CPUs
    name            the machine's name, in messages and summaries
    paging          the format of page tables: "x86-64-4level", "x86-64-5level", "x86-32", "arm64-39", "arm64-48"
    page_size       bytes; must be that of the format
    zone_layout     "x86-64" (zones DMA, DMA32, Normal) or "x86-32" (DMA, Normal, HighMem)
    low_memory      how much memory lies below the hole of devices at 3 to 4 GiB
    kernelcore, movablecore  size of memory that is not, or is, in zone Movable
    distance        matrix of node distances, as numactl --hardware prints it; 10 is the node itself
    latency         matrix of ns that one load takes, by the CPU's node and the memory's
    l1, l2          dict of a TLB level: entries, ways, latency_ns
    asids           address spaces whose TLB entries may stay side by side; 0: each switch flushes the TLB
    walk_cache      entries of the cache of upper page-table entries; 0: there is none
    sysctl          dict, as {"vm.swappiness": 10}
    bandwidth_per_node  what each node's memory controller moves, as "200GB/s"; None: there is no limit
    link            dict: bandwidth, links: what links between nodes move, and which there are
    cpu             dict: outstanding: misses of a CPU that may be under way
    cache           dict: l1d, l2, llc (dicts: size, ways, line, latency_ns, sharing, replacement, inclusive), cache_to_cache, prefetch
    cost            dict of ns that the kernel's work takes, as {"fault_ns": 500}
    kernel          dict of boot options, as {"transparent_hugepage": "always"}
    tiering         a tiering policy (numaemu.tiering): a shipped one's name, the path of a file, or a module
    disk            dict: size, read_latency_us, write_latency_us, bandwidth
    progress        a function of (n, total), called when n more functions of the kernel have been compiled, of so many that
                    a first run needs; None: one line on stderr says that something is being compiled
    lockstep        True: one process of the machine runs at a time, by emulated time, so that a run can be repeated to the byte
    quantum_ns      how far a CPU may be ahead of another one then
    schedule_seed   who is first where clocks are equal; 0: the lower number
    schedule        who runs next in lockstep: "clock", or drawn in search of errors: "random:SEED", "priorities:SEED:STEP,…"
    sample          how often in emulated time `samples` grows by one, as "1ms"; None: never
    reserve         dict of (managed, free) pages by (node, zone type): so much of a zone's memory is in use from the start
    buddyinfo, pagetypeinfo  files (or texts) of a real machine's /proc/buddyinfo, and /proc/pagetypeinfo if wanted: the free
                    blocks that each zone has from the start; all other memory is in use for ever

    A machine ends with `close()`, at the end of a `with` block, or when nobody refers to it any more. `numaemu machine show`
    prints all defaults. What is wrong raises ConfigError, in one line.
    """

    stays_here = "a function has its task; read what it needs from the machine before, and pass that"

    def __init__(
        self,
        source=None,
        *,
        progress=None,
        sample=None,
        reserve=None,
        buddyinfo=None,
        pagetypeinfo=None,
        tiering=None,
        **keywords,
    ):
        sample_ns = None if sample is None else parse_interval(sample, "sample", "Machine")
        if tiering is not None:
            keywords["kernel"] = (keywords.get("kernel") or {}) | {"tiering": getattr(tiering, "__file__", tiering)}
        self.topology = t = load_topology(source, **keywords)
        lists = None if buddyinfo is None else read_free_lists(buddyinfo, pagetypeinfo)
        host_memory.warn_if_larger(t.memory_bytes)
        self.nodes = [NodeView(n.id, n.cpus, t.distance[n.id], n.memory_bytes) for n in t.nodes]
        self.cpus = [CpuView(c, t.node_of_cpu(c)) for c in t.cpus]
        self._requests, self._runs, self._numbers = {}, {}, itertools.count(1)
        self._numbered = weakref.WeakKeyDictionary()  # what a Future's number is, for `let_run`
        self._lock, self._death, self._closing = threading.Lock(), None, False
        self._ended = threading.Event()
        self._link, self._pid, self._exit = fork_server.fork(t, (reserve, lists), progress)
        self._booted, self._screen = Future(), Screen(self._link, self._lock)
        self._driver, self._timers = os.getpid(), Timers(weakref.WeakMethod(self._ask))
        self._lines = None if t.lockstep else Lines()  # there each step is one of the machine's
        _machines.add(lifetime.own(self))
        lifetime.end_with(self, self._link)
        self._reader = threading.Thread(
            target=_read_link, args=(weakref.ref(self), self._link, self._screen), daemon=True
        )
        self._reader.start()
        try:
            self.processes = self._booted.result()
            self._fill_pools()
            self._samples = None if sample_ns is None else Samples(sample_ns)
            if self._samples is not None:
                self._samples.start(self)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        state = f", dead: {self._death}" if self._death else ""
        return f"<machine {self.topology.name}: {len(self.nodes)} nodes, {len(self.cpus)} cpus{state}>"

    def _repr_html_(self):
        """For a notebook: its nodes."""
        state = f" (dead: {self._death})" if self._death else " (closed)" if self._closing else ""
        rows = [
            (
                node.id,
                ", ".join(map(str, node.cpus)) or "none",
                format_size(node.memory_bytes),
                ", ".join(map(str, node.distances)),
            )
            for node in self.nodes
        ]
        return html(
            Table(f"machine {self.topology.name}{state}", ("node", "CPUs", "memory", "distances"), rows),
            limit=len(rows),
        )

    def _fill_pools(self):
        """Huge pages, as the machine file asks for them: the first thing after boot, while memory is in one piece."""
        pools = sorted(self.topology.hugepages().pools, key=lambda pool: -pool[0])  # the largest while there is room
        for size, node, pages in pools:
            self._fill_pool(size, node, pages)
        for name in ("nr_overcommit_hugepages", "nr_hugepages"):
            if self.topology.sysctl.get(f"vm.{name}"):
                self.write(f"/proc/sys/vm/{name}", self.topology.sysctl[f"vm.{name}"])
        if self.topology.kernel["transparent_hugepage"] != "never":
            self.write("/sys/kernel/mm/transparent_hugepage/enabled", self.topology.kernel["transparent_hugepage"])

    def _fill_pool(self, size, node, pages):
        """Pages of one size; the kernel's log says if they are fewer, as Linux's does (hugetlb_hstate_alloc_pages)."""
        where = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
        path = f"{where}/hugepages/hugepages-{size >> 10}kB/nr_hugepages"
        self.write(path, pages)
        got, name = int(self.read(path)), f"{size >> 30}.00 GiB" if size >> 30 else f"{size >> 20}.00 MiB"
        if got < pages:
            failed = "failed" if node is None else f"failed node{node}"
            self._ask(
                "printk",
                [f"HugeTLB: allocating {pages} of page size {name} {failed}.  Only allocated {got} hugepages."],
            )

    @property
    def death(self):
        """The MachineCheck that says why the machine is lost, or None."""
        return self._death

    @property
    def closed(self):
        """True once `close` has been called."""
        return self._closing

    # -- the link

    def disown(self):
        """In a process that was forked from the driver: the machine is the driver's alone."""
        self._lock = threading.Lock()  # a thread that is not here may have held it
        self._link.close()
        if self._lines is not None:
            self._lines.close()

    def check_owner(self):
        """Raise in a process that was forked from the machine's driver."""
        lifetime.check_owner(self._driver)

    def _request(self, method, *args):
        """Ask the coordinator; a Future."""
        self.check_owner()
        future, number = Future(), next(self._numbers)
        self._numbered[future] = number
        payload = dumps((number, dumps((method, args))))
        with self._lock:
            if self._death is not None:
                raise self._lost()
            if self._closing:
                raise MachineCheck(f"{self!r} is closed: close() was called")
            self._requests[number] = future
        try:
            with self._lock:
                send_frame(self._link, payload)
        except OSError:
            self._ended.wait(END_S)
        return future

    def _ask(self, method, *args):
        if self._lines is not None and (answer := self._lines.ask(self, method, args)):
            return answer[0]
        future = self._request(method, *args)
        self.let_run(future)
        return future.result()

    def let_run(self, *futures):
        """This thread is about to wait for Futures. In lockstep the machine runs only while its driver waits."""
        if not self.topology.lockstep:
            return
        numbers = [self._numbered[future] for future in futures if not future.done() and future in self._numbered]
        if numbers:
            with contextlib.suppress(OSError), self._lock:
                send_frame(self._link, dumps((0, dumps(("wait", numbers)))))

    def _ask_path(self, method, path, *args):
        """Ask about a file of /proc or /sys. What is wrong with it is told in a line, without where in the machine."""
        try:
            return self._ask(method, os.fspath(path), *args)
        except OSError as error:
            note(error, one_line=True, emulated_traceback="")
            raise show_own_frames(error)

    def _receive(self, kind, *words):
        """A frame from the coordinator, in the reader's thread."""
        if kind == "answer":
            settle(self._requests.pop(words[0], Future()), words[1])
        elif kind == "finished":
            runs = self._runs  # who waited for it may have been interrupted: it is not among them then
            self._screen.after(lambda: settle(runs.pop(words[0], Future()), words[1]))
        elif kind == "compiled":
            lifetime.compiled[tuple(words)] += 1
        elif kind == "printed":
            self._screen.show(*words)
        elif kind == "every":
            self._timers.begin(*words)
        elif kind == "booted":
            self._booted.set_result(words[0])
        elif kind == "failed":
            settle(self._booted, words[0])
        elif kind == "panic":
            self._die(words[0])
        elif kind == "died":
            name, pid, status, doing = words
            self._die(f"emulator process '{name}' (pid {pid}) died: {describe(status)}{doing}")

    def _die(self, text):
        """The machine is lost: everybody who waits learns why; but who has a result that waits to be told gets that."""
        self._screen.wait(SHOW_S)
        with self._lock:
            if self._death is None and not self._closing:
                self._death = MachineCheck(text)
            waiting = [*self._requests.values(), *self._runs.values(), self._booted]
            self._requests.clear()
            self._runs.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(self._lost())

    def _exit_text(self):
        """How the coordinator has ended, as far as the fork server says it at once."""
        return self._exit.result() if wait([self._exit], TELL_S).done else "it has closed its link"

    def _lost(self):
        """An error that says why the machine is lost; each is its own, as its traceback grows while it is raised."""
        return MachineCheck(*self._death.args) if self._death else MachineCheck("the machine was closed")

    # -- tasks

    def spawn(self, function, *args, cpu=0, name=None):
        """Run function(task, *args) as a new task in CPU `cpu`'s process; a handle."""
        self._check_cpu(cpu)
        payload = dump_function(runnable("spawn", function), args)
        run, future = self._new_run()
        try:
            _, pid = self._ask("spawn", run, cpu, name or getattr(function, "__name__", "task"), payload)
        except BaseException:
            self._runs.pop(run, None)
            raise
        return Handle(pid, future, self)

    def run(self, function, *args, cpu=0, name=None):
        """spawn(…).result()"""
        result = self.spawn(function, *args, cpu=cpu, name=name).result()
        lifetime.warn_of_compiling()
        return result

    def task(self, cpu=0, name=None):
        """An interactive task: its methods run on the CPU it is on, called from here."""
        self._check_cpu(cpu)
        number, pid = self._ask("new_task", cpu, name or "task")
        return Task(number, pid, self)

    def _check_cpu(self, cpu):
        if not isinstance(cpu, int) or cpu not in self.topology.cpus:
            raise ValueError(f"cpu {cpu!r} is not one of {choice_text(self.topology.cpus)} ({self.topology.name})")

    def _new_run(self):
        run, future = next(self._numbers), Future()
        self._runs[run], self._numbered[future] = future, run
        return run, future

    def call_op(self, number, pid, method, args):
        """Task's site: run an operation of a task on its CPU, by a direct line if there is one (lines.py)."""
        try:
            if self._lines is not None and (answer := self._lines.call(self, number, pid, method, args)):
                return answer[0]
            return opened(self._ask("op", number, pid, method, Sealed(dumps(args), f"the arguments of {method}")))
        except Exception as error:
            raise show_own_frames(error)

    def where(self, number):
        """Task's site: (cpu, node) of a task."""
        return self._ask("where", number)

    def pause(self, seconds):
        """Task's site: who looks again and again whether something has happened waits a little."""
        if self.topology.lockstep:
            self.pass_time()
        else:
            time.sleep(seconds)

    def pass_time(self):
        """Let the machine run for a little emulated time in lockstep; freely it runs anyway."""
        if self.topology.lockstep:
            self._ask("pass_time")

    def start(self, number, pid, cpu, function, args, keep=False):
        """Task's site: let a function run as a task that was just made. With `keep` the task does not end with it."""
        run, future = self._new_run()
        self._ask("adopt", run, cpu, number, dump_function(function, args), keep)
        return Handle(pid, future, self)

    def every(self, interval_ns, function):
        """Call function(now_ns) here, each time that so much emulated time has passed on the CPU that is ahead: a Timer, whose
        `stop()` ends it. The CPU that has come so far stands still meanwhile; others go on.
        """
        return self._timers.add(parse_int(interval_ns, "interval_ns", "every", 1, 1 << 62), runnable("every", function))

    @property
    def samples(self):
        """What `Machine(sample=…)` has seen so far, a dict each: ns, free pages by node, faults, migrations, and bytes and queueing
        of controllers and links: totals since boot (numaemu.api.samples).
        """
        return [] if self._samples is None else list(self._samples.rows)

    def heatmap(self, task, interval_ns, addr=None, nbytes=None, piece=None):
        """Look at each interval of emulated time which pages of an interactive task were used: a HeatMap, until its `stop()`.

        `addr` and `nbytes`: a range instead of all mappings; `piece`: bytes of a row instead of a 40th of each mapping.
        """
        return HeatMap(self, task, interval_ns, addr, nbytes, piece)

    def latency_matrix(self):
        """What one load takes, in ns, measured by chains of pointers: an array, the CPU's node by the memory's; nan where there is none."""
        from numaemu.api.latency import latency_matrix  # with compiled code, which other drivers do not load

        return latency_matrix(self)

    # -- files

    def create_file(self, path, content, seed=None):
        """A file on the emulated disk, which nobody has read yet. `content`: its bytes, or its size: then it is full of
        the pattern of a seed (numaemu.api.files.seeded_bytes), one of its own for each path; 0: zeros.
        """
        if isinstance(content, (bytes, bytearray, memoryview)):
            self._ask("system", "create_file", path, len(content), bytes(content), 0)
            return
        seed = zlib.crc32(path.encode()) + 1 if seed is None else parse_int(seed, "seed", path, 0, (1 << 63) - 1)
        self._ask("system", "create_file", path, parse_size(content, "file size"), None, seed)

    def files(self):
        """{path: {size, cached, dirty}} of the files on the disk: bytes, pages in the cache, dirty ones among them."""
        return self._ask("files")

    def unlink(self, path):
        """Take a file's name away; it goes with its last user."""
        self._ask("system", "unlink", path)

    def sync(self):
        """Write every dirty page of every file to the disk: how many."""
        return self._ask("system", "sync")

    def dmesg(self):
        """The kernel's log: reports of the OOM killer."""
        return self.read("/dev/kmsg")

    def settle(self):
        """Wait until the kernel threads (kswapd, kcompactd, the flusher) have done what they were woken for."""
        self._ask("settle")

    # -- swap

    def swapon(self, size, name=None, priority=None, kind="disk"):
        """Add a swap area, header page included; `kind` "zram" keeps its pages compressed in memory. Its name, which is the
        next one of its kind unless one is given.
        """
        return self._ask("swapon", name, parse_size(size, "swapon size"), priority, kind)

    def swapoff(self, name):
        """Bring everything back that a swap area holds, and take it away."""
        self._ask("swapoff", name)

    def stats(self):
        """The figures so far, as the JSON of a run has them."""
        return Figures(self._ask("stats"))

    def pageblocks(self):
        """What lies in each pageblock, by zone: numaemu.tools.blockmap draws it."""
        return self._ask("pageblocks")

    def check(self):
        """Audit every frame; raises MachineCheck on the first inconsistency. {zone: pages by state}"""
        return self._ask("check")

    def whereabouts(self):
        """A line for each task that runs a function: where in it; for a CPU that does not answer at once, what it is at."""
        asked = [(cpu.id, self._request("whereabouts", cpu.id)) for cpu in self.cpus]
        self.let_run(*[future for _, future in asked])
        done, _ = wait([future for _, future in asked], ASKED_S)
        lines = [
            f"task {pid} ({name}) on cpu {cpu}: {where or 'in no line of its own'}"
            for cpu, future in asked
            if future in done
            for pid, name, where in future.result()
        ]
        return lines + [
            f"cpu {cpu} does not answer{self._request('doing', f'cpu {cpu}').result(ASKED_S)}"
            for cpu, future in asked
            if future not in done
        ]

    # -- the end

    def close(self):
        """End every process of the machine."""
        if self._driver != os.getpid():
            return
        with self._lock:
            if self._closing:
                return
            self._closing = True
        try:
            send_frame(self._link, dumps((0, dumps(("stop", ())))))
        except OSError:
            pass
        if not self._ended.wait(END_S):
            os.kill(self._pid, 9)
            self._ended.wait(END_S)
        self._screen.wait(END_S)
        self._link.close()
        if self._lines is not None:
            self._lines.close()
        self._die("closed")


def _signature():
    """Of Machine, for help(): each keyword by its name."""
    keyword, anything = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = (*KEYWORDS, "tiering", "progress", "sample", "reserve", "buddyinfo", "pagetypeinfo")
    return inspect.Signature(
        [
            inspect.Parameter("source", anything, default=None),
            *(inspect.Parameter(name, keyword, default=None) for name in names),
        ]
    )


setattr(Machine, "__signature__", _signature())  # what help() shows


def _read_link(machine, link, screen):
    """The reader's thread; it holds the machine only while it hands over a frame."""
    while True:
        frame = receive_frame(link)
        this = machine()
        if frame is None or this is None:
            break
        this._receive(*pickle.loads(frame))
        del this
    if this is not None:
        if not this._closing and this._death is None:
            this._die(f"emulator process 'coordinator' (pid {this._pid}) died: {this._exit_text()}")
        this._die("closed")
        this._ended.set()
    screen.end()
    if this is None:
        link.close()  # nobody has the machine any more: that has hung up already

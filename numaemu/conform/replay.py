"""Playing a recorded scenario on an emulated machine: its steps, one method each.

Every task is a descendant of one process, PID 1, as in the recording (conform/init.py). Time is the whole machine's: a step
begins when the one before has ended, on whatever CPU that was.
"""

import errno
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from numaemu import uapi
from numaemu.conform import observe
from numaemu.conform.files import PAGE, FileSteps, write_pages
from numaemu.conform.init import boot_init, fork
from numaemu.conform.shell import shell_commands, shell_mount, shell_rm
from numaemu.conform.touch import touch
from numaemu.errors import BusError, NumaemuError, OutOfMemory, SegmentationFault

# Reclaim goes by sums that are flushed every two seconds. Where in them the first step came depends on how long the recorded kernels
# booted, which no recording says. a36_mix_sw60_classic shows it: file pages were deactivated from the middle of its last step on, as
# they are here with 1830 to 1870.
BOOT_MS = 1850  # emulated time from boot to the first step: a phase of the timers that have a period; fitted
XORSHIFT_SEED = 88172645463325252

SHELL_WRITES, SHELL_READS = 45, 85  # pages that a shell with a small program writes and only reads; measured

POLICIES = {
    name: getattr(uapi, f"MPOL_{name.upper()}")
    for name in ("default", "preferred", "bind", "interleave", "local", "preferred_many", "weighted_interleave")
}
POLICY_FLAGS = {name: getattr(uapi, f"MPOL_F_{name.upper()}_NODES") for name in ("static", "relative")}
POLICY_FLAGS["balancing"] = uapi.MPOL_F_NUMA_BALANCING
MBIND_FLAGS = {name: getattr(uapi, f"MPOL_MF_{name.upper()}") for name in ("strict", "move", "move_all")}
# fmt: off
ADVICE = {name: getattr(uapi, f"MADV_{name.upper()}") for name in (
    "normal", "random", "sequential", "willneed", "dontneed", "free", "cold", "dontfork", "dofork", "wipeonfork", "keeponfork",
    "dontdump", "dodump", "hugepage", "nohugepage", "populate_read", "populate_write", "pageout", "collapse")}
# fmt: on
MREMAP_FLAGS = {name: getattr(uapi, f"MREMAP_{name.upper()}") for name in ("maymove", "fixed", "dontunmap")}
FLAGS = {"mremap": MREMAP_FLAGS}
SIGNALS = {OutOfMemory: uapi.SIGKILL, SegmentationFault: uapi.SIGSEGV, BusError: uapi.SIGBUS}
PROT = {"r": uapi.PROT_READ, "w": uapi.PROT_WRITE, "x": uapi.PROT_EXEC}

# the keys each step may have; another one would change what it means
RANGE = {"region", "offset", "length"}
# fmt: off
KEYS = {
    "spawn": {"cpu", "oom_score_adj"}, "fork": {"child", "cpu"}, "exit": {"code"}, "setcpu": {"cpus"},
    "mmap": {"region", "size", "kind", "share", "prot", "addr", "align", "fixed_replace", "populate", "noreserve", "locked",
             "path", "fileoff"},
    "munmap": RANGE, "munmap_stride": RANGE | {"stride", "each"}, "sh": {"cmd", "capture"},
    "read_file": {"path", "length", "offset", "random_adv", "chunk", "pause_ms"}, "write_file": {"path", "size", "fsync"},
    "fadvise_dontneed": {"path", "length", "offset"}, "write_proc": {"path", "value"},
    "mprotect": RANGE | {"prot"}, "madvise": RANGE | {"advice", "stride", "each"},
    "mremap": RANGE | {"size", "new_size", "addr", "new_addr", "maymove", "dontunmap", "flags", "as", "new_region"},
    "mlock": RANGE | {"onfault"},
    "munlock": RANGE, "brk": {"size", "delta", "length", "region"}, "kill": {"sig"}, "join": set(),
    "touch": RANGE | {"stride", "mode", "order", "repeat", "chunk", "pause_ms", "duration_ms", "async"},
    "set_mempolicy": {"policy", "nodes"}, "mbind": RANGE | {"policy", "nodes", "flags"},
    "get_mempolicy": {"region", "offset", "next_node"}, "move_pages": RANGE | {"nodes", "all"},
    "migrate_pages": {"from", "to", "target"}, "cgroup_attach": {"path"},
    "write": {"path", "value"}, "readf": {"path"}, "sleep": {"ms"}, "snap": {"label"}, "dump": {"label"}, "nop": set()}
VALUES = {"kind": {"anon", "file", "hugetlb"}, "share": {"private", "shared"}, "mode": {"read", "write"},
          "order": {"seq", "reverse", "random"}, "advice": set(ADVICE)}
# fmt: on
NOWHERE = (0, 0)  # a region whose mmap has failed


class NotSupported(NumaemuError):
    """A step that the emulator cannot play yet; `op` says which."""

    def __init__(self, op):
        super().__init__(op)
        self.op = op


def check_steps(steps):
    """Raise NotSupported for the first step that cannot be played as it is meant."""
    for step in steps:
        op = step["op"]
        if op not in KEYS:
            raise NotSupported(op)
        for key, value in step.items():
            if key not in KEYS[op] | {"op", "task"}:
                raise NotSupported(f"{op} {key}")
            if key in VALUES and value not in VALUES[key]:
                raise NotSupported(f"{op} {key}={value}")
        if op == "sh" and shell_commands(step["cmd"]) is None:
            raise NotSupported(f"sh {step['cmd']}")
        policy, _, flags = step.get("policy", "default").partition("|")
        if policy not in POLICIES or set(flags.split("|")) - {"", *POLICY_FLAGS}:
            raise NotSupported(f"{op} policy={step['policy']}")
        unknown = set(step.get("flags", "").split("|")) - {"", *FLAGS.get(op, MBIND_FLAGS)}
        if unknown:
            raise NotSupported(f"{op} flags={step['flags']}")


def numbers(text):
    """[0, 2, 3] of "0,2-3"."""
    spans = [part.partition("-") for part in str(text).split(",") if part.strip()]
    return [n for first, _, last in spans for n in range(int(first), int(last or first) + 1)]


@dataclass
class Process:
    """A task of the scenario; a step that it plays meanwhile (`async`) answers in `running`."""

    name: str
    task: Any
    regions: dict = field(default_factory=dict)  # name: (address, bytes)
    random: int = XORSHIFT_SEED  # state of its generator
    state: dict = field(default_factory=lambda: {"dead": 0, "sig": 0, "code": -1})
    running: object = None


class Replay(FileSteps):
    """One scenario on one machine, which must be fresh."""

    def __init__(self, machine, steps):
        self.machine, self.steps = machine, steps
        self.processes, self.results, self.snapshots, self.dumps, self.files = {}, [], {}, {}, {}
        self.init = boot_init(machine)
        self.balancing = False  # NUMA balancing is on: it matters which mappings a task uses
        self.now_ns = 0  # emulated time of the whole machine: steps follow one another
        self.pass_time(self.init, BOOT_MS * 1_000_000)

    def run(self, until=None):
        """Play the steps (up to the first one with op `until`, that one included); what was observed."""
        for index, step in enumerate(self.steps):
            self.results.append({"step": index, **self.play(step), "op": step["op"]})
            if step["op"] == until:
                break
        for process in self.processes.values():
            self.op_join(process, {})
        final = {
            name: {"task": name, "pid": process.task.pid, **process.state} for name, process in self.processes.items()
        }
        return {
            "step_results": self.results,
            "snapshots": self.snapshots,
            "deltas": observe.deltas(self.snapshots),
            "dumps": self.dumps,
            "oom": observe.oom_events(self.machine.dmesg()),
            "final": final,
            "files": self.files,
        }

    def play(self, step):
        """One step: its result, as the recording has it."""
        if "task" not in step or step["op"] == "spawn":
            return getattr(self, f"op_{step['op']}")(step) or {}
        result = {"task": step["task"]}
        if step["task"] not in self.processes:
            return result | {"state": "NEVER"}  # whoever should have made it could not
        process = self.processes[step["task"]]
        if process.running is not None and step["op"] not in ("join", "kill"):
            self.op_join(process, step)
        if step.get("async"):
            process.running = self.touch_meanwhile(process, step, result)
            return result | {"state": "ASYNC"}
        return self.perform(process, step, result)

    def perform(self, process, step, result):
        """A step of a task: its result."""
        method = getattr(self, f"op_{step['op']}")
        if process.state["dead"]:
            return result | {"state": "DEAD"}

        def play():
            self.pass_time(process.task)
            begin_ns = self.now_ns
            found = method(process, step) or {}
            if not process.state["dead"]:
                self.pass_time(process.task)
            return result | found | {"ns": self.now_ns - begin_ns}

        return self.answered(process, play, result)

    def answered(self, process, play, result):
        """What a step answers, or what has become of it."""
        try:
            return play()
        except OSError as error:
            return result | {"ret": -1, "errno": error.errno, "minflt": 0, "majflt": 0}
        except (OutOfMemory, SegmentationFault, BusError) as error:
            return result | self.killed(process, SIGNALS[type(error)])

    @staticmethod
    def killed(process, signal):
        """A signal has ended a task (a fault that cannot be served)."""
        if signal != uapi.SIGKILL:
            process.task.exit()
        process.state = {"dead": 1, "sig": signal, "code": -1}
        return {"state": "DEAD", "status": signal, "sig": signal, "code": -1}

    def pass_time(self, task, ns=0):
        """It is as late for a task as for the machine, and `ns` later: what its CPU has not worked it was idle."""
        self.now_ns = max(self.now_ns + ns, clock := task.clock_ns)
        if self.now_ns > clock:
            task.sleep((self.now_ns - clock) / 1_000_000)

    @staticmethod
    def range_of(process, step):
        """(address, bytes) that a step is about: all of its region, or part."""
        address, nbytes = process.regions.get(step["region"], NOWHERE)
        offset = step.get("offset", 0)
        return address + offset, step.get("length", max(nbytes - offset, 0))

    # -- tasks

    def op_spawn(self, step):
        """Fork a task of the scenario from init, on one CPU, with its name and oom_score_adj."""
        name = step["task"]
        try:
            task = fork(self.init, numbers(step["cpu"])[0])
        except OSError as error:
            return {"task": name, "ret": -1, "errno": error.errno}
        self.processes[name] = Process(name, task)
        self.machine.write(f"/proc/{task.pid}/comm", f"task{name}")
        if "oom_score_adj" in step:
            self.machine.write(f"/proc/{task.pid}/oom_score_adj", step["oom_score_adj"])
        return {"task": name, "ret": 0, "errno": 0}

    def op_fork(self, process, step):
        task = fork(process.task, numbers(step["cpu"])[0] if "cpu" in step else process.task.cpu)
        child = Process(step["child"], task, dict(process.regions), process.random)
        self.processes[child.name] = child
        return {"ret": child.task.pid, "errno": 0}

    def op_exit(self, process, step):
        code = step.get("code", 0)
        process.task.exit(code)
        process.state = {"dead": 1, "sig": 0, "code": code}
        return {"state": "DEAD", "status": code << 8, "sig": 0, "code": code}

    def op_cgroup_attach(self, process, step):
        """The controller writes the task's pid to cgroup.procs."""
        self.machine.write(step["path"], process.task.pid)
        return {"ret": len(str(process.task.pid)), "errno": 0}

    def op_kill(self, process, step):
        """The controller's signal; what the task is doing meanwhile ends with it."""
        signal = step.get("sig", uapi.SIGKILL)
        self.init.kill(process.task.pid, signal)
        if signal:
            process.state = {"dead": 1, "sig": signal, "code": -1}
        return {"ret": 0, "errno": 0}

    def op_join(self, process, step):
        """Wait for the step that the task plays meanwhile."""
        running, process.running = process.running, None
        return self.answered(process, running, {}) if running is not None else {"ret": 0, "errno": 0}

    def op_setcpu(self, process, step):
        cpu = process.task.sched_setaffinity(set(numbers(step["cpus"])))
        return {"ret": 0, "errno": 0, "cpu": cpu, "node": self.machine.topology.node_of_cpu(cpu)}

    # -- mappings

    def op_mmap(self, process, step):
        """mmap(2) with the flags that the step's words stand for; the region is known by its name from then on."""
        flags = uapi.MAP_SHARED if step.get("share") == "shared" else uapi.MAP_PRIVATE
        file = process.task.open(self.place(step["path"]), uapi.O_RDWR) if step.get("kind") == "file" else None
        if file is None:
            flags |= uapi.MAP_ANONYMOUS
        if step.get("kind") == "hugetlb":
            flags |= uapi.MAP_HUGETLB
        if "addr" in step:
            flags |= uapi.MAP_FIXED if step.get("fixed_replace") else uapi.MAP_FIXED_NOREPLACE
        for name in ("populate", "noreserve", "locked"):
            if step.get(name):
                flags |= getattr(uapi, f"MAP_{name.upper()}")
        if step.get("align"):
            return self.mmap_aligned(process, step, flags)
        mapping = process.task.mmap(
            step["size"], protection(step.get("prot", "rw")), flags, file, step.get("fileoff", 0), step.get("addr")
        )
        if file is not None:
            file.close()
        process.regions[step["region"]] = (mapping.addr, mapping.nbytes)
        return {"ret": mapping.addr, "errno": 0, "minflt": 0, "majflt": 0}

    def mmap_aligned(self, process, step, flags):
        """A region at a multiple of `align`: mapped larger, then cut at both ends."""
        size, align = step["size"], step["align"]
        whole = process.task.mmap(size + align, protection(step.get("prot", "rw")), flags & ~uapi.MAP_POPULATE)
        start = -(-whole.addr // align) * align
        if start > whole.addr:
            process.task.munmap(whole.addr, start - whole.addr)
        process.task.munmap(start + size, whole.addr + align - start)
        if flags & uapi.MAP_POPULATE:
            process.task.madvise(start, size, uapi.MADV_POPULATE_WRITE)
        process.regions[step["region"]] = (start, size)
        return {"ret": start, "errno": 0, "minflt": 0, "majflt": 0}

    def op_mremap(self, process, step):
        """The region (or the part named) gets another size, and another place if it may (as it may unless the step says 0)
        or must. What results is the region, or the one that `as` names.
        """
        address, nbytes = self.range_of(process, step)
        flags = sum(MREMAP_FLAGS[name] for name in step.get("flags", "").split("|") if name)
        flags |= MREMAP_FLAGS["maymove"] if step.get("maymove", "flags" not in step) else 0
        flags |= MREMAP_FLAGS["dontunmap"] if step.get("dontunmap") else 0
        place = step.get("new_addr", step.get("addr"))
        if place is not None:
            flags |= MREMAP_FLAGS["fixed"]
        size = step.get("new_size", step.get("size", nbytes))
        moved = process.task.mremap(address, nbytes, size, flags, place)
        process.regions[step.get("as", step.get("new_region", step["region"]))] = (moved.addr, moved.nbytes)
        return {"ret": moved.addr, "errno": 0}

    def op_brk(self, process, step):
        """The heap grows (or shrinks) by so many bytes, which are the region, if one is named."""
        old, delta = process.task.brk(), step.get("delta", step.get("size", step.get("length", 0)))
        new = process.task.brk(old + delta)
        if new != old + delta:
            raise OSError(errno.ENOMEM, "brk")
        if "region" in step:
            process.regions[step["region"]] = (-(-old // PAGE) * PAGE, delta)
        return {"ret": new, "errno": 0}

    def op_mlock(self, process, step):
        process.task.mlock(*self.range_of(process, step), uapi.MLOCK_ONFAULT if step.get("onfault") else 0)
        return {"ret": 0, "errno": 0}

    def op_munlock(self, process, step):
        process.task.munlock(*self.range_of(process, step))
        return {"ret": 0, "errno": 0}

    def op_munmap(self, process, step):
        process.task.munmap(*self.range_of(process, step))
        return {"ret": 0, "errno": 0}

    def op_munmap_stride(self, process, step):
        """`each` bytes (one page) out of every `stride` (two): how many calls."""
        address, nbytes = self.range_of(process, step)
        places = range(address, address + nbytes, step.get("stride", 2 * PAGE))
        for place in places:
            process.task.munmap(place, min(step.get("each", PAGE), address + nbytes - place))
        return {"ret": len(places), "errno": 0}

    def op_mprotect(self, process, step):
        process.task.mprotect(*self.range_of(process, step), protection(step["prot"]))
        return {"ret": 0, "errno": 0}

    def op_madvise(self, process, step):
        """About the whole range, or `each` bytes out of every `stride`: then the result is how many calls."""
        address, nbytes = self.range_of(process, step)
        process.task.madvise(address, nbytes, ADVICE[step["advice"]], step.get("stride"), step.get("each"))
        return {"ret": -(-nbytes // step["stride"]) if "stride" in step else 0, "errno": 0}

    # -- accesses

    def op_touch(self, process, step):
        """One byte per stride; the values are (index + 1) & 255, so that every 256th page stays zero."""
        if step["region"] not in process.regions:  # its mmap has failed
            return {"ret": 0, "errno": 0, "minflt": 0, "majflt": 0}
        address, nbytes = self.range_of(process, step)
        result, process.random = touch(
            process.task, step, address, nbytes, process.random, self.balancing, self.machine.settle
        )
        return result

    def touch_meanwhile(self, process, step, result):
        """A touch that goes on while other steps are played: it runs as a function of the task, in its CPU's process."""
        self.pass_time(process.task)
        task, begin_ns = process.task, self.now_ns
        args = step, *self.range_of(process, step), process.random, self.balancing
        handle = self.machine.start(task._number, task.pid, task.cpu, touch, args, keep=True)

        def join():
            found, process.random = handle.result()
            self.pass_time(task)
            return result | found | {"ns": self.now_ns - begin_ns}

        return join

    # -- policies and placement

    def op_set_mempolicy(self, process, step):
        process.task.set_mempolicy(policy_of(step["policy"]), numbers(step.get("nodes", "")))
        return {"ret": 0, "errno": 0}

    def op_mbind(self, process, step):
        flags = sum(MBIND_FLAGS[name] for name in step.get("flags", "").split("|") if name)
        policy, nodes = policy_of(step["policy"]), numbers(step.get("nodes", ""))
        process.task.mbind(*self.range_of(process, step), policy, nodes, flags)
        return {"ret": 0, "errno": 0}

    def op_get_mempolicy(self, process, step):
        """Mode and nodes as one number, or with `next_node` the node of a page or of the next turn."""
        address = self.range_of(process, step)[0] if "region" in step else None
        flags = uapi.MPOL_F_NODE if step.get("next_node") else 0
        if flags and address is not None:
            return {"ret": process.task.node_of(address), "errno": 0}
        mode, nodes = process.task.get_mempolicy(address, flags)
        return {"ret": mode if flags else sum(1 << node for node in nodes) << 16 | mode, "errno": 0}

    def op_move_pages(self, process, step):
        """Page i goes to the i-th of the nodes, around; the result says how many are where they should be."""
        address, nbytes = self.range_of(process, step)
        addresses = np.arange(address, address + nbytes, PAGE, dtype=np.uint64)
        nodes = np.resize(np.array(numbers(step["nodes"]), np.int64), len(addresses))
        flags = uapi.MPOL_MF_MOVE_ALL if step.get("all") else uapi.MPOL_MF_MOVE
        status = process.task.move_pages(addresses, nodes, flags)
        stayed = int(np.count_nonzero(status == -errno.EBUSY))
        return {"ret": int(np.count_nonzero(status == nodes)) * 1_000_000 + stayed, "errno": 0}

    def op_migrate_pages(self, process, step):
        """Of the task itself, or of another one."""
        pid = 0
        if "target" in step:
            if step["target"] not in self.processes:
                raise OSError(errno.ESRCH, "migrate_pages")
            pid = self.processes[step["target"]].task.pid
        return {"ret": process.task.migrate_pages(numbers(step["from"]), numbers(step["to"]), pid), "errno": 0}

    # -- the machine

    def op_sh(self, step):
        """A shell, and the program it runs: processes of their own for a moment."""
        shell = fork(self.init, 0)
        area = shell.mmap((SHELL_WRITES + SHELL_READS) * PAGE)
        write_pages(shell, area.addr, SHELL_WRITES)
        shell.load(area.pages()[SHELL_WRITES:], np.uint8)
        for function, words in shell_commands(step["cmd"]):
            self.mounted |= function is shell_mount
            function(self.machine, *(map(self.place, words) if function is shell_rm else words))
        shell.exit()
        return {"ret": 0}

    def op_write(self, step):
        """Write a file of /proc, /sys or a cgroup; NotSupported for one that the emulator does not have."""
        path, value = step["path"], str(step["value"])
        try:
            self.machine.write(path, value)
            if path == "/proc/sys/kernel/numa_balancing":
                self.balancing = value != "0"
        except OSError as error:  # no such file, or a value the emulator has no use for yet
            raise NotSupported(f"write {path}={value}" if error.errno == errno.EINVAL else f"write {path}") from None
        return {"ret": len(value), "errno": 0}

    def op_readf(self, step):
        """Read a file of /proc, /sys or a cgroup and keep its text; NotSupported for one that the emulator does not
        have.
        """
        try:
            text = self.machine.read(step["path"])
        except OSError:
            raise NotSupported(f"readf {step['path']}") from None
        self.files.setdefault(step["path"], []).append(text.strip())

    def op_sleep(self, step):
        """Time for the kernel threads."""
        self.pass_time(self.init, step["ms"] * 1_000_000)
        self.machine.settle()

    def op_nop(self, process, step):
        return {"ret": 0, "errno": 0}

    def op_snap(self, step):
        self.snapshots[step["label"]] = observe.snapshot(self.machine)

    def op_dump(self, process, step):
        regions = {name: observe.region(self.machine, process.task, *where) for name, where in process.regions.items()}
        files = observe.task_files(self.machine, process.task.pid)
        self.dumps.setdefault(step["label"], {})[process.name] = {"regions": regions, **files}


def policy_of(text):
    """Mode and flags of "bind|static"."""
    mode, *flags = text.split("|")
    return POLICIES[mode] | sum(POLICY_FLAGS[name] for name in flags)


def protection(text):
    """PROT_* bits of "rw"."""
    return sum(PROT[letter] for letter in text if letter in PROT)

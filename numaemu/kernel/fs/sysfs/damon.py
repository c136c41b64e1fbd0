"""/sys/kernel/mm/damon/admin: DAMON's files, as far as its user-space tool damo writes them (Linux's mm/damon/sysfs.c, sysfs-schemes.c).

    cd /sys/kernel/mm/damon/admin/kdamonds; echo 1 > nr_kdamonds; echo 1 > 0/contexts/nr_contexts
    echo 1 > 0/contexts/0/targets/nr_targets; echo PID > 0/contexts/0/targets/0/pid_target
    echo 1 > 0/contexts/0/schemes/nr_schemes; echo on > 0/state; …; echo update_schemes_tried_regions > 0/state

Intervals are of emulated time. There are the operations vaddr and fvaddr, and the scheme action stat; what else Linux has is refused,
with EINVAL and a line that says what there is. What was tried is that of the last time that the scheme was applied: Linux waits for the
next one, which on a machine where no time passes would not come.
"""

import errno
import functools

from numaemu.kernel.fs.proc.task import copy_vmas, number_of_pid
from numaemu.kernel.fs.sysfs.sysctl import invalid, strtoul
from numaemu.kernel.include.mm_types import TASK_RUNNING, task_t
from numaemu.kernel.mm.damon.core import Attributes, Context, Scheme, Target
from numaemu.kernel.mm.damon.vaddr import three_regions

ROOT = "/sys/kernel/mm/damon/admin/kdamonds"
OPERATIONS = ("vaddr", "fvaddr")
KNOWN_OPERATIONS = (*OPERATIONS, "paddr")  # Linux takes the name of what it was built without, and refuses it at `on`
ACTIONS = ("stat",)
COMMANDS = (
    "on",
    "off",
    "commit",
    "update_schemes_stats",
    "update_schemes_tried_bytes",
    "update_schemes_tried_regions",
    "clear_schemes_tried_regions",
    "update_schemes_effective_quotas",
)
ULONG_MAX, INT_MAX = (1 << 64) - 1, (1 << 31) - 1
MOST_DIRECTORIES = 4096  # of a kind in one directory; assumed
KDAMOND_PID = 2  # Linux's kthreadd: kernel threads are no tasks here


class Value:
    """A file with a number, or one of some words."""

    def __init__(self, value=0, most=ULONG_MAX, words=None, store=None, writable=True):
        self.value, self.most, self.words, self.stored, self.writable = value, most, words, store, writable

    def show(self):
        return f"{self.value}\n"

    def store(self, path, text):
        """Take what was written, or refuse it."""
        text = text.strip()
        if self.words is not None:
            if text not in self.words:
                raise invalid(f"{path} is {text!r}, must be {' or '.join(self.words)}")
            self.value = text
            return
        value = strtoul(text)
        if value is None or not 0 <= value <= self.most:
            raise invalid(f"{path} is {text!r}, must be 0 to {self.most}")
        if self.stored is not None:
            self.stored(value)
        self.value = value


class Text(Value):
    """A file with any line."""

    def __init__(self):
        super().__init__("")

    def store(self, path, text):
        self.value = text.strip()


class Directory(dict):
    """Files and directories by name."""

    def walk(self, path):
        """(path, file) of every file below."""
        for name, thing in self.items():
            if isinstance(thing, Directory):
                yield from thing.walk(f"{path}/{name}")
            else:
                yield f"{path}/{name}", thing


class Numbered(Directory):
    """A directory with nr_<what>, which makes as many numbered ones."""

    def __init__(self, what, make, most=INT_MAX, allow=lambda: None):
        super().__init__()
        self.make, self.allow = make, allow
        self[f"nr_{what}"] = Value(0, most, store=self.resize)

    def resize(self, number):
        """Make so many; all are new ones."""
        self.allow()
        if number > MOST_DIRECTORIES:
            raise OSError(errno.ENOMEM, f"{number} directories are too many, at most {MOST_DIRECTORIES} are made")
        for name in [name for name in self if name.isdigit()]:
            del self[name]
        self.update((str(i), self.make()) for i in range(number))

    def all(self):
        return [self[str(i)] for i in range(len(self) - 1)]


def numbers(**defaults):
    """A directory of numbers."""
    return Directory((name, Value(value)) for name, value in defaults.items())


def new_goal():
    """A quota's goal. It may be written, as damo does to see what there is; `on` refuses it."""
    metric = Value("user_input", words=("user_input", "some_mem_psi_us"))
    return Directory(target_metric=metric, target_value=Value(), current_value=Value())


def new_filter():
    """A filter, likewise."""
    words = Directory(
        type=Value("anon", words=("anon", "memcg", "young", "addr", "target")),
        matching=Value("N", words=("Y", "N", "1", "0")),
        memcg_path=Text(),
    )
    words.update(numbers(addr_start=0, addr_end=0, damon_target_idx=0))
    return words


def new_scheme():
    """A scheme's directory."""
    pattern = Directory((name, numbers(min=0, max=0)) for name in ("sz", "nr_accesses", "age"))
    quotas = Directory(
        ms=Value(0, 0), bytes=Value(0, 0), reset_interval_ms=Value(), effective_bytes=Value(writable=False)
    )
    quotas["weights"] = numbers(sz_permil=0, nr_accesses_permil=0, age_permil=0)
    quotas["goals"] = Numbered("goals", new_goal)
    watermarks = Directory(metric=Value("none", words=("none",))) | numbers(interval_us=0, high=0, mid=0, low=0)
    stats = Directory(
        (name, Value(writable=False)) for name in ("nr_tried", "sz_tried", "nr_applied", "sz_applied", "qt_exceeds")
    )
    return Directory(
        action=Value("stat", words=ACTIONS),
        apply_interval_us=Value(),
        access_pattern=pattern,
        quotas=quotas,
        watermarks=Directory(watermarks),
        filters=Numbered("filters", new_filter),
        stats=stats,
        tried_regions=Directory(total_bytes=Value(writable=False)),
    )


def new_context():
    """A context's directory, with mm/damon/sysfs.c's defaults."""
    default = Attributes()
    avail = Value("\n".join(OPERATIONS), writable=False)
    intervals = numbers(sample_us=default.sample_us, aggr_us=default.aggr_us, update_us=default.update_us)
    regions = numbers(min=default.min_nr_regions, max=default.max_nr_regions)
    target = functools.partial(Numbered, "regions", lambda: numbers(start=0, end=0))
    return Directory(
        avail_operations=avail,
        operations=Value("vaddr", words=KNOWN_OPERATIONS),
        monitoring_attrs=Directory(intervals=intervals, nr_regions=regions),
        targets=Numbered("targets", lambda: Directory(pid_target=Value(0, INT_MAX), regions=target())),
        schemes=Numbered("schemes", new_scheme),
    )


class Kdamond(Directory):
    """One of them; `context` while it runs."""

    def __init__(self):
        super().__init__(contexts=Numbered("contexts", new_context, most=1))
        self.context, self.due_ns, self.busy = None, 0, False
        self["state"], self["pid"] = State(self), Pid(self)


class State(Value):
    """on or off; written, a command."""

    def __init__(self, kdamond):
        super().__init__()
        self.kdamond = kdamond

    def show(self):
        return "off\n" if self.kdamond.context is None else "on\n"


class Pid(Value):
    def __init__(self, kdamond):
        super().__init__(writable=False)
        self.kdamond = kdamond

    def show(self):
        return f"{-1 if self.kdamond.context is None else KDAMOND_PID}\n"


class Damon:
    """What a machine has of it: the files, and the kdamonds that run. `start(now)` is called when one has begun."""

    def __init__(self, system):
        self.system = system
        self.kdamonds = Numbered("kdamonds", Kdamond, allow=self.allow_resize)

    def running(self):
        return [kdamond for kdamond in self.kdamonds.all() if kdamond.context is not None]

    def allow_resize(self):
        if self.running():
            raise OSError(errno.EBUSY, "a kdamond is running: write off to its state before")

    def next_ns(self):
        """When the first kdamond has something to do; 0: none runs."""
        return min((kdamond.due_ns for kdamond in self.running() if not kdamond.busy), default=0)

    # -- commands --------------------------------------------------------------------------------------------

    def command(self, path, kdamond, text):
        """Write to `state`."""
        text = text.strip()
        if text not in COMMANDS:
            raise invalid(f"{path} is {text!r}, must be {', '.join(COMMANDS)}")
        if text == "on":
            if kdamond.context is not None:
                raise OSError(errno.EBUSY, f"{path} is on already")
            self.turn_on(path, kdamond)
        elif kdamond.context is None:
            raise invalid(f"{path} is off: {text} needs it on")
        elif text == "off":
            kdamond.context = None
            self.system.damon_changed()
        elif text == "commit":
            self.turn_on(path, kdamond)
        elif text in ("update_schemes_stats", "update_schemes_tried_bytes", "update_schemes_tried_regions"):
            self.update_schemes(kdamond, text)
        elif text == "clear_schemes_tried_regions":
            for scheme in self.schemes(kdamond):
                scheme["tried_regions"] = Directory(total_bytes=Value(writable=False))

    def schemes(self, kdamond):
        return kdamond["contexts"]["0"]["schemes"].all()

    def turn_on(self, path, kdamond):
        """damon_sysfs_turn_damon_on, and commit: with what the files say now."""
        if "0" not in kdamond["contexts"]:
            raise invalid(f"{path}: there is no context: write 1 to contexts/nr_contexts before")
        files = kdamond["contexts"]["0"]
        if (operations := files["operations"].value) not in OPERATIONS:
            raise invalid(f"{path}: operations is {operations}, there are {' and '.join(OPERATIONS)}")
        intervals, regions = files["monitoring_attrs"]["intervals"], files["monitoring_attrs"]["nr_regions"]
        attributes = Attributes(
            **{name: value.value for name, value in intervals.items()},
            min_nr_regions=regions["min"].value,
            max_nr_regions=regions["max"].value,
        )
        if why := attributes.wrong():
            raise invalid(f"{path}: {why}")
        targets = [self.target(path, target) for target in files["targets"].all()]
        for what, directories in (("filters", "filters"), ("goals", "quotas/goals")):
            for number, scheme in enumerate(files["schemes"].all()):
                found = scheme["filters"] if what == "filters" else scheme["quotas"]["goals"]
                if found.all():
                    raise invalid(
                        f"{path}: schemes/{number}/{directories} has {len(found.all())}, there are no {what} here"
                    )
        schemes = [self.scheme(scheme) for scheme in files["schemes"].all()]
        seed = self.system.topology.schedule_seed or 0
        context = Context(attributes, targets, schemes, self.ranges, seed)
        if kdamond.context is not None:
            context.go_on_from(kdamond.context)
        kdamond.context, kdamond.due_ns = context, 1  # at once
        self.system.damon_changed()

    def scheme(self, files):
        """A scheme, as its files say it now."""
        pattern = [files["access_pattern"][name] for name in ("sz", "nr_accesses", "age")]
        limits = [(part["min"].value, part["max"].value) for part in pattern]
        return Scheme(*limits, files["apply_interval_us"].value)

    def target(self, path, files):
        """A target of the context, as its files say it now."""
        pid, machine = files["pid_target"].value, self.system.machine
        number = number_of_pid(machine, pid)
        if number == 0 or not task_t.array(machine.tasks)[number].mm:
            raise invalid(f"{path}: pid_target is {pid}, there is no such task")
        ranges = [(region["start"].value, region["end"].value) for region in files["regions"].all()]
        last = 0
        for start, end in ranges:
            if not last <= start < end:
                raise invalid(f"{path}: region {start} to {end} of task {pid} is empty, or not behind the one before")
            last = end
        return Target(number, pid, ranges)

    def ranges(self, target):
        """The addresses that are looked at; None: the task has ended."""
        machine = self.system.machine
        task = task_t.array(machine.tasks)[target.number]
        if task.pid != target.pid or task.state != TASK_RUNNING or not task.mm:
            return None
        return three_regions([(int(vma["start"]), int(vma["end"])) for vma in copy_vmas(machine, task.mm)])

    def update_schemes(self, kdamond, text):
        """The files of schemes say what has come of them; of one that was not applied yet, what it would find now."""
        for files, scheme in zip(self.schemes(kdamond), kdamond.context.schemes, strict=False):
            if text == "update_schemes_stats":
                for name in ("nr", "sz"):
                    for what in ("tried", "applied"):
                        files["stats"][f"{name}_{what}"].value = getattr(scheme, f"{name}_tried")
                continue
            tried = scheme.fitting(kdamond.context.regions()) if scheme.tried is None else scheme.tried
            shown = files["tried_regions"] = Directory(total_bytes=Value(writable=False))
            shown["total_bytes"].value = sum(end - start for start, end, *_ in tried)
            if text == "update_schemes_tried_regions":
                for i, found in enumerate(tried):
                    fields = zip(("start", "end", "nr_accesses", "age"), found, strict=True)
                    shown[str(i)] = Directory((name, Value(value, writable=False)) for name, value in fields)

    # -- time ------------------------------------------------------------------------------------------------

    def sample(self, now_ns, look):
        """What is due, as a generator of Futures (Context.sample)."""
        for kdamond in self.running():
            context = kdamond.context
            if kdamond.busy or kdamond.due_ns > now_ns:
                continue
            kdamond.busy = True  # another CPU that has come so far meanwhile finds it so
            try:
                goes_on = yield from context.sample(look)
            finally:
                kdamond.busy = False
            kdamond.due_ns += context.sample_ns
            if kdamond.due_ns <= now_ns:  # nobody has come this way for so long
                kdamond.due_ns = now_ns + context.sample_ns
            if not goes_on and kdamond.context is context:  # kdamond_need_stop: all targets have ended
                kdamond.context = None


def damon_of(system):
    """The machine's, made when it is first asked for."""
    if system.damon is None:
        system.damon = Damon(system)
    return system.damon


def paths(system):
    """The path of every file."""
    return (path for path, _ in damon_of(system).kdamonds.walk(ROOT))


def find(system, path):
    """(read, write) of a file, or None."""
    file = damon_of(system).kdamonds
    for name in path.removeprefix(ROOT).split("/")[1:]:
        file = file.get(name) if isinstance(file, Directory) else None
    if not isinstance(file, Value):
        return None
    return functools.partial(_show, file), functools.partial(_store, path, file) if file.writable else None


def _show(file, _system):
    return file.show()


def _store(path, file, system, text):
    if isinstance(file, State):
        damon_of(system).command(path, file.kdamond, text)
    else:
        file.store(path, text)

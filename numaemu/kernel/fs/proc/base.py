"""/proc/<pid>/stat, auxv, cmdline, environ, limits: Linux's fs/proc/base.c, and do_task_stat of fs/proc/array.c. clear_refs.

cmdline and environ lie in the task's own memory, perhaps in swap: a CPU reads them (operations/proc.py), not the coordinator.
"""

import errno
import functools

import numpy as np

from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.sched import clock
from numaemu.kernel.fs.binfmt_elf import arch_of
from numaemu.kernel.fs.proc.clear_refs import CLEAR_REFS_ALL, CLEAR_REFS_MM_HIWATER_RSS, CLEAR_REFS_SOFT_DIRTY
from numaemu.kernel.fs.proc.task import live_tasks, number_of_pid
from numaemu.kernel.fs.sysfs.sysctl import invalid, strtoul
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    NR_NUMA_HINT_FAULT_TYPES,
    mm_t,
    numa_faults_t,
    numa_group_t,
    task_name,
    task_t,
)
from numaemu.kernel.include.task_io_accounting_ops import IOAC
from numaemu.spec.param import PAGE_SIZE
from numaemu.uapi import RLIM_INFINITY, RLIMIT_RSS, SIGCHLD

CLK_TCK_NS = 10_000_000  # USER_HZ is 100
MAX_RT_PRIO = 100  # priorities of real-time tasks lie below
NICE_0_PRIO = 20  # task_prio of a task that is not real-time, with nice 0
# fmt: off
LIMITS = (("Max cpu time", "seconds"), ("Max file size", "bytes"), ("Max data size", "bytes"), ("Max stack size", "bytes"),
          ("Max core file size", "bytes"), ("Max resident set", "bytes"), ("Max processes", "processes"),
          ("Max open files", "files"), ("Max locked memory", "bytes"), ("Max address space", "bytes"), ("Max file locks", "locks"),
          ("Max pending signals", "signals"), ("Max msgqueue size", "bytes"), ("Max nice priority", ""),
          ("Max realtime priority", ""), ("Max realtime timeout", "us"))        # lnames of fs/proc/base.c, by RLIMIT_*
# fmt: on


def runtime_ns(machine, numbers):
    """What tasks have had of their CPUs' emulated time, up to now: sum_exec_runtime."""
    total = 0
    for number in numbers:
        task = task_t.array(machine.tasks)[number]
        cpu = cpu_t.array(machine.cpus)[task.cpu]
        running = clock(int(cpu.address)) - cpu.exec_start_ns if cpu.task == number else 0
        total += task.sum_exec_runtime + max(running, 0)
    return total


# from the fourth on, as proc(5) names them; what is of the address space has the name of its field
STAT_FIELDS = (
    "ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime stime cutime cstime priority nice num_threads "
    "itrealvalue starttime vsize rss rsslim start_code end_code start_stack kstkesp kstkeip signal blocked sigignore sigcatch "
    "wchan nswap cnswap exit_signal processor rt_priority policy delayacct_blkio_ticks guest_time cguest_time "
    "start_data end_data start_brk arg_start arg_end env_start env_end exit_code"
).split()


def stat(system, number, mm_number, whole=True):
    """/proc/<pid>/stat, 52 fields; of a thread (not `whole`) faults and time are its own. All time on a CPU counts as the
    user's (utime), as Linux has it where it samples nothing.

    Not emulated, and printed as a kernel prints them that has none of it: process group, session and terminal (0, 0, 0, -1),
    flags, faults and times of children and of threads that have ended (0), signals (0), nice and real-time values (0), delays
    and guests (0); kstkesp and kstkeip are 0 for whoever has not just crashed.
    """
    machine, task, mm = system.machine, task_t.array(system.machine.tasks)[number], mm_of(system.machine, mm_number)
    tasks, alive = live_tasks(machine)
    group = alive[tasks[alive]["tgid"] == task.tgid].tolist()
    threads = group if whole else [number]
    running = cpu_t.array(machine.cpus)[task.cpu].task == number
    faults = [int(tasks[threads][kind].sum()) for kind in ("min_flt", "maj_flt")]
    utime = runtime_ns(machine, threads) // CLK_TCK_NS
    rss = sum(mm.rss[kind] for kind in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES))
    waits = int(len(group) < 2 and not running)  # wchan, told of a process without threads
    values = {
        "ppid": task.ppid,
        "tpgid": -1,
        "minflt": faults[0],
        "majflt": faults[1],
        "utime": utime,
        "priority": NICE_0_PRIO,
        "num_threads": len(group),
        "starttime": task.start_time_ns // CLK_TCK_NS,
        "vsize": mm.total_vm * PAGE_SIZE,
        "rss": rss,
        "rsslim": task.rlim[2 * RLIMIT_RSS],
        "wchan": waits,
        "exit_signal": SIGCHLD,
        "processor": task.cpu,
        **{name: getattr(mm, name) for name in STAT_FIELDS if name in mm_t.kinds and name != "rss"},
    }
    fields = " ".join(str(int(values.get(name, 0))) for name in STAT_FIELDS)
    return f"{task.pid} ({task_name(task)}) {'R' if running else 'S'} {fields}\n"


def auxv(system, _number, mm_number):
    """/proc/<pid>/auxv, as bytes: pairs of words as the program found them on its stack, the pair of 0 that ends them included."""
    words = mm_of(system.machine, mm_number).saved_auxv.as_numpy().astype(np.uint64)
    end = next(i for i in range(0, len(words), 2) if not words[i]) + 2
    return words[:end].astype("<u8" if arch_of(system.topology.paging).bits == 64 else "<u4").tobytes()


def cmdline(system, number, _mm_number):
    """/proc/<pid>/cmdline: work for a CPU."""
    return "cmdline", number, task_t.array(system.machine.tasks)[number].pid


def environ(system, number, _mm_number):
    """/proc/<pid>/environ: likewise."""
    return "environ", number, task_t.array(system.machine.tasks)[number].pid


def limits(system, number, _mm_number):
    """/proc/<pid>/limits. Data, stack, locked memory, address space and open files are limited; the others tell what was set."""
    words = task_t.array(system.machine.tasks)[number].rlim
    shown = ["unlimited" if word == RLIM_INFINITY else int(word) for word in words]
    rows = [
        ("Limit", "Soft Limit", "Hard Limit", "Units"),
        *((name, *shown[2 * which : 2 * which + 2], unit) for which, (name, unit) in enumerate(LIMITS)),
    ]
    return "".join(
        f"{name:<25} {soft:<20} {hard:<20} " + (f"{unit:<10}\n" if unit else "\n") for name, soft, hard, unit in rows
    )


def write_clear_refs(system, pid, text):
    """/proc/<pid>/clear_refs: work for a CPU."""
    kind = strtoul(text.strip())
    if kind is None or not CLEAR_REFS_ALL <= kind <= CLEAR_REFS_MM_HIWATER_RSS:
        raise invalid(
            f"/proc/{pid}/clear_refs takes 1 (all pages), 2 (anonymous), 3 (of files) or 5 (the peak of RSS), "
            f"not {text.strip()!r}"
        )
    if kind == CLEAR_REFS_SOFT_DIRTY:
        raise OSError(errno.EOPNOTSUPP, "soft-dirty bits are not emulated", f"/proc/{pid}/clear_refs")
    return "clear_refs", number_of_pid(system.machine, pid), pid, kind


def io(system, number, _mm_number, whole=True):
    """/proc/<pid>/io: do_io_accounting. Of the whole process, those of its threads that have ended among them, or of one task."""
    tasks, alive = live_tasks(system.machine)
    total = task_t.array(system.machine.tasks)[number].ioac.as_numpy().copy()
    if whole:
        family = alive[tasks[alive]["tgid"] == tasks[number]["tgid"]]
        leader = tasks[tasks[number]["leader"]]
        total = tasks[family]["ioac"].sum(axis=0) + leader["signal_ioac"]
    return "".join(f"{name}: {value}\n" for name, value in zip(IOAC, total.tolist(), strict=True))


def numa_lines(machine, number):
    """sched_show_numa: the task's and its group's faults on each node, private and shared."""
    task = task_t.array(machine.tasks)[number]
    yield from (
        f"{name:<45}:{value:21d}"
        for name, value in (
            ("mm->numa_scan_seq", mm_of(machine, task.mm).numa_scan_seq),
            ("numa_pages_migrated", task.numa_pages_migrated),
            ("numa_preferred_nid", task.numa_preferred_nid),
            ("total_numa_faults", task.total_numa_faults),
        )
    )
    group = numa_group_t.array(machine.numa_groups)[task.numa_group] if task.numa_group else None
    yield (
        f"current_node={cpu_t.array(machine.cpus)[task.cpu].node}, numa_group_id={group.gid if group is not None else 0}"
    )
    own = numa_faults_t.array(machine.numa_faults_table)[number] if task.numa_faults else None
    for node in range(machine.nr_nodes):
        at = NR_NUMA_HINT_FAULT_TYPES * node
        (tsf, tpf), (gsf, gpf) = (
            (int(of.faults[at]), int(of.faults[at + 1])) if of is not None else (0, 0) for of in (own, group)
        )
        yield f"numa_faults node={node} task_private={tpf} task_shared={tsf} group_private={gpf} group_shared={gsf}"


def sched(system, number, _mm_number):
    """/proc/<pid>/sched: proc_sched_show_task, the lines of what is counted; times in ms."""
    machine, task = system.machine, task_t.array(system.machine.tasks)[number]
    tasks, alive = live_tasks(machine)
    head = f"{task_name(task)} ({task.pid}, #threads: {int((tasks[alive]['tgid'] == task.tgid).sum())})"
    total = runtime_ns(machine, [number])
    rows = {
        "se.sum_exec_runtime": f"{total // 10**6}.{total % 10**6:06d}",
        "nr_switches": task.nvcsw + task.nivcsw,
        "nr_voluntary_switches": task.nvcsw,
        "nr_involuntary_switches": task.nivcsw,
        "policy": 0,
        "prio": MAX_RT_PRIO + NICE_0_PRIO,
    }
    lines = [f"{name:<45}:{value!s:>21}" for name, value in rows.items()]
    return "\n".join([head, "-" * 67, *lines, *numa_lines(machine, number)]) + "\n"


PID_FILES = {
    "sched": sched,
    "stat": stat,
    "auxv": auxv,
    "cmdline": cmdline,
    "environ": environ,
    "limits": limits,
    "io": io,
    "clear_refs": None,
}
THREAD_FILES = {
    "stat": functools.partial(stat, whole=False),
    "io": functools.partial(io, whole=False),
}  # of /proc/<pid>/task/<tid>, other than the process's
PID_WRITERS = {"clear_refs": write_clear_refs}

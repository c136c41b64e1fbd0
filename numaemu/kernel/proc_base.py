"""/proc/<pid>/stat, auxv, cmdline and environ: Linux's fs/proc/base.c, and do_task_stat of fs/proc/array.c.

cmdline and environ lie in the task's own memory, perhaps in swap: a CPU reads them (operations_proc.py), not the coordinator.
"""
import numpy as np

from numaemu.kernel.binfmt_elf import arch_of
from numaemu.kernel.mm_types import MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES, task_t
from numaemu.kernel.pgtable import mm_of
from numaemu.kernel.proc_task import live_tasks
from numaemu.kernel.sched import clock
from numaemu.kernel.stats import task_name
from numaemu.processor import cpu_t
from numaemu.uapi import RLIMIT_RSS, SIGCHLD

CLK_TCK_NS = 10_000_000          # USER_HZ is 100
NICE_0_PRIO = 20                 # task_prio of a task that is not real-time, with nice 0


def runtime_ns(machine, numbers):
    """What tasks have had of their CPUs' emulated time, up to now: sum_exec_runtime."""
    total = 0
    for number in numbers:
        task = task_t.array(machine.tasks)[number]
        cpu = cpu_t.array(machine.cpus)[task.cpu]
        running = clock(int(cpu.address)) - cpu.exec_start_ns if cpu.task == number else 0
        total += task.sum_exec_runtime + max(running, 0)
    return total


def stat(system, number, mm_number):
    """/proc/<pid>/stat, 52 fields. All time on a CPU counts as the user's (utime), as Linux has it where it samples nothing.

    Not emulated, and printed as a kernel prints them that has none of it: process group, session and terminal (0, 0, 0, -1),
    flags, faults and times of children and of threads that have ended (0), signals (0), nice and real-time values (0), delays
    and guests (0); kstkesp and kstkeip are 0 for whoever has not just crashed.
    """
    machine, task, mm = system.machine, task_t.array(system.machine.tasks)[number], mm_of(system.machine, mm_number)
    tasks, alive = live_tasks(machine)
    threads = alive[tasks[alive]["tgid"] == task.tgid].tolist()
    running = cpu_t.array(machine.cpus)[task.cpu].task == number
    faults = [int(tasks[threads][kind].sum()) for kind in ("min_flt", "maj_flt")]
    utime = runtime_ns(machine, threads) // CLK_TCK_NS
    rss = sum(mm.rss[kind] for kind in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES))
    waits = int(len(threads) < 2 and not running)                # wchan, told of a process without threads
    fields = [task.ppid, 0, 0, 0, -1, 0, faults[0], 0, faults[1], 0, utime, 0, 0, 0, NICE_0_PRIO, 0, len(threads), 0,
              task.start_time_ns // CLK_TCK_NS, mm.total_vm * 4096, rss, task.rlim[2 * RLIMIT_RSS], mm.start_code, mm.end_code,
              mm.start_stack, 0, 0, 0, 0, 0, 0, waits, 0, 0, SIGCHLD, task.cpu, 0, 0, 0, 0, 0, mm.start_data, mm.end_data,
              mm.start_brk, mm.arg_start, mm.arg_end, mm.env_start, mm.env_end, 0]
    return f"{task.pid} ({task_name(task)}) {'R' if running else 'S'} {' '.join(str(int(field)) for field in fields)}\n"


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


PID_FILES = {"stat": stat, "auxv": auxv, "cmdline": cmdline, "environ": environ}

"""/proc/stat, uptime, loadavg, interrupts, softirqs: Linux's fs/proc/{stat,uptime,loadavg,interrupts,softirqs}.c.

A CPU's emulated time is the user's as far as accesses to memory took it, idle and iowait as far as nothing was done, and the
system's for the rest: faults, system calls, reclaim, shootdowns, what a task says it works. The machine's time is that of the
CPU that has come furthest; a CPU that is behind has been idle for the difference. Kernel threads of the nodes have clocks of
their own, whose time is no CPU's.
"""

from numaemu.hardware.processor import cpu_t
from numaemu.kernel.boot import FIRST_PID
from numaemu.kernel.core.loadavg import FIXED_1, FSHIFT, calc_load_n, load_text
from numaemu.kernel.core.psi import psi_group_cpu_t
from numaemu.kernel.fs.sysfs.stats import task_numbers
from numaemu.kernel.include.mm_types import present_cpus
from numaemu.mmu import clock_ns

CLK_TCK_NS = 10_000_000  # USER_HZ is 100
LOAD_FREQ_NS = 5_000_000_000  # how often Linux looks how many tasks want to run: include/linux/sched/loadavg.h
EXP = (1884, 2014, 2037)  # likewise: 1/exp(5s/1min), 5 min, 15 min
SOFTIRQS = "HI TIMER NET_TX NET_RX BLOCK IRQ_POLL TASKLET SCHED HRTIMER RCU".split()
INTERRUPTS = {  # of arch/x86/kernel/irq.c, those that any x86 lists: what there is none of is 0
    "NMI": "Non-maskable interrupts",
    "LOC": "Local timer interrupts",
    "RES": "Rescheduling interrupts",
    "CAL": "Function call interrupts",
    "TLB": "TLB shootdowns",
}
TLB_SHOOTDOWNS = "TLB"


def cpus_of(machine):
    return [cpu_t.array(machine.cpus)[number] for number in present_cpus(machine)]


def now_ns(machine):
    """The machine's emulated time: of the CPU that has come furthest."""
    return max(int(clock_ns(cpu)) for cpu in cpus_of(machine))


def cpu_times(cpu, now):
    """ns of a CPU's time until `now`: user, system, idle, iowait; together they are `now`."""
    clock, base, iowait = int(clock_ns(cpu)), int(cpu.clock_base_ns), int(cpu.iowait_ns)
    idle = int(cpu.idle_ns)
    system = max(base - idle - iowait, 0)
    return clock - base, system, idle + max(now - clock, 0), iowait


def nr_context_switches(machine):
    """Of all CPUs; each counts in a word of its own."""
    return sum(cpu.nr_switches for cpu in cpus_of(machine))


def nr_running(machine):
    """Tasks that have a CPU."""
    return sum(cpu.task != 0 for cpu in cpus_of(machine))


def nr_iowait(machine):
    """Tasks that sleep until the disk is done."""
    return sum(psi_group_cpu_t.array(machine.psi_cpus)[number].nr_iowait for number in present_cpus(machine))


def times_line(name, times):
    """user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice in ticks."""
    user, system, idle, iowait = (ns // CLK_TCK_NS for ns in times)
    return f"{name} {user} 0 {system} {idle} {iowait} 0 0 0 0 0\n"


def show_stat(system):
    """/proc/stat. The time that answers to shootdowns take is the system's, as where interrupts are not timed."""
    machine = system.machine
    now, cpus = now_ns(machine), cpus_of(machine)
    times = [cpu_times(cpu, now) for cpu in cpus]
    lines = [times_line("cpu ", [sum(column) for column in zip(*times)])]
    lines += [times_line(f"cpu{cpu.id}", each) for cpu, each in zip(cpus, times)]
    interrupts = sum(cpu.shootdowns_received for cpu in cpus)
    return "".join(lines) + (
        f"intr {interrupts}\nctxt {nr_context_switches(machine)}\nbtime {system.boot_time}\n"
        f"processes {machine.next_pid - FIRST_PID}\nprocs_running {nr_running(machine)}\nprocs_blocked {nr_iowait(machine)}\n"
        f"softirq 0{' 0' * len(SOFTIRQS)}\n"
    )


def show_uptime(system):
    """/proc/uptime: the machine's time, and all CPUs' idle time together (iowait is idle, too)."""
    now = now_ns(system.machine)
    idle = sum(sum(cpu_times(cpu, now)[2:]) for cpu in cpus_of(system.machine))
    return f"{now / 1e9:.2f} {idle / 1e9:.2f}\n"


# -- the load ------------------------------------------------------------------------------------------------


def calc_global_load(system):
    """Bring the averages up to now. Nobody looks every five seconds of emulated time: whoever reads does it for all of them,
    with the number of CPUs that were busy in the mean since the last look.
    """
    now, cpus = now_ns(system.machine), cpus_of(system.machine)
    looks = (now - system.load_seen_ns) // LOAD_FREQ_NS
    if looks <= 0:
        return
    busy = sum(sum(cpu_times(cpu, now)[:2]) for cpu in cpus)
    active = (busy - system.load_busy_ns << FSHIFT) // (now - system.load_seen_ns)
    system.avenrun = [calc_load_n(load, exp, active, looks) for load, exp in zip(system.avenrun, EXP)]
    system.load_seen_ns, system.load_busy_ns = now, busy


def show_loadavg(system):
    """/proc/loadavg: the averages, tasks that run and all tasks, the pid given out last."""
    calc_global_load(system)
    loads = " ".join(load_text(load + FIXED_1 // 200) for load in system.avenrun)
    total = len(task_numbers(system.machine))
    return f"{loads} {nr_running(system.machine)}/{total} {int(system.machine.next_pid)}\n"


# -- interrupts ----------------------------------------------------------------------------------------------


def show_interrupts(system):
    """/proc/interrupts: the only interrupts between CPUs are those of shootdowns."""
    cpus = cpus_of(system.machine)
    rows = [
        f"{name}: "
        + "".join(f"{cpu.shootdowns_received if name == TLB_SHOOTDOWNS else 0:10d} " for cpu in cpus)
        + f"  {text}"
        for name, text in INTERRUPTS.items()
    ]
    head = " " * 11 + "".join(f"CPU{cpu.id:<8d}" for cpu in cpus)
    return "\n".join([head, *rows, f"ERR: {0:10d}", f"MIS: {0:10d}"]) + "\n"


def show_softirqs(system):
    """/proc/softirqs: there are none."""
    cpus = cpus_of(system.machine)
    head = " " * 20 + "".join(f"CPU{cpu.id:<8d}" for cpu in cpus)
    return "\n".join([head, *(f"{name:>12}:" + f" {0:10d}" * len(cpus) for name in SOFTIRQS)]) + "\n"


FILES = {
    "/proc/stat": show_stat,
    "/proc/uptime": show_uptime,
    "/proc/loadavg": show_loadavg,
    "/proc/interrupts": show_interrupts,
    "/proc/softirqs": show_softirqs,
}

"""/proc/stat: Linux's fs/proc/stat.c, the lines of what is counted here."""

from numaemu.hardware.processor import cpu_t
from numaemu.kernel.boot import FIRST_PID


def nr_context_switches(machine):
    """Of all CPUs; each counts in a word of its own."""
    return sum(cpu_t.array(machine.cpus)[number].nr_switches for number in range(machine.nr_cpus))


def show_stat(system):
    """/proc/stat. Not there: the times of the CPUs, interrupts, the time of boot, and which tasks want to run."""
    machine = system.machine
    return f"ctxt {nr_context_switches(machine)}\nprocesses {machine.next_pid - FIRST_PID}\n"


FILES = {"/proc/stat": show_stat}

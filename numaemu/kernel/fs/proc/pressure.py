"""/proc/pressure/{cpu,io,memory}: the files of Linux's kernel/sched/psi.c. Triggers (a text written to a file, then poll) are not there."""

from numaemu.kernel.core.loadavg import load_text
from numaemu.kernel.core.psi import (
    AVERAGES,
    PSI_CPU_SOME,
    PSI_IO_FULL,
    PSI_IO_SOME,
    PSI_MEM_FULL,
    PSI_MEM_SOME,
    psi_group_t,
    psi_look,
)
from numaemu.kernel.fs.proc.stat import now_ns

NS_PER_US = 1000
UNDEFINED = None  # that no task of the whole system had a CPU is no pressure: Linux shows zeros


def line_of(group, name, state):
    """One line of a file: percent of the last 10, 60 and 300 s, and microseconds in all."""
    averages = [0] * AVERAGES if state is UNDEFINED else group.avg.as_numpy()[state * AVERAGES :][:AVERAGES].tolist()
    avg10, avg60, avg300 = map(load_text, averages)
    total = 0 if state is UNDEFINED else int(group.total[state]) // NS_PER_US
    return f"{name} avg10={avg10} avg60={avg60} avg300={avg300} total={total}\n"


def show(some, full):
    """What makes the text of a file (psi_show)."""

    def make(system):
        machine = system.machine
        while not psi_look(machine.address, now_ns(machine)):
            pass  # a CPU sums up at this moment
        group = psi_group_t.at(machine.psi)
        return line_of(group, "some", some) + line_of(group, "full", full)

    return make


FILES = {
    "/proc/pressure/cpu": show(PSI_CPU_SOME, UNDEFINED),
    "/proc/pressure/io": show(PSI_IO_SOME, PSI_IO_FULL),
    "/proc/pressure/memory": show(PSI_MEM_SOME, PSI_MEM_FULL),
}

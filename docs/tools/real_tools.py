"""Real tools that look into an emulated machine: their commands, what each must show, and the table of them in the guide.

python -m docs.tools.real_tools   runs those that the host has, and writes the table

A tool is called as it stands there, inside `numaemu shell`; nothing of it is changed.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

GUIDE = pathlib.Path(__file__).parents[1] / "guides" / "real-tools.md"
PLACE = re.compile(r"(<!-- table: real-tools -->\n).*?(<!-- end -->)", re.S)
MACHINE = {"nodes": 2, "cpus_per_node": 2, "memory_per_node": "64MiB"}
TOUCHED_KB = 1024  # of the one task, which is called T0
# tool, command ({pid}: of the task), what its output must match, what it shows
TOOLS = (
    ("numactl", "numactl -H", r"available: 2 nodes \(0-1\)\nnode 0 cpus: 0 1\n.*node +0 +1 *\n +0: +10 +21", "nodes, sizes, distances"),
    ("numastat", "numastat", r"numa_hit +\d+ +0\n", "where pages came from"),
    ("numastat", "numastat -m", r"MemTotal +6\d\.\d\d +64\.00 +12\d\.\d\d\n", "memory by node"),
    ("numastat", "numastat -p {pid}", r"Private +1\.00 +0\.00 +1\.00\n", "a task's memory by node"),
    ("free", "free", r"Mem: +1310\d\d", "memory"),
    ("vmstat", "vmstat", r"swpd +free.*\n +\d+ +0 +0 +\d+ ", "tasks, memory, swap, CPU time"),
    ("vmstat", "vmstat -s", r"1310\d\d K total memory", "the same counters in words"),
    ("vmstat", "vmstat -d", r"vda +\d+", "disks"),
    ("top", "top -b -n 1", r"\n +{pid} .* 1024 .* T0\n", "tasks and CPU time"),
    ("ps", "ps aux", r"\n\w+ +{pid} .* 1024 .* T0\n", "tasks"),
    ("pmap", "pmap -x {pid}", r"{pid}: +T0\n.*1024 +1024 +1024 rw", "a task's mappings"),
    ("slabtop", "slabtop -o", r"kmalloc-1k", "slab caches"),
    ("uptime", "uptime", r"up 0 min.*load average: 0\.00", "the emulated time"),
    ("lscpu", "lscpu", r"NUMA node1 CPU\(s\): +2,3", "CPUs"),
    ("lscpu", "lscpu -p", r"\n3,3,1,1\n", "CPUs, for programs"),
    ("lsmem", "lsmem", r"Total online memory: +128M", "blocks of memory"),
    ("damo", "export HOME={dir}; damo start --target_pid {pid} -s 20 -a 400 -u 1000000; damo report access; damo stop",
     r"intervals: sample 20 us aggr 400 us.*total size: +1\.1\d+ MiB", "DAMON: which memory is used how often"),
    ("lstopo", "lstopo --no-io -", r"NUMANode L#1 \(P#1 64MB\)\n +Core L#2 \+ PU L#2 \(P#2\)", "the machine as a tree"),
    ("lstopo", "lstopo --input {dir} --if fsroot --no-io -", r"NUMANode L#1 \(P#1 64MB\)", "an exported machine"),
    ("lscpu", "lscpu -s {dir}", r"NUMA node1 CPU\(s\): +2,3", "an exported machine"),
)  # fmt: skip


def installed(tool):
    return shutil.which(tool) is not None


def run(machine, task, command, directory):
    """Run a command inside the machine's namespaces: (exit status, output). `directory` holds an export of the machine."""
    from numaemu.windows import namespace

    env = os.environ | {
        "HWLOC_COMPONENTS": "-x86",
        "LC_ALL": "C",
        "TERM": "dumb",
    }  # as numaemu shell sets them, and no colours
    with tempfile.TemporaryFile() as output:
        words = command.format(pid=task.pid, dir=directory)
        status = namespace.run(machine, ["sh", "-c", words], env, output)
        output.seek(0)
        return status, output.read().decode(errors="replace")


def looks_right(machine, task, command, expected, directory):
    """What is wrong with a tool's answer, or ""."""
    status, text = run(machine, task, command, directory)
    wanted = expected.replace("{pid}", str(task.pid))
    return "" if status == 0 and re.search(wanted, text, re.S) else f"status {status}, not as {wanted!r}:\n{text}"


def prepare(machine):
    """The machine's one task."""
    task = machine.task(cpu=1, name="T0")
    task.mmap(TOUCHED_KB << 10).touch()
    return task


def version(tool):
    """What the host's package manager says, as far as there is one."""
    path = os.path.realpath(shutil.which(tool))
    try:
        package = subprocess.run(["dpkg", "-S", path], capture_output=True, text=True).stdout.partition(":")[0]
        return subprocess.run(
            ["dpkg-query", "-W", "-f=${Package} ${Version}", package], capture_output=True, text=True
        ).stdout
    except FileNotFoundError:
        return ""


def table(rows):
    lines = ["| tool | command | what it shows | tried with |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {tool} | `{command.format(pid='PID', dir='DIR')}` | {what} | {tried} |"
        for tool, command, what, tried in rows
    ]
    return "\n".join(lines) + "\n"


def main():
    """Run every tool and write the table; exit status 1 if one fails."""
    from numaemu import Machine

    rows, failed = [], False
    with Machine(**MACHINE) as machine, tempfile.TemporaryDirectory() as directory:
        task = prepare(machine)
        machine.export(directory)
        for tool, command, expected, what in TOOLS:
            if not installed(tool):
                print(f"{tool} is not installed", file=sys.stderr)
                rows.append((tool, command, what, "not tried"))
                continue
            if wrong := looks_right(machine, task, command, expected, directory):
                print(f"{command}: {wrong}", file=sys.stderr)
                failed = True
            rows.append((tool, command, what, version(tool) + ", unchanged"))
    if not failed:
        text = GUIDE.read_text()
        GUIDE.write_text(PLACE.sub(lambda match: match[1] + "\n" + table(rows) + "\n" + match[2], text))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

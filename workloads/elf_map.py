"""The memory map of a real ELF program: its segments, their permissions, what of them is in memory, and the gaps.

A task executes this host's Python, or another program (`numaemu run elf_map -- --help`), then does what a program does first:
it asks for heap, maps memory, calls deeper into its stack. (Libraries are mapped by code of ld.so, which does not run.)
Look for: code and constants are the file's pages, data becomes the task's own when it is written, and most of the space is gaps.
  - right after execve only what the kernel itself has written is there: the end of the data, the arguments on the stack;
  - code (r-x) and constants (r--) are pages of the file (▒), also in the memory of every other task that runs it;
  - a page of data (rw-) is the file's until it is written, then the task's own (█);
  - bss and heap follow the program, ld.so and mmap lie below the stack, with terabytes between and nothing below them.
Give --set kernel.randomize_va_space=2 and a --seed to see the program, heap, mappings and stack move.
"""

import argparse
import os
import sys

from numaemu.tools.memmap import areas, memory_map, resident

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="128MiB")
DEFAULTS = (os.path.realpath(sys.executable), "/bin/ls")
TASK_SIZE = 0x7FFF_FFFF_F000


def arguments():
    found = next((path for path in DEFAULTS if os.path.exists(path)), None)
    parser = argparse.ArgumentParser(
        prog="numaemu run elf_map --", description="Where the parts of a program lie in its address space."
    )
    parser.add_argument("program", nargs="?" if found else None, default=found, help=f"an ELF file (default {found})")
    return parser.parse_args()


def begin(task, entry, sp):
    """What a program does before anything else, as far as memory is concerned: fetch, read and write, grow."""
    task.load([entry & -8, entry + 4096 & -8])  # as fetching its first instructions would
    task.store([sp - 8 - 4096 * i for i in range(40)], sp)  # calls go deep, below what was there at first
    task.brk(task.brk() + (132 << 10))
    task.touch(task.brk() - (132 << 10), 32 << 10)  # a first malloc
    task.mmap("256KiB").touch(stride=16384)  # and a large one, used here and there


def read_all(task, found):
    """Read the program's code and constants once, write to each page of its data."""
    for area in found:
        if area.name.startswith("/"):
            task.touch(area.start, area.end - area.start, write="w" in area.permissions)


def figures(found):
    own, file = (sum(column) for column in zip(*map(resident, found)))
    return {"mappings": len(found), "pages": sum(len(area.kinds) for area in found), "own": own, "of files": file}


def main(machine):
    from rich.console import Console

    path, console, moments = arguments().program, Console(highlight=False), {}
    task = machine.task(name="elf_map")
    ip, sp = task.execve(path, [path, "--version"], {"HOME": "/", "LANG": "C"})
    steps = {
        "after execve": lambda: None,
        "begun": lambda: begin(task, ip, sp),
        "everything used once": lambda: read_all(task, areas(machine, task.pid)),
    }
    for title, step in steps.items():
        step()
        found = areas(machine, task.pid)
        moments[title] = figures(found)
        console.print(f"[bold]{os.path.basename(path)}, {title}[/bold]")
        console.print(memory_map(found, TASK_SIZE), "")
    task.exit()
    return moments

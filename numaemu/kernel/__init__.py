"""The emulated Linux kernel, laid out as Linux's source is: include, arch, kernel (here `core`), fs, mm, and its system calls.

A file has the name of the Linux file that it mirrors, and each function the name of the Linux function. `boot` makes the
machine's memory. Every file is compiled as far as its functions carry a decorator. `mm`, `core`, `arch` and `include` never
import what shows them (`syscalls`, `fs/proc`, `fs/sysfs`, `audit`); who needs another process sends it a message (core/smp).

Words: `cpu` is a cpu_t and `task` a task_t; `cpu_number` and `task_number` are their numbers, `process` is the process of a CPU (numaemu/cpu.py).
`address` is a virtual address, `nbytes` a count of bytes, `pfn` a frame's number, `nid` or `node` a node's. What users see (numaemu/api,
numaemu/machine.py) has Linux's words instead: `addr`, `length`, and `cpu` for a CPU's number.
"""

"""System calls: what a task asks of the kernel, run by the CPU that the task is on. Linux's SYSCALL_DEFINE functions.

`common` enters and leaves; `mm`, `mempolicy`, `file`, `exec` are the calls by subject, `allocators` and `vmalloc` what task.kernel asks.
A new system call goes here, its method into numaemu/operations and numaemu/api.
"""

"""DAMON, Linux's Data Access MONitor: which regions of a task's memory are used how often, by one page looked at in each.

`core` has the regions, which join and split as their accesses show (mm/damon/core.c); `vaddr` says where a task has memory
(mm/damon/vaddr.c). The coordinator plays the part of kdamond, as nothing here is charged to anybody; a CPU looks at the Accessed bits
(kernel/syscalls/mm.py, damon_sample). The files are those of kernel/fs/sysfs/damon.py.
"""

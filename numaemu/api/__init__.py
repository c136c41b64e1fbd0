"""What a workload holds: tasks, mappings, files, the kernel's allocators, and the accesses that these make.

The objects are the same in a CPU's process and in the driver. A new method of a task goes into `task` or the object that it
belongs to, its name and arguments into `calls`, and what the CPU does for it into `numaemu/operations`. What a notebook shows of
them is made in `tables`, and what is shown of a task's error in `failure`.
"""

"""Pages and tasks that come to each other: NUMA balancing (the NUMA part of Linux's kernel/sched/fair.c, with what mm/ does for it)
and memory tiers (mm/memory-tiers.c).

A task that runs makes entries of its memory inaccessible, part by part (scan.py, prot_numa.py). The next access takes a hinting
fault (numa_fault.py), which says where the page should be (should_migrate.py) and moves it, and tells the task's statistics
(placement.py), by which the task may go to its memory (task_migrate.py). Which node is how fast, and where pages of a full
one go, is in memory_tiers.py. A new rule for promotion is a file beside promotion.py.
"""

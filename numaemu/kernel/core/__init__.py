"""Tasks and processors: locks and messages between CPUs, the scheduler, timers, fork, cpusets. Linux's kernel/.

The pools and trees that Linux has in lib/ (`pool`, `xarray`, `random`) are here, too.
"""

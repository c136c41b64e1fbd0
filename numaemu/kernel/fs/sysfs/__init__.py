"""Settings and figures outside /proc/<pid>: sysctl, /sys/devices/system/node, /sys/kernel/mm, control groups, machine.stats().

It runs in the coordinator, in plain Python. A new setting is an entry in `sysctl` or the table of its file.
"""

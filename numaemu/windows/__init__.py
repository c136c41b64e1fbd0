"""How real tools look into a running machine: its /proc and /sys as files, as a mount, as the /proc and /sys of a shell.

`view` is the machine's tree with what a reader finds of itself, `export` writes it, `mount` serves it through FUSE, and
`namespace` gives a command namespaces of its own in which it lies at /proc and /sys (`enter` is the program that goes there).
`tree` is the part of a Machine that reads, writes and lists it. A machine is whatever has that and a topology.
"""

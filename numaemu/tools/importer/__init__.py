"""Machines of others as machine files: `numaemu machine import`.

`source` finds out what a file is and reads it; `hwloc`, `numactl`, `lscpu`, `mlc` and `linux_tree` read one kind each and give a Found
(`found`), which becomes a machine file's dict and a list of what is not in it.
"""

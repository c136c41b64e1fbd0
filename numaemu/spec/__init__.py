"""What a machine is made of, as people write it: machine files, presets, sizes, kernel command lines, and all fixed limits.

`topology.load_topology` turns a preset, a file or keyword arguments into a checked description; `machine_file` knows each key,
its limits and its default. A new key goes into `machine_file`, a new limit into `param`, a new preset into `presets/`, a new
page-table format into `formats` (and its entries into `hardware/paging`).
"""

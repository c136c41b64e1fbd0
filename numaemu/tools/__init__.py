"""What people start and see: the command line, the summary of a run, the benchmark, maps of memory, charts, replacement
policies.

Nothing in the package imports this room; workloads draw with it. A new command is a file in `commands`, a new replacement policy
into `replacement`, a new kind of chart into `chart`, a part of the summary into `summary`, a study of many runs into `study`. `shipped` finds the
workloads that come along, and `bootstrap` is what `make` runs before anything is installed.
"""

"""What people start and see: the command line, the summary of a run, the benchmark, maps of memory, replacement policies.

Nothing imports this room. A new command goes into `cli`, a new replacement policy into `replacement`.
"""

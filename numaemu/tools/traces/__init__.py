"""Traces of memory accesses that other tools have recorded, and their replay: `numaemu replay`.

`formats` reads them in pieces (`lackey` has the compiled reader of valgrind's), `replay` lets tasks of a machine do the accesses,
`settings` is what a replay may be asked for, and `compare` shows two runs side by side.
"""

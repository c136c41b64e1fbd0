"""Traces of memory accesses that other tools have recorded, and their replay: `numaemu replay`.

`formats` reads them in pieces (`lackey` has the compiled reader of valgrind's), `replay` lets tasks of a machine do the accesses;
`record` is one access however it was written. `malloc` plays traces of requests on the kinds of heaps: `numaemu malloc`.
"""

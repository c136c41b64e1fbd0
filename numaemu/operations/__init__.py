"""What a CPU does for the objects in `numaemu/api`: each public method is one operation, run in the CPU's turn.

`base` puts the parts together; `memory`, `files`, `exec`, `proc`, `kernel_space` and `allocators` are parts by subject.
`faults` and `refusals` make the texts of errors. A new operation goes into the part of its subject.
"""

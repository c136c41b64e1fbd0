"""What a CPU does for the objects in `numaemu/api`: each public method is one operation, run in the CPU's turn.

`base` puts the parts together; `memory`, `mempolicy`, `files`, `exec`, `proc`, `kernel_space`, `pages` and `allocators` are parts by
subject. `part` says what each part may use of the whole.
`faults` and `refusals` make the texts of errors. A new operation goes into the part of its subject.
"""

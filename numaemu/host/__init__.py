"""What the host gives: shared memory and doorbells, threads, whom its files belong to, where a program stands.

It imports nothing of the package but `errors`; every room may use it.
"""

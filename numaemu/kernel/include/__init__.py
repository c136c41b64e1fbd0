"""Structs, constants and small accessors that the whole kernel shares: Linux's include/linux.

It imports nothing else of the kernel. A new field goes beside those that the same process writes, under the same lock.
"""

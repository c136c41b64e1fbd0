"""Files: inodes, descriptors, the disk, programs. Linux's fs/ and the block layer, as far as memory needs them.

What shows the kernel to people is in `proc` and `sysfs`.
"""

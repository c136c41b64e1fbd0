"""The files of /proc as text. `tree` says which there are and finds them by path; the others are named after Linux's files.

It runs in the coordinator, in plain Python, and may import all of the kernel. A new file is a function and an entry in FILES.
"""

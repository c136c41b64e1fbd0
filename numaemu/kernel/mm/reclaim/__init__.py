"""Reclaim: LRU lists, kswapd, shrinkers, refaults, the OOM killer. Linux's mm/vmscan.c, swap.c, workingset.c, oom_kill.c.

A new way to choose pages goes beside `vmscan`.
"""

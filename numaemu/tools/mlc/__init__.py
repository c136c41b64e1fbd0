"""`numaemu mlc`: latencies and bandwidths of an emulated machine, measured and laid out as Intel's Memory Latency Checker does it.

measure.py    runs threads that load and store on a booted machine, in lockstep
layout.py     prints what was measured
"""

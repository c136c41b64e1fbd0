"""Traces out: `numaemu run --trace EVENTS --trace-out FILE`.

`collector` takes events from a machine's rings while a run goes on, and `perfetto`, `trace_dat`, `ftrace` and `table` write them in a format
each. A new format is a file here and a line in `WRITERS` of `collector`.
"""

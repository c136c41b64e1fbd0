"""What a run shows in a terminal: the summary at its end, its tables and notes, and the bar while it goes on.

`report` puts a summary together, `cache_table` and `notes` are parts of it, `layout` makes tables fit the terminal, `numbers` writes
what stands in them, `progress` is the line of a run that goes on. A new part of the summary is a file of its own, called by `report`.
"""

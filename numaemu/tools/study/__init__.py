"""Many runs of a workload, and what tells them apart: sweeps, comparisons, what-if, the search for schedules that fail.

`figures` is one run as a row; `settings` reads what people set for one. A new kind of study is a file here and a command in
`tools/commands`.
"""

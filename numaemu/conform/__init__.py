"""Playing what was recorded on a real Linux and judging whether the emulator agrees: `numaemu conform`.

`replay` has a method for each step, `observe` what is looked at after it, `judge` the tolerances. A new step of recorded
scenarios is a method op_… in `replay`, `files` or `shell`.
"""

"""Tiering policies, each one file: which pages of a running task go to faster memory and which to slower.

    [kernel] tiering = "frequency", --set numaemu.tiering=frequency, Machine(tiering="frequency"), Machine(tiering=my_module)

A policy works while kernel.numa_balancing has 2 (memory tiering). Its file has

    SAMPLES        FAULTS: asked at each hinting fault on a page of a slow tier; ACCESSED: about each page once in INTERVAL_MS
    INTERVAL_MS    of emulated time, for ACCESSED
    decide         a callback("u64(u64, u64, u64)"): page_sample_t.at(its first argument) says what is known of the page; it
                   answers STAY, PROMOTE, DEMOTE (ACCESSED only) or MARK (it stays, and joins the active list)

Pages are promoted only as far as there is room above the high watermark; the kernel's own demotion goes on beside it.
"""

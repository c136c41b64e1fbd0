"""The page allocator: Linux's mm/page_alloc.c. `page_alloc` is the CPU's side, `node_side` the node's, `zonelist` the walk between.

The fast path is page_alloc > zonelist > watermark, pcplist; the slow path (`slowpath`) stands above reclaim and compaction's hints.
`report` says what an allocation did and why one failed.
"""

"""Objects smaller than a page: slab caches (Linux's mm/slub.c, slab.h, slab_common.c) and per-CPU memory (percpu.c).

`slub_free` and `slub_debug` are parts of mm/slub.c; `memcontrol` and `obj_exts` say whom pages and objects are charged to.
"""

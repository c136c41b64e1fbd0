"""Objects smaller than a page: slab caches (mm/slub.c, slab_common.c), per-CPU memory (percpu.c), and whom they are charged to."""

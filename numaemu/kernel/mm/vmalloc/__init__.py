"""Memory that is contiguous in virtual addresses only, and high memory. Linux's mm/vmalloc.c and highmem.c."""

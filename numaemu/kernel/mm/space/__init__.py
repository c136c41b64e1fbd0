"""Address spaces: mmap, VMAs, mprotect, mremap, madvise, mlock, memory policies. Linux's mm/mmap.c, vma.c and their kin."""

"""Huge pages: transparent ones (mm/huge_memory.c, khugepaged.c) and those of the pools (mm/hugetlb.c)."""

"""Swap areas, the swap cache, zswap and zram. Linux's mm/swapfile.c, swap_state.c, page_io.c, zswap.c, zsmalloc.c."""

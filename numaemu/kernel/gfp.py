"""Allocation flags: Linux's include/linux/gfp_types.h (6.12 values of this configuration are not kept; names are)."""
(___GFP_DMA, ___GFP_HIGHMEM, ___GFP_DMA32, ___GFP_MOVABLE, ___GFP_RECLAIMABLE, ___GFP_HIGH, ___GFP_IO, ___GFP_FS,
 ___GFP_ZERO, ___GFP_DIRECT_RECLAIM, ___GFP_KSWAPD_RECLAIM, ___GFP_WRITE, ___GFP_NOWARN, ___GFP_RETRY_MAYFAIL,
 ___GFP_NOFAIL, ___GFP_NORETRY, ___GFP_MEMALLOC, ___GFP_COMP, ___GFP_NOMEMALLOC, ___GFP_HARDWALL, ___GFP_THISNODE,
 ___GFP_ACCOUNT) = (1 << i for i in range(22))

__GFP_DMA, __GFP_HIGHMEM, __GFP_DMA32, __GFP_MOVABLE = ___GFP_DMA, ___GFP_HIGHMEM, ___GFP_DMA32, ___GFP_MOVABLE
__GFP_RECLAIMABLE, __GFP_ZERO, __GFP_THISNODE = ___GFP_RECLAIMABLE, ___GFP_ZERO, ___GFP_THISNODE
__GFP_HARDWALL, __GFP_RECLAIM = ___GFP_HARDWALL, ___GFP_DIRECT_RECLAIM | ___GFP_KSWAPD_RECLAIM
__GFP_IO, __GFP_FS, __GFP_HIGH = ___GFP_IO, ___GFP_FS, ___GFP_HIGH

GFP_ATOMIC = __GFP_HIGH | ___GFP_KSWAPD_RECLAIM
GFP_KERNEL = __GFP_RECLAIM | __GFP_IO | __GFP_FS
GFP_KERNEL_ACCOUNT = GFP_KERNEL | ___GFP_ACCOUNT
GFP_NOWAIT = ___GFP_KSWAPD_RECLAIM
GFP_NOIO, GFP_NOFS = __GFP_RECLAIM, __GFP_RECLAIM | __GFP_IO
GFP_USER = GFP_KERNEL | __GFP_HARDWALL
GFP_HIGHUSER = GFP_USER | __GFP_HIGHMEM
GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER | __GFP_MOVABLE
GFP_PGTABLE_USER = GFP_KERNEL_ACCOUNT | __GFP_ZERO

# -- as Linux 6.12 prints them -------------------------------------------------------------------------------

_NAMES = ("__GFP_DMA __GFP_HIGHMEM __GFP_DMA32 __GFP_MOVABLE __GFP_RECLAIMABLE __GFP_HIGH __GFP_IO __GFP_FS __GFP_ZERO "
          "__GFP_DIRECT_RECLAIM __GFP_KSWAPD_RECLAIM __GFP_WRITE __GFP_NOWARN __GFP_RETRY_MAYFAIL __GFP_NOFAIL "
          "__GFP_NORETRY __GFP_MEMALLOC __GFP_COMP __GFP_NOMEMALLOC __GFP_HARDWALL __GFP_THISNODE __GFP_ACCOUNT").split()
_WHOLE = {"GFP_HIGHUSER_MOVABLE": GFP_HIGHUSER_MOVABLE, "GFP_HIGHUSER": GFP_HIGHUSER, "GFP_USER": GFP_USER,
          "GFP_KERNEL_ACCOUNT": GFP_KERNEL_ACCOUNT, "GFP_KERNEL": GFP_KERNEL, "GFP_ATOMIC": GFP_ATOMIC,
          "GFP_NOWAIT": GFP_NOWAIT}      # the first that fits, as in __def_gfpflag_names


def gfp_text(gfp):
    """(Linux's value, %pGg). Linux has an unused bit after __GFP_ZERO."""
    names, rest = [], gfp
    for name, flags in _WHOLE.items():
        if rest & flags == flags:
            names, rest = [name], rest & ~flags
            break
    names += [name for bit, name in enumerate(_NAMES) if rest >> bit & 1]
    return gfp & 0x1FF | gfp >> 9 << 10, "|".join(names) or "none"

"""Allocation flags: Linux's include/linux/gfp_types.h (6.12 values of this configuration are not kept; names are)."""

# fmt: off
(___GFP_DMA, ___GFP_HIGHMEM, ___GFP_DMA32, ___GFP_MOVABLE, ___GFP_RECLAIMABLE, ___GFP_HIGH, ___GFP_IO, ___GFP_FS,
 ___GFP_ZERO, ___GFP_DIRECT_RECLAIM, ___GFP_KSWAPD_RECLAIM, ___GFP_WRITE, ___GFP_NOWARN, ___GFP_RETRY_MAYFAIL,
 ___GFP_NOFAIL, ___GFP_NORETRY, ___GFP_MEMALLOC, ___GFP_COMP, ___GFP_NOMEMALLOC, ___GFP_HARDWALL, ___GFP_THISNODE,
 ___GFP_ACCOUNT,
 ___GFP_COLD, ___GFP_NO_GROW) = (1 << i for i in range(24))      # the last two are of older kernels: 4.14, 2.4
# fmt: on
GFP_BITS = (1 << 24) - 1

__GFP_DMA, __GFP_HIGHMEM, __GFP_DMA32, __GFP_MOVABLE = ___GFP_DMA, ___GFP_HIGHMEM, ___GFP_DMA32, ___GFP_MOVABLE
__GFP_RECLAIMABLE, __GFP_WRITE, __GFP_HARDWALL = ___GFP_RECLAIMABLE, ___GFP_WRITE, ___GFP_HARDWALL
__GFP_THISNODE, __GFP_ACCOUNT = ___GFP_THISNODE, ___GFP_ACCOUNT
__GFP_HIGH, __GFP_MEMALLOC, __GFP_NOMEMALLOC = ___GFP_HIGH, ___GFP_MEMALLOC, ___GFP_NOMEMALLOC
__GFP_IO, __GFP_FS = ___GFP_IO, ___GFP_FS
__GFP_DIRECT_RECLAIM, __GFP_KSWAPD_RECLAIM = ___GFP_DIRECT_RECLAIM, ___GFP_KSWAPD_RECLAIM
__GFP_RECLAIM = ___GFP_DIRECT_RECLAIM | ___GFP_KSWAPD_RECLAIM
__GFP_RETRY_MAYFAIL, __GFP_NOFAIL, __GFP_NORETRY = ___GFP_RETRY_MAYFAIL, ___GFP_NOFAIL, ___GFP_NORETRY
__GFP_NOWARN, __GFP_COMP, __GFP_ZERO = ___GFP_NOWARN, ___GFP_COMP, ___GFP_ZERO
__GFP_WAIT = __GFP_RECLAIM  # until 4.3: may sleep
__GFP_REPEAT = __GFP_RETRY_MAYFAIL  # until 4.12
__GFP_COLD, __GFP_NO_GROW = ___GFP_COLD, ___GFP_NO_GROW

GFP_ATOMIC = __GFP_HIGH | __GFP_KSWAPD_RECLAIM
GFP_KERNEL = __GFP_RECLAIM | __GFP_IO | __GFP_FS
GFP_KERNEL_ACCOUNT = GFP_KERNEL | __GFP_ACCOUNT
GFP_NOWAIT = __GFP_KSWAPD_RECLAIM | __GFP_NOWARN
GFP_NOIO = __GFP_RECLAIM
GFP_NOFS = __GFP_RECLAIM | __GFP_IO
GFP_USER = GFP_KERNEL | __GFP_HARDWALL
GFP_DMA, GFP_DMA32 = __GFP_DMA, __GFP_DMA32
GFP_HIGHUSER = GFP_USER | __GFP_HIGHMEM
GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER | __GFP_MOVABLE
GFP_TRANSHUGE_LIGHT = (GFP_HIGHUSER_MOVABLE | __GFP_COMP | __GFP_NOMEMALLOC | __GFP_NOWARN) & ~__GFP_RECLAIM
GFP_TRANSHUGE = GFP_TRANSHUGE_LIGHT | __GFP_DIRECT_RECLAIM
GFP_PGTABLE_USER = GFP_KERNEL_ACCOUNT | __GFP_ZERO

# -- as Linux 6.12 prints them -------------------------------------------------------------------------------

_NAMES = (
    "__GFP_DMA __GFP_HIGHMEM __GFP_DMA32 __GFP_MOVABLE __GFP_RECLAIMABLE __GFP_HIGH __GFP_IO __GFP_FS __GFP_ZERO "
    "__GFP_DIRECT_RECLAIM __GFP_KSWAPD_RECLAIM __GFP_WRITE __GFP_NOWARN __GFP_RETRY_MAYFAIL __GFP_NOFAIL "
    "__GFP_NORETRY __GFP_MEMALLOC __GFP_COMP __GFP_NOMEMALLOC __GFP_HARDWALL __GFP_THISNODE __GFP_ACCOUNT "
    "__GFP_COLD __GFP_NO_GROW"
).split()
# fmt: off
_WHOLE = {"GFP_TRANSHUGE": GFP_TRANSHUGE, "GFP_TRANSHUGE_LIGHT": GFP_TRANSHUGE_LIGHT,
          "GFP_HIGHUSER_MOVABLE": GFP_HIGHUSER_MOVABLE, "GFP_HIGHUSER": GFP_HIGHUSER, "GFP_USER": GFP_USER,
          "GFP_KERNEL_ACCOUNT": GFP_KERNEL_ACCOUNT, "GFP_KERNEL": GFP_KERNEL, "GFP_NOFS": GFP_NOFS,
          "GFP_ATOMIC": GFP_ATOMIC, "GFP_NOIO": GFP_NOIO, "GFP_NOWAIT": GFP_NOWAIT, "GFP_DMA": GFP_DMA,
          "GFP_DMA32": GFP_DMA32}        # each that fits into what the ones before have left, as in __def_gfpflag_names
# fmt: on


def gfp_text(gfp):
    """(Linux's value, %pGg). Linux has an unused bit after __GFP_ZERO; older kernels' flags have no value there."""
    names, rest = [], gfp
    for name, flags in _WHOLE.items():
        if rest & flags == flags:
            names.append(name)
            rest &= ~flags
    names += [name for bit, name in enumerate(_NAMES) if rest >> bit & 1]
    value = gfp & (___GFP_COLD - 1)
    return value & 0x1FF | value >> 9 << 10, "|".join(names) or "none"

"""What /sys says and sets of swap, zswap and zram: the attribute of Linux's mm/swap_state.c, the parameters and debugfs files
of mm/zswap.c, the attributes of zram_drv.c.
"""

import errno
import functools
import re

from numaemu.kernel.fs.sysfs.sysctl import invalid, strtoul
from numaemu.kernel.mm.swap.swapfile import swap_of
from numaemu.kernel.mm.swap.zram import ALGORITHMS, ZRAM, ZSWAP, zs_pool_of, zstat_of
from numaemu.kernel.mm.swap.zswap import zswap_total_pages
from numaemu.spec.machine_file import UINT_MAX
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

PARAMETERS, DEBUG, BLOCK = "/sys/module/zswap/parameters", "/sys/kernel/debug/zswap", "/sys/block/zram0"
VMA_RA_ENABLED = "/sys/kernel/mm/swap/vma_ra_enabled"
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


# -- swap --------------------------------------------------------------------------------------------------------


def show_vma_ra_enabled(system):
    return "true\n" if swap_of(system.machine).enable_vma_readahead else "false\n"


def store_vma_ra_enabled(system, text):
    """kstrtobool of the first letter, or of on and off: as vma_ra_enabled_store"""
    swap_of(system.machine).enable_vma_readahead = boolean("vma_ra_enabled", text, "swap")


# -- zswap -------------------------------------------------------------------------------------------------------


def boolean(name, text, of="zswap"):
    """kstrtobool, by the first letter."""
    word = text.strip()
    if word.lower() in ("1", "y", "t", "on", "yes", "true"):
        return 1
    if word.lower() in ("0", "n", "f", "off", "no", "false"):
        return 0
    raise invalid(f"{of} {name} is {word!r}, must be Y or N")


def show_enabled(system):
    return "Y\n" if system.machine.zswap_enabled else "N\n"


def store_enabled(system, text):
    system.machine.zswap_enabled = boolean("enabled", text)


def show_shrinker(_system):
    return "N\n"


def store_shrinker(_system, text):
    """The dynamic shrinker, off by default on Linux, too: pages are written back when the pool is full only."""
    if boolean("shrinker_enabled", text):
        raise invalid("zswap shrinker_enabled is Y, must be N: pages are written back when the pool is full only")


def algorithm(text):
    if text.strip() not in ALGORITHMS:
        raise invalid(f"compression {text.strip()!r} is not one of {', '.join(ALGORITHMS)}")
    return ALGORITHMS.index(text.strip())


def show_compressor(system):
    return ALGORITHMS[zstat_of(system.machine, ZSWAP).algorithm] + "\n"


def store_compressor(system, text):
    """For what is stored from now on; what is kept remembers its own."""
    zstat_of(system.machine, ZSWAP).algorithm = algorithm(text)


def show_zpool(_system):
    return "zsmalloc\n"


def store_zpool(_system, text):
    if text.strip() != "zsmalloc":
        raise OSError(errno.ENOENT, f"zswap zpool is {text.strip()!r}, must be zsmalloc")


def show_percent(system, field):
    return f"{getattr(system.machine, field)}\n"


def store_percent(system, text, field):
    """An unsigned int, as Linux takes it: above 100 there is no limit."""
    value = strtoul(text.strip())
    if value is None or not 0 <= value <= UINT_MAX:
        raise invalid(f"{field.removeprefix('zswap_')} is {text.strip()!r}, must be 0 to {UINT_MAX}")
    setattr(system.machine, field, value)


def percent(field):
    return functools.partial(show_percent, field=field), functools.partial(store_percent, field=field)


def show_count(system, field):
    return f"{getattr(zstat_of(system.machine, ZSWAP), field)}\n"


def pool_total_size(system):
    return f"{int(zswap_total_pages(system.machine)) << PAGE_SHIFT}\n"


# fmt: off
COUNTS = ("pool_limit_hit", "reject_reclaim_fail", "reject_alloc_fail", "reject_compress_fail", "reject_compress_poor",
          "written_back_pages")
# fmt: on


# -- zram --------------------------------------------------------------------------------------------------------


def mm_stat(system):
    """mm_stat_show: original and compressed bytes, memory used, its limit, the most ever used, pages of one word, compacted
    (there is no zs_compact), pages that are not compressed, such pages ever.
    """
    stat, pool = zstat_of(system.machine, ZRAM), zs_pool_of(system.machine, ZRAM)
    values = (
        stat.pages * PAGE_SIZE,
        stat.compr_bytes,
        pool.pages_allocated * PAGE_SIZE,
        stat.limit_pages * PAGE_SIZE,
        stat.max_used_pages * PAGE_SIZE,
        stat.same_pages,
        0,
        stat.huge_pages,
        stat.huge_pages_since,
    )
    return " ".join(f"{n:8d}" for n in values) + "\n"


def show_comp_algorithm(system):
    """The chosen algorithm in brackets."""
    chosen = zstat_of(system.machine, ZRAM).algorithm
    return " ".join(f"[{name}]" if number == chosen else name for number, name in enumerate(ALGORITHMS)) + "\n"


def store_comp_algorithm(system, text):
    """While nothing is kept compressed."""
    stat, chosen = zstat_of(system.machine, ZRAM), algorithm(text)
    if stat.pages:
        raise OSError(errno.EBUSY, f"{stat.pages} pages are kept compressed by {ALGORITHMS[stat.algorithm]}")
    stat.algorithm = chosen


def store_mem_limit(system, text):
    """Bytes, with K, M, G (memparse), in whole pages; 0: none. Beyond it pages are not taken, and stay in memory."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)", text.strip().upper())
    if match is None:
        raise invalid(f"mem_limit is {text.strip()!r}, must be a size such as 64M")
    pages = (int(match[1]) << UNITS[match[2]]) + PAGE_SIZE - 1 >> PAGE_SHIFT
    zstat_of(system.machine, ZRAM).limit_pages = min(pages, 1 << 50)


def store_mem_used_max(system, text):
    """0: begin again with what is used now."""
    if text.strip() != "0":
        raise invalid(f"mem_used_max is {text.strip()!r}, must be 0")
    zstat_of(system.machine, ZRAM).max_used_pages = zs_pool_of(system.machine, ZRAM).pages_allocated


# fmt: off
FILES = {
    VMA_RA_ENABLED: (show_vma_ra_enabled, store_vma_ra_enabled),
    f"{PARAMETERS}/enabled": (show_enabled, store_enabled), f"{PARAMETERS}/compressor": (show_compressor, store_compressor),
    f"{PARAMETERS}/zpool": (show_zpool, store_zpool), f"{PARAMETERS}/shrinker_enabled": (show_shrinker, store_shrinker),
    f"{PARAMETERS}/max_pool_percent": percent("zswap_max_pool_percent"),
    f"{PARAMETERS}/accept_threshold_percent": percent("zswap_accept_thr_percent"),
    **{f"{DEBUG}/{name}": (functools.partial(show_count, field=name), None) for name in COUNTS},
    f"{DEBUG}/stored_pages": (functools.partial(show_count, field="pages"), None),
    f"{DEBUG}/pool_total_size": (pool_total_size, None),
    f"{BLOCK}/mm_stat": (mm_stat, None), f"{BLOCK}/comp_algorithm": (show_comp_algorithm, store_comp_algorithm),
    f"{BLOCK}/mem_limit": (None, store_mem_limit), f"{BLOCK}/mem_used_max": (None, store_mem_used_max),
}
# fmt: on

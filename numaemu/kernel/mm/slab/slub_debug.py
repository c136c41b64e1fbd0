"""Debug options of slab caches: red zones, poison, who had an object, and what is said of a bug. From mm/slub.c.

An object and its metadata, each part as long as it is there:

    [red zone, red_left_pad] object, object_size [red zone, to inuse] [free pointer] [track_t, 2] [red zone, 8]

A bug is noted in the slab_bug_t of the CPU that found it, and becomes an exception of the task that asked.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, i64, u8, u64
from numaemu.errors import KernelBug
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mm_types import task_t
from numaemu.kernel.mm.slab.slab import (
    MAX_KMEM_CACHES,
    SLAB_CONSISTENCY_CHECKS,
    SLAB_DEBUG_FLAGS,
    SLAB_POISON,
    SLAB_RED_ZONE,
    SLAB_STORE_USER,
    cache_name,
    cache_of,
    host_of,
    track_t,
)
from numaemu.mmu import clock_ns

U = np.uint64

# include/linux/poison.h
SLUB_RED_INACTIVE, SLUB_RED_ACTIVE, POISON_INUSE, POISON_FREE, POISON_END = 0xBB, 0xCC, 0x5A, 0x6B, 0xA5

# what may be wrong; the texts are Linux's
# fmt: off
(BUG_NONE, BUG_NO_CACHE, BUG_NOT_AN_OBJECT, BUG_WRONG_CACHE, BUG_DOUBLE_FREE, BUG_LEFT_REDZONE, BUG_RIGHT_REDZONE,
 BUG_POISON, BUG_FREEPOINTER, BUG_CTOR) = range(10)
BUG_TEXTS = ("", "No such cache", "Invalid object pointer", "Object of another cache", "Object already free",
             "Left Redzone overwritten", "Right Redzone overwritten", "Poison overwritten", "Freepointer corrupt",
             "Constructor failed")

slab_bug_t = Struct("slab_bug_t", [         # the last bug this CPU has found; its CPU only
    ("kind", i64), ("cache", i64),
    ("object", u64), ("where", u64),        # the object; the first wrong byte
    ("found", i64), ("expected", i64),
    ("pid", i64), ("tracked", i64),         # who found it; 1: the parties are known
    ("alloc", track_t), ("free", track_t),
])
# fmt: on


@hot
def slab_bug_of(machine, cpu_number):
    return slab_bug_t.array(machine.slab_bugs)[cpu_number]


# -- reports -------------------------------------------------------------------------------------------------


@hot
def current_pid(cpu):
    return task_t.array(machine_of(cpu).tasks)[cpu.task].pid if cpu.task != 0 else 0


@kernel("void(cpu_t*, i64, i64, u64, u64, i64)")
def slab_bug(cpu, kind, number, address, where, expected):
    """Note what is wrong with an object, and who had it, for the exception that the caller gets."""
    machine = machine_of(cpu)
    bug, valid = slab_bug_of(machine, cpu.id), 0 < number < MAX_KMEM_CACHES
    bug.kind, bug.cache, bug.object, bug.where = kind, number, address, where
    bug.expected, bug.found, bug.tracked = expected, 0, 0
    bug.pid = current_pid(cpu)
    if where != U(0):
        bug.found = np.int64(u8.array(host_of(cpu, where))[0])
    if valid and BUG_DOUBLE_FREE <= kind < BUG_CTOR and cache_of(machine, number).track != U(0):
        tracks = track_t.array(host_of(cpu, address + cache_of(machine, number).track))
        bug.tracked = 1
        bug.alloc.pid, bug.alloc.cpu, bug.alloc.when_ns = tracks[0].pid, tracks[0].cpu, tracks[0].when_ns
        bug.free.pid, bug.free.cpu, bug.free.when_ns = tracks[1].pid, tracks[1].cpu, tracks[1].when_ns


# -- debug bytes ---------------------------------------------------------------------------------------------


@hot
def fill_bytes(host, nbytes, value):
    for i in range(nbytes):
        u8.array(host)[i] = value


@hot
def wrong_byte(host, nbytes, value):
    """Index of the first byte that is not `value`, or -1."""
    for i in range(nbytes):
        if np.int64(u8.array(host)[i]) != value:
            return i
    return -1


@kernel("void(cpu_t*, kmem_cache_t*, u64, bool)")
def init_object(cpu, cache, address, active):
    """Red zones and poison of an object that is free or in use."""
    host = host_of(cpu, address)
    red = SLUB_RED_ACTIVE if active else SLUB_RED_INACTIVE
    if cache.flags & SLAB_RED_ZONE:
        fill_bytes(host - cache.red_left_pad, np.int64(cache.red_left_pad), red)
        fill_bytes(host + U(cache.object_size), cache.inuse - cache.object_size, red)
    if cache.flags & SLAB_POISON and not active and cache.ctor == U(0):
        fill_bytes(host, cache.object_size - 1, POISON_FREE)
        u8.array(host)[cache.object_size - 1] = POISON_END
    elif cache.flags & SLAB_POISON and active and cache.ctor == U(0):
        fill_bytes(host, cache.object_size, POISON_INUSE)


@kernel("bool(cpu_t*, kmem_cache_t*, i64, u64, bool)")
def check_object(cpu, cache, number, address, active):
    """True if nobody wrote where he must not; else it is noted, and the bytes are restored."""
    host = host_of(cpu, address)
    red = SLUB_RED_ACTIVE if active else SLUB_RED_INACTIVE
    kind, where, expected = BUG_NONE, U(0), red
    if cache.flags & SLAB_RED_ZONE:
        bad = wrong_byte(host - cache.red_left_pad, np.int64(cache.red_left_pad), red)
        if bad >= 0:
            kind, where = BUG_LEFT_REDZONE, address - cache.red_left_pad + U(bad)
        bad = wrong_byte(host + U(cache.object_size), cache.inuse - cache.object_size, red)
        if kind == BUG_NONE and bad >= 0:
            kind, where = BUG_RIGHT_REDZONE, address + U(cache.object_size + bad)
    if kind == BUG_NONE and not active and cache.flags & SLAB_POISON and cache.ctor == U(0):
        bad = wrong_byte(host, cache.object_size - 1, POISON_FREE)
        if bad >= 0:
            kind, where, expected = BUG_POISON, address + U(bad), POISON_FREE
        elif np.int64(u8.array(host)[cache.object_size - 1]) != POISON_END:
            kind, where, expected = BUG_POISON, address + U(cache.object_size - 1), POISON_END
    if kind == BUG_NONE:
        return True
    slab_bug(cpu, kind, number, address, where, expected)
    if active:  # the contents are the owner's
        fill_bytes(host - cache.red_left_pad, np.int64(cache.red_left_pad), red)
        fill_bytes(host + U(cache.object_size), cache.inuse - cache.object_size, red)
    else:
        init_object(cpu, cache, address, False)
    return False


@hot
def set_track(cpu, cache, address, freed):
    """Who allocated (0) or freed (1) an object."""
    if cache.track != U(0):
        track = track_t.array(host_of(cpu, address + cache.track))[freed]
        track.pid, track.cpu, track.when_ns = current_pid(cpu), cpu.id, clock_ns(cpu)


@kernel("bool(cpu_t*)")
def bug_found(cpu):
    return slab_bug_of(machine_of(cpu), cpu.id).kind != BUG_NONE


# in compiled code of a user
# -- what is said about a bug --------------------------------------------------------------------------------


def who(track):
    return f"pid {track.pid} on cpu {track.cpu} at {track.when_ns} ns"


def take_bug(machine, cpu_number):
    """The exception for the bug that a CPU has found last, or None; it is forgotten."""
    bug = slab_bug_of(machine, cpu_number)
    if bug.kind == BUG_NONE:
        return None
    name = f"cache {cache_name(machine, bug.cache)}" if bug.cache else "kfree"
    text = f"{name}: {BUG_TEXTS[bug.kind]}: object {int(bug.object):#x}"
    if bug.where:
        text += f", byte {int(bug.where) - int(bug.object):+d} is {bug.found:#04x}"
        text += f", must be {bug.expected:#04x}" if bug.kind != BUG_FREEPOINTER else ""
    if bug.tracked:
        freed = f"freed by {who(bug.free)}" if bug.free.when_ns else "not freed yet"
        text += f"; allocated by {who(bug.alloc)}; {freed}"
    bug.kind = BUG_NONE
    return KernelBug(f"{text}; found by pid {bug.pid} on cpu {cpu_number}")


# -- the boot option slab_debug ------------------------------------------------------------------------------

OPTIONS = {"F": SLAB_CONSISTENCY_CHECKS, "Z": SLAB_RED_ZONE, "P": SLAB_POISON, "U": SLAB_STORE_USER}


def options_of(letters):
    """Debug flags of "FZ"; of "": all; of "-": none."""
    if letters == "":
        return SLAB_DEBUG_FLAGS
    return 0 if "-" in letters else sum(OPTIONS[letter] for letter in set(letters.upper()))


def kmem_cache_flags(flags, name, slab_debug):
    """A cache's flags with what slab_debug= adds: the first block that names it, else the last without names.

    The option is "letters[,caches][;letters[,caches]]…", where a cache's name may end in *; None: it was not given.
    """
    everywhere = 0
    for block in slab_debug.split(";") if slab_debug is not None else ():
        letters, *patterns = block.split(",")
        if not patterns:
            everywhere = options_of(letters)
        elif any(name == p or p.endswith("*") and name.startswith(p[:-1]) for p in patterns):
            return flags | options_of(letters)
    return flags | everywhere

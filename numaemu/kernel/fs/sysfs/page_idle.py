"""/sys/kernel/mm/page_idle/bitmap: a bit for each frame, read and written by ranges of 64 frames. CPU 0 does it."""

import errno

BITMAP = "/sys/kernel/mm/page_idle/bitmap"
BITMAP_CHUNK_SIZE = 8  # bytes of a word


def frames(system, offset, nbytes):
    """(first frame, words) of a range of the file, as far as there are frames. OSError (EINVAL): it is not of whole words."""
    if offset % BITMAP_CHUNK_SIZE or nbytes % BITMAP_CHUNK_SIZE:
        raise OSError(errno.EINVAL, f"a word has {BITMAP_CHUNK_SIZE} bytes; offset {offset}, size {nbytes}", BITMAP)
    words = -(-int(system.machine.max_pfn) // 64)
    first = offset // BITMAP_CHUNK_SIZE
    return first * 64, max(min(first + nbytes // BITMAP_CHUNK_SIZE, words) - first, 0)


def read(system, offset, nbytes):
    """What CPU 0 has to do for it."""
    return ("page_idle_read", *frames(system, offset, nbytes))


def write(system, offset, data):
    """The same. OSError (ENXIO): there are no such frames."""
    first, words = frames(system, offset, len(data))
    if not words:
        raise OSError(errno.ENXIO, f"there are {int(system.machine.max_pfn)} frames; offset {offset}", BITMAP)
    return "page_idle_write", first, data[: words * BITMAP_CHUNK_SIZE]


def write_text(system, text):
    raise OSError(errno.EINVAL, "machine.pwrite writes words of 64 frames", BITMAP)

"""Compression for zram and zswap, by libraries: lz4 and zstd. Compiled kernels call these through the machine's struct."""
import ctypes
import threading

import lz4.block
import zstandard

from numaemu.kernel.zram import HEADER, LZ4, ZBUF_BYTES
from numaemu.param import PAGE_SIZE

_local = threading.local()               # a zstd context serves one thread


def _zstd():
    if not hasattr(_local, "zstd"):
        _local.zstd = zstandard.ZstdCompressor(level=3, write_content_size=False), zstandard.ZstdDecompressor()
    return _local.zstd


def on_compress(frame, buffer, algorithm):
    """Compress the page at host address `frame` into `buffer`: bytes, or 0 if it does not get smaller."""
    page = ctypes.string_at(frame, PAGE_SIZE)
    if algorithm == LZ4:
        data = lz4.block.compress(page, store_size=False)
    else:
        data = _zstd()[0].compress(page)
    if len(data) >= min(PAGE_SIZE, ZBUF_BYTES):
        return 0
    ctypes.memmove(buffer, data, len(data))
    return len(data)


def on_decompress(place, frame, algorithm):
    """Decompress what lies behind the header at `place` into the page at `frame`."""
    data = ctypes.string_at(place + HEADER, ctypes.c_int64.from_address(place).value)
    if algorithm == LZ4:
        page = lz4.block.decompress(data, uncompressed_size=PAGE_SIZE)
    else:
        page = _zstd()[1].decompress(data, max_output_size=PAGE_SIZE)
    ctypes.memmove(frame, page, PAGE_SIZE)
    return 0

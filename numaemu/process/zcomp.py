"""Compression for zram and zswap, by libraries: lz4 and zstd. Compiled functions call these through the machine's struct."""

import ctypes
import threading

import lz4.block
import zstandard

from numaemu.kernel.mm.swap.zram import LZ4, ZBUF_BYTES
from numaemu.spec.param import PAGE_SIZE

_local = threading.local()  # a zstd context serves one thread


def _zstd():
    if not hasattr(_local, "zstd"):
        _local.zstd = zstandard.ZstdCompressor(level=3, write_content_size=False), zstandard.ZstdDecompressor()
    return _local.zstd


def on_compress(frame, buffer, algorithm):
    """Compress the page at host address `frame` into `buffer`: bytes, which may be more than a page; 0 if it fails."""
    page = ctypes.string_at(int(frame), PAGE_SIZE)
    try:
        data = lz4.block.compress(page, store_size=False) if algorithm == LZ4 else _zstd()[0].compress(page)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError):
        return 0
    if len(data) > ZBUF_BYTES:
        return 0
    ctypes.memmove(int(buffer), data, len(data))
    return len(data)


def on_decompress(buffer, frame, packed):
    """Decompress what lies in `buffer` into the page at `frame`; packed = bytes << 8 | algorithm."""
    data, algorithm = ctypes.string_at(int(buffer), int(packed) >> 8), int(packed) & 0xFF
    if algorithm == LZ4:
        page = lz4.block.decompress(data, uncompressed_size=PAGE_SIZE)
    else:
        page = _zstd()[1].decompress(data, max_output_size=PAGE_SIZE)
    ctypes.memmove(int(frame), page, PAGE_SIZE)
    return 0

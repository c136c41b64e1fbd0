"""By access frequency: each page has the Accessed bits of its last eight intervals. Used in three of them it is hot and is promoted; used
in none it is cold and makes room, when fast memory is short.

The history of n bits is that of AutoTiering's list of least accessed pages. Kim, Choe, Ahn: Exploring the Design Space of Page
Management for Multi-Tiered Memory Systems. USENIX ATC 2021, section 4.
"""

import numpy as np

from numaemu.compiler.decorators import callback
from numaemu.kernel.mm.numa.tiering import ACCESSED, DEMOTE, PROMOTE, STAY, page_sample_t

SAMPLES = ACCESSED
INTERVAL_MS = 100
HISTORY = 8  # intervals
HOT = 3  # of them
SHORT = 1024  # pages of room


@callback("u64(u64, u64, u64)")
def decide(sample, _b, _c):
    """What one page is to do, by its history."""
    page = page_sample_t.at(sample)
    history = (max(page.heat, 1) << 1) | page.used  # the highest bit marks how long the page is known
    known = history >> HISTORY != 0
    if history >> (HISTORY + 1) != 0:
        history = (history & ((1 << HISTORY) - 1)) | (1 << HISTORY)
    page.heat = history
    uses = 0
    for i in range(HISTORY):
        uses += (history >> i) & 1
    if not known:  # the mark is among the bits
        uses -= 1
    if page.fast == 0 and uses >= HOT:
        return np.uint64(PROMOTE)
    if page.fast != 0 and known and uses == 0 and page.room < SHORT:
        return np.uint64(DEMOTE)
    return np.uint64(STAY)

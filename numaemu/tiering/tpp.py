"""TPP: a page is promoted when it is used a second time, as the LRU lists tell: one hinting fault brings it to the active list, the
next one to fast memory. Kernel reclaim demotes, early, as far as the promo watermark.

Maruf et al.: TPP: Transparent Page Placement for CXL-Enabled Tiered-Memory. ASPLOS 2023, section 5.3.
"""

import numpy as np

from numaemu.compiler.decorators import callback
from numaemu.kernel.mm.numa.tiering import FAULTS, MARK, PROMOTE, page_sample_t

SAMPLES = FAULTS


@callback("u64(u64, u64, u64)")
def decide(sample, _b, _c):
    page = page_sample_t.at(sample)
    return np.uint64(PROMOTE if page.active != 0 else MARK)

"""An access of a trace, however it was written."""

import numpy as np

LOAD, STORE, FETCH, MODIFY = range(4)  # MODIFY: a load and a store of the same address
KINDS = ("loads", "stores", "fetches", "modifies")
ACCESS = np.dtype(
    [("addr", np.uint64), ("size", np.uint32), ("thread", np.uint32), ("kind", np.uint32), ("_pad", np.uint32)]
)

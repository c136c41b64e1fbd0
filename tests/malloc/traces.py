"""Random requests."""

import random

from numaemu.malloc.rules import trace
from numaemu.malloc.trace import FREE, MALLOC, REALLOC


def mixed(seed, requests, most=600, resize=True):
    """Random requests, most of them small."""
    rng, live, rows, blocks = random.Random(seed), [], [], 0
    for _ in range(requests):
        what = rng.random()
        nbytes = rng.randrange(1, rng.choice((16, 100, most)))
        if what < 0.5 or not live:
            live.append(blocks)
            rows.append((MALLOC, blocks, nbytes))
            blocks += 1
        elif what < 0.6 and resize:
            rows.append((REALLOC, rng.choice(live), nbytes))
        else:
            rows.append((FREE, live.pop(rng.randrange(len(live))), 0))
    return trace("mixed", rows)

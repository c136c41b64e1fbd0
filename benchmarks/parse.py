"""How many accesses a second a lackey trace is read at: from a file, with everything that the reader does.

python benchmarks/parse.py [rounds, 7]
"""

import pathlib
import random
import sys
import tempfile
import time

from common import median

from numaemu.tools.traces import formats

LINES, WANTED = 4_000_000, 10e6


def write(path):
    """A trace as valgrind writes it: half of its lines are fetches."""
    chance = random.Random(1)
    block = [
        f"I  {chance.randrange(1 << 32):08x},{chance.randrange(1, 9)}\n {chance.choice('LSM')} {chance.randrange(1 << 40):x},8\n"
        for _ in range(50_000)
    ]
    with open(path, "w") as file:
        for _ in range(LINES // (2 * len(block))):
            file.writelines(block)


def main():
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace")
        write(path)
        rates = []
        for _ in range(rounds + 1):  # the first one compiles
            began = time.thread_time()
            accesses = sum(len(part) for part in formats.read(str(path), "lackey"))
            rates.append(accesses / (time.thread_time() - began))
    rate = median(rates[1:])
    print(
        f"{rate / 1e6:.1f} M accesses a second (best {max(rates) / 1e6:.1f}), {WANTED / 1e6:.0f} wanted {'' if rate >= WANTED else ' MISSED'}"
    )


if __name__ == "__main__":
    main()

"""Is a lockstep run the same every time? Each workload runs so often; what it prints and its JSON, without wall times, make one hash.

    python benchmarks/repeat.py [runs, 20] [workload …]       without names: every shipped experiment that runs in lockstep

A line for each workload: how many runs gave each hash. The exit status is 1 if there is more than one, or a run failed.
"""

import collections
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from quantum import module_of

from numaemu.tools import shipped

HINTS = {"stress": ["--seed", "7"]}  # of workloads that are free if not told otherwise


def one_hash(name, path):
    """The hash of one run, or what went wrong."""
    command = [
        sys.executable,
        "-m",
        "numaemu",
        "run",
        "--quiet",
        "--lockstep",
        *HINTS.get(name, []),
        "--json",
        str(path),
    ]
    run = subprocess.run([*command, str(shipped.find(name))], capture_output=True, text=True)
    if run.returncode:
        return f"failed: {run.stderr.strip().splitlines()[-1:]}"
    shown = json.loads(path.read_text())
    del shown["wall_s"]
    return hashlib.sha256((json.dumps(shown, sort_keys=True) + run.stdout).encode()).hexdigest()[:16]


def main(runs="20", *names):
    """The command line; its exit status."""
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names or [name for name in shipped.names() if getattr(module_of(name), "LOCKSTEP", False)]:
            hashes, start = collections.Counter(), time.perf_counter()
            for number in range(int(runs)):
                hashes[one_hash(name, pathlib.Path(folder, "run.json"))] += 1
                if number % 100 == 99:
                    print(f"{name}: {number + 1} runs, {dict(hashes)}", file=sys.stderr, flush=True)
            bad += len(hashes) != 1 or any(found.startswith("failed") for found in hashes)
            seconds = (time.perf_counter() - start) / int(runs)
            print(f"{name:24} {sum(hashes.values())} runs of {seconds:.1f} s: {dict(hashes)}", flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

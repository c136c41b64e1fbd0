"""What the benchmark scripts share: the C programs, medians, one line per figure."""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from numaemu.compiler.link import compile_everything

compile_everything()
HERE = pathlib.Path(__file__).parent


def c_program(name, *args, flags=("-O3", "-march=native", "-pthread")):
    """Build HERE/name.c and run it; the JSON object it prints."""
    with tempfile.TemporaryDirectory() as folder:
        program = pathlib.Path(folder) / name
        subprocess.run(["cc", *flags, str(HERE / f"{name}.c"), "-o", str(program)], check=True)
        out = subprocess.run([str(program), *map(str, args)], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def report(rows):
    """rows: (what, ours, host's, ratio, the ratio wanted, True if smaller is better)."""
    print(f"{'':44} {'emulated':>12} {'host':>12} {'ratio':>7} {'wanted':>8}")
    for what, ours, host, ratio, wanted, smaller in rows:
        ok = ratio <= wanted if smaller else ratio >= wanted
        sign = "<=" if smaller else ">="
        print(f"{what:44} {ours:12.2f} {host:12.2f} {ratio:7.2f} {sign}{wanted:5.2f} {'' if ok else '  MISSED'}")


def repeats():
    """How many rounds to take the median of: the first argument, or 3."""
    return int(sys.argv[1]) if len(sys.argv) > 1 else 3


median = statistics.median

"""A task fills memory past its end, first slowly, then in a rush: who makes room for it, kswapd or the task itself?

A file has been read before, and its pages are still in memory. Free pages of the largest zone over the task's emulated
time, against the zone's three watermarks. Look for:
  - below "low" the allocator wakes kswapd (row `kswapd`), which makes room until "high" is reached again;
  - first it drops pages of the file that nobody uses (row `files`), which costs nothing; only when few are left it writes
    the task's own pages to swap (row `swapped`);
  - so, as long as the task is slow, free pages go up and down above "low", and it hardly ever reclaims itself;
  - in a rush the task takes pages faster than kswapd frees them: at "min" it must reclaim itself (row `direct`).
"""

import numpy as np

from numaemu import MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB", quantum_ns=1000)
WIDTH, HEIGHT = 72, 14  # of the chart, in characters
SLOW, RUSH = 240, 40  # steps
FILE = "/mnt/read-before"
LEVELS = " ▁▂▃▄▅▆▇█"
LINES = ("high", "low", "min")


def largest_zone(machine):
    """{"free", "min", "low", "high", "managed"} of the zone of /proc/zoneinfo that has most pages, and its name."""
    zones = {}
    for line in machine.read("/proc/zoneinfo").splitlines():
        words = line.split()
        if line.startswith("Node"):
            zone = zones[" ".join(words)] = {}
        elif words[:2] == ["pages", "free"]:
            zone["free"] = int(words[2])
        elif words and words[0] in (*LINES, "managed") and len(words) == 2:
            zone.setdefault(words[0], int(words[1]))
    name = max(zones, key=lambda name: zones[name].get("managed", 0))
    return name, zones[name]


def sample(machine, task):
    """(emulated time, free pages, runs of kswapd, direct reclaims, pages of files, pages written to swap) so far."""
    _, zone = largest_zone(machine)
    counted = machine.stats()["vmstat"]
    stalls = sum(n for name, n in counted.items() if name.startswith("allocstall"))
    return task.clock_ns, zone["free"], counted["pageoutrun"], stalls, counted["nr_file_pages"], counted["pswpout"]


def fill(machine, task, zone):
    """Touch memory a step at a time: the samples. First steps are a sixth of the way from low to min, the last ones far longer."""
    slow, rush = max((zone["low"] - zone["min"]) // 6, 1), zone["high"] * 2
    machine.create_file(FILE, zone["managed"] // 3 * 4096)
    with task.open(FILE) as file:
        file.read_through()
    free = machine.stats()["nodes"][0]["meminfo"]["MemFree"] // 4  # smaller zones are used, too, before kswapd is woken
    ahead = max(free - 3 * zone["high"], 0)
    pages = task.mmap(
        (ahead + SLOW * slow + RUSH * rush) * 4096, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    ).pages()
    task.store(pages[:ahead], pages[:ahead])
    samples, at = [sample(machine, task)], ahead
    for step in [slow] * SLOW + [rush] * RUSH:
        task.store(pages[at : at + step], pages[at : at + step])
        at += step
        samples.append(sample(machine, task))
    return np.array(samples)


def columns(samples):
    """A column of the chart for each piece of the steps: (fewest free pages, kswapd ran, the task reclaimed, time, pages of
    files, pages written to swap).
    """
    runs, stalls = np.diff(samples[:, 2], prepend=samples[0, 2]), np.diff(samples[:, 3], prepend=samples[0, 3])
    pieces = np.array_split(np.arange(len(samples)), min(WIDTH, len(samples)))
    return [
        (samples[p, 1].min(), runs[p].sum(), stalls[p].sum(), samples[p[-1], 0], samples[p[-1], 4], samples[p[-1], 5])
        for p in pieces
    ]


def height_row(name, values):
    """A row of small bars, the tallest as high as a line."""
    most = max(*values, 1)
    label = f"{name} {most if most < 10_000 else f'{most // 1000}k'}"
    return f"{label:>12} │" + "".join(LEVELS[-(-int(v) * 8 // int(most))] for v in values)


def chart(samples, zone):
    """Bars of free pages with the watermarks across, what was there to reclaim, who did it, and the time below."""
    cells, top = columns(samples), int(zone["high"] * 1.5)
    rows = {round(zone[name] * HEIGHT / top): name for name in LINES}
    lines = []
    for level in range(HEIGHT, 0, -1):
        full, empty = ("▀", "─") if level in rows else ("█", " ")
        bars = "".join(full if free * HEIGHT >= (level - 0.5) * top else empty for free, *_ in cells)
        label = f"{rows[level]:>6} {zone[rows[level]]:5}" if level in rows else " " * 12
        lines.append(f"{label} │{bars}")
    lines += [height_row("files", [cell[4] for cell in cells]), height_row("swapped", [cell[5] for cell in cells])]
    for name, which, mark in (("kswapd", 1, "k"), ("direct", 2, "D")):
        lines.append(f"{name:>12} │" + "".join(mark if cell[which] else "·" for cell in cells))
    begin = samples[0, 0]
    ticks = [f"{(cells[i][3] - begin) / 1e6:.1f} ms" for i in (len(cells) // 3, 2 * len(cells) // 3, len(cells) - 1)]
    width = len(cells) // 3
    return "\n".join([*lines, " " * 12 + " └" + "".join(f"{tick:>{width}}" for tick in ticks)])


def phase(samples):
    first, last = samples[0], samples[-1]
    return {
        "least free": int(samples[1:, 1].min()),
        "dropped": int(first[4] - last[4]),
        "swapped": int(last[5] - first[5]),
        "kswapd runs": int(last[2] - first[2]),
        "direct": int(last[3] - first[3]),
        "ms": round(float(last[0] - first[0]) / 1e6, 2),
    }


def main(machine):
    machine.swapon("1GiB")
    task = machine.task(name="filler")
    name, zone = largest_zone(machine)
    samples = fill(machine, task, zone)
    print(f"free pages of {name.rstrip(',')}, of {zone['managed']}")
    print(chart(samples, zone))
    return {"slowly": phase(samples[: SLOW + 1]), "in a rush": phase(samples[SLOW:])}

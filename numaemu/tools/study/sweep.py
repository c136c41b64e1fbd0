"""Many runs of a workload over a grid of settings, on Dask distributed: `numaemu sweep`.

Each run is a row; it is written down as soon as it is done, so that a sweep that was interrupted goes on where it was.
"""

import contextlib
import csv
import hashlib
import itertools
import json
import os
import pathlib
import re
import tempfile
import time

from numaemu.errors import ConfigError
from numaemu.host.extras import need
from numaemu.spec.units import shown
from numaemu.tools.study import settings as texts
from numaemu.tools.study.figures import OWN

MOST_RUNS = 100_000
FORMATS = (".parquet", ".csv", ".json")
KEY = "_key"  # of a row in the notebook of a sweep: what was run
RANGE = re.compile(r"(-?\d+(?:\.\d+)?):(-?\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?")


# -- the points ----------------------------------------------------------------------------------------------


def number(text):
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def values_of(key, text):
    """The values of '1,2,4', '0:200:20' (both ends included) or a mixture."""
    found = []
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        if match is None:
            found.append(texts.value_of(key, part))
            continue
        low, high, step = number(match[1]), number(match[2]), number(match[3] or "1")
        if step <= 0 or high < low or (high - low) / step > MOST_RUNS:
            raise ConfigError(f"--vary {key} has {shown(part)}, must be LOW:HIGH:STEP with a step above 0")
        found += [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
    return found


def axis(text):
    """(key, values) of 'KEY=VALUES'."""
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ConfigError(f"--vary is {shown(text)}, must be KEY=VALUES")
    key = key if "." in key else key.replace("-", "_")
    texts.check_key(key, OWN, "--vary")
    return key, values_of(key, values)


def grid(axes):
    """A list of dicts: every combination."""
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise ConfigError(f"--vary names {shown(next(key for key in keys if keys.count(key) > 1))} twice")
    return [dict(zip(keys, values)) for values in itertools.product(*(values for _, values in axes))]


def points_of_file(path):
    """A list of dicts from a CSV (a column for each key) or a JSON (a list of objects)."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if str(path).endswith(".json"):
                rows = json.load(file)
            else:
                rows = [{k: texts.value_of(k, v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except OSError as error:
        raise ConfigError(f"{path}: {str(error.strerror).lower()}") from None
    except (ValueError, AttributeError, TypeError, csv.Error) as error:
        raise ConfigError(f"{path}: is no list of points: {str(error).lower()}") from None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise ConfigError(f"{path}: must be a list of objects, or a CSV with a line for each point")
    for row in rows:
        for key in row:
            texts.check_key(str(key), OWN, str(path))
    return rows


def repeated(points, repeat, seed):
    """Each point so many times, with a seed of its own each time."""
    return [point | ({} if "seed" in point else {"seed": seed + i}) for point in points for i in range(repeat)]


# -- one run, on a worker ------------------------------------------------------------------------------------


def shares_of(cpus, jobs):
    """The host's CPUs for each of so many workers, by its number: no two on the same one, as far as there are as many."""
    return {number: cpus[number::jobs] or [cpus[number % len(cpus)]] for number in range(jobs)}


def stay_on(shares):
    """Keep this worker, and the machines that it boots, on its share of the host's CPUs. Machines that wander disturb each other, and
    two in lockstep, each of which runs on one CPU, might choose the same one.
    """
    if shares is not None:
        from distributed import get_worker

        os.sched_setaffinity(0, shares[get_worker().name])


def run_point(name, text, args, point, shares=None):
    """A row: the point and what came of it. It runs in a worker's process, perhaps on another host: so the workload travels."""
    begin = time.perf_counter()
    stay_on(shares)
    from numaemu.machine import fork_server
    from numaemu.tools.study.figures import figures

    fork_server.launch()  # a worker's first run: the kernel is loaded while the workload is
    try:
        with contextlib.ExitStack() as stack:
            path = name
            if not os.path.exists(path) or pathlib.Path(path).read_text(encoding="utf-8") != text:
                path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), os.path.basename(name))
                pathlib.Path(path).write_text(text, encoding="utf-8")
            row = figures(path, point, args=args)
    except Exception as error:  # one run's failure is a row, too
        row = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}
    return point | row | {"took_s": time.perf_counter() - begin}


# -- the notebook --------------------------------------------------------------------------------------------


class Notebook:
    """The rows that are done, in a file beside the table, a line of JSON each. A line that was cut off counts as not written."""

    def __init__(self, out, workload_text, args):
        self.path = pathlib.Path(f"{out}.runs")
        self.about = hashlib.sha256(json.dumps([workload_text, list(args)]).encode()).hexdigest()[:16]
        self.rows = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self.rows[row.pop(KEY)] = row

    def key(self, point):
        """What was run: the workload's text, its arguments, and the point."""
        return f"{self.about} {json.dumps(point, sort_keys=True)}"

    def add(self, point, row):
        """Write a row down."""
        self.rows[self.key(point)] = row
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row | {KEY: self.key(point)}) + "\n")


# -- all of them ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster_of(scheduler, jobs):
    """A Dask client: of a cluster that is there, or of workers on this host, a process each."""
    distributed = need("distributed", "sweep", "a sweep")
    import dask

    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=10)
        except (OSError, ValueError, TimeoutError) as error:
            raise ConfigError(
                f"--scheduler is {shown(scheduler)}, which does not answer: {' '.join(str(error).split())[:200]}"
            ) from None
        with client:
            yield client
        return
    with dask.config.set({"distributed.logging.distributed": "critical", "distributed.worker.daemon": False}):
        with (
            distributed.LocalCluster(
                n_workers=jobs,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                scheduler_kwargs={
                    "dashboard_address": "127.0.0.1:0"
                },  # none is served; a fixed port may be another sweep's
                memory_limit=0,
                silence_logs=50,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client


def estimate(done, total, begin, now):
    """'12 of 40 runs, about 35 s left'"""
    left = f", about {(now - begin) / done * (total - done):.0f} s left" if done else ""
    return f"{done} of {total} runs{left}"


def sweep(path, args, points, notebook, scheduler=None, jobs=1, say=lambda text: None, retry=False):
    """Run all points that are not done yet; all rows, in the order of the points."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    known = {notebook.key(point) for point in points} & set(notebook.rows)
    if retry:
        known -= {key for key in known if "error" in notebook.rows[key]}
    left = [point for point in points if notebook.key(point) not in known]
    if left:
        begin, failed = time.perf_counter(), 0
        say(f"{len(points) - len(left)} runs are done, {len(left)} are left" if known else f"{len(left)} runs")
        jobs = min(jobs, len(left))
        shares = shares_of(sorted(os.sched_getaffinity(0)), jobs) if scheduler is None else None
        with cluster_of(scheduler, jobs) as client:
            from distributed import as_completed

            futures = {
                client.submit(run_point, os.path.abspath(path), text, list(args), point, shares, pure=False): point
                for point in left
            }
            for done, future in enumerate(as_completed(futures), 1):
                point = futures[future]
                try:
                    row = future.result()
                except Exception as error:  # the worker itself has died
                    row = point | {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}
                notebook.add(point, row)
                failed += "error" in row
                say(estimate(done, len(left), begin, time.perf_counter()) + (f", {failed} failed" if failed else ""))
    return [notebook.rows[notebook.key(point)] for point in points]


def write_table(rows, out):
    """The table, as Parquet, CSV or JSON."""
    pandas = need("pandas", "sweep", "a table of runs")
    frame = pandas.DataFrame(rows)
    if out.endswith(".parquet"):
        need("pyarrow", "sweep", "a table in Parquet")
        frame.to_parquet(out)
    elif out.endswith(".csv"):
        frame.to_csv(out, index=False)
    else:
        frame.to_json(out, orient="records", indent=1)
    return frame


def write_plot(frame, axes, out):
    """A chart of two or three columns, as a page of its own."""
    altair = need("altair", "report", "a chart of a sweep")
    missing = [name for name in axes if name not in frame]
    if missing or not 2 <= len(axes) <= 3:
        raise ConfigError(
            f"--plot names {shown(missing[0])}, which is no column" if missing else "--plot must be x,y or x,y,color"
        )
    data = frame[list(axes)].rename(columns=lambda name: name.replace(".", "_"))
    names = list(data.columns)
    encoding = {"x": f"{names[0]}:Q" if data.dtypes.iloc[0].kind in "if" else f"{names[0]}:N", "y": f"{names[1]}:Q"}
    if len(names) == 3:
        encoding["color"] = f"{names[2]}:N"
    chart = altair.Chart(data, width=640, height=400).mark_line(point=True).encode(**encoding)
    chart.save(out, inline=True)

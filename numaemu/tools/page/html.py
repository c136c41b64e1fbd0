"""One file of HTML with everything in it: text, tables, the machine as SVG, charts, and the library that draws them."""

import html
import json
import os

from numaemu.api.tables import html_of, jsonable
from numaemu.errors import ConfigError
from numaemu.host.extras import need
from numaemu.spec.topology import Topology
from numaemu.tools import drawing
from numaemu.tools.page.charts import all_charts
from numaemu.tools.summary import report

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem; color: #1a1a1a; background: #fff }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 1.6rem 0 .2rem } p { margin: .2rem 0 .6rem }
.chart { width: 100% } .wide { overflow-x: auto } .wide svg { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } .figures { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: .6rem 0 }
.figures b { display: block; font-size: 1.15rem } .dim { color: #555 } details > summary { cursor: pointer }
@media print { body { max-width: none; padding: 0; font-size: 11px } section { break-inside: avoid } details > :not(summary) { display: block } }
"""
SCRIPT = """
const specs = JSON.parse(document.getElementById("specs").textContent);
const options = { actions: false, renderer: "svg" };
Promise.all(specs.map((spec, i) => vegaEmbed(document.getElementById("chart" + i), spec, options)))
  .then(() => { document.body.dataset.drawn = specs.length; })
  .catch((error) => { document.body.dataset.failed = String(error); });
"""


def check():
    """Raise ConfigError before a run rather than after it, if what draws the page is not there."""
    need("altair", "report", "the page of a run")
    need("vl_convert", "report", "the page of a run")


def figures_line(run):
    """The few figures that everybody looks at first."""
    accesses = sum(cpu["loads"] + cpu["stores"] for cpu in run["cpus"])
    remote = sum(cpu["remote_accesses"] for cpu in run["cpus"])
    walks, faults = (sum(cpu[key] for cpu in run["cpus"]) for key in ("page_walks", "minor_faults"))
    shown = {
        "emulated time": report.duration(run["emulated_ns"]),
        "wall time": report.duration(run["wall_s"] * 1e9),
        "accesses": report.count(accesses),
        "of them remote": report.percent(remote, accesses),
        "page walks": report.count(walks),
        "page faults": report.count(faults),
        "seed": str(run["seed"]),
    }
    return "".join(f"<div><b>{html.escape(value)}</b>{name}</div>" for name, value in shown.items())


def result_part(run):
    """What main returned."""
    if run["result"] is None:
        return ""
    return f"<section><h2>Result</h2><p>What main(machine) returned.</p><div class=wide>{html_of(run['result'])}</div></section>"


def counters_part(run):
    """All counters, folded away."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{value:,}</td></tr>" for name, value in run["vmstat"].items() if value
    )
    return (
        "<section><details><summary><b>Counters</b> (/proc/vmstat, those that are not 0)</summary>"
        f"<p>Linux's names; pages of 4 KiB, or events since boot.</p><table>{rows}</table></details></section>"
    )


def machine_part(topology):
    return (
        "<section><h2>The machine</h2><p class=dim>Nodes with their memory and CPUs, distances, and the ns of a load.</p>"
        f"<div class=wide>{drawing.svg(topology)}</div></section>"
    )


def page(run, samples, tasks, doc="", latencies=None):
    """The text of the page."""
    converter = need("vl_convert", "report", "the page of a run")
    name = os.path.basename(run["workload"])
    charts = all_charts(run, samples, tasks, latencies)
    parts = [
        f"<section><h2>{html.escape(chart.title)}</h2><p class=dim>{html.escape(chart.text)}</p><div class=chart id=chart{i}></div></section>"
        if chart.title
        else f"<section><div class=chart id=chart{i}></div></section>"
        for i, chart in enumerate(charts)
    ]
    specs = json.dumps(jsonable([chart.spec for chart in charts])).replace("</", "<\\/")
    topology = Topology.from_dict(run["machine"])
    title = f"{name} on {run['machine']['name']}"
    about = (
        f"numaemu {run['numaemu']}, {report.machine_line(run['machine'])}, {len(samples)} looks at the running machine"
    )
    return "\n".join([
        "<!DOCTYPE html>", "<html lang=en><head><meta charset=utf-8>",
        '<meta name=viewport content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1><p>{html.escape(report.first_line(doc))}</p><p class=dim>{html.escape(about)}</p>",
        f"<div class=figures>{figures_line(run)}</div>", result_part(run),
        machine_part(topology),
        *parts, counters_part(run),
        f'<script id=specs type="application/json">{specs}</script>',
        f"<script>{converter.javascript_bundle()}</script><script>{SCRIPT}</script></body></html>",
    ]) + "\n"  # fmt: skip


def write(run, sampler, path, doc=""):
    """Write the page of a run."""
    text = page(run, sampler.samples, sampler.tasks, doc, sampler.latencies)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"--report is {path}: {str(error.strerror).lower()}") from None

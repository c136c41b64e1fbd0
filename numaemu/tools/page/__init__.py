"""The page of a run: `numaemu run --report FILE.html`.

`sampler` looks at the machine while the run goes on, `latencies` counts how long things took, `charts` makes Vega-Lite charts with what
they mean, and `html` puts them into one file that needs no network.
"""

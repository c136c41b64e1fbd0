"""Parquet: a row for each event, with its fields as text of JSON and the most used ones as columns of their own."""

import json

from numaemu.host.extras import need

COMMON = ("pfn", "order", "address", "nid", "nr_reclaimed", "pages")  # columns of their own


def check():
    need("pandas", "trace", "a trace in Parquet")
    need("pyarrow", "trace", "a trace in Parquet")


def write(trace, path):
    """The file."""
    import pandas

    rows = [
        {
            "ns": h.ns,
            "cpu": h.context,
            "pid": h.pid,
            "comm": trace.names.get(h.pid, "") if h.pid else "",
            "event": f"{h.event.system}:{h.event.name}",
            **{name: h.fields[name] for name in COMMON if name in h.fields},
            "fields": json.dumps(h.fields),
        }
        for h in trace.events()
    ]
    columns = ["ns", "cpu", "pid", "comm", "event", *COMMON, "fields"]
    frame = pandas.DataFrame(rows, columns=columns).astype({name: "Int64" for name in COMMON if name != "address"})
    frame["address"] = frame["address"].astype("UInt64")
    frame.to_parquet(path)

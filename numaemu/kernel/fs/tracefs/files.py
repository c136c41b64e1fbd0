"""The files of /sys/kernel/tracing: Linux's kernel/trace/{trace,trace_events}.c."""

import errno
import functools

from numaemu.kernel.fs.tracefs.events import EVENTS, FIRST_ID, NAMES, SYSTEMS, show_format
from numaemu.kernel.fs.tracefs.ring import clear_trace, contexts, copy_records, ring, show_trace, show_trace_pipe
from numaemu.kernel.include.trace import TRACE_RECORDS, trace_record_t
from numaemu.kernel.mm.page_alloc.page_alloc import set_alloc_hooks
from numaemu.spec.node_mask import node_mask, nodes_of
from numaemu.spec.param import MAX_NODES
from numaemu.spec.units import list_text

ROOT = "/sys/kernel/tracing"
ALL_NODES = (1 << MAX_NODES) - 1

# -- what is on ----------------------------------------------------------------------------------------------


def apply(system):
    """Bring what the contexts look at up to date: single words."""
    if system.machine.trace_nodes == 0:
        system.machine.trace_nodes = ALL_NODES
    system.machine.trace_events = system.trace.mask if system.trace.on else 0
    set_alloc_hooks(system.machine)


def chosen(text):
    """The bits of events named in a word: system:name, system:*, system, name, or all of them (*:* or all)."""
    if text in ("*:*", "all", "*"):
        return (1 << len(EVENTS)) - 1
    system, colon, name = text.partition(":")
    bits = 0
    for i, event in enumerate(EVENTS):
        if (
            colon
            and event.system == system
            and name in (event.name, "*", "")
            or not colon
            and text in (event.system, event.name)
        ):
            bits |= 1 << i
    if not bits:
        raise OSError(errno.EINVAL, f"no event {text!r}: available_events lists them")
    return bits


def store_set_event(system, text):
    """set_event: the events that are on, and no others; a word with ! in front switches off."""
    mask, words = 0, text.replace(",", " ").split()
    if words and all(word.startswith("!") for word in words):
        mask = system.trace.mask
    for each in words:
        mask = mask & ~chosen(each[1:]) if each.startswith("!") else mask | chosen(each)
    system.trace.mask = mask
    apply(system)


def show_set_event(system):
    return "".join(f"{name}\n" for i, name in enumerate(NAMES) if system.trace.mask >> i & 1)


def flag(text, path):
    if text.strip() not in ("0", "1"):
        raise OSError(errno.EINVAL, f"{path} takes 0 or 1, not {text.strip()[:40]!r}")
    return text.strip() == "1"


def store_tracing_on(system, text):
    system.trace.on = flag(text, "tracing_on")
    apply(system)


def store_overwrite(system, text):
    """options/overwrite: 1: a full ring loses its oldest events, 0: the newest."""
    system.machine.trace_stop = 0 if flag(text, "overwrite") else 1


def store_pid(system, text):
    """set_event_pid: the only process whose events are kept; nothing: all."""
    words = text.split()
    if len(words) > 1 or words and not (words[0].isdigit() and len(words[0]) < 10):
        raise OSError(errno.EINVAL, f"set_event_pid takes one pid here, not {text.strip()[:40]!r}")
    system.machine.trace_pid = int(words[0]) if words else 0


def store_nodes(system, text):
    """set_event_nodes, our own: only events on CPUs of these nodes (0-1,3) are kept; nothing: all."""
    try:
        mask = node_mask(text.strip()) if text.strip() else 0
    except ValueError as error:
        raise OSError(errno.EINVAL, f"set_event_nodes: {error}") from None
    system.machine.trace_nodes = mask or ALL_NODES


def show_nodes(system):
    mask = int(system.machine.trace_nodes)
    return "" if mask in (0, ALL_NODES) else list_text(nodes_of(mask)) + "\n"


# -- events/ and the rest ---------------------------------------------------------------------------------------


def show_enable(system, mask):
    on = system.trace.mask & mask
    return "0\n" if not on else "1\n" if on == mask else "X\n"


def store_enable(system, text, mask):
    system.trace.mask = system.trace.mask | mask if flag(text, "enable") else system.trace.mask & ~mask
    apply(system)


def show_stats(system, context):
    """per_cpu/cpuN/stats"""
    trace = ring(system.machine, context)
    count = int(trace.count)
    held = len(copy_records(system.machine, context, 0)[0])
    return f"entries: {held}\noverrun: {max(count - TRACE_RECORDS, 0)}\ndropped events: {int(trace.lost)}\nread events: {int(trace.read)}\n"


def event_files():
    """{path: (reader, writer)} of the directory events."""
    found = {}
    groups = {"": (1 << len(EVENTS)) - 1} | {f"/{name}": chosen(name + ":*") for name in SYSTEMS}
    groups |= {f"/{event.system}/{event.name}": 1 << i for i, event in enumerate(EVENTS)}
    for place, mask in groups.items():
        found[f"{ROOT}/events{place}/enable"] = (
            functools.partial(show_enable, mask=mask),
            lambda system, text, mask=mask: store_enable(system, text, mask),
        )
    for i, event in enumerate(EVENTS):
        place = f"{ROOT}/events/{event.system}/{event.name}"
        found[f"{place}/format"] = lambda system, event=event: show_format(event), None
        found[f"{place}/id"] = lambda system, i=i: f"{FIRST_ID + i}\n", None
    return found


FILES = {
    f"{ROOT}/available_events": (lambda system: "".join(f"{name}\n" for name in NAMES), None),
    f"{ROOT}/set_event": (show_set_event, store_set_event),
    f"{ROOT}/set_event_pid": (
        lambda system: f"{system.machine.trace_pid}\n" if system.machine.trace_pid else "",
        store_pid,
    ),
    f"{ROOT}/set_event_nodes": (show_nodes, store_nodes),
    f"{ROOT}/trace": (show_trace, clear_trace),
    f"{ROOT}/trace_pipe": (show_trace_pipe, None),
    f"{ROOT}/tracing_on": (lambda system: f"{int(system.trace.on)}\n", store_tracing_on),
    f"{ROOT}/options/overwrite": (lambda system: f"{int(not system.machine.trace_stop)}\n", store_overwrite),
    f"{ROOT}/current_tracer": (lambda system: "nop\n", None),
    f"{ROOT}/available_tracers": (lambda system: "nop\n", None),
    f"{ROOT}/trace_clock": (lambda system: "[emulated]\n", None),
    f"{ROOT}/buffer_size_kb": (lambda system: f"{TRACE_RECORDS * trace_record_t.nbytes >> 10}\n", None),
    **event_files(),
}


def cpu_files(system):
    """{path: (reader, None)} of the directory per_cpu."""
    return {
        f"{ROOT}/per_cpu/cpu{context}/stats": (functools.partial(show_stats, context=context), None)
        for context in contexts(system.machine)
    }

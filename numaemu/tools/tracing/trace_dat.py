"""trace.dat, version 6, which `trace-cmd report` and KernelShark read: see trace-cmd.dat.v6(5).

Each event has the format of its file in /sys/kernel/tracing/events. A CPU's part are pages of a ring buffer, as the kernel makes them.
"""

import struct

from numaemu.kernel.fs.tracefs.events import EVENTS, FIRST_ID, SYSTEMS, layout, show_format

PAGE, DATA = 4096, 4096 - 16
TIME_EXTEND, TIME_BITS = 30, 27
NR_LENGTHS = 28  # lengths in words that fit into the 5 bits of an entry
HEADER_PAGE = (
    "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
    "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n"
)
HEADER_EVENT = (
    "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n\tarray       :   32 bits\n\n"
    "\tpadding     : type == 29\n\ttime_extend : type == 30\n\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
)


def check():
    """Nothing else is needed."""


def record_bytes(happened):
    """An event as its format says."""
    fields, nbytes = layout(happened.event)
    data = bytearray(nbytes)
    struct.pack_into("<HBBi", data, 0, FIRST_ID + EVENTS.index(happened.event), 0, 0, happened.pid)
    for field, at in fields:
        value = happened.fields[field.name]
        if field.kind == "char":
            raw = str(value).encode()[: field.size - 1]
            data[at : at + len(raw)] = raw
        else:
            data[at : at + field.size] = (int(value) & (1 << 8 * field.size) - 1).to_bytes(field.size, "little")
    return bytes(data)


def entry(record, delta):
    """An entry of a ring buffer page: its length and time since the one before, a longer time as an entry of its own."""
    extend = b""
    if delta >> TIME_BITS:
        extend = struct.pack("<II", TIME_EXTEND | (delta & (1 << TIME_BITS) - 1) << 5, delta >> TIME_BITS)
        delta = 0
    words = len(record) // 4
    if words > NR_LENGTHS:  # the length in bytes stands in front of the record
        return extend + struct.pack("<II", delta << 5, len(record) + 4) + record
    return extend + struct.pack("<I", words | delta << 5) + record


def pages_of(records):
    """A CPU's pages of (ns, record)."""
    pages, data, first, last = [], b"", 0, 0
    for ns, record in records:
        piece = entry(record, ns - last if data else 0)
        if len(data) + len(piece) > DATA:
            pages.append(struct.pack("<QQ", first, len(data)) + data.ljust(DATA, b"\0"))
            data, piece = b"", entry(record, 0)
        if not data:
            first = ns
        data, last = data + piece, ns
    if data:
        pages.append(struct.pack("<QQ", first, len(data)) + data.ljust(DATA, b"\0"))
    return b"".join(pages)


def header(trace):
    """Everything in front of the table of CPUs."""
    out = b"\x17\x08\x44tracing6\0" + struct.pack("<BBI", 0, 8, PAGE)
    for name, text in (("header_page", HEADER_PAGE), ("header_event", HEADER_EVENT)):
        out += name.encode() + b"\0" + struct.pack("<Q", len(text)) + text.encode()
    out += struct.pack("<II", 0, len(SYSTEMS))
    for system in SYSTEMS:
        texts = [show_format(event).encode() for event in EVENTS if event.system == system]
        out += system.encode() + b"\0" + struct.pack("<I", len(texts))
        out += b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    names = "".join(f"{pid} {name.replace(' ', '_')}\n" for pid, name in sorted(trace.names.items())).encode()
    return out + struct.pack("<IIQ", 0, 0, len(names)) + names


def write(trace, path):
    """The file."""
    contexts = trace.nr_cpus + trace.topology.nr_nodes
    cpus = {context: [] for context in range(contexts)}
    for happened in trace.events():
        cpus[happened.context].append((happened.ns, record_bytes(happened)))
    buffers = [pages_of(cpus[context]) for context in range(contexts)]
    out = header(trace) + struct.pack("<I", contexts) + b"options  \0" + struct.pack("<H", 0) + b"flyrecord\0"
    offset = -(-(len(out) + 16 * contexts) // PAGE) * PAGE
    for buffer in buffers:
        out += struct.pack("<QQ", offset, len(buffer))
        offset += len(buffer)
    with open(path, "wb") as file:
        file.write(out.ljust(-(-len(out) // PAGE) * PAGE, b"\0"))
        for buffer in buffers:
            file.write(buffer)

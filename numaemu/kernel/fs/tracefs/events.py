"""The tracepoints: what the words of a record mean, and an event's text. Linux's include/trace/events, as far as the emulator counts.

Three events of a system numaemu are its own: messages between processes, and the ends of faults and shootdowns, which Linux does
not trace. A new tracepoint is a number in include/trace.py, a row here, and calls of trace_event.
"""

from typing import NamedTuple

from numaemu.kernel.core import smp
from numaemu.kernel.include.mm_types import VM_FAULT_MAJOR, VM_FAULT_OK
from numaemu.spec.param import PAGEBLOCK_ORDER

FIRST_ID = 300  # of an event's `id`; Linux gives them as events are registered
COMM_BYTES = 16
UNKNOWN = "<...>"
DEFAULT_PRIO = 120


class Field(NamedTuple):
    """A field of an event: how C declares it, and its value from a record's words (a dict of a to e) and the System's names."""

    name: str
    kind: str
    value: object  # function(words, names)
    symbols: dict | None = None  # words for its values

    @property
    def size(self):
        return COMM_BYTES if "char" in self.kind else 8 if "long" in self.kind else 4

    @property
    def signed(self):
        return not self.kind.startswith(("unsigned", "char"))


class Event(NamedTuple):
    """A tracepoint. `text` is C's printf of the fields named in `shown`."""

    system: str
    name: str
    fields: tuple
    text: str
    shown: str


def signed(word):
    return word - (1 << 64) if word >> 63 else word


def word(letter, shift=0, bits=64):
    """The function that takes some bits of a record's word."""
    mask = (1 << bits) - 1
    return lambda words, names: signed(words[letter]) if bits == 64 else words[letter] >> shift & mask


def number(name, letter, shift=0, bits=64, symbols=None):
    return Field(name, "long", word(letter, shift, bits), symbols)


def address(name, letter):
    return Field(name, "unsigned long", lambda words, names: words[letter])


def constant(name, value):
    return Field(name, "int", lambda words, names: value)


def comm(name, letter):
    """The name of the task whose pid is in a word."""
    return Field(name, "char", lambda words, names: names.get(words[letter], UNKNOWN) if words[letter] else "swapper")


MODES = {0: "ASYNC", 1: "SYNC_LIGHT", 2: "SYNC"}  # enum migrate_mode
LRU = {0: "inactive_anon", 1: "active_anon", 2: "inactive_file", 3: "active_file", 4: "unevictable"}
REASONS = {1: "remote shootdown", 4: "remote ipi send"}  # TLB_FLUSH_REASON
STATES = {0: "R", 1: "S"}
MESSAGES = {getattr(smp, name): name for name in dir(smp) if name.startswith("MSG_")}
FAULTS = {VM_FAULT_OK: "minor", VM_FAULT_MAJOR: "major"}
ZONE_FIELDS = (
    address("zone_start", "a"),
    address("migrate_pfn", "b"),
    address("free_pfn", "c"),
    address("zone_end", "d"),
)
ZONE_TEXT = "zone_start=0x%lx migrate_pfn=0x%lx free_pfn=0x%lx zone_end=0x%lx, mode=%s"

# in the order of the numbers in include/trace.py
# fmt: off
EVENTS = (
    Event("exceptions", "page_fault_user", (address("address", "a"), address("error_code", "b")),
          "address=0x%lx error_code=0x%lx", "address error_code"),
    Event("kmem", "mm_page_alloc", (address("pfn", "a"), number("order", "b"), address("gfp_flags", "c")),
          "pfn=0x%lx order=%ld gfp_flags=0x%lx", "pfn order gfp_flags"),
    Event("kmem", "mm_page_free", (address("pfn", "a"), number("order", "b")), "pfn=0x%lx order=%ld", "pfn order"),
    Event("kmem", "mm_page_alloc_extfrag",
          (address("pfn", "a"), number("alloc_order", "b"), number("fallback_order", "c"), constant("pageblock_order", PAGEBLOCK_ORDER),
           number("alloc_migratetype", "d", 0, 8), number("fallback_migratetype", "d", 8, 8),
           Field("fragmenting", "int", lambda words, names: int(words["c"] < PAGEBLOCK_ORDER))),
          "pfn=0x%lx alloc_order=%ld fallback_order=%ld pageblock_order=%d alloc_migratetype=%ld fallback_migratetype=%ld fragmenting=%d",
          "pfn alloc_order fallback_order pageblock_order alloc_migratetype fallback_migratetype fragmenting"),
    Event("tlb", "tlb_flush", (number("pages", "a"), number("reason", "b", symbols=REASONS), number("initiator", "c"), number("flush", "d")),
          "pages:%ld reason:%s (%ld)", "pages reason$ reason"),
    Event("vmscan", "mm_vmscan_wakeup_kswapd", (number("nid", "a"), number("zid", "b"), number("order", "c"), address("gfp_flags", "d")),
          "nid=%ld order=%ld gfp_flags=0x%lx", "nid order gfp_flags"),
    Event("vmscan", "mm_vmscan_kswapd_wake", (number("nid", "a"), number("zid", "b"), number("order", "c")), "nid=%ld order=%ld", "nid order"),
    Event("vmscan", "mm_vmscan_kswapd_sleep", (number("nid", "a"),), "nid=%ld", "nid"),
    Event("vmscan", "mm_vmscan_direct_reclaim_begin", (number("order", "a"), address("gfp_flags", "b")),
          "order=%ld gfp_flags=0x%lx", "order gfp_flags"),
    Event("vmscan", "mm_vmscan_direct_reclaim_end", (number("nr_reclaimed", "a"),), "nr_reclaimed=%ld", "nr_reclaimed"),
    Event("vmscan", "mm_vmscan_lru_isolate",
          (number("highest_zoneidx", "a", 0, 8), number("order", "a", 8, 8), number("lru", "a", 16, 8, LRU), number("nr_requested", "b"),
           number("nr_scanned", "c"), number("nr_skipped", "d"), number("nr_taken", "e")),
          "classzone=%ld order=%ld nr_requested=%ld nr_scanned=%ld nr_skipped=%ld nr_taken=%ld lru=%s",
          "highest_zoneidx order nr_requested nr_scanned nr_skipped nr_taken lru$"),
    Event("vmscan", "mm_vmscan_lru_shrink_inactive",
          (number("nid", "a", 0, 8), number("file", "a", 8, 8), number("priority", "a", 16, 8), number("nr_scanned", "b"),
           number("nr_reclaimed", "c"), number("nr_dirty", "d"), number("nr_pageout", "e")),
          "nid=%ld nr_scanned=%ld nr_reclaimed=%ld nr_dirty=%ld nr_pageout=%ld priority=%ld file=%ld",
          "nid nr_scanned nr_reclaimed nr_dirty nr_pageout priority file"),
    Event("compaction", "mm_compaction_begin", (*ZONE_FIELDS, number("mode", "e", 0, 8, MODES)), ZONE_TEXT,
          "zone_start migrate_pfn free_pfn zone_end mode$"),
    Event("compaction", "mm_compaction_end", (*ZONE_FIELDS, number("mode", "e", 0, 8, MODES), number("status", "e", 8, 8)),
          ZONE_TEXT + " status=%ld", "zone_start migrate_pfn free_pfn zone_end mode$ status"),
    Event("compaction", "mm_compaction_isolate_migratepages",
          (address("start_pfn", "a"), address("end_pfn", "b"), number("nr_scanned", "c"), number("nr_taken", "d")),
          "range=(0x%lx ~ 0x%lx) nr_scanned=%ld nr_taken=%ld", "start_pfn end_pfn nr_scanned nr_taken"),
    Event("compaction", "mm_compaction_kcompactd_wake", (number("nid", "a"), number("order", "b"), number("highest_zoneidx", "c")),
          "nid=%ld order=%ld classzone_idx=%ld", "nid order highest_zoneidx"),
    Event("migrate", "mm_migrate_pages", (number("succeeded", "a"), number("failed", "b")),
          "nr_succeeded=%ld nr_failed=%ld", "succeeded failed"),
    Event("sched", "sched_switch",
          (comm("prev_comm", "a"), number("prev_pid", "a"), constant("prev_prio", DEFAULT_PRIO), number("prev_state", "c", symbols=STATES),
           comm("next_comm", "b"), number("next_pid", "b"), constant("next_prio", DEFAULT_PRIO)),
          "prev_comm=%s prev_pid=%ld prev_prio=%d prev_state=%s ==> next_comm=%s next_pid=%ld next_prio=%d",
          "prev_comm prev_pid prev_prio prev_state$ next_comm next_pid next_prio"),
    Event("sched", "sched_wakeup", (comm("comm", "a"), number("pid", "a"), constant("prio", DEFAULT_PRIO), number("target_cpu", "b")),
          "comm=%s pid=%ld prio=%d target_cpu=%03ld", "comm pid prio target_cpu"),
    Event("sched", "sched_move_numa",
          (number("pid", "a"), number("tgid", "b"), number("src_cpu", "c"), number("dst_cpu", "d"), number("src_nid", "e", 0, 8),
           number("dst_nid", "e", 8, 8)),
          "pid=%ld tgid=%ld src_cpu=%ld src_nid=%ld dst_cpu=%ld dst_nid=%ld", "pid tgid src_cpu src_nid dst_cpu dst_nid"),
    Event("oom", "mark_victim", (number("pid", "a"), comm("comm", "a")), "pid=%ld comm=%s", "pid comm"),
    Event("huge_memory", "mm_collapse_huge_page", (number("mm", "a"), number("isolated", "b"), number("status", "c")),
          "mm=%ld, isolated=%ld, status=%ld", "mm isolated status"),
    Event("writeback", "writeback_pages_written", (number("pages", "a"),), "%ld", "pages"),
    Event("numaemu", "node_message", (number("actor", "a"), number("kind", "b", symbols=MESSAGES), address("x", "c"), address("y", "d"),
          address("z", "e")), "actor=%ld kind=%s words=0x%lx 0x%lx 0x%lx", "actor kind$ x y z"),
    Event("numaemu", "page_fault_end", (address("address", "a"), number("code", "b", symbols=FAULTS)), "address=0x%lx %s", "address code$"),
    Event("numaemu", "shootdown_end", (number("targets", "a"), number("flush", "b")), "targets=%ld", "targets"),
)
# fmt: on
NAMES = [f"{event.system}:{event.name}" for event in EVENTS]
SYSTEMS = sorted({event.system for event in EVENTS})


def values(event, record, names):
    """The fields of a record, by name."""
    words = {letter: int(record[letter]) for letter in "abcde"}
    return {field.name: field.value(words, names) for field in event.fields}


def text_of(event, fields):
    """An event's text."""
    symbols = {field.name: field.symbols for field in event.fields}
    shown = [
        symbols[name[:-1]].get(fields[name[:-1]], str(fields[name[:-1]])) if name.endswith("$") else fields[name]
        for name in event.shown.split()
    ]
    return event.text % tuple(shown)


# -- the file format ---------------------------------------------------------------------------------------------

COMMON = (("unsigned short", "common_type", 0, 2, 0), ("unsigned char", "common_flags", 2, 1, 0),
          ("unsigned char", "common_preempt_count", 3, 1, 0), ("int", "common_pid", 4, 4, 1))  # fmt: skip


def layout(event):
    """[(field, offset)] behind the common fields, and the bytes of all."""
    found, at = [], 8
    for field in event.fields:
        at = -(-at // min(field.size, 8)) * min(field.size, 8)
        found.append((field, at))
        at += field.size
    return found, -(-at // 4) * 4


def print_format(event):
    """The C format and its arguments."""
    symbols = {field.name: field.symbols for field in event.fields}
    arguments = []
    for name in event.shown.split():
        table = symbols.get(name.rstrip("$"))
        if name.endswith("$"):
            pairs = ", ".join(f'{{ {value}, "{word}" }}' for value, word in sorted(table.items()))
            arguments.append(f"__print_symbolic(REC->{name[:-1]}, {pairs})")
        else:
            arguments.append(f"REC->{name}")
    return f'"{event.text}", ' + ", ".join(arguments)


def show_format(event):
    """The text of an event's file `format`."""
    rows = [
        f"\tfield:{kind} {name};\toffset:{at};\tsize:{size};\tsigned:{sign};\n" for kind, name, at, size, sign in COMMON
    ]
    for field, at in layout(event)[0]:
        declared = f"char {field.name}[{COMM_BYTES}]" if field.kind == "char" else f"{field.kind} {field.name}"
        own = f"\tfield:{declared};\toffset:{at};\tsize:{field.size};\tsigned:{int(field.signed)};\n"
        rows.append(("\n" if field is event.fields[0] else "") + own)
    number = FIRST_ID + EVENTS.index(event)
    return f"name: {event.name}\nID: {number}\nformat:\n{''.join(rows)}\nprint fmt: {print_format(event)}\n"

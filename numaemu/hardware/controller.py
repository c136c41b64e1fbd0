"""What lies behind the caches: memory that lines come from and go back to, as far as a CPU waits for it.

A line that a CPU fetches costs the latency of the pair, its node and the line's, and what it waits at the servers on its way
(bandwidth.py). One that goes to memory costs the CPU nothing. So many lines of a CPU as its machine says may be *under way*
(`outstanding`, 1: no two); one more waits until the first of them is there. What the CPU itself waits for:

    a load              until the line is there
    a store             nothing but a place among the lines under way; with `outstanding` = 1 it is as a load
    a locked word       until all that is under way is there
    a vector operation  as stores, and behind its last access until all that it has loaded is there

The walk before an access of a vector operation and the access are one chain: it takes one place, and its lines come one behind
the other.

    base + TLBs + memory_ns   memory_ps            the clock: so many ns, and so many ps on top (`now_ps`)
"""

import numpy as np

from numaemu.compiler.atomic import exchange
from numaemu.compiler.bits import lowest_bit
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.hardware.bandwidth import LINE_SHIFT, pass_line, pass_lines, pass_path, pass_path_many, passage_of
from numaemu.hardware.marks import mark_of, marked_as, put_mark
from numaemu.hardware.processor import cpu_t  # noqa: F401  (the type in signatures)
from numaemu.spec.param import KEPT_LINES, PAGE_SHIFT

U = np.uint64
PS = 1000  # in a ns
PAGE_LINES = 1 << PAGE_SHIFT - LINE_SHIFT
KEPT_PS = 250  # an access to a line that is at hand: four a ns; assumed
LONG_PS = 1_000_000  # a wait after which a CPU looks at once whether its turn is over
DATA, TABLES, LOWEST = 0, KEPT_LINES, 2 * KEPT_LINES  # where lines at hand begin: data, upper and lowest page tables


@hot
def home_node(cpu, physical):
    """The node whose memory has a physical address."""
    return np.int64(u8.array(cpu.block_node)[np.int64(physical >> U(21))])


@hot
def now_ps(cpu):
    """The clock of a CPU whose accesses are timed (`clock_ns`), in ps."""
    ns = cpu.clock_base_ns + cpu.tick * cpu.l1_latency_ns + cpu.memory_ns
    ns += (cpu.l2_hits + cpu.walks + cpu.assists) * cpu.l2_latency_ns
    return ns * PS + cpu.memory_ps


@hot
def wait_on_way(cpu, node, write, begin_ps):
    """The ps that a line of a node waits on its way from there, or to there, beyond the latency."""
    if cpu.rates == U(0):
        return 0
    waited = pass_line(cpu, node, begin_ps)
    if node != cpu.node:
        source, target = (cpu.node, node) if write else (node, cpu.node)
        waited += pass_path(cpu, source, target, begin_ps + waited)
    return waited


@hot
def charge_wait(cpu, ps):
    """A CPU waits for memory. `event_at` counts accesses of usual length (sched.py)."""
    cpu.memory_ps += ps
    if ps > LONG_PS:
        exchange(cpu, "event_at", 0)


@hot
def place_under_way(cpu):
    """Where the line under way that is there first is noted."""
    place = 0
    for i in range(1, cpu.outstanding):
        if cpu.under_way_ps[i] < cpu.under_way_ps[place]:
            place = i
    return place


@hot
def put_under_way(cpu, begin, there, place, write):
    """Something that a CPU has asked for at `begin` is there at `there`; what it itself waits for."""
    cpu.chain_ps, cpu.under_way_ps[place] = 0, there
    if cpu.overlap != 0 and not write:
        cpu.loaded_ps = max(cpu.loaded_ps, there)
    charge_wait(cpu, (begin if write or cpu.overlap != 0 else there) - now_ps(cpu))


@kernel("void(cpu_t*, i64, bool)")
def fetch_overlapping(cpu, node, write):
    """fetch_line where several lines may be under way."""
    place = place_under_way(cpu)
    begin = max(now_ps(cpu), cpu.under_way_ps[place])
    asked = begin + cpu.chain_ps
    there = asked + cpu.latency_ns[node] * PS + wait_on_way(cpu, node, write, asked)
    put_under_way(cpu, begin, there, place, write)


@kernel("void(cpu_t*, i64, bool)")
def wait_overlapping(cpu, ns, write):
    """Likewise for a line that a cache has, which takes so many ns."""
    place = place_under_way(cpu)
    begin = max(now_ps(cpu), cpu.under_way_ps[place])
    put_under_way(cpu, begin, begin + cpu.chain_ps + ns * PS, place, write)


@hot
def fetch(cpu, physical, write):
    """fetch_line, inlined."""
    node = home_node(cpu, physical)
    if cpu.outstanding > 1:
        fetch_overlapping(cpu, node, write)
        return 0
    if cpu.rates != U(0):
        charge_wait(cpu, wait_on_way(cpu, node, write, now_ps(cpu)))
    return cpu.latency_ns[node]


@kernel("i64(cpu_t*, u64, bool)")
def fetch_line(cpu, physical, write):
    """A line comes from memory, for a load or a store: the ns that the CPU waits for it, if it is not charged here."""
    return fetch(cpu, physical, write)


@kernel("void(cpu_t*, u64)")
def write_back_line(cpu, physical):
    """A dirty line leaves the caches for memory; the CPU does not wait."""
    wait_on_way(cpu, home_node(cpu, physical), True, now_ps(cpu))


@kernel("void(cpu_t*, i64)")
def hand_over_line(cpu, node):
    """A line comes from the caches of another CPU, of a node: the CPU waits at the links on its way beyond `cache_to_cache`."""
    if cpu.rates != U(0) and node != cpu.node:
        charge_wait(cpu, pass_path(cpu, node, cpu.node, now_ps(cpu)))


@kernel("void(cpu_t*, u64)")
def prefetch_line(cpu, physical):
    """A line comes that nobody waits for."""
    wait_on_way(cpu, home_node(cpu, physical), False, now_ps(cpu))


# -- vector operations ---------------------------------------------------------------------------------------------


@hot
def begin_overlap(cpu):
    """The accesses from now on do not depend on each other."""
    cpu.overlap, cpu.loaded_ps = 1, 0


@hot
def end_overlap(cpu):
    """The CPU needs all that it has loaded since `begin_overlap`."""
    if cpu.overlap != 0:
        cpu.overlap = 0
        late = cpu.loaded_ps - now_ps(cpu)
        charge_wait(cpu, cpu.chain_ps + max(late, 0))
        cpu.chain_ps = 0


@kernel("void(cpu_t*)")
def wait_for_all(cpu):
    """Nothing of the CPU is under way any more."""
    last = 0
    for i in range(cpu.outstanding):
        last = max(last, cpu.under_way_ps[i])
    charge_wait(cpu, max(last - now_ps(cpu), 0))


@hot
def drain(cpu):
    """An instruction that locks the bus waits until its own line is there, and all stores before it are done."""
    if cpu.outstanding > 1:
        wait_for_all(cpu)


# -- without caches: a line that a CPU has just used need not come again -----------------------------------------


@hot
def is_kept(cpu, key, begin):
    """True if a line is among those at hand from `begin` on. What has only been loaded is none for a store."""
    likely, ignored = marked_as(cpu.kept_marks[begin // KEPT_LINES], mark_of(key >> U(1))), ~key & U(1)
    while likely != U(0):
        if (cpu.kept[begin + (lowest_bit(likely) >> 3)] | ignored) == (key | ignored):
            return True
        likely &= likely - U(1)
    return False


@hot
def keep(cpu, key, begin):
    """Have a line at hand, in the place of the one that came first."""
    which = begin // KEPT_LINES
    place = cpu.kept_next[which]
    cpu.kept[begin + place] = key
    put_mark(cpu.kept_marks, which, place, mark_of(key >> U(1)))
    cpu.kept_next[which] = (place + 1) & (KEPT_LINES - 1)


@hot
def key_of(physical, write):
    """The word that says which line is at hand, and whether it has been stored to; not 0."""
    key = ((physical >> U(LINE_SHIFT)) + U(1)) << U(1)
    return key | U(1) if write else key


@hot
def use_line(cpu, physical, write):
    """An access of a CPU without caches: the ns that it waits, if they are not charged here."""
    key = key_of(physical, write)
    if is_kept(cpu, key, DATA):
        cpu.memory_ps += KEPT_PS + cpu.chain_ps
        cpu.chain_ps = 0
        return 0
    keep(cpu, key, DATA)
    return fetch(cpu, physical, write)


# A *stream* is lines of a page that a vector uses one behind the other, each the first time. What they cost is what use_line says; but
# that none of them is at hand, and where they come from, is looked up once, and which are at hand afterwards is noted at its end.


@hot
def begins_stream(cpu, physical):
    """True if the lines behind one of a CPU without caches, up to the end of its page, can be a stream: they come from its own
    node, whose controller has a limit, none of them is at hand, and a CPU has one under way.
    """
    if cpu.keeps_lines == U(0) or cpu.outstanding != 1 or cpu.rates == U(0):
        return False
    node = home_node(cpu, physical)
    if node != cpu.node or passage_of(cpu, node).ring == U(0):
        return False
    line, ahead = np.int64(physical >> U(LINE_SHIFT)), 0
    behind = PAGE_LINES - line % PAGE_LINES
    for i in range(DATA, DATA + KEPT_LINES):
        ahead += 1 if 0 < np.int64(cpu.kept[i] >> U(1)) - 1 - line < behind else 0
    return ahead == 0


@hot
def end_stream(cpu, physical, lines, write, ps):
    """A stream of so many lines has taken so long; the last of them has a physical address."""
    cpu.memory_ps += ps
    passage_of(cpu, cpu.node).lines += lines
    for back in range(min(lines, KEPT_LINES) - 1, -1, -1):
        keep(cpu, key_of(physical - (U(back) << U(LINE_SHIFT)), write), DATA)


@hot
def charge_chain(cpu, ps):
    """A load of a page walk takes so long. In a vector operation it is the begin of a chain."""
    if cpu.overlap != 0:
        cpu.chain_ps += ps
    else:
        cpu.memory_ps += ps


@kernel("i64(cpu_t*, u64, i64)")
def fetch_table_line(cpu, physical, begin):
    """A line of a page table that is not at hand: the ns that the CPU waits, if they are not charged here."""
    keep(cpu, key_of(physical, False), begin)
    if cpu.overlap == 0 or cpu.outstanding == 1:
        return fetch(cpu, physical, False)
    node = home_node(cpu, physical)
    waited = wait_on_way(cpu, node, False, now_ps(cpu) + cpu.chain_ps)
    charge_chain(cpu, cpu.latency_ns[node] * PS + waited)
    return 0


@hot
def use_table_line(cpu, physical, lowest):
    """A load of a page walk of a CPU without caches, from a lowest table or one above."""
    begin = LOWEST if lowest else TABLES
    if is_kept(cpu, key_of(physical, False), begin):
        charge_chain(cpu, KEPT_PS)
    else:
        cpu.memory_ns += fetch_table_line(cpu, physical, begin)


# -- what is moved by the page -------------------------------------------------------------------------------------


@kernel("void(cpu_t*, i64, i64, i64, i64)")
def move_bytes(cpu, source, target, nbytes, charged_ns):
    """A CPU has just copied bytes from a node to a node (`source` -1: it has cleared them), for which so many ns have been
    charged already: what the servers take longer is charged, too.
    """
    begin, lines = now_ps(cpu) - charged_ns * PS, (nbytes + 63) >> LINE_SHIFT
    took = pass_lines(cpu, target, begin, lines)
    if source >= 0:
        took = max(took, pass_lines(cpu, source, begin, lines))
        if source != cpu.node:
            took = max(took, pass_path_many(cpu, source, cpu.node, begin, lines))
    if target != cpu.node:
        took = max(took, pass_path_many(cpu, cpu.node, target, begin, lines))
    longer = max(took - charged_ns * PS, 0)
    cpu.clock_base_ns += longer // PS
    cpu.memory_ps += longer % PS


@hot
def charge_move(cpu, source, target, nbytes, ns):
    """Copying or clearing bytes takes a CPU so many ns, or what the servers need."""
    cpu.clock_base_ns += ns
    if cpu.rates != U(0):
        move_bytes(cpu, source, target, nbytes, ns)


@hot
def charge_dma(cpu, node, nbytes):
    """A disk moves bytes to or from a node's memory: the CPU does not wait for that."""
    if cpu.rates != U(0):
        pass_lines(cpu, node, now_ps(cpu), (nbytes + 63) >> LINE_SHIFT)

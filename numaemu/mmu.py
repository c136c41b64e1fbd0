"""The hardware of one CPU: two TLB levels over the page walk. Answers with a code, never calls up.

TLB entries are true LRU by age: the CPU's `tick`, which counts its accesses (hardware/tlb_sets.py). A *hint* per low page
number tells where the page was last put; it is a short cut only, the entry's tag decides, so that figures do not depend on it.
Entries of all sizes stand in the same sets, each in the set of its own page number. Accesses look for 4 KiB tags only, so
a huge entry that is used shows a *view* of 4 KiB of itself behind the L1 entries. A view is no TLB entry: making one
is counted nowhere, and its age is its entry's.

Counted here: accesses by memory node, L2 hits, walks, walk loads by node. Derived (identities, see `counters`):
loads = tick - stores, L1 hits = tick - L2 hits - walks, and the clock is the sum of what each access costs.
"""

import numpy as np

from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import u8
from numaemu.hardware.paging import _PAGE_DIRTY, _PAGE_GLOBAL, _PAGE_NX, _PAGE_RW, PAGE_MASK, PTE_PFN_MASK
from numaemu.hardware.processor import (
    HOST_GLOBAL,
    HOST_NX,
    KERNEL_READ,
    LEAF_SHIFT,
    READ,
    TAG_ASID,
    TAG_KERNEL,
    TAG_SIZE,
    TAG_VALID,
    WRITE,
    X86_PF_INSTR,
    X86_PF_USER,
    X86_PF_WRITE,
    level_shift,
)
from numaemu.hardware.tlb_sets import (
    find_in_set,
    forget_l2_order,
    forget_l2_orders,
    l2_find_in_set,
    l2_victim,
    oldest_of,
    set_index,
    use_l2,
)
from numaemu.hardware.walk import walk
from numaemu.spec.param import L1_ENTRIES_MAX, L1_HINTS, L1_VIEWS, L2_HINTS, NR_ASIDS, PAGE_SHIFT, PAGE_SIZE

U = np.uint64


@hot
def tag_of(cpu, address, up, access):
    """The tag of the entry that translates an address, mapped `up` levels above the lowest."""
    kernel = access & X86_PF_USER == U(0) and address >= cpu.paging.kernel_start
    mask = PAGE_MASK if up == 0 else ~((U(1) << level_shift(cpu, up)) - U(1))
    return (address & mask) | TAG_VALID | (U(up) << U(9)) | (TAG_KERNEL if kernel else U(0))


@hot
def allows(entry, access):
    """True if a TLB entry serves an access without a walk."""
    if access & X86_PF_WRITE != U(0):
        return entry.wtag == entry.tag
    return access & X86_PF_INSTR == U(0) or entry.host & HOST_NX == U(0)


@hot
def note_slot(cpu, page_number, slot):
    """The L1 entry or view where a page is looked for first."""
    cpu.l1_hint[cpu.hint_base + np.int64(page_number & U(L1_HINTS - 1))] = slot


@hot
def l1_find(cpu, page_number, tag):
    """Index of the L1 entry with this tag, or -1."""
    return find_in_set(cpu.l1, set_index(page_number, cpu.l1_sets, cpu.l1_mask) * cpu.l1_ways, cpu.l1_ways, tag)


@hot
def l2_find(cpu, page_number, tag):
    """Index of the L2 entry with this tag, or -1."""
    slot = np.int64(cpu.l2_hint[page_number & U(L2_HINTS - 1)])
    return slot if cpu.l2[slot].tag == tag else l2_find_in_set(cpu, page_number, tag)


# -- views of huge entries -------------------------------------------------------------------------------------


@kernel("void(cpu_t*, i64)")
def drop_view(cpu, view):
    """Forget a view; its entry keeps the age that was noted here."""
    entry = cpu.l1[L1_ENTRIES_MAX + view]
    if entry.tag != U(0):
        owner = cpu.l1[cpu.view_of[view]]
        owner.age = max(owner.age, entry.age)
        entry.tag, entry.wtag, entry.age = U(0), U(0), 0


@kernel("void(cpu_t*)")
def drop_views(cpu):
    for view in range(L1_VIEWS):
        drop_view(cpu, view)


@kernel("void(cpu_t*)")
def note_ages(cpu):
    """Let every huge L1 entry know when it was used last."""
    for view in range(L1_VIEWS):
        entry = cpu.l1[L1_ENTRIES_MAX + view]
        if entry.tag != U(0):
            owner = cpu.l1[cpu.view_of[view]]
            owner.age = max(owner.age, entry.age)


@kernel("void(cpu_t*, i64)")
def drop_views_of(cpu, slot):
    """An L1 entry is about to be overwritten."""
    for view in range(L1_VIEWS):
        if cpu.view_of[view] == slot:
            drop_view(cpu, view)


@kernel("i64(cpu_t*, u64, i64)")
def show_view(cpu, address, slot):
    """Let accesses to an address find the huge L1 entry at `slot`: the view's index."""
    view = cpu.next_view
    cpu.next_view = (view + 1) % L1_VIEWS
    drop_view(cpu, view)
    entry, shown = cpu.l1[slot], cpu.l1[L1_ENTRIES_MAX + view]
    up = np.int64((entry.tag & TAG_SIZE) >> U(9))
    inside = address & ((U(1) << level_shift(cpu, up)) - U(1)) & PAGE_MASK
    shown.tag = (address & PAGE_MASK) | (entry.tag & (TAG_VALID | TAG_KERNEL))
    shown.wtag = shown.tag if entry.wtag != U(0) else U(0)
    shown.host, shown.age = entry.host + inside, entry.age
    cpu.view_of[view] = slot
    note_slot(cpu, address >> U(PAGE_SHIFT), L1_ENTRIES_MAX + view)
    return L1_ENTRIES_MAX + view


# -- refilling -------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*, i64)")
def l1_victim_viewed(cpu, first):
    """The same where huge entries show views: they know only by these when they were used; the victim shows none any more."""
    note_ages(cpu)
    victim = oldest_of(cpu.l1, first, cpu.l1_ways)
    drop_views_of(cpu, victim)
    return victim


@hot
def l1_victim(cpu, page_number):
    """Index of the least recently used L1 entry of the page's set."""
    first = set_index(page_number, cpu.l1_sets, cpu.l1_mask) * cpu.l1_ways
    return l1_victim_viewed(cpu, first) if cpu.huge_entries != U(0) else oldest_of(cpu.l1, first, cpu.l1_ways)


@hot
def fill_l1(cpu, page_number, tag, wtag, host):
    """Put a translation into the L1 TLB in place of the set's oldest; its slot."""
    slot = l1_victim(cpu, page_number)
    entry = cpu.l1[slot]
    entry.tag, entry.wtag, entry.host, entry.age = tag, wtag, host, cpu.tick + 1
    if tag & TAG_SIZE == U(0):
        note_slot(cpu, page_number, slot)
    return slot


@hot
def fill_l2(cpu, page_number, slot, tag, wtag, host):
    """Put a translation into the L2 TLB, where it already stands or (`slot` -1) in place of the set's oldest; its slot."""
    if slot < 0:
        slot = l2_victim(cpu, page_number)
    else:
        use_l2(cpu, slot)
    entry = cpu.l2[slot]
    entry.tag, entry.wtag, entry.host = tag, wtag, host
    return slot


@hot
def count_walk(cpu, slot, slot2):
    """A walk behind entries at `slot` and `slot2` (-1: none): a hit that may not be stored to yet (D is clear) walks too,
    and is counted as an assist, not as a walk.
    """
    if slot >= 0 or slot2 >= 0:
        cpu.assists += 1
    if slot < 0:
        if slot2 >= 0:
            cpu.l2_hits += 1
        else:
            cpu.walks += 1


@hot
def host_of(cpu, entry, size):
    """The `host` word of what a leaf entry of `size` bytes maps."""
    physical = entry & PTE_PFN_MASK & ~(size - U(1))
    node = U(u8.array(cpu.block_node)[np.int64(physical >> U(21))])
    return (cpu.memory + physical) | node | (entry & _PAGE_GLOBAL) | ((entry & _PAGE_NX) >> U(54))


@hot
def wtag_of(entry, tag):
    """`tag` if a page may be stored to without a walk."""
    return tag if entry & (_PAGE_DIRTY | _PAGE_RW) == _PAGE_DIRTY | _PAGE_RW else U(0)


@kernel("i64(cpu_t*, u64, u64, u64)")
def fill_huge(cpu, address, access, entry):
    """Put a leaf entry from above the lowest level into both levels of the TLB: a view of it."""
    up = np.int64((entry >> LEAF_SHIFT) & U(7))
    shift, tag = level_shift(cpu, up), tag_of(cpu, address, up, access)
    number = address >> shift
    slot, slot2 = l1_find(cpu, number, tag), l2_find_in_set(cpu, number, tag)
    count_walk(cpu, slot, slot2)
    wtag, host = wtag_of(entry, tag), host_of(cpu, entry, U(1) << shift)
    fill_l2(cpu, number, slot2, tag, wtag, host)
    if slot < 0:
        slot = fill_l1(cpu, number, tag, wtag, host)
    cpu.l1[slot].wtag, cpu.l1[slot].host = wtag, host
    cpu.huge_entries |= U(1) << U(up)
    return show_view(cpu, address, slot)


@kernel("i64(cpu_t*, u64, u64)")
def find_huge(cpu, address, access):
    """A view of the huge entry that serves an access, from the L1 or the L2 TLB; or -1."""
    for up in range(1, 3):
        if cpu.huge_entries & (U(1) << U(up)) == U(0):
            continue
        number, tag = address >> level_shift(cpu, up), tag_of(cpu, address, up, access)
        slot = l1_find(cpu, number, tag)
        if slot >= 0:
            return show_view(cpu, address, slot) if allows(cpu.l1[slot], access) else -1
        slot2 = l2_find_in_set(cpu, number, tag)
        if slot2 >= 0:
            entry = cpu.l2[slot2]
            if not allows(entry, access):
                return -1
            use_l2(cpu, slot2)
            cpu.l2_hits += 1
            return show_view(cpu, address, fill_l1(cpu, number, tag, entry.wtag, entry.host))
    return -1


@kernel("i64(cpu_t*, u64, u64, i64, i64)")
def tlb_walk(cpu, address, access, slot, slot2):
    """Walk and put the result into both levels; `slot` and `slot2` are where the page already stands, or -1."""
    entry = walk(cpu, address, access)
    if entry == U(0):
        return -1
    if (entry >> LEAF_SHIFT) & U(7) != U(0):
        return fill_huge(cpu, address, access, entry)
    tag, page_number = tag_of(cpu, address, 0, access), address >> U(PAGE_SHIFT)
    count_walk(cpu, slot, slot2)
    wtag, host = wtag_of(entry, tag), host_of(cpu, entry, U(PAGE_SIZE))
    slot2 = fill_l2(cpu, page_number, slot2, tag, wtag, host)
    cpu.l2_hint[page_number & U(L2_HINTS - 1)] = slot2
    if slot < 0:
        return fill_l1(cpu, page_number, tag, wtag, host)
    one = cpu.l1[slot]
    one.wtag, one.host = wtag, host
    return slot


@hot
def refill(cpu, address, access):
    """tlb_refill; inlined, so that what is known of the access is not asked again."""
    tag, page_number = tag_of(cpu, address, 0, access), address >> U(PAGE_SHIFT)
    slot = l1_find(cpu, page_number, tag)
    if slot >= 0 and allows(cpu.l1[slot], access):
        note_slot(cpu, page_number, slot)
        return slot
    if slot < 0 and cpu.huge_entries != U(0):
        view = find_huge(cpu, address, access)
        if view >= 0:
            return view
    slot2 = l2_find(cpu, page_number, tag)
    if slot < 0 and slot2 >= 0 and allows(cpu.l2[slot2], access):
        entry = cpu.l2[slot2]
        use_l2(cpu, slot2)
        cpu.l2_hits += 1
        return fill_l1(cpu, page_number, tag, entry.wtag, entry.host)
    return tlb_walk(cpu, address, access, slot, slot2)


@hot
def timed_slot(cpu, address, access):
    """Where the hint leads on a CPU whose accesses are timed, or -1."""
    slot = np.int64(cpu.l1_hint[L1_HINTS + np.int64((address >> U(PAGE_SHIFT)) & U(L1_HINTS - 1))])
    return slot if cpu.l1[slot].tag == tag_of(cpu, address, 0, access) and allows(cpu.l1[slot], access) else -1


@kernel("i64(cpu_t*, u64, u64)")
def tlb_refill(cpu, address, access):
    """Behind an L1 miss (or a store to a page not yet dirty): search both levels, walk; an L1 slot, or -1: fault."""
    if access == READ:
        return refill(cpu, address, READ)
    if access == WRITE:
        return refill(cpu, address, WRITE)
    return refill(cpu, address, access)


@hot
def find_or_refill(cpu, address, access):
    """tlb_refill for who has not looked at the hint."""
    slot = timed_slot(cpu, address, access) if cpu.timed != U(0) else -1
    return slot if slot >= 0 else tlb_refill(cpu, address, access)


# -- flushing --------------------------------------------------------------------------------------------------


@hot
def forget(entry):
    entry.tag, entry.wtag, entry.age = U(0), U(0), 0


@hot
def forget_walks(cpu):
    """Empty the page-walk cache, as every flush does. What vectors know of tables (api/vectors.py) is of the past, too."""
    cpu.walks_forgotten += U(1)
    for i in range(cpu.walk_cache_entries):
        cpu.walk_cache[i].tag = U(0)


@kernel("void(cpu_t*)")
def tlb_flush_all(cpu):
    """Forget every translation, of all address spaces and of the kernel."""
    drop_views(cpu)
    forget_walks(cpu)
    for slot in range(np.int64(cpu.l1_sets) * cpu.l1_ways):
        forget(cpu.l1[slot])
    for slot in range(np.int64(cpu.l2_sets) * cpu.l2_ways):
        forget(cpu.l2[slot])
    forget_l2_orders(cpu)
    cpu.huge_entries = U(0)
    for asid in range(NR_ASIDS):
        if asid != cpu.asid:
            cpu.asid_mm_id[asid] = 0


@hot
def is_loaded(entry):
    """True for an entry of the address space that is loaded, as far as it does not belong to all (global)."""
    return entry.tag & TAG_VALID != U(0) and entry.host & HOST_GLOBAL == U(0)


@kernel("void(cpu_t*)")
def tlb_flush_local(cpu):
    """Forget the translations of the loaded address space (a write to CR3)."""
    drop_views(cpu)
    forget_walks(cpu)
    for slot in range(np.int64(cpu.l1_sets) * cpu.l1_ways):
        if is_loaded(cpu.l1[slot]):
            forget(cpu.l1[slot])
    for slot in range(np.int64(cpu.l2_sets) * cpu.l2_ways):
        if is_loaded(cpu.l2[slot]):
            forget(cpu.l2[slot])
    forget_l2_orders(cpu)


@kernel("void(cpu_t*, u64)")
def tlb_flush_page(cpu, address):
    """Forget what translates an address, in any size (INVLPG)."""
    access = READ if address < cpu.paging.kernel_start else KERNEL_READ
    forget_walks(cpu)
    if cpu.huge_entries != U(0):
        drop_views(cpu)
    for up in range(3):
        if up > 0 and cpu.huge_entries & (U(1) << U(up)) == U(0):
            continue
        number, tag = address >> level_shift(cpu, up), tag_of(cpu, address, up, access)
        slot = l1_find(cpu, number, tag)
        if slot >= 0:
            forget(cpu.l1[slot])
        slot = l2_find_in_set(cpu, number, tag)
        if slot >= 0:
            forget(cpu.l2[slot])
            forget_l2_order(cpu, slot // cpu.l2_ways)


@hot
def change_asid(entry, old, new):
    """The entry of the address space that goes (`old`, 0: forget it) waits; the one of that which comes is valid again."""
    tag = entry.tag
    if is_loaded(entry):
        if old == U(0):
            forget(entry)
        else:
            entry.wtag = U(1) if entry.wtag == tag else U(0)
            entry.tag = (tag & ~(TAG_VALID | TAG_ASID)) | old
    elif new != U(0) and tag & TAG_VALID == U(0) and tag & TAG_ASID == new:
        entry.tag = (tag & ~TAG_ASID) | TAG_VALID
        entry.wtag = entry.tag if entry.wtag != U(0) else U(0)


@kernel("void(cpu_t*, u64, u64)")
def tlb_switch_asid(cpu, old, new):
    """Another address space is loaded: keep the entries of `old` for later, take up those of `new`; 0: none to be kept."""
    drop_views(cpu)
    forget_walks(cpu)
    for slot in range(np.int64(cpu.l1_sets) * cpu.l1_ways):
        change_asid(cpu.l1[slot], old, new)
    for slot in range(np.int64(cpu.l2_sets) * cpu.l2_ways):
        change_asid(cpu.l2[slot], old, new)
    forget_l2_orders(cpu)


@kernel("void(cpu_t*, u64)")
def tlb_flush_asid(cpu, asid):
    """Forget the entries that wait for an address space."""
    for slot in range(np.int64(cpu.l1_sets) * cpu.l1_ways):
        if cpu.l1[slot].tag & (TAG_VALID | TAG_ASID) == asid:
            forget(cpu.l1[slot])
    for slot in range(np.int64(cpu.l2_sets) * cpu.l2_ways):
        if cpu.l2[slot].tag & (TAG_VALID | TAG_ASID) == asid:
            forget(cpu.l2[slot])
    forget_l2_orders(cpu)


@kernel("i64(cpu_t*)")
def clock_ns(cpu):
    """The CPU's emulated time: what the kernel charged, each access and walk load at its node's latency (or as timing.py
    says), each TLB look-up.
    """
    total = cpu.clock_base_ns + cpu.tick * cpu.l1_latency_ns
    total += (cpu.l2_hits + cpu.walks + cpu.assists) * cpu.l2_latency_ns
    if cpu.timed != U(0):
        return total + cpu.memory_ns + cpu.memory_ps // 1000
    for node in range(cpu.nr_nodes):
        total += (cpu.accesses[node] + cpu.walk_loads[node]) * cpu.latency_ns[node]
    return total

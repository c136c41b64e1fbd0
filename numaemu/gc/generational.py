"""Generations, as HotSpot's serial collector has them: most objects die young, so the young ones are collected by themselves.

    START … TOP … OLD_END     the old generation, compacted by sliding
    EDEN … EDEN_TOP           where threads allocate       8/10 of the young generation
    FROM, TO                  two survivor spaces          1/10 each

A young collection copies what lives in Eden and FROM: to TO, or, once it has outlived THRESHOLD collections or TO is full, to the end of
the old generation. The threshold follows the ages: it is the age up to which survivors take half of a survivor space, 15 at most.
References from old to young objects are found by cards: a store of a reference marks the card of 512 bytes that it lies in, and
only marked cards are looked at. FIRSTS tells for each card which object covers its first byte. A full collection marks
everything and slides it to the start, old and young; what does not fit stays in Eden.
"""

from numaemu.api.access import get, load_u8, memclear, put, store_u8
from numaemu.compiler.library import far, library
from numaemu.gc.mark_compact import slide, update_fields, update_roots
from numaemu.gc.marking import mark_all
from numaemu.gc.objects import AGE, AGE_MASK, AGES, BODY, FILLER, FORWARDED, LINK, MARK, REFS, move, size_of
from numaemu.gc.records import BY_AGE, FULL, PROMOTED, THRESHOLD, YOUNG, begin_record, end_record
from numaemu.gc.space import BUFFER, END, OWN, START, TOP, give_buffer, retire_all, root_range, root_ranges
from numaemu.gc.verify import CARD, GcError

(EDEN, EDEN_TOP, FROM, FROM_TOP, TO, SURVIVOR, CARDS, FIRSTS, TENURING, FREE, OLD_FREE, RECORD) = range(
    OWN, OWN + 96, 8
)  # fmt: skip
CARD_SHIFT = 9
CARD_BYTES = 1 << CARD_SHIFT
CARDS_BYTES_SHIFT, FIRSTS_BYTES_SHIFT = 9, 6  # bytes of both tables, by the heap's


@library
def setup(cpu, heap):
    """One third is young (NewRatio 2), and of that eight tenths are Eden."""
    start, end = get(cpu, heap + START), get(cpu, heap + END)
    young = get(cpu, heap + SURVIVOR)  # the size that was asked for, or 0
    if young == 0:
        young = (end - start) // 3
    survivor = young // 10 & -CARD_BYTES
    put(cpu, heap + SURVIVOR, survivor)
    put(cpu, heap + EDEN, end - 2 * survivor - ((young - 2 * survivor) & -CARD_BYTES))
    put(cpu, heap + EDEN_TOP, get(cpu, heap + EDEN))
    put(cpu, heap + FROM, end - 2 * survivor)
    put(cpu, heap + FROM_TOP, end - 2 * survivor)
    put(cpu, heap + TO, end - survivor)
    put(cpu, heap + TOP, start)
    put(cpu, heap + TENURING, AGES)


@library
def capacity(cpu, heap):
    """Bytes that objects can take: all but one survivor space."""
    return get(cpu, heap + END) - get(cpu, heap + START) - get(cpu, heap + SURVIVOR)


@library
def used(cpu, heap):
    """Bytes that objects and buffers take."""
    old, eden = get(cpu, heap + TOP) - get(cpu, heap + START), get(cpu, heap + EDEN_TOP) - get(cpu, heap + EDEN)
    return old + eden + get(cpu, heap + FROM_TOP) - get(cpu, heap + FROM)


@library
def region(cpu, heap, i):
    """(start, end) of the spaces that hold objects, one after the other; start 0: there is none."""
    if i == 0:
        return get(cpu, heap + START), get(cpu, heap + TOP)
    if i == 1:
        return get(cpu, heap + EDEN), get(cpu, heap + EDEN_TOP)
    return (get(cpu, heap + FROM), get(cpu, heap + FROM_TOP)) if i == 2 else (0, 0)


@library
def eden_end(cpu, heap):
    """Where Eden ends: the first survivor space begins there."""
    return min(get(cpu, heap + FROM), get(cpu, heap + TO))


@library
def note_first(cpu, heap, thing, nbytes):
    """An object of the old generation covers the first byte of these cards."""
    start, firsts = get(cpu, heap + START), get(cpu, heap + FIRSTS)
    for card in range((thing - start + CARD_BYTES - 1) >> CARD_SHIFT, ((thing - start + nbytes - 1) >> CARD_SHIFT) + 1):
        put(cpu, firsts + 8 * card, thing)


@far("bool(cpu_t*, i64, i64, i64)")
def refill(cpu, heap, me, nbytes):
    """A new buffer in Eden, or for what is larger than half of it in the old generation. Under the heap's lock."""
    top, end, eden = get(cpu, heap + EDEN_TOP), eden_end(cpu, heap), get(cpu, heap + EDEN)
    if nbytes > (end - eden) // 2:
        old = get(cpu, heap + TOP)
        if old + nbytes > eden:
            return False
        put(cpu, heap + TOP, old + nbytes)
        note_first(cpu, heap, old, nbytes)
        give_buffer(cpu, me, old, old + nbytes)
        return True
    if top + nbytes > end:
        return False
    room = min(max(nbytes, get(cpu, heap + BUFFER)), end - top)
    put(cpu, heap + EDEN_TOP, top + room)
    give_buffer(cpu, me, top, top + room)
    return True


@library
def write_ref(cpu, heap, field, value):
    """Store a reference, and mark the card that it lies in."""
    put(cpu, field, value)
    store_u8(cpu, get(cpu, heap + CARDS) + (field - get(cpu, heap + START) >> CARD_SHIFT), 1)


@far("i64(cpu_t*, i64, i64, i64)")
def evacuate(cpu, heap, thing, eden):
    """Where a young object is after this collection; an old one stays."""
    if thing < eden:
        return thing
    header = get(cpu, thing)
    if header & FORWARDED:
        return get(cpu, thing + LINK)
    nbytes, age, place = size_of(header), (header & AGE_MASK) >> AGE, get(cpu, heap + FREE)
    log = get(cpu, heap + RECORD)
    if age < get(cpu, heap + TENURING) and place + nbytes <= get(cpu, heap + TO) + get(cpu, heap + SURVIVOR):
        put(cpu, heap + FREE, place + nbytes)
        age = min(age + 1, AGES)
        put(cpu, log + BY_AGE + 8 * (age - 1), get(cpu, log + BY_AGE + 8 * (age - 1)) + nbytes)
    else:
        place, age = get(cpu, heap + OLD_FREE), 0
        put(cpu, heap + OLD_FREE, place + nbytes)
        put(cpu, log + PROMOTED, get(cpu, log + PROMOTED) + nbytes)
        note_first(cpu, heap, place, nbytes)
    move(cpu, place, thing, nbytes)
    put(cpu, place, header & ~AGE_MASK | age << AGE)
    put(cpu, thing, header | FORWARDED)
    put(cpu, thing + LINK, place)
    return place


@library
def scan_fields(cpu, heap, first, end, eden):
    """Evacuate what a row of fields leads to; True if one leads to a young object then."""
    young = False
    for field in range(first, end, 8):
        child = get(cpu, field)
        if child >= eden:
            place = evacuate(cpu, heap, child, eden)
            put(cpu, field, place)
            young = young or place >= eden
    return young


@library
def scan_card(cpu, heap, card, top, eden):
    """Look at the fields that lie in a card of the old generation; the card stays marked if one leads to a young object."""
    start = get(cpu, heap + START)
    low, high, young = start + card * CARD_BYTES, min(start + (card + 1) * CARD_BYTES, top), False
    thing = get(cpu, get(cpu, heap + FIRSTS) + 8 * card)
    while thing < high:
        header = get(cpu, thing)
        end = min(thing + BODY + 8 * (header >> REFS), high) if header & FILLER == 0 else thing
        young = scan_fields(cpu, heap, max(thing + BODY, low), end, eden) or young
        thing += size_of(header)
    store_u8(cpu, get(cpu, heap + CARDS) + card, 1 if young else 0)


@library
def scan_cards(cpu, heap, top, eden):
    """Look at all marked cards of the old generation, eight at a time."""
    cards, n = get(cpu, heap + CARDS), (top - get(cpu, heap + START) + CARD_BYTES - 1) >> CARD_SHIFT
    for eight in range(0, n, 8):
        if get(cpu, cards + eight) != 0:
            for card in range(eight, min(eight + 8, n)):
                if load_u8(cpu, cards + card) != 0:
                    scan_card(cpu, heap, card, top, eden)


@library
def scan_copies(cpu, heap, old, eden):
    """Cheney's queue in both places where copies lie; how many objects."""
    start, young, n = get(cpu, heap + START), get(cpu, heap + TO), 0
    while young < get(cpu, heap + FREE) or old < get(cpu, heap + OLD_FREE):
        if young < get(cpu, heap + FREE):
            header = get(cpu, young)
            scan_fields(cpu, heap, young + BODY, young + BODY + 8 * (header >> REFS), eden)
            young += size_of(header)
        else:
            header = get(cpu, old)
            for field in range(old + BODY, old + BODY + 8 * (header >> REFS), 8):
                if scan_fields(cpu, heap, field, field + 8, eden):
                    store_u8(cpu, get(cpu, heap + CARDS) + (field - start >> CARD_SHIFT), 1)
            old += size_of(header)
        n += 1
    return n


@far("void(cpu_t*, i64)")
def examine(cpu, heap):
    """Look whether the cards of all references from the old generation to the young one are marked."""
    start, top, eden = get(cpu, heap + START), get(cpu, heap + TOP), get(cpu, heap + EDEN)
    thing = start
    while thing < top:
        header = get(cpu, thing)
        if header & FILLER == 0:
            for field in range(thing + BODY, thing + BODY + 8 * (header >> REFS), 8):
                if (
                    get(cpu, field) >= eden
                    and load_u8(cpu, get(cpu, heap + CARDS) + (field - start >> CARD_SHIFT)) == 0
                ):
                    raise GcError(CARD, thing, (field - thing - BODY) >> 3, get(cpu, field))
        thing += size_of(header)


@library
def next_threshold(cpu, heap, log):
    """The age up to which survivors take half of a survivor space."""
    total, age = 0, 1
    while age < AGES:
        total += get(cpu, log + BY_AGE + 8 * (age - 1))
        if total > get(cpu, heap + SURVIVOR) // 2:
            break
        age += 1
    return age


@far("void(cpu_t*, i64, i64)")
def collect_young(cpu, heap, cause):
    """Copy what lives in Eden and the survivor space."""
    old, eden = get(cpu, heap + TOP), get(cpu, heap + EDEN)
    log = begin_record(cpu, heap, cause, YOUNG, used(cpu, heap), capacity(cpu, heap))
    put(cpu, heap + RECORD, log)
    put(cpu, heap + FREE, get(cpu, heap + TO))
    put(cpu, heap + OLD_FREE, old)
    for i in range(root_ranges(cpu, heap)):
        first, end = root_range(cpu, heap, i)
        for slot in range(first, end, 8):
            thing = get(cpu, slot)
            if thing & 1 == 0 and thing >= eden:
                put(cpu, slot, evacuate(cpu, heap, thing, eden))
    scan_cards(cpu, heap, old, eden)
    n = scan_copies(cpu, heap, old, eden)
    came_from = get(cpu, heap + FROM)
    put(cpu, heap + TOP, get(cpu, heap + OLD_FREE))
    put(cpu, heap + EDEN_TOP, eden)
    put(cpu, heap + FROM, get(cpu, heap + TO))
    put(cpu, heap + FROM_TOP, get(cpu, heap + FREE))
    put(cpu, heap + TO, came_from)
    put(cpu, heap + TENURING, next_threshold(cpu, heap, log))
    put(cpu, log + THRESHOLD, get(cpu, heap + TENURING))
    end_record(cpu, heap, log, used(cpu, heap), n)


@library
def assign(cpu, heap, thing, top, free, limit):
    """New places for the marked objects of a space, up to `limit`, then from Eden's start, then from FROM: (the end, limit) then."""
    while thing < top:
        header = get(cpu, thing)
        nbytes = size_of(header)
        if header & MARK:
            while free + nbytes > limit:
                put(cpu, heap + (OLD_FREE if limit == get(cpu, heap + EDEN) else FREE), free)
                if limit == get(cpu, heap + EDEN):
                    free, limit = limit, eden_end(cpu, heap)
                else:
                    free = get(cpu, heap + FROM)
                    limit = free + get(cpu, heap + SURVIVOR)
            put(cpu, thing + LINK, free)
            if free < get(cpu, heap + EDEN):
                put(cpu, thing, header & ~AGE_MASK)
                note_first(cpu, heap, free, nbytes)
            free += nbytes
        thing += nbytes
    return free, limit


@library
def clear_cards(cpu, heap, marked):
    """Unmark all cards, or mark those of what is in use of the old generation."""
    start, cards = get(cpu, heap + START), get(cpu, heap + CARDS)
    memclear(cpu, cards, (get(cpu, heap + END) - start) >> CARD_SHIFT)
    if marked:
        for card in range((get(cpu, heap + TOP) - start + CARD_BYTES - 1) >> CARD_SHIFT):
            store_u8(cpu, cards + card, 1)


@far("void(cpu_t*, i64, i64)")
def collect_all(cpu, heap, cause):
    """Mark everything; slide it to the start."""
    start, top, eden, eden_top = (
        get(cpu, heap + START),
        get(cpu, heap + TOP),
        get(cpu, heap + EDEN),
        get(cpu, heap + EDEN_TOP),
    )
    begin, from_top = get(cpu, heap + FROM), get(cpu, heap + FROM_TOP)
    log = begin_record(cpu, heap, cause, FULL, used(cpu, heap), capacity(cpu, heap))
    n = mark_all(cpu, heap)
    put(cpu, heap + OLD_FREE, 0)
    put(cpu, heap + FREE, 0)
    free, limit = assign(cpu, heap, start, top, start, eden)
    free, limit = assign(cpu, heap, eden, eden_top, free, limit)
    free, limit = assign(cpu, heap, begin, from_top, free, limit)
    update_roots(cpu, heap)
    for i in range(3):
        first, end = region(cpu, heap, i)
        update_fields(cpu, first, end)
    for i in range(3):
        first, end = region(cpu, heap, i)
        slide(cpu, first, end)
    in_old, in_eden = limit == eden, limit == eden_end(cpu, heap)
    put(cpu, heap + TOP, free if in_old else get(cpu, heap + OLD_FREE))
    put(cpu, heap + EDEN_TOP, eden if in_old else free if in_eden else get(cpu, heap + FREE))
    put(cpu, heap + FROM_TOP, begin if in_old or in_eden else free)
    clear_cards(cpu, heap, not in_old)
    end_record(cpu, heap, log, used(cpu, heap), n)


@far("void(cpu_t*, i64, i64, i64)")
def collect(cpu, heap, cause, everything):
    """The young generation, or all if that is wanted or the old one might not take what lives. The world stands still."""
    retire_all(cpu, heap)
    young = used(cpu, heap) - (get(cpu, heap + TOP) - get(cpu, heap + START))
    if everything or get(cpu, heap + EDEN) - get(cpu, heap + TOP) < young:
        collect_all(cpu, heap, cause)
    else:
        collect_young(cpu, heap, cause)

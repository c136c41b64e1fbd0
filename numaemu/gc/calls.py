"""What a user kernel calls: new(cpu, mutator, kind, refs, values) and its like, where `mutator` is what the kernel was called with.

An address of an object is right until the next `new`, `poll` or `collect` of any thread's: what is needed longer stands in a root.

    push_frame(cpu, mutator, 2)            two roots, numbered from 0, on the thread's stack
    set_root(cpu, mutator, 0, new(cpu, mutator, 0, 2, 1))
    pop_frame(cpu, mutator, 2)

Compiled code knows a mutator as its address and, in the type, the collector, so a user kernel holds only what that needs.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import NativeValue, models, overload, register_model, typeof_impl, unbox

from numaemu.api.access import get, memclear, put
from numaemu.compiler.build import DEBUG
from numaemu.compiler.library import library
from numaemu.compiler.pipeline import Short
from numaemu.compiler.pointer import compiled_twin
from numaemu.gc.collectors import collector_module
from numaemu.gc.objects import BODY, FIELD_MASK, FIELDS, MOST_FIELDS, REFS, header_for
from numaemu.gc.records import ASKED, FAILURE
from numaemu.gc.space import (
    ENTRY,
    FRAME,
    HEAP,
    LOCK,
    OUTSIDE,
    ROOTS,
    ROOTS_END,
    STATE,
    TLAB,
    TLAB_END,
    abandon,
    drop_handle,
    new_handle,
    remove_ended,
    run,
    start_world,
    stop_world,
    unregister,
)
from numaemu.gc.space import poll as poll_word
from numaemu.gc.verify import NO_FIELD, NO_ROOT, GcError, compare, complain, survey
from numaemu.malloc.lock import give, take

FRONT: Any = dict(
    pipeline_class=Short, no_cpython_wrapper=True, no_cfunc_wrapper=True
)  # of what only compiled code calls


class MutatorWord:
    """What compiled code is told of a mutator: where its record lies, and the collector."""

    def __init__(self, address, collector):
        self.address, self.collector = address, collector


class MutatorType(types.Type):
    """A mutator in compiled code: one address."""

    def __init__(self, collector):
        self.collector = collector
        super().__init__(name=f"Mutator({collector})")


@register_model(MutatorType)
class _MutatorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, dmm.lookup(types.int64).get_value_type())


typeof_impl.register(MutatorWord)(lambda value, context: MutatorType(value.collector))


@unbox(MutatorType)
def _(typ, obj, c):
    address = c.pyapi.object_getattr_string(obj, "address")
    value = c.pyapi.long_as_longlong(address)
    c.pyapi.decref(address)
    return NativeValue(value)


def record_of(mutator):
    """Where the record of a mutator lies."""
    return mutator.address


@compiled_twin(record_of)
def _(mutator):
    if isinstance(mutator, MutatorType):
        return types.int64, lambda context, builder, sig, args: args[0]


# -- what differs by collector


def refill(cpu, mutator, heap, me, nbytes):
    return collector_module(mutator.collector).refill(cpu, heap, me, nbytes)


def collect_now(cpu, mutator, heap, cause, everything):
    collector_module(mutator.collector).collect(cpu, heap, cause, everything)


def region(cpu, mutator, heap, i):
    return collector_module(mutator.collector).region(cpu, heap, i)


def write_ref(cpu, mutator, heap, field, value):
    getattr(collector_module(mutator.collector), "write_ref", plain)(cpu, heap, field, value)


def write_root(cpu, mutator, heap, slot, value):
    getattr(collector_module(mutator.collector), "write_root", plain)(cpu, heap, slot, value)


def examine(cpu, mutator, heap):
    getattr(collector_module(mutator.collector), "examine", nothing)(cpu, heap)


@library
def nothing(cpu, heap):
    """A collector keeps nothing beside its objects."""


@library
def plain(cpu, heap, field, value):
    """A store without a barrier."""
    put(cpu, field, value)


@overload(refill, jit_options=FRONT)
def _(cpu, mutator, heap, me, nbytes):
    of = collector_module(mutator.collector).refill
    return lambda cpu, mutator, heap, me, nbytes: of(cpu, heap, me, nbytes)


@overload(collect_now, jit_options=FRONT)
def _(cpu, mutator, heap, cause, everything):
    of = collector_module(mutator.collector).collect
    return lambda cpu, mutator, heap, cause, everything: of(cpu, heap, cause, everything)


@overload(region, jit_options=FRONT)
def _(cpu, mutator, heap, i):
    of = collector_module(mutator.collector).region
    return lambda cpu, mutator, heap, i: of(cpu, heap, i)


@overload(examine, jit_options=FRONT)
def _(cpu, mutator, heap):
    of = getattr(collector_module(mutator.collector), "examine", nothing)
    return lambda cpu, mutator, heap: of(cpu, heap)


@overload(write_ref, jit_options=FRONT)
def _(cpu, mutator, heap, field, value):
    of = getattr(collector_module(mutator.collector), "write_ref", plain)
    return lambda cpu, mutator, heap, field, value: of(cpu, heap, field, value)


@overload(write_root, jit_options=FRONT)
def _(cpu, mutator, heap, slot, value):
    of = getattr(collector_module(mutator.collector), "write_root", plain)
    return lambda cpu, mutator, heap, slot, value: of(cpu, heap, slot, value)


# -- collections


@library
def spaces(cpu, mutator, heap):
    """The start and the end of each space that holds objects, in a row."""
    ends, n = np.zeros(8, np.int64), 0
    start, end = region(cpu, mutator, heap, 0)
    while start != 0:
        ends[2 * n], ends[2 * n + 1] = start, end
        n += 1
        start, end = region(cpu, mutator, heap, n)
    return ends[: 2 * n].copy()


@library
def collect_stopped(cpu, mutator, heap, cause, everything):
    """A collection; in the debug build what is reachable is compared before and after."""
    if DEBUG:
        before = survey(cpu, heap, spaces(cpu, mutator, heap), True)
        complain(before)
        examine(cpu, mutator, heap)
        if remove_ended(cpu, heap) > 0:
            before = survey(cpu, heap, spaces(cpu, mutator, heap), True)
        collect_now(cpu, mutator, heap, cause, everything)
        compare(before, survey(cpu, heap, spaces(cpu, mutator, heap), False))
        examine(cpu, mutator, heap)
    else:
        remove_ended(cpu, heap)
        collect_now(cpu, mutator, heap, cause, everything)


@library
def make_room(cpu, mutator, nbytes):
    """A buffer for an object, behind collections if need be. False: out of memory."""
    me = record_of(mutator)
    heap, tries = get(cpu, me + HEAP), 0
    while True:
        poll_word(cpu, me)
        take(cpu, heap + LOCK)
        done = refill(cpu, mutator, heap, me, nbytes)
        give(cpu, heap + LOCK)
        if done:
            return True
        if tries == 2:
            return False
        if stop_world(cpu, heap, me):
            collect_stopped(cpu, mutator, heap, FAILURE, tries > 0)
            start_world(cpu, heap)
            tries += 1


@library
def collect(cpu, mutator):
    """Collect everything now."""
    me = record_of(mutator)
    heap = get(cpu, me + HEAP)
    while not stop_world(cpu, heap, me):
        pass
    collect_stopped(cpu, mutator, heap, ASKED, True)
    start_world(cpu, heap)


@library
def new(cpu, mutator, kind, refs, values):
    """An object of so many references and values, all 0: its address, or 0: out of memory."""
    me, fields = record_of(mutator), refs + values
    if refs < 0 or values < 0 or max(refs, values) > MOST_FIELDS or fields > MOST_FIELDS:
        return 0
    nbytes = BODY + 8 * fields
    thing = get(cpu, me + TLAB)
    if thing + nbytes > get(cpu, me + TLAB_END):
        if not make_room(cpu, mutator, nbytes):
            return 0
        thing = get(cpu, me + TLAB)
    put(cpu, thing, header_for(kind, refs, values))
    if fields < 8:
        for at in range(thing + 8, thing + nbytes, 8):
            put(cpu, at, 0)
    else:
        memclear(cpu, thing + 8, nbytes - 8)
    put(cpu, me + TLAB, thing + nbytes)  # last: the buffer begins with a whole object, or with none
    return thing


# -- fields, roots, safe points


@library
def look_at_field(cpu, thing, i, reference):
    """In the debug build a field must be one of the object's, and what it is used as."""
    if DEBUG:
        refs, fields = get(cpu, thing) >> REFS, get(cpu, thing) >> FIELDS & FIELD_MASK
        first, end = (0, refs) if reference else (refs, fields)
        if i < first or i >= end:
            raise GcError(NO_FIELD, thing, i, refs, fields)


@library
def get_ref(cpu, mutator, thing, i):
    """Reference `i` of an object: an address, or 0."""
    look_at_field(cpu, thing, i, True)
    return get(cpu, thing + BODY + 8 * i)


@library
def set_ref(cpu, mutator, thing, i, value):
    """Store a reference, with what the collector must know of it."""
    look_at_field(cpu, thing, i, True)
    write_ref(cpu, mutator, get(cpu, record_of(mutator) + HEAP), thing + BODY + 8 * i, value)


@library
def get_value(cpu, mutator, thing, i):
    """Field `i` of an object, counted with its references, as a value."""
    look_at_field(cpu, thing, i, False)
    return get(cpu, thing + BODY + 8 * i)


@library
def set_value(cpu, mutator, thing, i, value):
    """Store a value in field `i`, which is no reference."""
    look_at_field(cpu, thing, i, False)
    put(cpu, thing + BODY + 8 * i, value)


@library
def push_frame(cpu, mutator, n):
    """n more roots on the thread's stack, all 0; 0: the stack is full."""
    me = record_of(mutator)
    frame = get(cpu, me + FRAME)
    if n < 0 or n > (get(cpu, me + ROOTS_END) - frame) >> 3:
        return 0
    for slot in range(frame, frame + 8 * n, 8):
        put(cpu, slot, 0)
    put(cpu, me + FRAME, frame + 8 * n)
    return frame


@library
def root_slot(cpu, mutator, i):
    """Where root `i`, counted from the end of the stack, lies."""
    if DEBUG:
        have = (get(cpu, record_of(mutator) + FRAME) - get(cpu, record_of(mutator) + ROOTS)) >> 3
        if i < 0 or i >= have:
            raise GcError(NO_ROOT, i, have)
    return get(cpu, record_of(mutator) + FRAME) - 8 * (i + 1)


@library
def get_root(cpu, mutator, i):
    """Root `i` of the newest frame: 0 is the one pushed last."""
    return get(cpu, root_slot(cpu, mutator, i))


@library
def set_root(cpu, mutator, i, value):
    """Let root `i` of the newest frame hold a reference, or 0."""
    write_root(cpu, mutator, get(cpu, record_of(mutator) + HEAP), root_slot(cpu, mutator, i), value)


@library
def pop_frame(cpu, mutator, n):
    """The n newest roots hold nothing any more. GcError: there are fewer."""
    me = record_of(mutator)
    have = (get(cpu, me + FRAME) - get(cpu, me + ROOTS)) >> 3
    if n < 0 or n > have:
        raise GcError(NO_ROOT, n, have)
    for i in range(n):
        if get(cpu, root_slot(cpu, mutator, i)) != 0:
            set_root(cpu, mutator, i, 0)
    put(cpu, me + FRAME, get(cpu, me + FRAME) - 8 * n)


@library
def poll(cpu, mutator):
    """A safe point: for loops that allocate nothing for long."""
    poll_word(cpu, record_of(mutator))


# -- for what a workload holds


@library
def call_enter(cpu, mutator):
    me = record_of(mutator)
    run(cpu, me, OUTSIDE)
    put(cpu, me + ENTRY, get(cpu, me + FRAME))


@library
def call_leave(cpu, mutator):
    put(cpu, record_of(mutator) + STATE, OUTSIDE)


@library
def call_abandon(cpu, mutator):
    """A call has ended in the middle: nobody waits for this thread."""
    abandon(cpu, record_of(mutator))


@library
def call_unwind(cpu, mutator):
    """A user kernel has ended in the middle: the roots that it has pushed go."""
    me = record_of(mutator)
    n = (get(cpu, me + FRAME) - get(cpu, me + ENTRY)) >> 3
    if n > 0:
        run(cpu, me, OUTSIDE)
        pop_frame(cpu, mutator, n)
        put(cpu, me + STATE, OUTSIDE)


@library
def call_detach(cpu, mutator):
    """The thread leaves the heap. False: it was none of its threads."""
    me = record_of(mutator)
    run(cpu, me, OUTSIDE)
    pop_frame(cpu, mutator, (get(cpu, me + FRAME) - get(cpu, me + ROOTS)) >> 3)
    put(cpu, me + STATE, OUTSIDE)
    return unregister(cpu, get(cpu, me + HEAP), me)


@library
def handle_for(cpu, mutator, thing):
    """A new handle for an object; 0: there is no room."""
    heap = get(cpu, record_of(mutator) + HEAP)
    take(cpu, heap + LOCK)
    slot = new_handle(cpu, heap, 0)
    give(cpu, heap + LOCK)
    if slot != 0:
        write_root(cpu, mutator, heap, slot, thing)
    return slot


@library
def call_new(cpu, mutator, kind, refs, values):
    """A new object in a new handle: the handle's slot, or 0; -1: there is no handle."""
    me, slot = record_of(mutator), 0
    run(cpu, me, OUTSIDE)
    thing = new(cpu, mutator, kind, refs, values)
    if thing != 0:
        slot = handle_for(cpu, mutator, thing)
        slot = slot if slot != 0 else -1
    put(cpu, me + STATE, OUTSIDE)
    return slot


@library
def call_hold(cpu, mutator, slot):
    """(another handle for the object of a handle, the object's header); slot 0: there is none."""
    me = record_of(mutator)
    run(cpu, me, OUTSIDE)
    thing = get(cpu, slot)
    header, found = get(cpu, thing), handle_for(cpu, mutator, thing)
    put(cpu, me + STATE, OUTSIDE)
    return found, header


@library
def call_set_ref(cpu, mutator, slot, i, other):
    """Let a field of the object of one handle refer to that of another (0: to none)."""
    me = record_of(mutator)
    run(cpu, me, OUTSIDE)
    set_ref(cpu, mutator, get(cpu, slot), i, get(cpu, other) if other != 0 else 0)
    put(cpu, me + STATE, OUTSIDE)


@library
def call_get_ref(cpu, mutator, slot, i):
    """(a new handle for what a field refers to, the object's header); slot 0: it refers to nothing, -1: there is no handle."""
    me, found, header = record_of(mutator), 0, 0
    run(cpu, me, OUTSIDE)
    thing = get_ref(cpu, mutator, get(cpu, slot), i)
    if thing != 0:
        header, found = get(cpu, thing), handle_for(cpu, mutator, thing)
        found = found if found != 0 else -1
    put(cpu, me + STATE, OUTSIDE)
    return found, header


@library
def call_value(cpu, mutator, slot, i, store, value):
    """Field `i` of the object of a handle, after the store of a value if that is wanted."""
    me = record_of(mutator)
    run(cpu, me, OUTSIDE)
    if store:
        set_value(cpu, mutator, get(cpu, slot), i, value)
    value = get_value(cpu, mutator, get(cpu, slot), i)
    put(cpu, me + STATE, OUTSIDE)
    return value


@library
def call_drop(cpu, mutator, slot):
    """A handle ends."""
    me = record_of(mutator)
    heap = get(cpu, me + HEAP)
    run(cpu, me, OUTSIDE)
    write_root(cpu, mutator, heap, slot, 0)
    take(cpu, heap + LOCK)
    drop_handle(cpu, heap, slot)
    give(cpu, heap + LOCK)
    put(cpu, me + STATE, OUTSIDE)


@library
def call_collect(cpu, mutator):
    me = record_of(mutator)
    run(cpu, me, OUTSIDE)
    collect(cpu, mutator)
    put(cpu, me + STATE, OUTSIDE)


@library
def call_survey(cpu, mutator):
    """What is reachable, with the world stopped (verify.py)."""
    me = record_of(mutator)
    heap = get(cpu, me + HEAP)
    run(cpu, me, OUTSIDE)
    while not stop_world(cpu, heap, me):
        pass
    found = survey(cpu, heap, spaces(cpu, mutator, heap), True)
    complain(found)
    examine(cpu, mutator, heap)
    start_world(cpu, heap)
    put(cpu, me + STATE, OUTSIDE)
    return found

"""Mailboxes: fixed-size messages between processes, in shared memory, from Python and from compiled code.

    mailbox_t                                   message_t (64 bytes)
    +------------------------------+            turn | kind | sender | token | a | b | c | d
    | tail    next ticket to give  |
    | head    next ticket to read  |            Sender: takes the ticket whose slot's turn is 2*lap (free), writes,
    | asleep  receiver waits, bell |            sets turn to 2*lap + 1 (full), and rings if the receiver is asleep.
    | messages[MAILBOX_SLOTS]      |            Receiver: reads slot head when its turn is full, frees it: 2*lap + 2.
    +------------------------------+

Nobody waits here: a box that is full says so, and the sender waits where it may (smp.send outside accesses, actor.py
without Python's lock; a process that serves a mailbox itself never waits for another's).

Who writes what: `tail` any sender, by compare-exchange while the slot is free; a slot the sender that holds its ticket, then the receiver, handed
over by `turn`; `head` the receiver only; `asleep` the receiver sets it *before* it looks a last time, a sender looks
at it *after* it has posted, both sequentially consistent, so one of the two sees the other and no message sleeps.
"""

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire, store_release, store_seq_cst
from numaemu.compiler.decorators import kernel
from numaemu.compiler.pointer import Struct, i64, u64

MAILBOX_SLOTS = 4096  # more than usually are under way: most senders wait for their answers
POSTED, RING, FULL = 0, 1, -1  # what `post` says

message_t = Struct(
    "message_t",
    [("turn", i64), ("kind", i64), ("sender", i64), ("token", i64), ("a", i64), ("b", i64), ("c", i64), ("d", i64)],
    nbytes=64,
)

# Shared words of mailbox_t: the word | its writer | why a reader may trust it.
# - tail | Senders, by compare-exchange, while the slot of that ticket is free. | A sender that finds the slot taken
#   is told that the box is full, and waits where it may.
# - a slot | The sender that holds the ticket, then the receiver. | It is handed over by turn (release, acquire).
# - asleep, bell | See cpu_t: waiting, wait_bell. |
# fmt: off
mailbox_t = Struct("mailbox_t", [
    ("tail", i64), ("_pad0", u64, 7),
    ("head", i64), ("_pad1", u64, 7),
    ("asleep", u64), ("bell", u64), ("_pad2", u64, 6),       # `bell`: of its receiver, set at boot (smp.ring)
    ("messages", message_t, MAILBOX_SLOTS),
])
# fmt: on


@kernel("i64(mailbox_t*, i64, i64, i64, i64, i64, i64, i64)")
def post(mailbox, kind, sender, token, a, b, c, d):
    """Put a message into `mailbox`: POSTED, RING if its receiver is asleep and must be rung, or FULL: it was not put there."""
    while True:
        ticket = load_acquire(mailbox, "tail")
        message = mailbox.messages[ticket % MAILBOX_SLOTS]
        turn = 2 * (ticket // MAILBOX_SLOTS)
        seen = load_acquire(message, "turn")
        if seen < turn:
            return FULL  # the message of the lap before has not been read
        if seen == turn and compare_exchange(mailbox, "tail", ticket, ticket + 1) == ticket:
            break
    message.kind, message.sender, message.token = kind, sender, token
    message.a, message.b, message.c, message.d = a, b, c, d
    exchange(message, "turn", turn + 1)  # a full fence: the look at `asleep` comes after it
    return RING if load_acquire(mailbox, "asleep") != 0 and exchange(mailbox, "asleep", 0) != 0 else POSTED


@kernel("bool(mailbox_t*)")
def has_mail(mailbox):
    """True if a message waits."""
    head = mailbox.head
    return load_acquire(mailbox.messages[head % MAILBOX_SLOTS], "turn") == 2 * (head // MAILBOX_SLOTS) + 1


@kernel("i64(mailbox_t*, i64*)")
def fetch(mailbox, words):
    """Take the next message: kind, sender, token, a, b, c, d go to `words`; its kind, or 0 if there is none."""
    head = mailbox.head
    message = mailbox.messages[head % MAILBOX_SLOTS]
    turn = 2 * (head // MAILBOX_SLOTS) + 1
    if load_acquire(message, "turn") != turn:
        return 0
    words[0], words[1], words[2] = message.kind, message.sender, message.token
    words[3], words[4], words[5], words[6] = message.a, message.b, message.c, message.d
    mailbox.head = head + 1
    store_release(message, "turn", turn + 1)
    return words[0]


@kernel("bool(mailbox_t*)")
def fall_asleep(mailbox):
    """Say that this receiver is about to wait; False if mail came meanwhile (then it must not wait)."""
    store_seq_cst(mailbox, "asleep", 1)
    if has_mail(mailbox):
        store_release(mailbox, "asleep", 0)
        return False
    return True

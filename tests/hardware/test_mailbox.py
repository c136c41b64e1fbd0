"""Mailboxes: in order, nothing lost, no message sleeps."""

import multiprocessing
import time

import numpy as np
import pytest

from numaemu.compiler.build import JIT
from numaemu.compiler.pointer import i64
from numaemu.hardware.mailbox import FULL, MAILBOX_SLOTS, RING, fall_asleep, fetch, has_mail, mailbox_t, message_t, post
from numaemu.host import shm

pytestmark = pytest.mark.interpreted


@pytest.fixture
def mailbox():
    return mailbox_t.at(shm.shared_block(mailbox_t.nbytes))


def take(mailbox):
    """The next message as a list, or None."""
    words = np.zeros(7, np.int64)
    return words.tolist() if fetch(mailbox, i64.array(words.ctypes.data)) else None


def test_a_message_is_one_cache_line():
    assert message_t.nbytes == 64 and mailbox_t.offsets["head"] % 64 == mailbox_t.offsets["asleep"] % 64 == 0


def test_messages_come_out_as_they_went_in(mailbox):
    assert not has_mail(mailbox) and take(mailbox) is None
    for i in range(1, 4):
        assert post(mailbox, i, 10, 20, 30, -40, 1 << 62, -(1 << 62)) == 0  # the receiver is awake: no ring
    assert has_mail(mailbox)
    assert [take(mailbox) for _ in range(4)] == [[i, 10, 20, 30, -40, 1 << 62, -(1 << 62)] for i in (1, 2, 3)] + [None]


def test_slots_are_used_again_lap_after_lap(mailbox):
    for i in range(1, 2 * MAILBOX_SLOTS + 10):
        post(mailbox, i, 0, 0, 0, 0, 0, 0)
        assert take(mailbox)[0] == i


def test_a_full_box_holds_all_its_slots(mailbox):
    for i in range(1, MAILBOX_SLOTS + 1):
        post(mailbox, i, 0, 0, 0, 0, 0, 0)
    assert post(mailbox, 7, 0, 0, 0, 0, 0, 0) == FULL
    assert [take(mailbox)[0] for _ in range(MAILBOX_SLOTS)] == list(range(1, MAILBOX_SLOTS + 1))
    assert take(mailbox) is None


def test_only_a_sleeper_is_rung_and_only_once(mailbox):
    assert fall_asleep(mailbox)
    assert post(mailbox, 1, 0, 0, 0, 0, 0, 0) == 1
    assert post(mailbox, 2, 0, 0, 0, 0, 0, 0) == 0
    assert not fall_asleep(mailbox)  # there is mail: it must not wait
    assert take(mailbox)[0] == 1 and take(mailbox)[0] == 2
    assert fall_asleep(mailbox)


def send_many(mailbox, bell, sender, n):
    for i in range(n):
        while (posted := post(mailbox, 1, sender, i, 0, 0, 0, 0)) == FULL:
            time.sleep(0)
        if posted == RING:
            bell.release()


def test_many_senders_lose_nothing_and_nobody_sleeps_on_a_message(mailbox):
    """Three processes send; the receiver sleeps whenever it may. A lost wake-up would end in the bell's time limit."""
    n, bell, senders = (20_000 if JIT else 1_000), shm.doorbell(), (1, 2, 3)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=send_many, args=(mailbox, bell, sender, n)) for sender in senders]
    for child in children:
        child.start()
    got = {sender: [] for sender in senders}
    while sum(map(len, got.values())) < n * len(senders):
        message = take(mailbox)
        if message:
            got[message[1]].append(message[2])
        elif fall_asleep(mailbox):
            bell.acquire(60)  # raises BusyError when nobody rings
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert got == {sender: list(range(n)) for sender in senders}
    assert take(mailbox) is None

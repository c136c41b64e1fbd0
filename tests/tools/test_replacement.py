"""Page replacement policies: each against a naive twin, and the theorems about them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from numaemu.tools.replacement import POLICIES, fifo, linux, lru, opt, window_for, working_set, working_set_size

CLASSIC = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
STRINGS = st.lists(st.integers(0, 9), max_size=80)
FRAMES = st.integers(1, 8)


# -- naive twins: the pages in memory as a list, searched for everything ---------------------------------------


def naive(string, frames, victim):
    """victim(pages in memory in the order they came, place in the string) is the page that goes."""
    present, faults = [], []
    for i, page in enumerate(string):
        faults.append(page not in present)
        if faults[-1]:
            if len(present) == frames:
                present.remove(victim(present, i))
            present.append(page)
    return faults


def naive_opt(string, frames):
    def victim(present, i):
        rest = string[i:]
        return max(present, key=lambda page: rest.index(page) if page in rest else len(rest))

    return naive(string, frames, victim)


def naive_lru(string, frames):
    return naive(
        string, frames, lambda present, i: min(present, key=lambda page: max(j for j in range(i) if string[j] == page))
    )


def naive_fifo(string, frames):
    return naive(string, frames, lambda present, i: present[0])


def naive_clock(string, frames):
    """Second chance as a queue: a used page goes to the back without its mark."""
    queue, faults = [], []
    for page in string:
        at = next((k for k, (other, _) in enumerate(queue) if other == page), None)
        faults.append(at is None)
        if at is not None:
            queue[at] = page, True
            continue
        if len(queue) == frames:
            while queue[0][1]:
                queue.append((queue.pop(0)[0], False))
            queue.pop(0)
        queue.append((page, True))
    return faults


def naive_linux(string, frames):
    """Both lists as one list of [page, active, accessed, referenced], the cold end first."""
    pages, gone, age, faults = [], {}, 0, []

    def count(active):
        return sum(p[1] == active for p in pages)

    def coldest(active):
        return pages.pop(next(k for k, p in enumerate(pages) if p[1] == active))

    for name in string:
        here = next((p for p in pages if p[0] == name), None)
        faults.append(here is None)
        if here is None:
            while len(pages) == frames:
                if count(False) < count(True) or count(False) == 0:
                    pages.append([coldest(True)[0], False, False, False])
                page = coldest(False)
                if not page[2]:
                    gone[page[0]], age = age, age + 1
                elif page[3]:
                    pages.append([page[0], True, False, False])
                    age += 1
                else:
                    pages.append([page[0], False, False, True])
            active = name in gone and age - gone.pop(name) <= count(True)
            age += active
            here = [name, active, True, False]
            pages.append(here)
        here[2] = True
    return faults


NAIVE = {"OPT": naive_opt, "LRU": naive_lru, "FIFO": naive_fifo, "clock": naive_clock, "Linux": naive_linux}


@given(STRINGS, FRAMES, st.sampled_from([name for name in POLICIES if name != "OPT"]))
def test_each_policy_is_its_naive_twin(string, frames, name):
    assert POLICIES[name](string, frames).tolist() == NAIVE[name](string, frames)


@given(STRINGS, FRAMES)
def test_opt_faults_as_often_as_its_naive_twin(string, frames):
    """Among pages that are never used again either may go."""
    assert opt(string, frames).sum() == sum(naive_opt(string, frames))


# -- theorems --------------------------------------------------------------------------------------------------


@given(STRINGS, FRAMES)
def test_nobody_faults_less_than_opt_and_nobody_less_than_once_a_page(string, frames):
    least = opt(string, frames).sum()
    assert least >= len(set(string))
    assert all(policy(string, frames).sum() >= least for policy in POLICIES.values())


@given(STRINGS, FRAMES, st.sampled_from(sorted(POLICIES)))
def test_with_a_frame_for_each_page_only_first_references_fault(string, frames, name):
    firsts = [page not in string[:i] for i, page in enumerate(string)]
    assert POLICIES[name](string, max(frames, len(set(string)), 1)).tolist() == firsts


@given(STRINGS, FRAMES)
def test_lru_has_the_stack_property(string, frames):
    """What is in memory with some frames is there with more, so nothing faults that did not before; so it is for OPT."""
    assert not (lru(string, frames + 1) & ~lru(string, frames)).any()
    assert opt(string, frames + 1).sum() <= opt(string, frames).sum()


def test_fifo_faults_more_with_more_frames_on_belady_s_string():
    assert [int(fifo(CLASSIC, frames).sum()) for frames in (3, 4)] == [9, 10]
    assert [int(lru(CLASSIC, frames).sum()) for frames in (3, 4)] == [10, 8]
    assert [int(opt(CLASSIC, frames).sum()) for frames in (3, 4)] == [7, 6]


def test_two_lists_keep_some_of_a_working_set_that_a_scan_would_sweep_away():
    """Eight pages used again and again, and between two rounds a scan through pages that are never used again: LRU keeps
    nothing, two lists half of it.
    """
    string, fresh = [], iter(range(100, 10_000))
    for _ in range(50):
        string += list(range(8)) * 2 + [next(fresh) for _ in range(12)]
    compulsory = len(set(string))
    assert lru(string, 16).sum() - compulsory > 1.8 * (linux(string, 16).sum() - compulsory)


# -- the working set -------------------------------------------------------------------------------------------


@given(STRINGS, st.integers(1, 30))
def test_the_working_set_is_what_the_last_references_were_to(string, window):
    faults = [page not in string[max(i - window, 0) : i] for i, page in enumerate(string)]
    assert working_set(string, window).tolist() == faults
    sizes = [len(set(string[max(i + 1 - window, 0) : i + 1])) for i in range(len(string))]
    assert working_set_size(string, window) == pytest.approx(np.mean(sizes) if sizes else 0)


@given(STRINGS, FRAMES)
def test_the_window_for_a_number_of_frames_is_the_largest_that_fits(string, frames):
    window = window_for(string, frames)
    assert working_set_size(string, window) <= frames
    assert window == max(len(string), 1) or working_set_size(string, window + 1) > frames


def test_no_frames_are_refused():
    for policy in POLICIES.values():
        with pytest.raises(ValueError, match="0 page frames"):
            policy([1], 0)

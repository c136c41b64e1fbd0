"""Page replacement on a recorded reference string: which references fault, under one policy or another.

A reference string is a sequence of page numbers. Each policy is a function of the string and of the number of page
frames that says for every reference whether it is a fault; the first reference to a page always is one. They are
models, plain and short, to be read side by side: the machine's own way to reclaim is kernel/mm/reclaim/vmscan.py, of which
`linux` mirrors what happens to the anonymous pages of one node.

    string = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    fifo(string, frames=3).sum()                         # 9
"""

import collections
import heapq

import numpy as np

NOT_AGAIN = np.iinfo(np.int64).max


def checked(string, frames):
    """The string as an array, if there are frames."""
    if frames < 1:
        raise ValueError(f"{frames} page frames, must be at least 1")
    return np.asarray(string, np.int64)


def replay(string, frames, touch):
    """touch(page) for each reference: True where it faults, as an array."""
    string = checked(string, frames)
    return np.fromiter((touch(page) for page in string.tolist()), bool, len(string))


def next_use(string):
    """For each reference the place of the next one to the same page, or NOT_AGAIN."""
    later, found = {}, np.empty(len(string), np.int64)
    for i in range(len(string) - 1, -1, -1):
        page = int(string[i])
        found[i] = later.get(page, NOT_AGAIN)
        later[page] = i
    return found


def opt(string, frames):
    """Belady's MIN: the page goes whose next use is furthest. No policy with as many frames faults less."""
    string = checked(string, frames)
    coming, present, heap, faults = next_use(string), {}, [], np.zeros(len(string), bool)
    for i, page in enumerate(string.tolist()):
        if page not in present:
            faults[i] = True
            if len(present) == frames:
                while True:  # the heap also holds uses that are past
                    use, victim = heapq.heappop(heap)
                    if present.get(victim) == -use:
                        break
                del present[victim]
        present[page] = int(coming[i])
        heapq.heappush(heap, (-present[page], page))
    return faults


def lru(string, frames):
    """The page goes that has not been used for longest."""
    present = collections.OrderedDict()

    def touch(page):
        fault = page not in present
        if fault and len(present) == frames:
            present.popitem(last=False)
        present[page] = None
        present.move_to_end(page)
        return fault

    return replay(string, frames, touch)


def fifo(string, frames):
    """The page goes that came first, whether it is used or not."""
    present = collections.OrderedDict()

    def touch(page):
        if page in present:
            return False
        if len(present) == frames:
            present.popitem(last=False)
        present[page] = None
        return True

    return replay(string, frames, touch)


def clock(string, frames):
    """Second chance: a hand goes round the frames; a page used since it passed loses that mark, else it goes."""
    pages, used, place = [], [], {}
    hand = 0

    def touch(page):
        nonlocal hand
        if page in place:
            used[place[page]] = True
            return False
        if len(pages) < frames:
            place[page] = len(pages)
            pages.append(page)
            used.append(True)
            return True
        while used[hand]:
            used[hand] = False
            hand = (hand + 1) % frames
        del place[pages[hand]]
        pages[hand], used[hand], place[page] = page, True, hand
        hand = (hand + 1) % frames
        return True

    return replay(string, frames, touch)


class TwoLists:
    """An inactive and an active list, as mm/vmscan.c and mm/workingset.c keep them for anonymous pages of a node.

    A page comes onto the inactive list with its accessed bit set. Reclaim looks at that list's cold end: a page that
    was accessed stays once (PG_referenced), and becomes active the second time; one that was not goes and leaves a
    shadow, the age of the list. When it comes back before as many others have gone or become active as the active list
    is long, it would have stayed had the lists been one, and becomes active at once. While the inactive list is the
    shorter one, the cold end of the active list joins it.
    """

    def __init__(self, frames):
        self.frames, self.nonresident_age = frames, 0
        self.inactive, self.active = collections.OrderedDict(), collections.OrderedDict()  # the cold end first
        self.accessed, self.referenced, self.shadows = set(), set(), {}

    def touch(self, page):
        """A reference: True if it faults."""
        fault = page not in self.inactive and page not in self.active
        if fault:
            if len(self.inactive) + len(self.active) == self.frames:
                self.reclaim()
            self.add(page)
        self.accessed.add(page)
        return fault

    def add(self, page):
        """workingset_refault, folio_add_lru"""
        shadow = self.shadows.pop(page, None)
        if shadow is not None and self.nonresident_age - shadow <= len(self.active):
            self.activate(page)
        else:
            self.inactive[page] = None

    def activate(self, page):
        """workingset_age_nonresident: an activation ages what has gone as an eviction does."""
        self.active[page] = None
        self.nonresident_age += 1

    def reclaim(self):
        """shrink_lruvec until one page has gone. Linux frees 32 at a time, which the other policies here do not."""
        freed = False
        while not freed:
            if len(self.inactive) < len(self.active):  # inactive_is_low, below 1 GiB
                self.shrink_active_list()
            freed = self.shrink_inactive_list()

    def shrink_active_list(self):
        page, _ = self.active.popitem(last=False)
        self.accessed.discard(page)
        self.inactive[page] = None

    def shrink_inactive_list(self):
        """The coldest inactive page: True if it has gone. Its fate is decided as in folio_check_references."""
        if not self.inactive:
            self.shrink_active_list()
        page, _ = self.inactive.popitem(last=False)
        if page not in self.accessed:
            self.referenced.discard(page)
            self.shadows[page] = self.nonresident_age
            self.nonresident_age += 1
            return True
        self.accessed.discard(page)
        if page in self.referenced:
            self.referenced.discard(page)
            self.activate(page)
        else:
            self.referenced.add(page)
            self.inactive[page] = None
        return False


def linux(string, frames):
    """Linux's two lists with refault distance."""
    return replay(string, frames, TwoLists(frames).touch)


# name: function(string, frames), from the best to the simplest
POLICIES = {"OPT": opt, "LRU": lru, "Linux": linux, "clock": clock, "FIFO": fifo}


# -- the working set -----------------------------------------------------------------------------------------


def gaps(string):
    """For each reference the distance to the next one to the same page; NOT_AGAIN if there is none."""
    coming = next_use(string)
    return np.where(coming == NOT_AGAIN, NOT_AGAIN, coming - np.arange(len(string)))


def working_set(string, window):
    """Denning's: a page stays in memory for `window` references after its last. True where a reference faults."""
    string = checked(string, window)
    faults, coming = np.ones(len(string), bool), next_use(string)
    again = np.flatnonzero(coming != NOT_AGAIN)
    faults[coming[again]] = coming[again] - again > window
    return faults


def working_set_size(string, window):
    """How many pages it keeps in memory, on the average over the string."""
    string = checked(string, window)
    left = len(string) - np.arange(len(string))
    return float(np.minimum(np.minimum(gaps(string), window), left).sum() / max(len(string), 1))


def window_for(string, frames):
    """The largest window whose working set needs `frames` page frames on the average, at most."""
    string, low, high = checked(string, frames), 1, max(len(string), 1)
    while low < high:
        window = (low + high + 1) // 2
        low, high = (window, high) if working_set_size(string, window) <= frames else (low, window - 1)
    return low

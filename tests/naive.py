"""Slow, obvious twins of the emulator's algorithms, for the property tests. Nothing here knows the package."""

import itertools


class Buddy:
    """Which pages of [first, end) are free, one bool each: the truth that free lists only index.

    Orders up to `max_order`: a block of order n is 2**n pages and begins at a multiple of 2**n.
    """

    def __init__(self, first, end, max_order):
        self.first, self.end, self.max_order = first, end, max_order
        self.free = dict.fromkeys(range(first, end), True)

    def run(self, start, order):
        return range(start, start + (1 << order))

    def is_free(self, start, order):
        return all(self.free.get(pfn, False) for pfn in self.run(start, order))

    def can_serve(self, order):
        """True if some aligned run of 2**order pages is free."""
        step = 1 << order
        return any(self.is_free(start, order) for start in range(self.first // step * step, self.end, step))

    def take(self, start, order):
        assert start % (1 << order) == 0, f"block at {start} is not aligned to order {order}"
        for pfn in self.run(start, order):
            assert self.free[pfn], f"page {pfn} was given out twice"
            self.free[pfn] = False

    def give_back(self, start, order):
        for pfn in self.run(start, order):
            assert not self.free[pfn]
            self.free[pfn] = True

    def nr_free(self):
        return sum(self.free.values())

    def blocks(self):
        """{order: number of blocks} when everything free is coalesced as far as it goes."""
        counts, pfn = [0] * (self.max_order + 1), self.first
        while pfn < self.end:
            order = self.max_order
            while order >= 0 and not (pfn % (1 << order) == 0 and self.is_free(pfn, order)):
                order -= 1
            if order < 0:
                pfn += 1
            else:
                counts[order] += 1
                pfn += 1 << order
        return counts


class Level:
    """One TLB level: a list per set, least recently used first; {page, dirty}, page = (number, levels up)."""

    def __init__(self, entries, ways):
        self.ways, self.sets = ways, [[] for _ in range(entries // ways)]

    def set_of(self, page):
        return self.sets[page[0] % len(self.sets)]

    def find(self, page):
        return next((entry for entry in self.set_of(page) if entry["page"] == page), None)

    def use(self, entry):
        """Make it the most recently used."""
        where = self.set_of(entry["page"])
        where.remove(entry)
        where.append(entry)

    def insert(self, page, dirty):
        where = self.set_of(page)
        if len(where) == self.ways:
            where.pop(0)
        where.append({"page": page, "dirty": dirty})

    def forget(self, page):
        where = self.set_of(page)
        where[:] = [entry for entry in where if entry["page"] != page]

    def forget_all(self):
        for where in self.sets:
            where.clear()


class Mmu:
    """Two TLB levels and a page table {page: {"node", "writable", "dirty", "tables": node of each table}}.

    A page is (page number, 0), a huge one (page number >> 9, 1).
    """

    def __init__(self, l1, l2, pages, latency, l1_ns, l2_ns):
        self.l1, self.l2, self.pages = Level(*l1), Level(*l2), pages
        self.latency, self.l1_ns, self.l2_ns = latency, l1_ns, l2_ns
        self.l1_hits = self.l2_hits = self.walks = self.assists = self.walk_loads = self.clock_ns = 0

    def page_of(self, number):
        """What maps a page number."""
        return (number >> 9, 1) if (number >> 9, 1) in self.pages else (number, 0)

    def access(self, number, write):
        """One access; False: a fault (whose walk has been paid)."""
        page = self.page_of(number)
        one, two = self.l1.find(page), self.l2.find(page)
        if one and (one["dirty"] or not write):
            self.l1_hits += 1
            self.l1.use(one)
        elif not one and two and (two["dirty"] or not write):
            self.l2_hits += 1
            self.clock_ns += self.l2_ns
            self.l2.use(two)
            self.l1.insert(page, two["dirty"])
        elif not self.walk(page, write, one, two):
            return False
        self.clock_ns += self.l1_ns + self.latency[self.pages[page]["node"]]
        return True

    def walk(self, page, write, one, two):
        entry = self.pages.get(page)
        tables = entry["tables"]
        self.walk_loads += len(tables)
        self.clock_ns += sum(self.latency[node] for node in tables)
        if "node" not in entry or write and not entry["writable"]:
            return False
        entry["dirty"] |= write
        self.l1_hits += one is not None
        if one or two:
            self.assists += 1  # the page is there, only its D bit has to be set
            self.clock_ns += self.l2_ns
        if not one and two:
            self.l2_hits += 1
            self.clock_ns += self.l2_ns
        if not one and not two:
            self.walks += 1
            self.clock_ns += self.l2_ns
        dirty = entry["dirty"] and entry["writable"]
        for level, found in ((self.l2, two), (self.l1, one)):
            if found:
                found["dirty"] = dirty
                level.use(found)
            else:
                level.insert(page, dirty)
        return True


class Vmas:
    """The VMAs of one task as a list of dicts, in pages: split and merged one by one, by the words of Linux 6.12."""

    def __init__(self):
        self.vmas, self.anon_vmas = [], itertools.count(1)

    def inside(self, first, end):
        return [v for v in self.vmas if first <= v["start"] and v["end"] <= end]

    def split(self, page):
        for i, vma in enumerate(self.vmas):
            if vma["start"] < page < vma["end"]:
                self.vmas.insert(i + 1, {**vma, "start": page, "pgoff": vma["pgoff"] + page - vma["start"]})
                vma["end"] = page

    def map(self, first, end, prot, what=0):
        """A new mapping, of an object `what` or private (0), where nothing is."""
        vma = {
            "start": first,
            "end": end,
            "prot": prot,
            "what": what,
            "policy": None,
            "anon": 0,
            "pgoff": 0 if what else first,
            "account": not what and bool(prot & 2),
        }
        self.vmas = sorted([*self.vmas, vma], key=lambda v: v["start"])
        self.merge(vma)

    def unmap(self, first, end):
        self.split(first), self.split(end)
        self.vmas = [v for v in self.vmas if not (first <= v["start"] and v["end"] <= end)]

    def hole(self, first, end):
        """The first page of a range that is not mapped, or its end."""
        return next((p for p in range(first, end) if not any(v["start"] <= p < v["end"] for v in self.vmas)), end)

    def protect(self, first, end, prot):
        """mprotect, up to the first hole."""
        at, end = first, self.hole(first, end)
        while at < end:
            vma = next(v for v in self.vmas if v["start"] <= at < v["end"])
            until = min(vma["end"], end)
            if vma["prot"] != prot:
                self.split(at), self.split(until)
                vma = next(v for v in self.vmas if v["start"] == at)
                if prot & 2 and not vma["what"]:
                    vma["account"] = True
                elif not prot & 2 and not vma["anon"]:
                    vma["account"] = False
                vma["prot"] = prot
                self.merge(vma)
            at = until

    def bind(self, first, end, policy):
        """mbind of what is all mapped: the last one may go into the next, the others only into the one before."""
        self.split(first), self.split(end)
        for vma in self.inside(first, end):
            vma["policy"] = policy
        for vma in self.inside(first, end):
            self.merge(vma, vma["end"] == end)

    def touch(self, page):
        """The first write to a private VMA gives it an anon_vma, a neighbour's if that one differs in nothing else."""
        i = next(i for i, v in enumerate(self.vmas) if v["start"] <= page < v["end"])
        vma = self.vmas[i]
        if vma["what"] or vma["anon"]:
            return
        for low, high, other in ((i, i + 1, i + 1), (i - 1, i, i - 1)):
            if (
                0 <= low
                and high < len(self.vmas)
                and self.alike(self.vmas[low], self.vmas[high], ("account", "policy", "what"))
                and self.vmas[other]["anon"]
            ):
                vma["anon"] = self.vmas[other]["anon"]
                return
        vma["anon"] = next(self.anon_vmas)

    @staticmethod
    def alike(low, high, names):
        return (
            low["end"] == high["start"]
            and low["pgoff"] + low["end"] - low["start"] == high["pgoff"]
            and all(low[name] == high[name] for name in names)
        )

    def merge(self, vma, with_next=True):
        """A VMA that has changed goes into its neighbours; not if it has pages and the neighbour has not."""
        everything = ("prot", "account", "policy", "what")
        i = next(i for i, v in enumerate(self.vmas) if v is vma)
        low = self.vmas[i - 1] if i else None
        high = self.vmas[i + 1] if with_next and i + 1 < len(self.vmas) else None
        left = low and self.alike(low, vma, everything) and vma["anon"] in (0, low["anon"])
        right = high and self.alike(vma, high, everything) and vma["anon"] in (0, high["anon"])
        if left and right and low["anon"] and high["anon"] and low["anon"] != high["anon"]:
            right = False
        if left or right:
            parts = [v for v, here in ((low, left), (vma, True), (high, right)) if here]
            whole = {
                **vma,
                "start": parts[0]["start"],
                "end": parts[-1]["end"],
                "pgoff": parts[0]["pgoff"],
                "anon": max(v["anon"] for v in parts),
            }
            at = i - 1 if left else i
            self.vmas[at : at + len(parts)] = [whole]


def runs(pages):
    """[(first, end, value)]: pages in a row with equal values, from {page: value}."""
    found = []
    for page in sorted(pages):
        if found and found[-1][1] == page and found[-1][2] == pages[page]:
            found[-1][1] = page + 1
        else:
            found.append([page, page + 1, pages[page]])
    return [tuple(run) for run in found]


def highest_gap(pages, top, length):
    """First page of the highest free piece of `length` pages that ends at `top` or below a mapped page under it."""
    ends = [top, *(start for start, _, _ in runs(dict.fromkeys(pages)) if start < top)]
    for end in sorted(ends, reverse=True):
        if not any(page in pages for page in range(end - length, end)):
            return end - length
    return None


class MobilityBuddy:
    """Free lists as plain Python lists by migratetype and order, with Linux's rules of falling back, said the long way.

    Every page in use counts as one that cannot be moved. `untouched` memory is movable and comes onto the lists block by
    block, as it is needed.
    """

    FALLBACKS = {0: (2, 1), 1: (2, 0), 2: (0, 1)}  # unmovable, movable, reclaimable
    BLOCK = 9

    def __init__(self, first, end, max_order):
        self.untouched, self.end, self.max_order = first, end, max_order
        self.lists = [[[] for _ in range(max_order + 1)] for _ in range(5)]
        self.types = dict.fromkeys(range(end >> self.BLOCK), 1)

    def touch(self):
        pfn = self.untouched
        if pfn >= self.end:
            return False
        order = max(o for o in range(self.max_order + 1) if pfn % (1 << o) == 0 and pfn + (1 << o) <= self.end)
        self.untouched += 1 << order
        self.lists[self.types[pfn >> self.BLOCK]][order].append(pfn)
        return True

    def smallest(self, order, kind):
        for current in range(order, self.max_order + 1):
            if self.lists[kind][current]:
                return self.cut(self.lists[kind][current].pop(0), order, current, kind)
        return 0

    def cut(self, pfn, order, current, kind):
        while current > order:
            current -= 1
            self.lists[kind][current].insert(0, pfn + (1 << current))
        return pfn

    def alloc(self, order, kind, nofragment):
        pfn = self.smallest(order, kind)
        while not pfn and (kind == 1 or not self.lists[1][self.max_order]) and self.touch():
            pfn = self.smallest(order, kind)
        return pfn or self.fallback(order, kind, nofragment)

    def donor(self, order, kind):
        return next((other for other in self.FALLBACKS[kind] if self.lists[other][order]), None)

    def fallback(self, order, kind, nofragment):
        least = max(order, self.BLOCK) if nofragment else order
        fitting = [o for o in range(least, self.max_order + 1) if self.donor(o, kind) is not None]
        if not fitting:
            return 0
        current = fitting[-1]
        if kind == 1 and current < self.BLOCK // 2:
            current = next(o for o in range(order, self.max_order + 1) if self.donor(o, kind) is not None)
        other = self.donor(current, kind)
        pfn = self.lists[other][current][0]
        if current >= self.BLOCK:
            self.lists[other][current].pop(0)
            for block in range(pfn >> self.BLOCK, pfn + (1 << current) >> self.BLOCK):
                self.types[block] = kind
            return self.cut(pfn, order, current, kind)
        block = pfn >> self.BLOCK
        if (current >= self.BLOCK // 2 or kind != 1) and self.is_worth_claiming(block, kind):
            self.claim(block, kind)
            return self.smallest(order, kind)
        self.lists[other][current].pop(0)
        return self.cut(pfn, order, current, other)

    def free_blocks(self, block):
        """(pfn, order, kind) of the free blocks in a pageblock, by address."""
        return sorted(
            (pfn, order, kind)
            for kind in range(5)
            for order in range(self.BLOCK + 1)
            for pfn in self.lists[kind][order]
            if pfn >> self.BLOCK == block
        )

    def is_worth_claiming(self, block, kind):
        pages = 1 << self.BLOCK
        begin = max(block * pages, 1)  # page 0 is in no zone
        if begin != block * pages:
            return False
        free = sum(1 << order for _, order, _ in self.free_blocks(block))
        free += max(0, (block + 1) * pages - max(self.untouched, block * pages))
        alike = pages - free if kind != 1 and self.types[block] == 1 else 0
        return free + alike >= pages // 2

    def claim(self, block, kind):
        while self.untouched < (block + 1) << self.BLOCK and self.touch():
            pass
        for pfn, order, other in self.free_blocks(block):
            self.lists[other][order].remove(pfn)
            self.lists[kind][order].insert(0, pfn)
        self.types[block] = kind

    def free(self, pfn, order):
        kind = self.types[pfn >> self.BLOCK]
        while order < self.max_order:
            buddy = pfn ^ 1 << order
            owner = next((k for k in range(5) if buddy in self.lists[k][order]), None)
            if owner is None:
                break
            self.lists[owner][order].remove(buddy)
            if order >= self.BLOCK:
                for block in range(buddy >> self.BLOCK, buddy + (1 << order) >> self.BLOCK):
                    self.types[block] = kind
            pfn, order = min(pfn, buddy), order + 1
        self.lists[kind][order].insert(0, pfn)

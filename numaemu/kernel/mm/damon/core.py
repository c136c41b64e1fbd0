"""Regions that join and split as their accesses show: Linux's mm/damon/core.c, for the scheme action `stat`.

In each sampling interval one page of each region is looked at: a region's `nr_accesses` is in how many intervals its page was used,
since the last aggregation. Then neighbours alike become one, what schemes ask for is noted, and each region is split in two or three at
random, so that a difference inside it shows in the next one.
"""

import random

from numaemu.spec.param import PAGE_SIZE

MIN_REGION = PAGE_SIZE  # DAMON_MIN_REGION
US = 1000  # ns
BP = 10_000  # what one access is in nr_accesses_bp


class Region:
    """[start, end) of a target's addresses."""

    def __init__(self, start, end):
        self.start, self.end, self.age = start, end, 0
        self.nr_accesses, self.last_nr_accesses = 0, 0  # since the last aggregation; in the one before
        self.nr_accesses_bp = 0  # over the last so many samples as an aggregation has, about
        self.sampling_addr = start

    def cut(self, at):
        """damon_split_region_at: what lies before an address, as a region of its own; this one begins there."""
        before = Region(self.start, at)
        before.age, before.last_nr_accesses = self.age, self.last_nr_accesses
        before.nr_accesses_bp = self.nr_accesses_bp
        self.start = at
        return before

    def count(self, accessed, window):
        """damon_update_region_access_rate: one more sample; the moving sum forgets a sample's share of the last window."""
        self.nr_accesses += accessed
        self.nr_accesses_bp += accessed * BP - self.last_nr_accesses * BP // window

    @property
    def size(self):
        return self.end - self.start


class Target:
    """A task, by number and pid."""

    def __init__(self, number, pid, regions=()):
        self.number, self.pid = number, pid
        self.regions = [Region(start, end) for start, end in regions]
        self.fixed = bool(regions)  # the regions are the user's: they are not brought up to date


def evenly_split(start, end, pieces):
    """damon_va_evenly_split_region: so many parts of whole pages, the last one takes the rest."""
    size = (end - start) // max(pieces, 1) & -MIN_REGION
    if pieces < 2 or not size:
        return [Region(start, end)]
    cuts = [start + i * size for i in range(pieces)] + [end]
    return [Region(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]


def init_regions(ranges, min_nr_regions):
    """__damon_va_init_regions: ranges of addresses, in parts of about the same size, as many as there must be."""
    piece = max(sum(end - start for start, end in ranges) // min_nr_regions, MIN_REGION)
    return [region for start, end in ranges for region in evenly_split(start, end, (end - start) // piece)]


def fit_regions(regions, ranges):
    """damon_set_regions: what lies in none of the ranges goes, the first and last region of each reach to its borders."""
    kept = []
    for start, end in ranges:
        inside = [region for region in regions if region.start < end and start < region.end]
        if inside:
            inside[0].start, inside[-1].end = start & -MIN_REGION, -(-end // MIN_REGION) * MIN_REGION
        kept += inside or [Region(start, end)]
    return kept


def merge_two(left, right):
    """damon_merge_two_regions: accesses and age by their sizes."""
    total = left.size + right.size
    left.nr_accesses = (left.nr_accesses * left.size + right.nr_accesses * right.size) // total
    left.nr_accesses_bp = left.nr_accesses * BP
    left.age = (left.age * left.size + right.age * right.size) // total
    left.end = right.end


def merge_regions(regions, threshold, size_limit):
    """damon_merge_regions_of: each region's age, then neighbours whose accesses differ by `threshold` at most are one."""
    merged = []
    for region in regions:
        region.age = 0 if abs(region.nr_accesses - region.last_nr_accesses) > threshold else region.age + 1
        last = merged[-1] if merged else None
        if (
            last is not None
            and last.end == region.start
            and abs(last.nr_accesses - region.nr_accesses) <= threshold
            and last.size + region.size <= size_limit
        ):
            merge_two(last, region)
        else:
            merged.append(region)
    return merged


def split_regions(regions, parts, chance):
    """damon_split_regions_of: each in `parts` at most, at places by chance, in tenths of what is left of it."""
    split = []
    for region in regions:
        rest = region
        for _ in range(parts - 1):
            if rest.size <= 2 * MIN_REGION:
                break
            size = chance.randrange(1, 10) * rest.size // 10 & -MIN_REGION
            if 0 < size < rest.size:
                split.append(rest.cut(rest.start + size))
        split.append(rest)
    return split


class Attributes:
    """struct damon_attrs, in us and regions."""

    def __init__(self, sample_us=5000, aggr_us=100_000, update_us=60_000_000, min_nr_regions=10, max_nr_regions=1000):
        self.sample_us, self.aggr_us, self.update_us = sample_us, aggr_us, update_us
        self.min_nr_regions, self.max_nr_regions = min_nr_regions, max_nr_regions

    def wrong(self):
        """Why damon_set_attrs refuses them; None: it does not."""
        if self.min_nr_regions < 3:
            return f"nr_regions/min is {self.min_nr_regions}, must be at least 3"
        if self.min_nr_regions > self.max_nr_regions:
            return f"nr_regions/min is {self.min_nr_regions}, must be at most nr_regions/max, {self.max_nr_regions}"
        if self.sample_us > self.aggr_us:
            return f"intervals/sample_us is {self.sample_us}, must be at most intervals/aggr_us, {self.aggr_us}"
        return None


class Context:
    """struct damon_ctx: what one kdamond does. `look(target, addresses, marked)` is a Future, or the answer: for each of the
    addresses whether its page was used since it was marked; then those of `marked` count as not used. `ranges(target)` are the three of
    its addresses that are looked at, or None: it has ended.
    """

    def __init__(self, attributes, targets, schemes, ranges, seed=0):
        self.attributes, self.targets, self.schemes, self.ranges = attributes, targets, schemes, ranges
        self.chance, self.samples, self.last_nr_regions = random.Random(seed), 0, 0
        self.sample_ns = max(attributes.sample_us, 1) * US
        self.per_aggregation = max(attributes.aggr_us // max(attributes.sample_us, 1), 1)
        self.per_update = max(attributes.update_us // max(attributes.sample_us, 1), 1)
        self.marked = False
        for scheme in schemes:
            scheme.per_apply = scheme.apply_interval_us // max(attributes.sample_us, 1) or self.per_aggregation
        for target in targets:
            if not target.regions:
                target.regions = init_regions(ranges(target) or [], attributes.min_nr_regions)

    def regions(self):
        return [region for target in self.targets for region in target.regions]

    def sample(self, look):
        """The end of a sampling interval and the begin of the next one, as a generator of Futures; False: no target is left."""
        for target in list(self.targets):
            before = [region.sampling_addr for region in target.regions] if self.marked else []
            self.count(target, (yield look(target, before, [])) if before else [])
        if self.marked:
            self.samples += 1
            aggregated = self.samples % self.per_aggregation == 0
            if aggregated:
                self.merge()
            for scheme in self.schemes:
                if self.samples % scheme.per_apply == 0:
                    scheme.apply(self.regions())
            if aggregated:
                self.reset_and_split()
            if self.samples % self.per_update == 0:
                self.update()
        for target in list(self.targets):
            for region in target.regions:
                region.sampling_addr = region.start + self.chance.randrange(region.size // MIN_REGION) * MIN_REGION
            if (yield look(target, [], [region.sampling_addr for region in target.regions])) is None:
                self.targets.remove(target)  # it has ended
        self.marked = True
        return bool(self.targets)

    def count(self, target, used):
        for region, was in zip(target.regions, used or ()):
            region.count(int(bool(was)), self.per_aggregation)

    def go_on_from(self, before):
        """What has been seen so far stays, where the targets are the same: another context takes the place of one that runs."""
        self.samples, self.chance, self.marked = before.samples, before.chance, before.marked
        self.last_nr_regions = before.last_nr_regions
        for target, old in zip(self.targets, before.targets):
            if (target.number, target.pid, target.fixed) == (old.number, old.pid, old.fixed):
                target.regions = old.regions
        for scheme, old in zip(self.schemes, before.schemes):
            scheme.nr_tried, scheme.sz_tried = old.nr_tried, old.sz_tried

    def merge(self):
        """kdamond_merge_regions"""
        most = max((region.nr_accesses for region in self.regions()), default=0)
        limit = max(sum(r.size for r in self.regions()) // self.attributes.min_nr_regions, MIN_REGION)
        for target in self.targets:
            target.regions = merge_regions(target.regions, most // 10, limit)

    def reset_and_split(self):
        """kdamond_reset_aggregated, kdamond_split_regions"""
        for region in self.regions():
            region.last_nr_accesses, region.nr_accesses = region.nr_accesses, 0
        number = len(self.regions())
        if number <= self.attributes.max_nr_regions // 2:
            parts = 3 if number == self.last_nr_regions and number < self.attributes.max_nr_regions // 3 else 2
            for target in self.targets:
                target.regions = split_regions(target.regions, parts, self.chance)
        self.last_nr_regions = number

    def update(self):
        """damon_va_update: the ranges as they are now."""
        for target in self.targets:
            if not target.fixed and (ranges := self.ranges(target)):
                target.regions = fit_regions(target.regions, ranges)


class Scheme:
    """struct damos with the action `stat`: which regions are of a pattern. The pattern: (least, most) of bytes, accesses, age."""

    def __init__(self, sizes, accesses, ages, apply_interval_us=0):
        self.sizes, self.accesses, self.ages = sizes, accesses, ages
        self.apply_interval_us, self.per_apply = apply_interval_us, 1  # 0: at each aggregation; in samples
        self.nr_tried = self.sz_tried = 0
        self.tried: list | None = None  # what was found last, None: it was not applied yet

    def fitting(self, regions):
        """(start, end, accesses, age) of each region of the pattern: __damos_valid_target."""
        return [
            (region.start, region.end, region.nr_accesses_bp // BP, region.age)
            for region in regions
            if self.sizes[0] <= region.size <= self.sizes[1]
            and self.accesses[0] <= region.nr_accesses_bp // BP <= self.accesses[1]
            and self.ages[0] <= region.age <= self.ages[1]
        ]

    def apply(self, regions):
        """damos_apply_scheme"""
        self.tried = self.fitting(regions)
        self.nr_tried += len(self.tried)
        self.sz_tried += sum(end - start for start, end, *_ in self.tried)

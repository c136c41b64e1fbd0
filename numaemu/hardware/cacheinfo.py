"""Making a machine's caches: how much room their words take, and who is on whose way. Linux's drivers/base/cacheinfo.c
reads this from the firmware. Runs once, at boot.
"""

import math

from numaemu.compiler.pointer import i64, u64
from numaemu.hardware.cache import AGES, LRU, bank_t, cache_t, core_t, hierarchy_t, mark_words
from numaemu.hardware.coherence import HOLDER_BITS, IS_CACHE
from numaemu.hardware.replacement import MAX_ORDERED, first_order
from numaemu.spec.cache import PREFETCHERS, REPLACEMENTS
from numaemu.spec.param import PAGE_SIZE

MAX_BANKS = 64  # a lock for each; assumed
SEED = 0x9E3779B97F4A7C15  # an odd number whose multiples differ in all bits (Knuth's golden ratio)


def groups_of(topology):
    """For each level the CPUs that share each of its caches."""
    return [level.groups([node.cpus for node in topology.nodes]) for level in topology.cache.levels]


def nr_banks(spec):
    """As many as divide the sets of every level: so a set has lines of one bank only."""
    return math.gcd(MAX_BANKS, *(level.sets for level in spec.levels))


def words_of(level):
    """Words for the sets of each cache of a level that say what makes room."""
    return level.sets * (level.ways if policy_of(level) == AGES else 1)


def marks_of(level):
    """Words for the marks of each cache of a level."""
    return level.sets * mark_words(level.ways)


def policy_of(level):
    """The number of what makes room."""
    if level.replacement == "lru" and level.ways > MAX_ORDERED:
        return AGES
    return REPLACEMENTS.index(level.replacement)


def cache_blocks(topology, nr_pages):
    """(name, bytes) of what the caches of a machine need, whose memory has so many pages; nothing where it has none."""
    if topology.cache is None:
        return []
    groups, levels = groups_of(topology), topology.cache.levels
    words = sum(
        len(of) * (level.sets * level.ways + words_of(level) + marks_of(level)) for of, level in zip(groups, levels)
    )
    lines = nr_pages * (PAGE_SIZE // levels[0].line)
    return [
        ("hierarchy", hierarchy_t.nbytes),
        ("cores", topology.nr_cpus * core_t.nbytes),
        ("caches", sum(map(len, groups)) * cache_t.nbytes),
        ("cache_sets", words * 8),
        ("cache_banks", nr_banks(topology.cache) * bank_t.nbytes),
        ("cache_to_cache", topology.nr_nodes**2 * 8),
        ("cache_holders", (sum(map(len, groups)) + topology.nr_cpus) * 8),
        ("directory", lines * 8 if topology.nr_cpus > 1 else 8),
    ]


def init_cache(cache, level, spec, cores, node):
    """One cache of a level, which some CPUs share, given by their positions."""
    cache.sets, cache.ways, cache.latency_ns = spec.sets, spec.ways, spec.latency_ns
    cache.mask = spec.sets - 1 if spec.sets & (spec.sets - 1) == 0 else 0
    cache.policy, cache.inclusive = policy_of(spec), spec.inclusive
    cache.order = first_order(spec.ways) if cache.policy == LRU else 0
    cache.level, cache.node, cache.private = level, node, len(cores) == 1 and spec.sharing == "cpu"
    cache.first_core, cache.nr_cores = cores[0], len(cores)


def init_core(core, hierarchy, caches, topology):
    """A CPU's way through its caches, from the inside."""
    spec, first = topology.cache, caches[0]
    core.l1_tags, core.l1_latency_ns = first.tags, first.latency_ns
    core.line_shift, core.hierarchy = hierarchy.line_shift, hierarchy.address
    core.nr_levels, core.nr_private = len(caches), sum(cache.private for cache in caches)
    core.node = first.node
    for number, cache in enumerate(caches):
        core.level[number] = cache.address
    core.prefetchers = sum(1 << PREFETCHERS.index(name) for name in spec.prefetch)


def init_holders(hierarchy, cores, caches, addresses):
    """Number those that have lines: first the caches that CPUs share, then the CPUs."""
    shared = [cache for cache in caches if not cache.private]
    for number, where in enumerate([*shared, *cores]):
        where.holder = number
        addresses[number] = where.address | int(IS_CACHE) if number < len(shared) else where.address
    hierarchy.nr_holders = len(shared) + len(cores)
    for core in cores:
        on_way = {core.holder, *(cache_t.at(core.level[n]).holder for n in range(core.nr_private, core.nr_levels))}
        core.own = sum({1 << holder % HOLDER_BITS for holder in on_way})


def init_caches(topology, blocks, cpus):
    """All caches, empty; `cpus`: the machine's cpu_t. CPUs that are none, and nodes' kernel threads, have no caches."""
    spec, hierarchy = topology.cache, hierarchy_t.at(blocks["hierarchy"])
    place = {cpu: position for position, cpu in enumerate(c for node in topology.nodes for c in node.cpus)}
    cores = [core_t.array(blocks["cores"])[position] for position in place.values()]
    caches, ways, tags = [], {cpu: [] for cpu in place}, blocks["cache_sets"]
    for level, groups in enumerate(groups_of(topology)):
        for group in groups:
            cache = cache_t.array(blocks["caches"])[len(caches)]
            init_cache(cache, level, spec.levels[level], [place[cpu] for cpu in group], topology.node_of_cpu(group[0]))
            cache.tags, cache.words = tags, tags + cache.sets * cache.ways * 8
            cache.marks = int(cache.words) + words_of(spec.levels[level]) * 8
            tags = int(cache.marks) + marks_of(spec.levels[level]) * 8
            caches.append(cache)
            for cpu in group:
                ways[cpu].append(cache)
    hierarchy.cores, hierarchy.nr_cores = blocks["cores"], len(cores)
    hierarchy.caches, hierarchy.nr_caches = blocks["caches"], len(caches)
    hierarchy.holders, hierarchy.banks = blocks["cache_holders"], blocks["cache_banks"]
    hierarchy.bank_mask, hierarchy.nr_nodes = nr_banks(spec) - 1, topology.nr_nodes
    hierarchy.directory = blocks["directory"] if len(cores) > 1 else 0
    hierarchy.line_shift, hierarchy.cache_to_cache = spec.levels[0].line.bit_length() - 1, blocks["cache_to_cache"]
    for row, values in enumerate(spec.cache_to_cache_ns or topology.latency_ns):
        for column, ns in enumerate(values):
            i64.array(hierarchy.cache_to_cache)[row * topology.nr_nodes + column] = ns
    for number in range(nr_banks(spec)):
        seed = (topology.kernel["random_seed"] * MAX_BANKS + number + 1) * SEED
        bank_t.array(hierarchy.banks)[number].seed = seed % (1 << 64) or 1
    for cpu, position in place.items():
        init_core(cores[position], hierarchy, ways[cpu], topology)
        cpus[cpu].caches = cores[position].address
    init_holders(hierarchy, cores, caches, u64.array(hierarchy.holders))

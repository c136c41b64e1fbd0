"""An obvious twin of a machine's caches: dictionaries, no directory, no locks; who has a line is found by looking everywhere."""

from itertools import groupby

STRENGTH = "SEM"  # a shared line, an exclusive one, a modified one, from weak to strong


class Cache:
    """One cache: for each set {line: state}, in the order of use with `lru`, else in any order of ways."""

    def __init__(self, spec, level, cpus, node):
        self.spec, self.level, self.cpus, self.node = spec, level, cpus, node
        self.private = spec.sharing == "cpu"
        self.lines = [[None] * spec.ways for _ in range(spec.sets)]  # by way: [line, state, last use]
        self.tree = [{} for _ in range(spec.sets)]  # (first way, number of ways): True if the right half was used last

    def entry(self, line):
        for entry in self.lines[line % self.spec.sets]:
            if entry and entry[0] == line:
                return entry

    def state(self, line):
        entry = self.entry(line)
        return entry and entry[1]

    def use(self, line, now):
        entries = self.lines[line % self.spec.sets]
        way = next(i for i, entry in enumerate(entries) if entry and entry[0] == line)
        entries[way][2] = now
        first, ways = 0, self.spec.ways
        while ways > 1:
            right = way >= first + ways // 2
            self.tree[line % self.spec.sets][first, ways] = right
            first, ways = first + ways // 2 * right, ways // 2

    def plru(self, index):
        first, ways = 0, self.spec.ways
        while ways > 1:
            right = not self.tree[index].get((first, ways), True)
            first, ways = first + ways // 2 * right, ways // 2
        return first

    def drop(self, line):
        entries = self.lines[line % self.spec.sets]
        for way, entry in enumerate(entries):
            if entry and entry[0] == line:
                entries[way] = None
                return entry[1]

    def put(self, line, state, now, draw):
        """The [line, state, last use] that makes room, or None."""
        assert not self.entry(line)
        index = line % self.spec.sets
        entries = self.lines[index]
        if None in entries:
            way = entries.index(None)
        elif self.spec.replacement == "lru":
            way = min(range(len(entries)), key=lambda i: entries[i][2])
        elif self.spec.replacement == "plru":
            way = self.plru(index)
        else:
            way = draw() % self.spec.ways
        old, entries[way] = entries[way], [line, state, now]
        self.use(line, now)
        return old


class Draw:
    """xorshift64, a stream for each bank."""

    def __init__(self, seed):
        self.x = seed % 2**64 or 1

    def __call__(self):
        self.x ^= self.x << 13 & 2**64 - 1
        self.x ^= self.x >> 7
        self.x ^= self.x << 17 & 2**64 - 1
        return self.x


class Caches:
    """All caches of a machine; `node_of(line)`: whose memory it is."""

    def __init__(self, topology, node_of, banks=1):
        self.topology, self.spec, self.node_of = topology, topology.cache, node_of
        self.c2c = self.spec.cache_to_cache_ns or topology.latency_ns
        nodes, self.caches = [node.cpus for node in topology.nodes], []
        for level, spec in enumerate(self.spec.levels):
            self.caches += [Cache(spec, level, c, topology.node_of_cpu(c[0])) for c in spec.groups(nodes)]
        self.ways = {cpu: [c for c in self.caches if cpu in c.cpus] for cpu in topology.cpus}
        self.now, depth = 0, len(self.spec.levels)
        self.draws = [Draw((i + 1) * 0x9E3779B97F4A7C15) for i in range(banks)]
        self.counts = {
            cpu: {
                "hits": [0] * depth,
                "misses": [0] * depth,
                "write_backs": [0] * depth,
                "invalidations": 0,
                "transfers": 0,
            }
            for cpu in topology.cpus
        }

    def tick(self):
        self.now += 1
        return self.now

    def evict(self, cpu, level, entry):
        """What made room in a level: written back if it is dirty, taken out above an inclusive cache."""
        while entry:
            cache, (line, state, _) = self.ways[cpu][level], entry
            if cache.spec.inclusive:
                inner = [c for c in self.caches if c.level < level and set(c.cpus) <= set(cache.cpus)]
                if "M" in [c.drop(line) for c in inner]:
                    state = "M"
            if state != "M":
                return
            self.counts[cpu]["write_backs"][level] += 1
            level += 1
            if level == len(self.ways[cpu]):
                return
            entry = self.take_dirty(cpu, level, line)

    def take_dirty(self, cpu, level, line):
        cache = self.ways[cpu][level]
        if cache.entry(line):
            cache.entry(line)[1] = "M"
            return None
        return cache.put(line, "M", self.tick(), self.draws[line % len(self.draws)])

    def holders(self, cpu, line):
        """Others that have the line, in groups: a shared cache, or what a CPU has for itself."""
        others = [c for c in self.caches if cpu not in c.cpus and c.entry(line)]
        shared = [[c] for c in others if not c.private]
        private = sorted((c for c in others if c.private), key=lambda c: c.cpus)
        return shared + [list(group) for _, group in groupby(private, key=lambda c: c.cpus)]

    def write_back_shared(self, cpu, holder, line):
        for level, cache in enumerate(self.ways[cpu]):
            if not cache.private and holder[0].cpus[0] in cache.cpus:
                self.counts[cpu]["write_backs"][level - 1] += 1
                self.evict(cpu, level, self.take_dirty(cpu, level, line))
                return
        self.counts[cpu]["write_backs"][-1] += 1

    def ask_others(self, cpu, line, write):
        """(ns of a dirty line's way or 0, ns until the farthest copy is gone, whether others keep copies)"""
        served = gone = 0
        holders = self.holders(cpu, line)
        for holder in holders:
            ns = self.c2c[self.ways[cpu][0].node][holder[0].node]
            dirty = "M" in [c.state(line) for c in holder]
            for c in holder:
                if write:
                    c.drop(line)
                else:
                    c.entry(line)[1] = "S"
            if dirty and not served:
                served = ns
                self.counts[cpu]["transfers"] += 1
                if not write:
                    self.write_back_shared(cpu, holder, line)
            if write:
                self.counts[cpu]["invalidations"] += 1
                gone = max(gone, ns)
        return served, gone, bool(holders) and not write

    def access(self, cpu, line, write):
        """ns of one access."""
        way, counts = self.ways[cpu], self.counts[cpu]
        at = next((level for level, cache in enumerate(way) if cache.entry(line)), len(way))
        for level in range(at):
            counts["misses"][level] += 1
        if at < len(way):
            counts["hits"][at] += 1
            way[at].use(line, self.tick())
        own = way[at].state(line) if at < len(way) and way[at].private else None
        served = gone = shared = 0
        if not own or (own == "S" and write):
            served, gone, shared = self.ask_others(cpu, line, write)
            own = "S" if shared else "E"
            for cache in way:
                if write and cache.private and cache.entry(line):
                    cache.entry(line)[1] = "E"
        if served:
            ns = served
        elif at < len(way):
            ns = way[at].spec.latency_ns
        else:
            ns = self.topology.latency_ns[way[0].node][self.node_of(line)]
        at = next((level for level, cache in enumerate(way) if cache.entry(line)), len(way))
        for level in reversed(range(at)):
            state = "S" if own == "S" or not way[level].private else "E"
            self.evict(cpu, level, way[level].put(line, state, self.tick(), self.draws[line % len(self.draws)]))
        if write:
            way[0].entry(line)[1] = "M"
        return max(ns, gone)

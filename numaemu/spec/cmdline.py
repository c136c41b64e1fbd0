"""The words of Linux's command line that fill the pools of huge pages: default_hugepagesz=, hugepagesz=, hugepages=.

    hugepagesz=1G hugepages=2 hugepagesz=2M hugepages=0:64,1:64

As in Linux's mm/hugetlb.c, hugepages= is of the size before it, or of the default one; with node numbers of these nodes alone.
"""

from dataclasses import dataclass, field

from numaemu.errors import ConfigError
from numaemu.spec.formats import FORMATS
from numaemu.spec.units import decimal, format_size, parse_int, parse_size, shown

PAGE_SIZE, MOST_PAGES = 4096, (1 << 63) - 1


@dataclass
class HugePages:
    """What was asked for: the default size in bytes, and (size, node or None, pages)."""

    default: int
    pools: list = field(default_factory=list)


def huge_page_sizes(paging):
    """Bytes of a huge page with this paging, the default one first: what an entry one level up maps, and two."""
    bits = FORMATS[paging]["table_bits"]
    return [PAGE_SIZE << bits] if paging == "x86-32" else [PAGE_SIZE << bits, PAGE_SIZE << 2 * bits]


def parse_hugepages(text, paging, nr_nodes, where=""):
    """The HugePages of such words; ConfigError if they make no sense for a machine."""
    sizes = huge_page_sizes(paging)
    size, asked = sizes[0], HugePages(sizes[0])
    for word in text.split():
        name, _, value = word.partition("=")
        if name in ("hugepagesz", "default_hugepagesz"):
            size = parse_size(value, f"kernel: hugepages: {name}", where)
            if size not in sizes:
                known = " or ".join(map(format_size, sizes))
                limit = f"must be {known} with paging {paging!r}"
                raise ConfigError.at(where, f"kernel: hugepages: {name} is {shown(value)}, {limit}")
            if name == "default_hugepagesz":
                asked.default = size
        elif name == "hugepages":
            asked.pools += [(size, node, pages) for node, pages in _parse_counts(value, nr_nodes, where)]
        else:
            limit = "must be hugepagesz=, hugepages= or default_hugepagesz="
            raise ConfigError.at(where, f"kernel: hugepages: {shown(word)}, {limit}")
    return asked


def _parse_counts(value, nr_nodes, where):
    for part in value.split(","):
        node, colon, pages = part.rpartition(":")
        number = _number(node, "node", nr_nodes - 1, where) if colon else None
        yield number, _number(pages, "hugepages", MOST_PAGES, where)


def _number(word, what, most, where):
    return parse_int(decimal(word), f"kernel: hugepages: {what}", where, 0, most)

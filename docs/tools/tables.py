"""Writes the parts of pages that the source knows: commands, keys of the machine file, files, methods, limits, assumptions.

    python -m docs.tools.tables            writes them into the pages
    python -m docs.tools.tables --check    says what would change; the exit status is 1 then

A page has a place for each: the lines between `<!-- table: NAME -->` and `<!-- end of table -->`. What a key or a file means
stands here (MEANINGS, FILES); one without a meaning is an error.
"""

import ast
import inspect
import io
import itertools
import pathlib
import re
import sys
import tokenize
import types

ROOT = pathlib.Path(__file__).parents[2]
PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def table(*rows):
    """A Markdown table; the first row has the titles."""
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]]) + "\n"


def cell(value):
    """What Markdown shows as this text: `<pid>` is no tag outside of code."""
    parts = str(value).replace("|", "\\|").split("`")
    parts[::2] = (part.replace("<", "&lt;") for part in parts[::2])
    return "`".join(parts)


def code(value):
    return f"`{value}`"


def comments(path):
    """{line number: comment} of a source file."""
    tokens = tokenize.generate_tokens(io.StringIO((ROOT / path).read_text()).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def sentence(text):
    """A comment or docstring as a sentence of a table."""
    text = " ".join(text.split())
    first = re.match(r"[a-z]+", text)  # of a name such as mmap(2), kB or min_free_kbytes it is only a part
    whole = first and (text[first.end() :] + " ")[0] in " ,;:.-'"
    return text[0].upper() + text[1:] if whole else text


# -- the command line ----------------------------------------------------------------------------------------


def commands():
    """Every command with its arguments, its text and its options."""
    import click

    from numaemu.tools.cli import cli

    def show(command, name):
        context = click.Context(command, info_name=name)
        arguments = [p for p in command.params if isinstance(p, click.Argument)]
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if isinstance(command, click.Group):
            for sub in command.list_commands(context):
                yield from show(command.get_command(context, sub), f"{name} {sub}")
            return
        usage = [name, *(["[OPTIONS]"] if options else []), *(a.make_metavar(context) for a in arguments)]
        yield f"### {name}\n\n```text\n{' '.join(usage)}\n```\n\n{inspect.cleandoc(command.help or '')}\n"
        rows = [(code(option_text(o, context)), o.help or "") for o in options]
        if rows:
            yield table(("option", "meaning"), *rows)

    return "\n".join(
        part for sub in cli.list_commands(None) for part in show(cli.get_command(None, sub), f"numaemu {sub}")
    )


def option_text(option, context):
    names = ", ".join(option.opts)
    return names if option.is_flag else f"{names} {option.make_metavar(context)}"


# -- the machine file ----------------------------------------------------------------------------------------

MEANINGS = {  # key: (what it means, where its default comes from)
    "name": ("the machine's name in summaries", "the file's name, else `custom`"),
    "paging": ("the format of the page tables", "what most servers have"),
    "page_size": ("bytes of a base page; only the format's own is possible", "the architecture"),
    "lockstep": ("one process runs at a time, by emulated time, so that a run can be repeated to the byte", ""),
    "quantum_ns": (
        "how far a CPU may be ahead of the next one in lockstep",
        "halving it changes no shipped experiment",
    ),
    "schedule": ("who runs next in lockstep: by the clock, or as drawn; `numaemu fuzz` sets it", ""),
    "schedule_seed": ("who is first in lockstep where clocks are equal; 0: the lower number", ""),
    "zone_layout": (
        "zones DMA, DMA32, Normal (`x86-64`) or DMA, Normal up to 896 MiB, HighMem (`x86-32`)",
        "follows `paging`",
    ),
    "low_memory": ("RAM below 4 GiB of physical addresses; the rest begins at 4 GiB", "QEMU's PC splits its RAM so"),
    "kernelcore": ("memory that is kept out of the zone Movable; as Linux's boot parameter", "none"),
    "movablecore": ("memory that is given to the zone Movable; only one of the two may be given", "none"),
    "node.memory": ("the node's memory, in whole pages of 4 KiB; 0: it has only CPUs", "required"),
    "node.cpus": ('CPU numbers as a list or as `"0-3,8-11"`, or how many; 0: it has only memory', "none"),
    "distance.matrix": (
        "distances as `numactl --hardware` prints them; 10 is the node itself",
        "10 and 21, as most two-socket servers report",
    ),
    "latency.matrix": (
        "one load: the CPU's node (row) by the memory's node (column)",
        "80 ns at distance 10, in proportion; assumed",
    ),
    "node.bandwidth": (
        "what the node's memory controller moves at most; GB are powers of 1000, GiB of 1024",
        "none: no limit",
    ),
    "link.bandwidth": ("the rate of each link between nodes, in each direction, that states none itself", "required"),
    "link.links": (
        'which nodes have links: `"pairs"` all, `"ring"`, `"mesh 2x4"` rows and columns, or a list of '
        "`{ a, b, bandwidth }`; lines take the shortest path",
        "a link for each pair",
    ),
    "cpu.outstanding": ("misses of one CPU that may be under way at a time", "1: nothing overlaps"),
    "bandwidth.matrix": (
        "likewise, as the firmware tells the kernel; with it nodes are in memory tiers by latency and bandwidth",
        "none: all memory is one tier",
    ),
    "tlb.l1": (
        "first level: entries, ways, and the time that a hit adds to the load",
        "Skylake's data TLB (Intel's optimization manual)",
    ),
    "tlb.l2": ("second level, likewise", "Skylake's STLB; 3 ns are 9 cycles at 3 GHz, assumed"),
    "tlb.asids": (
        "address spaces whose entries the TLB keeps over a switch; 0: a switch flushes",
        "0; Linux uses 6 PCIDs",
    ),
    "tlb.walk_cache": ("entries of the cache of upper page-table entries; 0: every walk begins at the top", "0"),
    "cache.l1d": (
        "first level, one for each CPU: size, ways, bytes of a line, what a hit costs, who shares it, what makes room, whether it is inclusive",
        "Skylake-SP (Intel's optimization manual); times are assumed",
    ),
    "cache.l2": ("second level, likewise", "Skylake-SP; times are assumed"),
    "cache.llc": ("last level, likewise", "Skylake-SP with 16 cores; times are assumed"),
    "cache.cache_to_cache": (
        "a line that another CPU's caches have dirty: one number, or by the node of the CPU (row) and of the other one (column)",
        "as from memory, by `[latency]`",
    ),
    "cache.prefetch": ("what brings lines in before they are asked for", "none"),
    "cost.fault_ns": ("entry, handling and return of a page fault, without its memory accesses", "assumed"),
    "cost.clear_page_ns": ("zeroing one page", "assumed"),
    "cost.copy_page_ns": ("copying one page", "assumed"),
    "cost.syscall_ns": (
        "entry and return of a system call",
        "`getuid` takes 78 ns on a Xeon Gold 6256 without mitigations, 224 to 592 ns on Xeons with them: Georg Sauthoff, "
        "[gms.tf](https://gms.tf/on-the-costs-of-syscalls.html)",
    ),
    "cost.shootdown_ns": ("what the CPU that sends a shootdown pays for it, however many CPUs it is for", "assumed"),
    "cost.shootdown_target_ns": ("what that CPU pays on top for each CPU that it interrupts", "assumed"),
    "cost.ipi_ns": ("what a CPU pays that answers a shootdown, without the flush itself", "assumed"),
    "cost.flush_page_ns": (
        "one page that a CPU forgets; of a huge page there is one entry",
        "Linux's `arch/x86/mm/tlb.c`: each single flush is about 100 ns",
    ),
    "cost.flush_all_ns": (
        "a CPU forgets all pages of an address space; the misses that follow come on top",
        "96 to 251 cycles for `__flush_tlb()`: Ingo Molnar on linux-mm, 8 June 2015",
    ),
    "cost.fork_entry_ns": (
        "one entry that a fork copies, of a small page or a huge one",
        "6.5 ms for 1 GiB of small pages: Zhao et al., *On-demand-fork*, EuroSys 2021",
    ),
    "cost.fork_table_ns": ("one page table that a fork makes, beside its clearing", "assumed"),
    "cost.migrate_page_ns": (
        "one page, small or huge, that moves to another frame, beside its copying and the flushes",
        "assumed",
    ),
    "cost.lock_handover_ns": ("taking a lock that another CPU held when this one came", "assumed"),
    "cost.compress_ns": ("compressing one page (zram, zswap)", "assumed"),
    "cost.decompress_ns": ("decompressing one page", "assumed"),
    "cost.numa_scan_ns": ("an entry that NUMA balancing's scanner looks at", "assumed"),
    "cost.context_switch_ns": ("another task gets the CPU; what it then misses in the TLB comes on top", "assumed"),
    "cost.message_ns": ("a request to a node or the coordinator, and its answer", "assumed"),
    "disk.rotational": (
        "true: swap reads ahead by slots of the disk, as Linux does on disks that rotate and on virtio-blk; false: by addresses",
        "a solid-state disk",
    ),
    "kernel.page_group_by_mobility": ("pages are grouped by mobility into pageblocks", "Linux"),
    "kernel.slab_debug": (
        'checks of slab caches, as `"FZPU,kmalloc-64"`: F consistency, Z red zones, P poison, U users',
        "none",
    ),
    "kernel.random_seed": ("what `kernel.randomize_va_space` = 1 or 2 draws from; `--seed` sets it, too", "0"),
    "kernel.tiering": (
        "the tiering policy while kernel.numa_balancing has 2: `linux`, `tpp`, `frequency`, or a file that ends in .py",
        "`linux`",
    ),
    "kernel.thread_size": ("kernel stacks: 4KiB, 8KiB or 16KiB", "16KiB; with paging `x86-32` 8KiB, as Linux"),
    "kernel.transparent_hugepage": ("`always`, `madvise` or `never`", "never; distributions differ"),
    "kernel.hugepages": (
        'words of Linux\'s command line that fill the pools, as `"hugepagesz=1G hugepages=0:1"`',
        "none",
    ),
    "disk.size": ("size of the emulated disk; nothing is stored on the host but what is written", "assumed"),
    "disk.read_latency_us": ("one request to read, before its bytes come", "a SATA SSD; assumed"),
    "disk.write_latency_us": ("one request to write", "a SATA SSD; assumed"),
    "disk.bandwidth": ("bytes a second; K, M, G are powers of 1024", "a SATA SSD; assumed"),
    "vm.min_free_kbytes": ("what the watermarks are computed from", "Linux's formula, from the memory there is"),
    "vm.watermark_scale_factor": ("distance between two watermarks, in 10,000ths of the zone", "Linux"),
    "vm.watermark_boost_factor": (
        "how far a fallback of mobility raises the watermarks, in 10,000ths of high",
        "Linux",
    ),
    "vm.percpu_pagelist_high_fraction": (
        "the share of a zone that per-CPU lists may hold: one part in so many; 0: by watermark",
        "Linux",
    ),
    "vm.lowmem_reserve_ratio": (
        "one number for each zone: how much of it is kept from allocations that could use a higher one",
        "Linux",
    ),
    "vm.overcommit_memory": ("0 guess, 1 always, 2 never", "Linux"),
    "vm.overcommit_ratio": ("with 2: per cent of memory that may be promised", "Linux"),
    "vm.overcommit_kbytes": ("with 2: the same in kB", "Linux"),
    "vm.admin_reserve_kbytes": ("kB kept for user 0 when memory is promised", "Linux's formula"),
    "vm.user_reserve_kbytes": ("kB kept for other tasks of the same user", "Linux's formula"),
    "vm.max_map_count": ("mappings of one address space", "Linux"),
    "vm.zone_reclaim_mode": ("bits: 1 reclaim the node first, 2 write dirty pages, 4 unmap pages", "Linux"),
    "vm.min_unmapped_ratio": (
        "per cent of a node in unmapped file pages from which on the node is reclaimed first",
        "Linux",
    ),
    "vm.min_slab_ratio": ("the same for reclaimable slab pages", "Linux"),
    "vm.swappiness": ("0: pages of files go first; 200: the tasks' own pages go first", "Linux"),
    "vm.page-cluster": ("2 to the power of this: pages that a fault from swap reads", "Linux"),
    "kernel.numa_balancing": (
        "bits: 1 pages move to the tasks that use them, 2 hot pages leave slow memory tiers; 0: neither",
        "0, so that pages stay; Linux has 1 on NUMA machines",
    ),
    "kernel.numa_balancing_promote_rate_limit_MBps": ("MB that may leave slow tiers in a second", "Linux"),
    "kernel.randomize_va_space": (
        "0: no randomisation; 1: stack and mmap; 2: the heap, too",
        "0, so that runs repeat; Linux has 2",
    ),
    "kernel.sched_base_slice_ns": ("how long a task keeps the CPU while others want it", "Linux, for 8 CPUs and more"),
    "vm.dirty_ratio": ("per cent of memory: above it a task that makes pages dirty waits", "Linux"),
    "vm.dirty_background_ratio": ("per cent of memory: above it the flusher writes", "Linux"),
    "vm.dirty_bytes": ("instead of `vm.dirty_ratio`, in bytes", "Linux"),
    "vm.dirty_background_bytes": ("instead of `vm.dirty_background_ratio`, in bytes", "Linux"),
    "vm.dirty_expire_centisecs": ("a page is written when it has been dirty for so long", "Linux"),
    "vm.dirty_writeback_centisecs": ("how often the flusher looks; 0: never", "Linux"),
    "vm.nr_hugepages": ("pages in the pool of the default size", "Linux"),
    "vm.nr_overcommit_hugepages": ("surplus pages that the pool may take when it is empty", "Linux"),
    "vm.panic_on_oom": ("1, 2: running out of memory ends the machine", "Linux"),
    "vm.oom_kill_allocating_task": ("not 0: the OOM killer ends the task that asked", "Linux"),
    "vm.oom_dump_tasks": ("not 0: the OOM report lists all tasks", "Linux"),
    "vm.extfrag_threshold": (
        "index above which a failure counts as fragmentation, so that compaction is tried",
        "Linux",
    ),
    "vm.compaction_proactiveness": ("how eagerly kcompactd compacts in the background; 0: never", "Linux"),
    "vm.compact_unevictable_allowed": ("1: compaction moves locked pages, too", "Linux"),
    "vm.lumpy_reclaim": ("our own: 1 evicts around cold pages, as Linux up to 3.4 did, instead of compacting", "0"),
}
UNITS = {"_ns": "ns", "_us": "us", "_kbytes": "kB", "_bytes": "bytes", "_centisecs": "1/100 s", "_ratio": "%"}
OTHER_UNITS = {
    "disk.bandwidth": "bytes/s", "disk.size": "bytes", "latency.matrix": "ns", "tlb.l1": "ns", "tlb.l2": "ns", "node.memory": "bytes",
    "low_memory": "bytes", "kernelcore": "bytes", "movablecore": "bytes", "page_size": "bytes", "vm.lowmem_reserve_ratio": "1/n",
    "kernel.thread_size": "bytes", "bandwidth.matrix": "MB/s", "cache.cache_to_cache": "ns", "node.bandwidth": "bytes/s",
    "link.bandwidth": "bytes/s",
}  # fmt: skip


def unit(key):
    return OTHER_UNITS.get(key) or next((u for end, u in UNITS.items() if key.endswith(end)), "")


def key_row(key, default, limits=""):
    meaning, source = MEANINGS[key]
    shown = key if key.startswith(("vm.", "kernel.")) and key in sysctls() else key.rpartition(".")[2]
    return (
        code(shown),
        sentence(meaning),
        unit(key),
        limits,
        default if default == "" else code(default),
        sentence(source),
    )


TITLES = ("key", "meaning", "unit", "limits", "default", "where the default comes from")


def sysctls():
    from numaemu.spec.machine_file import KNOWN_SYSCTLS

    return KNOWN_SYSCTLS


def span(least, most):
    from numaemu.spec import machine_file as m

    names = {m.INT_MAX: "2³¹-1", m.LONG_MAX: "2⁶³-1", m.MAX_MEMORY: "16TiB"}
    return f"{least} to {names.get(most, most)}" if least != most else f"{least}"


def keys_machine():
    from numaemu.spec import machine_file as m
    from numaemu.spec.units import format_size

    block = format_size(m.MEMORY_BLOCK)
    limits = {
        "name": "a line of text", "paging": "see below", "page_size": "4096", "zone_layout": ", ".join(m.ZONE_LAYOUTS),
        "low_memory": f"{block} to {format_size(m.MAX_LOW_MEMORY)}, in steps of {block}",
        "kernelcore": f"in steps of {block}", "movablecore": f"in steps of {block}", "lockstep": "true, false",
        "quantum_ns": span(1, m.MAX_QUANTUM_NS), "schedule_seed": span(0, m.LONG_MAX),
        "schedule": "clock, random:SEED, priorities:SEED[:STEP,…]",
    }  # fmt: skip
    defaults = {"paging": m.DEFAULT_PAGING, "low_memory": format_size(m.DEFAULT_LOW_MEMORY), "page_size": "4096"}
    defaults |= {
        "lockstep": "false",
        "quantum_ns": str(m.DEFAULT_QUANTUM_NS),
        "schedule_seed": "0",
        "schedule": "clock",
    }
    return table(TITLES, *(key_row(key, defaults.get(key, ""), limits[key]) for key in m.SCALAR_KEYS))


def keys_node():
    from numaemu.spec import machine_file as m
    from numaemu.spec.units import format_size

    most = format_size(m.MAX_MEMORY)
    memory = f"0 to {most}, also in all; the first node that has any: at least {format_size(m.MIN_MEMORY)}"
    return table(
        TITLES,
        key_row("node.memory", "", memory),
        key_row("node.cpus", "0", f"numbers below {m.MAX_CPUS}; CPU 0 must be there"),
        key_row("distance.matrix", "", span(m.LOCAL_DISTANCE, m.MAX_DISTANCE)),
        key_row("latency.matrix", "", span(1, m.MAX_LATENCY_NS)),
        key_row("bandwidth.matrix", "", span(1, m.INT_MAX)),
    )


def keys_rates():
    from numaemu.spec import rates as r

    limits = f"{r.format_rate(r.MIN_RATE)} to {r.format_rate(r.MAX_RATE)}"
    rows = (
        ("node.bandwidth", "", limits),
        ("link.bandwidth", "", limits),
        ("link.links", r.DEFAULT_LINK["links"], "a path from each node to each"),
        ("cpu.outstanding", str(r.DEFAULT_CPU["outstanding"]), span(1, r.MAX_OUTSTANDING)),
    )
    tables = {"node": "[[node]]", "link": "[link]", "cpu": "[cpu]"}
    return table(("table", *TITLES), *((code(tables[row[0].partition(".")[0]]), *key_row(*row)) for row in rows))


def keys_tlb():
    from numaemu.spec import machine_file as m
    from numaemu.spec.param import NR_ASIDS, WALK_CACHE_MAX

    most = {"l1": m.MAX_L1_ENTRIES, "l2": m.MAX_L2_ENTRIES}
    rows = [
        key_row(f"tlb.{level}", "{ " + ", ".join(f"{k} = {v}" for k, v in table_.items()) + " }",
                f"entries 1 to {most[level]}, a multiple of ways")
        for level, table_ in m.DEFAULT_TLB.items()
    ]  # fmt: skip
    limits = {"asids": NR_ASIDS - 1, "walk_cache": WALK_CACHE_MAX}
    return table(
        TITLES, *rows, *(key_row(f"tlb.{k}", str(v), span(0, limits[k])) for k, v in m.DEFAULT_TLB_WORDS.items())
    )


def keys_cache():
    from numaemu.spec import cache as c
    from numaemu.spec.units import format_size

    show = lambda v: str(v).lower() if isinstance(v, bool) else f'"{v}"' if isinstance(v, str) else str(v)
    limits = (
        f"ways to {c.MAX_CACHE_WAYS}; size to {format_size(c.MAX_CACHE_SIZE)}, a multiple of line times ways; "
        f"line {', '.join(map(str, c.LINE_SIZES))}; sharing cpu, cluster:N, node; replacement {', '.join(c.REPLACEMENTS)}"
    )
    rows = []
    for name, level in c.DEFAULT_LEVEL.items():
        default = ", ".join(f"{k} = {show(v)}" for k, v in (level | c.DEFAULT_LEVEL_WORDS).items())
        rows.append(key_row(f"cache.{name}", "{ " + default + " }", limits if name == "l1d" else "likewise"))
    return table(
        TITLES,
        *rows,
        key_row("cache.cache_to_cache", "", span(1, c.MAX_CACHE_LATENCY_NS)),
        key_row("cache.prefetch", "[]", ", ".join(c.PREFETCHERS)),
    )


def keys_cost():
    from numaemu.spec import machine_file as m

    return table(TITLES, *(key_row(f"cost.{k}", str(v), span(0, m.MAX_COST_NS)) for k, v in m.DEFAULT_COST.items()))


def keys_kernel():
    from numaemu.spec import machine_file as m

    show = lambda v: str(v).lower() if isinstance(v, bool) else f'"{v}"' if isinstance(v, str) else str(v)
    return table(TITLES, *(key_row(f"kernel.{k}", show(v)) for k, v in m.DEFAULT_KERNEL.items()))


def keys_disk():
    from numaemu.spec import machine_file as m
    from numaemu.spec.units import format_size

    limits = {
        "rotational": "",
        "size": f"2MiB to {format_size(m.MAX_DISK)}",
        "bandwidth": f"1 to {format_size(m.MAX_BANDWIDTH)}/s",
    }
    rows = (
        key_row(
            f"disk.{k}",
            str(v).lower() if isinstance(v, bool) else str(v),
            limits.get(k, span(0, m.MAX_DISK_LATENCY_US)),
        )
        for k, v in m.DEFAULT_DISK.items()
    )
    return table(TITLES, *rows)


def keys_sysctl():
    from numaemu.kernel.fs.sysfs.sysctl import DEFAULTS

    show = lambda v: " ".join(map(str, v)) if isinstance(v, tuple) else str(v)
    computed = {"vm.nr_hugepages": "0", "vm.nr_overcommit_hugepages": "0"}
    rows = []
    for key, (least, most) in sysctls().items():
        default = show(DEFAULTS[key]) if key in DEFAULTS else computed.get(key, "")
        rows.append(key_row(key, default, span(least, most)))
    return table(TITLES, *rows)


def formats():
    """The page-table formats."""
    from numaemu.spec.cmdline import huge_page_sizes
    from numaemu.spec.formats import FORMATS, LEVEL_NAMES
    from numaemu.spec.machine_file import DEFAULT_PAGING
    from numaemu.spec.units import TiB, format_size

    rows = []
    for name, f in FORMATS.items():
        top = f["task_size"] + 4096 if f["task_size"].bit_count() > 2 else f["task_size"]  # without the last page
        size = f"{top // (1024 * TiB)}PiB" if top >= 1024 * TiB else format_size(top)
        entries = f"{1 << f['table_bits']} of {1 << f['entry_shift']} bytes" + ("" if f["nx"] else ", no NX")
        huge = ", ".join(map(format_size, huge_page_sizes(name)))
        default = " (default)" if name == DEFAULT_PAGING else ""
        rows.append((code(name) + default, len(LEVEL_NAMES[name]), entries, f"below {size}", huge))
    return table(("`paging`", "levels", "entries", "user addresses", "huge entries"), *rows)


def presets():
    from numaemu.spec.topology import list_presets, load_topology
    from numaemu.spec.units import format_size

    rows = []
    for name, text in list_presets().items():
        t = load_topology(name)
        rows.append((code(name), t.nr_nodes, t.nr_cpus, format_size(t.memory_bytes), text))
    return table(("preset", "nodes", "CPUs", "memory", "what it is like"), *rows)


def keywords():
    """The keywords of Machine(…)."""
    from numaemu.spec.machine_file import KEYWORDS

    return ", ".join(map(code, KEYWORDS)) + "\n"


# -- files of /proc and /sys ---------------------------------------------------------------------------------

FILES = {
    "/dev/kmsg": "the kernel's log; `machine.dmesg()`",
    "/proc/buddyinfo": "free blocks of each zone, by order",
    "/proc/meminfo": "memory by use, in kB",
    "/proc/pagetypeinfo": "free blocks and pageblocks of each zone, by mobility",
    "/proc/slabinfo": "slab caches: objects, slabs, sizes",
    "/proc/cmdline": "the kernel's command line, which is empty",
    "/proc/cpuinfo": "the CPUs, one after the other",
    "/proc/diskstats": "requests, sectors and ms of each disk",
    "/proc/filesystems": "kinds of file systems",
    "/proc/interrupts": "interrupts of each CPU: those of TLB shootdowns",
    "/proc/kpagecgroup": "a word for each frame: the number of the control group that is charged for it + 1; `machine.pread`",
    "/proc/kpagecount": "a word for each frame: how many page-table entries map it; `machine.pread`",
    "/proc/kpageflags": "a word for each frame: Linux's KPF flags; `machine.pread`",
    "/proc/loadavg": "load averages, tasks that run and all tasks, the last pid",
    "/proc/mounts": "file systems and where they are",
    "/proc/partitions": "disks and their sizes",
    "/proc/softirqs": "soft interrupts, of which there are none",
    "/proc/pressure/cpu": "time in which tasks waited for a CPU that others had: averages in percent, total in us",
    "/proc/pressure/io": "likewise for the disk: some tasks of a CPU, or all",
    "/proc/pressure/memory": "likewise for reclaim, compaction, and pages that were in use when they were taken away",
    "/proc/stat": "each CPU's user, system, idle and iowait time; interrupts, context switches, processes since boot",
    "/proc/uptime": "emulated seconds since boot, and idle ones of all CPUs together",
    "/proc/version": "the Linux that is imitated, and numaemu's version",
    "/proc/sys/kernel/hostname": "the machine's name",
    "/proc/sys/kernel/osrelease": "the Linux that is imitated",
    "/proc/sys/kernel/ostype": "Linux",
    "/proc/sys/kernel/pid_max": "pids are below it",
    "/proc/sys/kernel/threads-max": "most tasks at once",
    "/proc/sys/kernel/version": "#1 SMP",
    "/proc/<pid>/sched": "the task's time on its CPU, its switches, and what NUMA balancing knows of it",
    "/proc/<pid>/task/<tid>/…": "the same files of one thread",
    "/sys/block/<disk>/dev": "its numbers",
    "/sys/block/<disk>/queue/logical_block_size": "512",
    "/sys/block/<disk>/queue/physical_block_size": "512",
    "/sys/block/<disk>/queue/rotational": "1 for a hard disk",
    "/sys/block/<disk>/removable": "0",
    "/sys/block/<disk>/ro": "0",
    "/sys/block/<disk>/size": "its size in sectors of 512 bytes",
    "/sys/block/<disk>/stat": "its figures of `/proc/diskstats`",
    "/sys/devices/system/cpu/isolated": "no CPUs",
    "/sys/devices/system/cpu/kernel_max": "the highest number that a CPU may have",
    "/sys/devices/system/cpu/offline": "no CPUs",
    "/sys/devices/system/cpu/online": "all CPUs",
    "/sys/devices/system/cpu/possible": "all CPUs",
    "/sys/devices/system/cpu/present": "all CPUs",
    "/sys/devices/system/cpu/cpu<N>/cache/index<N>/…": "a level of its caches as `[cache]` has it: size, ways, sets, line, and who shares it",
    "/sys/devices/system/cpu/cpu<N>/node<N>": "a link to the CPU's node",
    "/sys/devices/system/cpu/cpu<N>/online": "1; CPU 0 has no such file",
    "/sys/devices/system/cpu/cpu<N>/topology/…": "its package, which is its node, and its core, and the CPUs that share them",
    "/sys/devices/system/memory/auto_online_blocks": "offline",
    "/sys/devices/system/memory/block_size_bytes": "bytes of a memory block, hexadecimal",
    "/sys/devices/system/memory/memory<N>/node<N>": "a link to a node with memory in the block",
    "/sys/devices/system/memory/memory<N>/…": "a block of memory: its state, number and zone, as Linux has them",
    "/sys/devices/system/node/node<N>/access0/initiators/node<N>": "a link to the nearest node with CPUs",
    "/sys/devices/system/node/node<N>/access0/initiators/read_latency": "ns of a load from there",
    "/sys/devices/system/node/node<N>/access0/initiators/write_latency": "ns of a store from there",
    "/sys/devices/system/node/node<N>/access0/targets/node<N>": "links to the nodes whose nearest CPUs it has",
    "/sys/devices/system/node/node<N>/cpu<N>": "links to its CPUs",
    "/sys/devices/system/node/node<N>/memory<N>": "links to its blocks of memory",
    "/sys/kernel/tracing/available_events": "all tracepoints",
    "/sys/kernel/tracing/available_tracers": "nop",
    "/sys/kernel/tracing/buffer_size_kb": "of each ring",
    "/sys/kernel/tracing/current_tracer": "nop",
    "/sys/kernel/tracing/events/enable": "1: all tracepoints are on, 0: none, X: some",
    "/sys/kernel/tracing/events/<system>/enable": "the same of a system",
    "/sys/kernel/tracing/events/<system>/<event>/enable": "the same of a tracepoint",
    "/sys/kernel/tracing/events/<system>/<event>/format": "its fields and its text",
    "/sys/kernel/tracing/events/<system>/<event>/id": "its number",
    "/sys/kernel/tracing/options/overwrite": "1: a full ring loses its oldest events, 0: its newest",
    "/sys/kernel/tracing/per_cpu/cpu<N>/stats": "events in a ring, and how many were lost; behind the CPUs come the nodes' kernel threads",
    "/sys/kernel/tracing/set_event": "tracepoints that are on: `kmem:*`, `sched:sched_switch`, `!tlb`",
    "/sys/kernel/tracing/set_event_nodes": "only events on CPUs of these nodes are kept",
    "/sys/kernel/tracing/set_event_pid": "only events of this process are kept",
    "/sys/kernel/tracing/trace": "the events in the rings; writing empties them",
    "/sys/kernel/tracing/trace_clock": "emulated",
    "/sys/kernel/tracing/trace_pipe": "events that were not read so before",
    "/sys/kernel/tracing/tracing_on": "0 switches all off for a while",
    "/sys/kernel/debug/sched/base_slice_ns": "as `/proc/sys/kernel/sched_base_slice_ns`",
    "/proc/swaps": "swap areas: size, use, priority",
    "/proc/vmallocinfo": "areas of vmalloc and vmap",
    "/proc/vmstat": "counters and sums of the whole machine",
    "/proc/zoneinfo": "zones: watermarks, counters, per-CPU lists",
    "/proc/sys/vm/compact_memory": "`1` compacts all nodes",
    "/proc/sys/vm/drop_caches": "`1` drops clean pages of files, `2` unused slab objects, `3` both",
    "/proc/sys/vm/stat_refresh": "nothing: counters are summed when they are read",
    "/proc/sys/vm/nr_hugepages_mempolicy": "as `nr_hugepages`, on the nodes of the policy of the task that writes",
    "/proc/<pid>/auxv": "the auxiliary vector of the program, as bytes",
    "/proc/<pid>/cgroup": "the task's control group",
    "/proc/<pid>/clear_refs": "`1`, `2`, `3`: forget which pages were used; `5`: reset the peak of RSS",
    "/proc/<pid>/cmdline": "the program's arguments; the name of a task without a program",
    "/proc/<pid>/comm": "the task's name",
    "/proc/<pid>/environ": "the program's environment",
    "/proc/<pid>/limits": "limits of resources",
    "/proc/<pid>/io": "what it has read and written: bytes and calls, bytes from and for disks",
    "/proc/<pid>/maps": "mappings",
    "/proc/<pid>/numa_maps": "mappings, with policy and pages by node",
    "/proc/<pid>/oom_score": "points for the OOM killer, 0 to 1000 and more",
    "/proc/<pid>/oom_score_adj": "-1000 (never killed) to 1000, added to the points",
    "/proc/<pid>/pagemap": "too long to be read whole: `machine.pagemap(pid, addr, nbytes)`, or `machine.pread`",
    "/proc/<pid>/smaps": "mappings, with the state of their pages",
    "/proc/<pid>/smaps_rollup": "the same in sum",
    "/proc/<pid>/stat": "52 fields, as Linux has them",
    "/proc/<pid>/statm": "memory in pages",
    "/proc/<pid>/status": "what concerns tasks, memory and placement, in Linux's order",
    "/sys/block/zram0/comp_algorithm": "what zram compresses with, while it is empty: lz4 or zstd",
    "/sys/block/zram0/mem_limit": "most memory that zram may use",
    "/sys/block/zram0/mem_used_max": "`0` begins again to note the most memory used",
    "/sys/block/zram0/mm_stat": "zram's sizes: original, compressed, memory used and more",
    "/sys/devices/system/node/has_cpu": "nodes with CPUs",
    "/sys/devices/system/node/has_memory": "nodes with memory",
    "/sys/devices/system/node/has_normal_memory": "nodes with memory that the kernel can address",
    "/sys/devices/system/node/online": "all nodes",
    "/sys/devices/system/node/possible": "all nodes",
    "/sys/devices/system/node/node<N>/access0/initiators/read_bandwidth": "MB/s from there, if the machine has `[bandwidth]`",
    "/sys/devices/system/node/node<N>/access0/initiators/write_bandwidth": "MB/s to there, likewise",
    "/sys/devices/virtual/memory_tiering/memory_tier<T>/nodelist": "the nodes of a memory tier; 4 is DRAM, a higher one is slower",
    "/sys/devices/system/node/node<N>/compact": "anything compacts the node",
    "/sys/devices/system/node/node<N>/cpulist": "its CPUs, as `0-3`",
    "/sys/devices/system/node/node<N>/cpumap": "its CPUs, as a mask",
    "/sys/devices/system/node/node<N>/distance": "its distance to each node",
    "/sys/devices/system/node/node<N>/meminfo": "its memory by use",
    "/sys/devices/system/node/node<N>/numastat": "where pages came from",
    "/sys/devices/system/node/node<N>/vmstat": "its counters and sums",
    "/sys/devices/system/node/node<N>/hugepages/hugepages-<S>kB/free_hugepages": "its free pages of the pool",
    "/sys/devices/system/node/node<N>/hugepages/hugepages-<S>kB/nr_hugepages": "its pages of the pool; writing sizes it",
    "/sys/devices/system/node/node<N>/hugepages/hugepages-<S>kB/surplus_hugepages": "its surplus pages",
    "/sys/fs/cgroup/<group>/cgroup.controllers": "controllers that the group has",
    "/sys/fs/cgroup/<group>/cgroup.procs": "its processes; a pid that is written joins",
    "/sys/fs/cgroup/<group>/cgroup.subtree_control": "controllers of the groups below: `+cpuset`, `-memory`",
    "/sys/fs/cgroup/<group>/cpuset.cpus": "the CPUs it asks for",
    "/sys/fs/cgroup/<group>/cpuset.cpus.effective": "the CPUs it has",
    "/sys/fs/cgroup/<group>/cpuset.mems": "the nodes it asks for",
    "/sys/fs/cgroup/<group>/cpuset.mems.effective": "the nodes it has",
    "/sys/fs/cgroup/<group>/memory.stat": "kernel memory that is charged to it",
    "/sys/kernel/debug/extfrag/extfrag_index": "why an allocation would fail: near 0 too little memory, near 1 fragmentation",
    "/sys/kernel/debug/extfrag/unusable_index": "the share of free memory that is in too small pieces, by order",
    "/sys/kernel/debug/sched/numa_balancing/hot_threshold_ms": "a page of a slow tier that is used so soon after a scan is hot",
    "/sys/kernel/debug/sched/numa_balancing/scan_delay_ms": "how long a task runs before its memory is scanned first",
    "/sys/kernel/debug/sched/numa_balancing/scan_period_max_ms": "the longest time between two scans",
    "/sys/kernel/debug/sched/numa_balancing/scan_period_min_ms": "the shortest time between two scans",
    "/sys/kernel/debug/sched/numa_balancing/scan_size_mb": "MB that are scanned at once",
    "/sys/kernel/mm/damon/admin/kdamonds/nr_kdamonds": "how many kdamonds may watch tasks: a directory for each, with `state` and "
    "`contexts`, as damo writes them (`vaddr`, the action `stat`)",
    "/sys/kernel/mm/numa/demotion_enabled": "true: reclaim moves pages to a slower tier instead of to swap",
    "/sys/kernel/mm/page_idle/bitmap": "a bit for each frame, by ranges (`machine.pread`, `pwrite`): 1 written marks its page, 1 read: not used since",
    "/sys/kernel/mm/swap/vma_ra_enabled": "whether swap reads ahead by addresses, where no area lies on a disk that rotates",
    "/sys/kernel/debug/zswap/pool_limit_hit": "how often the pool was full",
    "/sys/kernel/debug/zswap/pool_total_size": "bytes that the pool uses",
    "/sys/kernel/debug/zswap/reject_alloc_fail": "pages not taken for want of memory",
    "/sys/kernel/debug/zswap/reject_compress_fail": "pages whose compression failed",
    "/sys/kernel/debug/zswap/reject_compress_poor": "pages that did not get smaller",
    "/sys/kernel/debug/zswap/reject_reclaim_fail": "pages that a full pool could not take",
    "/sys/kernel/debug/zswap/stored_pages": "pages in the pool",
    "/sys/kernel/debug/zswap/written_back_pages": "pages that were moved from the pool to the disk",
    "/sys/kernel/mm/hugepages/hugepages-<S>kB/free_hugepages": "free pages of the pool",
    "/sys/kernel/mm/hugepages/hugepages-<S>kB/nr_hugepages": "pages of the pool; writing sizes it",
    "/sys/kernel/mm/hugepages/hugepages-<S>kB/nr_hugepages_mempolicy": "the same, on the nodes of the writing task's policy",
    "/sys/kernel/mm/hugepages/hugepages-<S>kB/nr_overcommit_hugepages": "surplus pages that it may take",
    "/sys/kernel/mm/hugepages/hugepages-<S>kB/resv_hugepages": "pages that are reserved but not in use",
    "/sys/kernel/mm/hugepages/hugepages-<S>kB/surplus_hugepages": "surplus pages",
    "/sys/kernel/mm/lru_gen/enabled": "0x0000: there are the classic LRU lists only",
    "/sys/kernel/mm/mempolicy/weighted_interleave/node<N>": "the node's weight, 1 to 255",
    "/sys/kernel/mm/transparent_hugepage/defrag": "what a fault may do for a huge page",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always, madvise or never",
    "/sys/kernel/mm/transparent_hugepage/hpage_pmd_size": "bytes of a huge page",
    "/sys/kernel/mm/transparent_hugepage/shmem_enabled": "never or deny: there are none of shared memory",
    "/sys/kernel/mm/transparent_hugepage/use_zero_page": "1: a read maps the huge page of zeros",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs": "khugepaged's pause after it found no memory",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag": "1: khugepaged may compact",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans": "rounds through all memory",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none": "most pages missing in a range that is collapsed",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_shared": "most shared pages in it",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_swap": "most swapped pages in it",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed": "huge pages it has made",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/pages_to_scan": "pages it looks at in a round",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "its pause between two rounds",
    "/sys/module/zswap/parameters/accept_threshold_percent": "how far a full pool must empty before it takes pages again",
    "/sys/module/zswap/parameters/compressor": "lz4 or zstd",
    "/sys/module/zswap/parameters/enabled": "Y or N",
    "/sys/module/zswap/parameters/max_pool_percent": "most of all memory that the pool may use",
    "/sys/module/zswap/parameters/shrinker_enabled": "Y: memory pressure writes pages of the pool back",
    "/sys/module/zswap/parameters/zpool": "zsmalloc",
}


def shape_files():
    """Paths of what follows from a machine's shape, links as well; the members of some directories stand for one."""
    from numaemu.kernel.fs import genhd
    from numaemu.kernel.fs.sysfs import cpu, memory
    from numaemu.spec.topology import load_topology

    topology = load_topology(
        nodes=2, cpus_per_node=1, memory_per_node="128MiB", bandwidth=[[1, 1], [1, 1]], cache={"l1d": {}}
    )
    system = types.SimpleNamespace(topology=topology, machine=types.SimpleNamespace(nr_cpus=2))
    for path in {**cpu.files(system), **cpu.links(system), **memory.files(system, []), **memory.links(system)}:
        path = re.sub(r"(cpu|node|memory|index)\d+", r"\1<N>", path)
        path = re.sub(r"(/topology/|/memory<N>/|/index<N>/)(?!node)\w+$", r"\1…", path)
        yield path
    for name in genhd.disk_files(genhd.Disk("vda", 0, 0, 0, ()), False):
        yield f"/sys/block/<disk>/{name}"
    yield "/proc/<pid>/task/<tid>/…"


def all_files():
    """{path: may be read, may be written} of every file; <pid>, <N>, <S> and <group> stand for any."""
    from numaemu.kernel.fs.proc import tree
    from numaemu.kernel.fs.sysfs import cgroup, damon, huge, node, numa, sysctl

    found = {}
    for path, (read, write) in tree.FIXED.items():
        path = re.sub(r"(/tracing/events)/\w+/\w+/", r"\1/<system>/<event>/", path)
        path = re.sub(r"(/tracing/events)/\w+/enable", r"\1/<system>/enable", path)
        found[path] = (read is not None, write is not None)
    found["/sys/kernel/tracing/per_cpu/cpu<N>/stats"] = (True, False)
    found[f"{damon.ROOT}/nr_kdamonds"] = (True, True)
    for name in {*tree.PID_FILES, *tree.PID_WRITERS}:
        found[f"/proc/<pid>/{name}"] = (tree.PID_FILES.get(name) is not None, name in tree.PID_WRITERS)
    for name in {*node.NODE_FILES, *node.NODE_WRITERS}:
        found[f"{node.ROOT}/node<N>/{name}"] = (name in node.NODE_FILES, name in node.NODE_WRITERS)
    for name, (read, write) in huge.GLOBAL_FILES.items():
        found[f"/sys/kernel/mm/hugepages/hugepages-<S>kB/{name}"] = (read is not None, write is not None)
    for name in huge.NODE_FIELDS:
        found[f"{node.ROOT}/node<N>/hugepages/hugepages-<S>kB/{name}"] = (True, name == "nr_hugepages")
    found[f"{sysctl.WEIGHTS}/node<N>"] = (True, True)
    found[f"{numa.TIERS}/memory_tier<T>/nodelist"] = (True, False)
    group = type("Group", (), {"controllers": ("cpuset", "memory"), "parent": True})
    for name, (read, write) in cgroup.group_files(group).items():
        found[f"{cgroup.MOUNT}/<group>/{name}"] = (read is not None, write is not None)
    return found | dict.fromkeys([*tree.RANGES, *shape_files()], (True, False))


def files():
    """Every file with what it is."""
    known = {f"/proc/sys/{key.replace('.', '/')}": MEANINGS[key][0] for key in sysctls()} | FILES
    found = all_files()
    if set(known) != set(found):
        raise KeyError(f"files without a meaning, or meanings without a file: {sorted(set(known) ^ set(found))}")
    access = {(True, False): "r", (False, True): "w", (True, True): "rw", (False, False): ""}
    order = lambda path: (not path.startswith("/proc/"), "/sys/vm" in path or "/sys/kernel/" in path, path)
    return table(
        ("file", "", "what it is"), *((code(p), access[found[p]], sentence(known[p])) for p in sorted(found, key=order))
    )


# -- the Python API ------------------------------------------------------------------------------------------


INTERNAL = ("disown", "check_owner", "call_op", "where", "start")  # methods that others of the package call


def api():
    """Every public method with the first sentence of its docstring."""
    from numaemu import machine
    from numaemu.api import allocators, explain, files, heatmap, mapping, task
    from numaemu.gc import heap as gc_heap
    from numaemu.gc import log as gc_log
    from numaemu.malloc import heap, replay

    classes = (
        ("Machine", machine.Machine), ("Task", task.Task), ("Handle", task.Handle), ("Mapping", mapping.Mapping),
        ("VirtualArray", mapping.VirtualArray), ("File", files.File), ("KernelCalls", allocators.KernelCalls),
        ("HeatMap", heatmap.HeatMap), ("KmemCache", allocators.KmemCache), ("Shrinker", allocators.Shrinker), ("Trail", explain.Trail), ("Step", explain.Step),
        ("malloc.Heap", heap.Heap), ("malloc.Stats", heap.Stats), ("malloc.replay.Figures", replay.Figures),
        ("gc.Heap", gc_heap.Heap), ("gc.Mutator", gc_heap.Mutator),
        ("gc.Handle", gc_heap.Handle), ("gc.Collection", gc_log.Collection),
    )  # fmt: skip
    parts = []
    for name, kind in classes:
        rows = field_rows(kind)
        for member, value in (
            pair for one in kind.__mro__ if one.__module__.startswith("numaemu.") for pair in vars(one).items()
        ):
            value = inspect.unwrap(value) if callable(value) else value
            if (
                member.startswith("_")
                or member in INTERNAL
                or not (callable(value) or isinstance(value, property))
                or not value.__doc__
            ):
                continue
            call = member if isinstance(value, property) else f"{member}{arguments(value)}"
            rows.append((code(call), first_sentence(value.__doc__)))
        parts.append(f"### {name}\n\n{sentence(inspect.getdoc(kind))}\n\n" + table(("", ""), *rows))
    return "\n".join(parts)


def field_rows(kind):
    """The fields of a NamedTuple, with the comments behind them."""
    fields = getattr(kind, "_fields", ())
    said = dict(re.findall(r"^    (\w+): [^#\n]*  # (.*)$", inspect.getsource(kind) if fields else "", re.M))
    return [(code(name), sentence(said[name])) for name in fields]


def arguments(function):
    """(addr, length, flags=0) of a method, without self."""
    names = []
    for p in list(inspect.signature(function).parameters.values())[1:]:
        if p.name.startswith("_"):
            continue
        star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        default = "" if p.default is p.empty else f"={default_text(p.name, p.default)}"
        names.append(f"{star}{p.name}{default}")
    return f"({', '.join(names)})"


def default_text(name, value):
    from numaemu import uapi

    if name == "prot":
        return "PROT_READ | PROT_WRITE"
    if name == "gfp":
        return "GFP_KERNEL"
    if isinstance(value, type):
        return value.__name__
    if name == "flags" and value == uapi.MAP_PRIVATE | uapi.MAP_ANONYMOUS:
        return "MAP_PRIVATE | MAP_ANONYMOUS"
    return repr(value)


def first_sentence(doc):
    return sentence(inspect.cleandoc(doc).partition("\n\n")[0])


PREFIXES = (  # of constants, with what takes them
    ("PROT_", "`mmap`, `mprotect`"), ("MAP_", "`mmap`"), ("MFD_", "`memfd_create`"), ("MADV_", "`madvise`"), ("MREMAP_", "`mremap`"),
    ("MLOCK_", "`mlock`"), ("MCL_", "`mlockall`"), ("MS_", "`msync`"), ("MPOL_MF_", "`mbind`, `move_pages`"), ("MPOL_F_", "policies"),
    ("MPOL_", "`set_mempolicy`, `mbind`"), ("O_", "`open`"), ("SEEK_", "`File.seek`"), ("POSIX_FADV_", "`File.fadvise`"),
    ("RLIMIT_", "`setrlimit`"), ("RLIM_", "`setrlimit`"), ("OVERCOMMIT_", "`vm.overcommit_memory`"), ("SIG", "`kill`"), ("W", "`wait`"),
    ("PR_SET_", "`prctl`"), ("GFP_", "the kernel's allocations"), ("__GFP_", "the kernel's allocations"), ("SLAB_", "`kmem_cache_create`"),
)  # fmt: skip


def constants():
    """The constants that `numaemu` exports, by prefix."""
    import numaemu

    left, rows = {name for name in numaemu.__all__ if name.isupper()} - {"GFP_BITS"}, []
    for prefix, use in PREFIXES:
        found = sorted(name for name in left if name.startswith(prefix))
        left -= set(found)
        rows.append((code(prefix + "…"), use, ", ".join(code(name.removeprefix(prefix)) for name in found)))
    if left:
        raise KeyError(f"constants without a place: {sorted(left)}")
    return table(("prefix", "taken by", "constants"), *rows)


def counters():
    """Every counter of /proc/vmstat and machine.stats()."""
    from docs.tools.counters import VMSTAT
    from numaemu.kernel.fs.sysfs.stats import linux_names
    from numaemu.kernel.include.vmstat import NODE_STATS, NUMA_STATS, VM_EVENTS

    there = {*linux_names(dict.fromkeys([*NODE_STATS, *NUMA_STATS], 0)), *VM_EVENTS, "nr_free_pages", "nr_unstable"}
    there |= {"nr_dirty_threshold", "nr_dirty_background_threshold"}
    known = {name for group in VMSTAT.values() for name in group}
    if known != there:
        raise KeyError(f"counters without a meaning, or meanings without a counter: {sorted(known ^ there)}")
    parts = (
        f"### {heading}\n\n" + table(("counter", "what it counts"), *((code(k), sentence(v)) for k, v in group.items()))
        for heading, group in VMSTAT.items()
    )
    return "\n".join(parts)


def cpu_counters():
    from docs.tools.counters import CPU

    return table(("key", "what it is"), *((code(k), sentence(v)) for k, v in CPU.items()))


def cache_counters():
    from docs.tools.counters import CACHES

    return table(("key", "what it is"), *((code(k), sentence(v)) for k, v in CACHES.items()))


def errors():
    from numaemu import errors as module

    kinds = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, (Exception, Warning))]
    return table(("exception", "what it means"), *((code(k.__name__), first_sentence(k.__doc__)) for k in kinds))


# -- limits and assumptions ----------------------------------------------------------------------------------


def limits():
    """Every fixed size of spec/param.py."""
    path, rows = "numaemu/spec/param.py", []
    notes = comments(path)
    from numaemu.spec import param

    for statement in ast.parse((ROOT / path).read_text()).body:
        if isinstance(statement, ast.Assign) and statement.lineno in notes:
            name = statement.targets[0].id
            rows.append((code(name), f"{getattr(param, name):,}", sentence(notes[statement.lineno])))
    return table(("constant", "value", "what it limits"), *rows)


WHY = {
    "ZRAM_MAJOR": "Linux gives such numbers away as drivers come; device mapper has 253 on most systems",
    # why this value: of each constant that is assumed, fitted or measured
    "LOCAL_LATENCY_NS": "of the order that memory benchmarks print for a server's own node",
    "l2": "of the order of what Intel's manual gives for a hit in the second level",
    "fault_ns": "some 1500 cycles: the exception, its checks and its return, without walks and clearing",
    "KEPT_PS": "half of the loads that a core of 3 GHz takes from its first cache in a cycle",
    "KEPT_LINES": "as many lines as the streams that loops over arrays read and write at once, and some more",
    "clear_page_ns": "4 KiB at some 27 GB/s, as string instructions do it in a cache",
    "copy_page_ns": "twice the clearing: as many bytes are read as are written",
    "shootdown_target_ns": "interrupts are sent and acknowledged one by one; 16 targets take 9 µs: microseconds, as Kumar et al. (LATR, ASPLOS 2018) say",
    "shootdown_ns": "with one target 1.5 µs: sending an interrupt and waiting costs some thousand cycles on servers",
    "ipi_ns": "an interrupt, its handler and its return",
    "fork_table_ns": "so that a fork of 1 GiB of huge pages takes some 0.17 ms: 512 tables are laid by, with one entry each",
    "migrate_page_ns": "isolating, unmapping, mapping and putting back some µs together; nobody has parted what was measured",
    "lock_handover_ns": "one or two cache lines come from another CPU's cache, perhaps of another node",
    "compress_ns": "lz4 at somewhat more than 1 GB/s",
    "decompress_ns": "lz4 decompresses at least twice as fast as it compresses",
    "DEFAULT_BANDWIDTH_MBS": "of the order of one socket's memory",
    "numa_scan_ns": "some 60 cycles for an entry and its struct page, without the flush",
    "SPIN_NS": "of the order of what is done under a lock",
    "UNFAIR_STEPS": "a schedule that lets one strand run for ever finds nothing",
    "QUANTUM_NS": "fine enough to come between the load and the store of a counter",
    "POLL_NS": "as often as a program would look that does not want to burn its CPU",
    "context_switch_ns": "a switch without what the caches lose",
    "message_ns": "two interrupts between CPUs, which the emulator's requests stand for",
    "DEFAULT_DISK": "what vendors state for SATA SSDs: 10,000 single reads a second, 500 MB/s",
    "COST": "so that the steps of the recorded cases take as long as they took there: software emulation is slow",
    "DISK": "likewise, from the steps that read and write files",
    "KERNEL_PAGES": "what is not in meminfo is the same for each kernel and machine, but for what lies on the CPUs' lists",
    "BOOT_MS": "where the flushes of counters fall, two seconds apart, no recording says; fitted to one case, `a36_mix_sw60_classic`",
    "OVERSLEEP_MS": "the recorded pauses were that much longer than their steps say",
    "SHELL_WRITES": "what `sh` steps took in the recorded cases",
    "CHILD_WRITES": "the pages that recorded forks copied at once",
    "RUN": "the fastest on the hosts at hand; nothing emulated depends on it",
    "FAR_LINES": "no source; the tags of so many lines are half a MiB, more than host CPUs have near. The figures do not depend on it",
    "POPULATE_FROM": "shorter chains are used up before the host has made them present",
    "PCP_HIGH_MAX": "longer lists brought no more speed on the hosts at hand; Linux's marks hold below it",
    "PRINT_BYTES": "some screens of text",
    "GRACE_S": "a host that is busy may take so long to wake a process",
    "KEEP": "more threads than any CPU usually has tasks",
    "SHOOTDOWNS_AT_ONCE": "often enough to look at other messages",
    "FINE_NS": "the 16 accesses of LOOK_AT_LEAST take about as long",
    "LOOK_AT_LEAST": "a look costs as much as a few accesses",
    "SPINS": "a lock is usually free after some tens of tries",
    "PATIENCE": "most locks are free sooner; from then on a waiter has its turn, and neither side starves",
    "PLAIN_BRK": "a task that has loaded no program has no data before its heap",
    "FIRST_EXTENT": "as file systems allocate small files in one piece",
    "TMPFS_DEVICE": "a number that a Linux system could have; nothing depends on it",
    "TRIES": "a copy that is disturbed so often belongs to a task that never rests",
    "KMSG_LINES": "Linux's buffer of 256 KiB holds a few thousand lines",
    "ROUNDS": "enough for any sleep that has passed, and it ends",
    "THROTTLE_TRIES": "Linux waits too; here a wait is a turn of the host",
    "DRAIN_INTERVAL_NS": "Linux does it nearly every time; here each one takes messages to all CPUs",
    "ISOLATED_ROUNDS": "the CPU that holds the pages may wait for a lock of ours, so it must end",
    "MAX_SHRINKERS": "a table of fixed size",
    "EXIT_ASKS": "Linux waits for the reaper; here the number of tries is the only clock that always goes on",
    "STATIC_SIZE": "room for 512 counters",
    "MAX_CHUNKS": "a table of fixed size",
    "MAX_KMEM_CACHES": "a table of fixed size",
    "MAX_VMAP_AREAS": "a table of fixed size",
    "MAX_CGROUPS": "a table of fixed size",
    "MAP_AHEAD": "what a batch or two of migration need",
    "FULL_S": "about as long as a process needs to empty some messages",
    "l1d": "4 cycles at 3 GHz, as Intel's manual gives for the first level",
    "llc": "of the order of what Intel's manual gives for the last level",
    "STRIDE_PAGES": "Intel's streamer follows some tens of pages, at most one stream a direction in each",
    "SURE": "two equal distances are the least that tell a stride",
    "AHEAD": "enough to be ahead of one access, too few to fill a small level in vain",
    "MAX_BANKS": "few lines of a set, so few CPUs wait for each other",
    "MOST_DIRECTORIES": "far more targets, regions or schemes than anybody writes",
    "PLAIN_ITEMS": "more arguments than a call has; to look at a long list would take longer than the other pickler",
    "AWAY_S": "longer than Python takes between two operations, shorter than a person notices",
}
MARK = re.compile(r"\b(assumed|measured|fitted)\b")
KINDS = (  # (heading, files)
    ("What decides emulated time", r"numaemu/(spec/(machine_file|cache)|hardware/(cache|prefetch))\.py"),
    ("What only replays of recorded cases use", r"numaemu/conform/.*"),
    ("What bounds tables, queues and retries inside the emulator", r".*"),
)


def marked():
    """[(file, statement, comment)] of every assignment whose comment, beside it or above it, has a mark."""
    for path in sorted((ROOT / "numaemu").rglob("*.py")):
        name, lines = str(path.relative_to(ROOT)), path.read_text().splitlines()
        notes = comments(name)
        for number, note in notes.items():
            if not MARK.search(note):
                continue
            statement = lines[number - 1].partition("#")[0].strip()
            if not statement:  # a comment above: of the assignments that follow it at once
                following = itertools.takewhile(
                    lambda line: line[:1].isupper() or line.startswith("# fmt"), lines[number:]
                )
                found = [line for line in following if not line.startswith("#")]
                yield from ((name, shortened(line), note) for line in found if line.partition(" =")[0] in WHY)
            else:
                yield name, shortened(statement), note


def shortened(statement):
    statement = statement.rstrip("{,").rstrip()
    return statement if len(statement) <= 60 else statement[:57].rstrip() + " …"


def assumed():
    """Every constant whose comment says that it is assumed, fitted or measured, and why it is what it is."""
    rows, parts = list(marked()), []
    for i, (heading, pattern) in enumerate(KINDS):
        group = [row for row in rows if next(j for j, (_, p) in enumerate(KINDS) if re.fullmatch(p, row[0])) == i]
        cells = []
        for name, statement, note in group:
            key = re.match(r'"?(\w+)', statement)[1]
            cells.append((code(statement), sentence(note), sentence(WHY[key]), code(name)))
        parts.append(f"## {heading}\n\n" + table(("constant", "what it is", "why this value", "where"), *cells))
    used = {re.match(r'"?(\w+)', statement)[1] for _, statement, _ in rows}
    if set(WHY) != used:
        raise KeyError(f"a reason without a constant: {sorted(set(WHY) - used)}")
    return "\n".join(parts)


WORDS = re.compile(r"^# Shared words of (\w+):.*\n((?:#.*\n)+)", re.MULTILINE)
WORD = re.compile(r"^# - ([^|\n]*(?:\n#   [^|\n]*)*?) \|", re.MULTILINE)


def words():
    """Where the comments about shared words stand: those that begin with `Shared words of STRUCT`."""
    rows = []
    for path in sorted((ROOT / "numaemu").rglob("*.py")):
        for struct, text in WORDS.findall(path.read_text()):
            found = [" ".join(word.replace("\n#", " ").split()) for word in WORD.findall(text)]
            rows.append((code(f"{path.relative_to(ROOT / 'numaemu')}: {struct}"), "; ".join(found)))
    return table(("struct", "words"), *rows)


TABLES = {
    "commands": commands, "keys-machine": keys_machine, "keys-node": keys_node, "keys-rates": keys_rates, "keys-tlb": keys_tlb,
    "keys-cache": keys_cache, "keys-cost": keys_cost,
    "keys-kernel": keys_kernel, "keys-disk": keys_disk, "keys-sysctl": keys_sysctl, "presets": presets, "formats": formats, "keywords": keywords,
    "files": files, "api": api, "constants": constants, "counters": counters, "cpu-counters": cpu_counters, "cache-counters": cache_counters, "errors": errors,
    "limits": limits, "assumed": assumed, "words": words,
}  # fmt: skip


def filled(text):
    """A page with its tables as the source has them today."""
    return PLACE.sub(lambda match: match[1] + "\n" + TABLES[match[2]]() + "\n" + match[3], text)


def main(arguments):
    changed = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text()
        new = filled(text)
        if new != text:
            changed.append(str(path.relative_to(ROOT)))
            if "--check" not in arguments:
                path.write_text(new)
    for name in changed:
        print(f"{name} {'is out of date: run make pages' if '--check' in arguments else 'written'}")
    return int(bool(changed) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

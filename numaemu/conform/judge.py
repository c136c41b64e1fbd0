"""Does a replay agree with what a recorded Linux did? The tolerances, and the comparison, part by part.

How far two runs of the same Linux differ was measured by recording every scenario at least twice; the tolerances
below are what those pairs showed. A case is *quiet* (memory was free: placement is exact) or under *pressure* (a
node was full: where the spill begins depends on what lay on per-CPU lists).

What is compared: results of steps, placement of every dumped region, counters from the first snapshot to the last,
watermarks, pools of huge pages, OOM kills. What no replay can know (addresses, pids, times) is not.
"""

import re
from dataclasses import dataclass, field

PAGES_PER_MIB = 256
NODE = "node"  # a tolerance that is a share of the largest node
NODE_SHARE = 0.05  # how far the start of a spill moves between two runs of Linux
NODE_SHARE_OF = {"a31": 0.12}  # by family of cases: Linux varies more there
ORDER_RUNS = 96  # longer run-length codes are cut in the recording

# steps whose return value is a result, and those of which only success or failure is one
RESULT_OPS = frozenset(
    "set_mempolicy mbind munmap mprotect madvise mlock munlock migrate_pages move_pages "
    "get_mempolicy touch setcpu read_file write_file exit".split()
)
CHECKED_OPS = RESULT_OPS | frozenset("mmap brk mremap fork spawn write cgroup_attach".split())

# vmstat counter (or a sum): relative tolerance, absolute one in a quiet case, absolute one under pressure
COUNTERS = {
    "pgfault": (0.01, 64, NODE),
    "pgmajfault": (0.15, 16, 64),
    "nr_anon_pages": (0.0, 64, NODE),
    "nr_file_pages": (0.0, 200, NODE),
    "nr_shmem": (0.0, 64, 1400),
    "nr_mapped": (0.0, 64, NODE),
    "nr_page_table_pages": (0.0, 24, 200),
    "nr_mlock": (0.0, 16, 64),
    "pswpin": (0.15, 16, NODE),
    "pswpout": (0.15, 16, NODE),
    "oom_kill": (0.0, 0, 0),
    "pgmigrate_success": (0.05, 130, NODE),
    "workingset_refault_file": (0.10, 64, NODE),
    "workingset_refault_anon": (0.10, 64, NODE),
    "nr_dirtied": (0.05, 64, 600),
    "nr_written": (0.10, 64, NODE),
    "thp_fault_alloc": (0.0, 2, 8),
    "thp_fault_fallback": (0.0, 2, 24),
    "thp_collapse_alloc": (0.0, 1, 4),
    "thp_split_pmd": (0.0, 4, 24),
    "thp_zero_page_alloc": (0.0, 1, 1),
    "htlb_buddy_alloc_success": (0.0, 2, 8),
    "pgdemote_kswapd+pgdemote_direct": (0.15, 64, NODE),
    "pgsteal_kswapd+pgsteal_direct": (0.10, 64, NODE),
    "pgscan_kswapd+pgscan_direct": (0.60, 64, NODE),
    "pgsteal_file": (0.10, 64, NODE),
    "pgsteal_anon": (0.10, 64, NODE),
    "numa_hint_faults": (0.10, 64, 600),
    "numa_pages_migrated": (0.10, 64, 600),
    "numa_pte_updates": (0.10, 128, 600),
    "numa_huge_pte_updates": (0.50, 8, 64),
    "pgpromote_success": (0.10, 64, 2500),
    "pgpromote_candidate": (0.10, 64, 9000),
    "thp_migration_success": (0.0, 2, 16),
}
BALANCED_PAGES = 80  # of a region that the scanner of NUMA balancing may leave where they were
NOT_COUNTED = {"a45_cpuset": ("pgmigrate_success",)}  # Linux: 0 or all, as the kworker's CPU falls
NUMASTAT = ("numa_hit", "numa_miss", "numa_foreign", "interleave_hit", "local_node", "other_node")
NUMASTAT_QUIET, NUMASTAT_PRESSURE = (0.01, 160), (0.05, 2)  # relative; pages, or shares of a node
MIGRATE_RESULT = (0.02, 130)  # pages that stayed
FAULTS_QUIET, FAULTS_PRESSURE = (0.0, 16), (0.04, NODE)
MAJOR_FAULTS = 0.15  # relative
OOM_SCORE = 34  # of 1000
OOM_RSS = (0.08, 4)  # relative; kB per page of a node's share
ZONE_KEYS = ("min", "low", "high", "protection", "pcp_batch")
HUGEPAGES_PRESSURE = 4  # huge pages
FIXED_ADDRESSES = range(0x7D00_0000_0000, 0x7E00_0000_0000)  # where the cases map with MAP_FIXED
MAPS_MARGIN = 1 << 24  # bytes around them that are compared too

GROUPS = ("steps", "dumps", "deltas", "zones", "hugepages", "oom")


@dataclass
class Verdict:
    """Per group the number of checks and the list of disagreements, a line each."""

    checks: dict = field(default_factory=lambda: dict.fromkeys(GROUPS, 0))
    failures: dict = field(default_factory=lambda: {group: [] for group in GROUPS})

    @property
    def agrees(self):
        return not any(self.failures.values())

    def check(self, group, ok, what, ours, linux, more=""):
        self.checks[group] += 1
        if not ok:
            self.failures[group].append(f"{what}: is {ours}, Linux {linux}{more}")

    def near(self, group, what, ours, linux, relative, absolute):
        """|ours - linux| within the larger of the two bounds."""
        bound = max(absolute, relative * abs(linux))
        self.check(group, abs(ours - linux) <= bound, what, ours, linux, f", tolerance {bound:.0f}")


class Case:
    """A recorded case, with the tolerances that hold for it."""

    def __init__(self, record):
        self.name, self.steps, self.observed = record.get("name", "case"), record["steps"], record["observed"]
        kind = record.get("class", "quiet")
        self.quiet, self.balancing = kind == "quiet", kind == "balancing"
        repeat = record.get("repeat") or {}
        self.unstable = set(repeat.get("unstable", ()))
        self.again = [
            repeat[run] for run in ("deltas_run2", "deltas_run3") if repeat.get(run)
        ]  # the same Linux, once more
        share = NODE_SHARE_OF.get(self.name.split("_")[0], NODE_SHARE)
        self.node_pages = share * max(record["machine"]["memory_MiB"]) * PAGES_PER_MIB

    def pages(self, bound):
        """An absolute tolerance in pages."""
        return self.node_pages if bound == NODE else bound


# -- steps ---------------------------------------------------------------------------------------------------


def compare_steps(case, observed, verdict):
    """What each step answered: result, errno, faults, or how its task ended."""
    ours = {result["step"]: result for result in observed.get("step_results", [])}
    for index, linux in enumerate(case.observed.get("step_results", [])):
        index = linux.get("step", index)
        where = f"step {index} {linux.get('op')}"
        if linux.get("op") not in CHECKED_OPS:
            continue
        if index not in ours:
            verdict.check("steps", False, where, "missing", "there")
        elif linux.get("state") or ours[index].get("state"):
            ends = [(result.get("state"), result.get("sig", 0)) for result in (ours[index], linux)]
            verdict.check("steps", ends[0] == ends[1], f"{where}: end of the task", *ends)
        elif "ret" in linux and not case.unstable & {f"step_results/{index}/ret", f"step_results[{index}]/ret"}:
            compare_result(case, ours[index], linux, where, verdict)


def compare_result(case, ours, linux, where, verdict):
    """Success, errno, value and faults of one step."""
    op, value = linux["op"], ours.get("ret", 0)
    verdict.check("steps", (value < 0) == (linux["ret"] < 0), f"{where}: success", value, linux["ret"])
    if linux["ret"] < 0:
        verdict.check(
            "steps", ours.get("errno") == linux.get("errno"), f"{where}: errno", ours.get("errno"), linux.get("errno")
        )
        return
    if op == "migrate_pages":
        verdict.near("steps", f"{where}: result", ours.get("ret", -1), linux["ret"], *MIGRATE_RESULT)
    elif op in RESULT_OPS and (case.quiet or op != "move_pages"):
        verdict.check("steps", ours.get("ret") == linux["ret"], f"{where}: result", ours.get("ret"), linux["ret"])
    if op == "touch" and "minflt" in linux and not case.balancing:
        relative, absolute = FAULTS_QUIET if case.quiet else FAULTS_PRESSURE
        faults = [result.get("minflt", 0) + result.get("majflt", 0) for result in (ours, linux)]
        verdict.near("steps", f"{where}: faults", *faults, relative, case.pages(absolute))
        verdict.near(
            "steps",
            f"{where}: major faults",
            ours.get("majflt", 0),
            linux["majflt"],
            MAJOR_FAULTS,
            case.pages(absolute),
        )


# -- dumps ---------------------------------------------------------------------------------------------------


def placement(region):
    """{place: pages}; a page that is not there counts as absent, whyever."""
    pages = region.get("pages", {})
    places = {place: n for place, n in pages.items() if place.startswith("node") or place == "swapped"}
    places["absent"] = pages.get("absent", 0) + pages.get("efault", 0)
    return {place: n for place, n in places.items() if n}


def order(region):
    """The run-length code of a region with one word for absent pages."""
    runs = []
    for place, pages in region.get("node_runs", []):
        place = "absent" if place == "efault" else place
        if runs and runs[-1][0] == place:
            runs[-1][1] += pages
        else:
            runs.append([place, pages])
    return runs


def compare_dumps(case, observed, verdict):
    """The pages of each region at each dump, by node, and the lines of the task's maps."""
    for label, tasks in case.observed.get("dumps", {}).items():
        for task, linux in tasks.items():
            where, ours = f"dump {label}/{task}", observed.get("dumps", {}).get(label, {}).get(task)
            if ours is None:
                verdict.check("dumps", False, where, "missing", "there")
                continue
            for name, region in linux["regions"].items():
                path = f"dumps/{label}/{task}/regions/{name}"
                exact = case.quiet and not any(path in unstable for unstable in case.unstable)
                compare_region(case, ours.get("regions", {}).get(name), region, exact, f"{where}/{name}", verdict)
            compare_maps(ours, linux, where, verdict)
            if case.name.startswith("a4") and "oom_score" in linux:
                verdict.near(
                    "dumps", f"{where}: oom_score", ours.get("oom_score", -1), linux["oom_score"], 0.0, OOM_SCORE
                )


def compare_region(case, ours, linux, exact, where, verdict):
    """Where the pages of one region are: exact in a quiet case, else pages per node."""
    if ours is None:
        verdict.check("dumps", False, where, "missing", "there")
        return
    mine, theirs = placement(ours), placement(linux)
    if not exact:
        for place in sorted(set(mine) | set(theirs)):
            verdict.near(
                "dumps",
                f"{where}: pages {place}",
                mine.get(place, 0),
                theirs.get(place, 0),
                0.0,
                BALANCED_PAGES if case.balancing else case.pages(NODE),
            )
        return
    verdict.check("dumps", mine == theirs, f"{where}: pages", mine, theirs)
    if linux.get("node_runs_total", 0) <= ORDER_RUNS:
        verdict.check("dumps", order(ours) == order(linux), f"{where}: order", order(ours)[:6], order(linux)[:6])


def compare_maps(ours, linux, where, verdict):
    """Borders and permissions of the mappings around regions at fixed addresses."""
    fixed = [
        (int(r["addr"], 16), r["length"]) for r in linux["regions"].values() if int(r["addr"], 16) in FIXED_ADDRESSES
    ]
    if not fixed or "maps" not in linux:
        return
    low = min(start for start, _ in fixed) - MAPS_MARGIN
    high = max(start + length for start, length in fixed) + MAPS_MARGIN
    mine, theirs = (
        [" ".join(line.split()[:2]) for line in dump.get("maps", []) if low <= int(line.split("-")[0], 16) < high]
        for dump in (ours, linux)
    )
    verdict.check("dumps", mine == theirs, f"{where}: maps", mine[:4], theirs[:4])


# -- counters ------------------------------------------------------------------------------------------------


def total(counters, names):
    """The sum of counters written as "a+b"."""
    return sum(counters.get(name, 0) for name in names.split("+"))


def compare_deltas(case, observed, verdict):
    """Counters from the first snapshot to the last (to the next, if there are no more)."""
    labels = list(case.observed.get("deltas", {}))
    for label in ([label for label in labels if "=>" in label] or labels)[:1]:
        linux, ours = case.observed["deltas"][label], observed.get("deltas", {}).get(label)
        if ours is None:
            verdict.check("deltas", False, f"delta {label}", "missing", "there")
            continue
        compare_vmstat(case, ours.get("vmstat", {}), linux["vmstat"], f"delta {label}", verdict)
        for node, figures in linux.get("nodes", {}).items():
            mine = ours.get("nodes", {}).get(node, {}).get("numastat", {})
            compare_numastat(case, mine, figures.get("numastat", {}), node, f"delta {label} node {node}", verdict)


def compare_vmstat(case, ours, linux, where, verdict):
    """How far each counter of /proc/vmstat has come between two snapshots, within the tolerances of COUNTERS (pages)."""
    again = [run["vmstat"] for run in case.again if run.get("vmstat")]
    for names, (relative, calm, pressed) in COUNTERS.items():
        if names not in NOT_COUNTED.get(case.name, ()):
            slack = max((abs(total(run, names) - total(linux, names)) for run in again), default=0)
            absolute = (calm if case.quiet or case.balancing else case.pages(pressed)) + slack
            verdict.near("deltas", f"{where} {names}", total(ours, names), total(linux, names), relative, absolute)


def compare_numastat(case, ours, linux, node, where, verdict):
    """How far the numastat counters of a node have come between two snapshots, within their tolerance (pages)."""
    relative, absolute = NUMASTAT_QUIET if case.quiet or case.balancing else NUMASTAT_PRESSURE
    if not (case.quiet or case.balancing):
        absolute *= case.node_pages
    again = [run.get("nodes", {}).get(node, {}).get("numastat", {}) for run in case.again]
    migrates = any(step["op"] in ("migrate_pages", "cgroup_attach") for step in case.steps)
    for name in NUMASTAT:
        if migrates and name in ("local_node", "other_node"):  # depends on the CPU of the kworker
            continue
        slack = max((abs(run.get(name, 0) - linux.get(name, 0)) for run in again), default=0)
        verdict.near("deltas", f"{where} {name}", ours.get(name, 0), linux.get(name, 0), relative, absolute + slack)


# -- zones, huge pages, OOM ----------------------------------------------------------------------------------


def padded(ours, linux):
    """Two protection lists at one length: what one side does not name is as its last one, or as the other's."""
    ours, size = list(ours or []), max(len(ours or []), len(linux))
    linux = list(linux) + [linux[-1] if linux else 0] * (size - len(linux))
    return ours + linux[len(ours) :], linux


def compare_zones(case, observed, verdict):
    """Watermarks of every snapshot, in the cases that are about zones."""
    if not case.name.endswith("_zones"):
        return
    for label, snapshot in case.observed.get("snapshots", {}).items():
        zones = observed.get("snapshots", {}).get(label, {}).get("zones", {})
        for zone, linux in snapshot.get("zones", {}).items():
            for key in (key for key in ZONE_KEYS if key in linux):
                mine, theirs = zones.get(zone, {}).get(key), linux[key]
                if key == "protection":
                    mine, theirs = padded(mine, theirs)
                verdict.check("zones", mine == theirs, f"snapshot {label} zone {zone} {key}", mine, theirs)


def compare_hugepages(case, observed, verdict):
    """Pools per node, where there are any."""
    for label, snapshot in case.observed.get("snapshots", {}).items():
        nodes = observed.get("snapshots", {}).get(label, {}).get("nodes", {})
        for node, linux in snapshot.get("nodes", {}).items():
            pools = linux.get("hugepages_2M") or {}
            for key, value in pools.items() if any(pools.values()) else ():
                mine = nodes.get(node, {}).get("hugepages_2M", {}).get(key, -1)
                verdict.near(
                    "hugepages",
                    f"snapshot {label} node {node} {key}",
                    mine,
                    value,
                    0.0,
                    0 if case.quiet else HUGEPAGES_PRESSURE,
                )


def kills(observed):
    """[(constraint, task, rss in kB)] of the OOM events, from the lines that dmesg prints."""
    found = []
    for event in observed.get("oom", []):
        summary, killed = event.get("summary") or "", event.get("killed") or ""
        constraint, task = re.search(r"constraint=(\w+)", summary), re.search(r"[(,]?task=(\w+)", summary)
        rss = re.search(r"anon-rss:(\d+)kB", killed)
        found.append((constraint and constraint[1], task and task[1].removeprefix("task"), int(rss[1]) if rss else 0))
    return found


def compare_oom(case, observed, verdict):
    """Who was killed and why, how large it was, and how every task ended."""
    linux, ours = kills(case.observed), kills(observed)
    verdict.check("oom", [kill[:2] for kill in linux] == [kill[:2] for kill in ours], "oom kills", ours, linux)
    for mine, theirs in zip(ours, linux):
        verdict.near(
            "oom", f"rss of {theirs[1]} at its kill, kB", mine[2], theirs[2], OOM_RSS[0], OOM_RSS[1] * case.node_pages
        )
    for task, end in case.observed.get("final", {}).items():
        mine = observed.get("final", {}).get(task, {})
        ends = [(bool(e.get("dead")), e.get("sig", 0)) for e in (mine, end)]
        verdict.check("oom", ends[0] == ends[1], f"end of {task} (dead, signal)", *ends)


def judge(record, observed):
    """Compare a replay's `observed` with a recorded case: a Verdict."""
    case, verdict = Case(record), Verdict()
    for part in (compare_steps, compare_dumps, compare_deltas, compare_zones, compare_hugepages, compare_oom):
        part(case, observed, verdict)
    return verdict

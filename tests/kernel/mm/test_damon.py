"""DAMON: regions that join and split, and the files of /sys/kernel/mm/damon/admin as damo writes them."""

import errno
import random

import pytest

from numaemu import Machine
from numaemu.compiler.build import JIT
from numaemu.kernel.fs.sysfs import damon
from numaemu.kernel.mm.damon import core
from numaemu.kernel.mm.damon.vaddr import three_regions

interpreted = pytest.mark.interpreted
ROOT, PAGE = damon.ROOT, 4096
CONTEXT = f"{ROOT}/0/contexts/0"
SCHEME = f"{CONTEXT}/schemes/0"
MOST = (1 << 64) - 1


def span(regions):
    return [(region.start // PAGE, region.end // PAGE) for region in regions]


# -- regions


@interpreted
def test_three_regions_are_what_the_two_largest_gaps_leave():
    assert three_regions([(0, 10), (20, 30)]) == [(0, 30)]  # less than a page is no gap
    ranges = [(10 * PAGE, 11 * PAGE), (15 * PAGE, 16 * PAGE), (17 * PAGE, 20 * PAGE), (90 * PAGE, 99 * PAGE)]
    assert three_regions(ranges) == [(10 * PAGE, 11 * PAGE), (15 * PAGE, 20 * PAGE), (90 * PAGE, 99 * PAGE)]
    assert three_regions(ranges[:2]) == ranges[:2] and three_regions([]) == []


@interpreted
def test_initial_regions_are_about_equal_and_cover_everything():
    found = core.init_regions([(0, 10 * PAGE), (100 * PAGE, 130 * PAGE)], 8)
    assert span(found)[0] == (0, 5) and span(found)[-1][1] == 130 and len(found) == 8
    assert all(a.end <= b.start for a, b in zip(found, found[1:])) and sum(r.size for r in found) == 40 * PAGE
    assert span(core.init_regions([(0, 1000 * PAGE), (2000 * PAGE, 2001 * PAGE)], 10))[-1] == (
        2000,
        2001,
    )  # a small one: a stack


@interpreted
def test_neighbours_alike_become_one_and_others_do_not():
    regions = [core.Region(i * PAGE, (i + 1) * PAGE) for i in range(6)]
    for region, accesses in zip(regions, (0, 1, 9, 10, 10, 0)):
        region.nr_accesses = accesses
    merged = core.merge_regions(regions, 1, 100 * PAGE)
    assert span(merged) == [(0, 2), (2, 5), (5, 6)]
    assert [region.age for region in merged] == [1, 0, 1]  # what has changed is of age 0
    again = [core.Region(i * PAGE, (i + 1) * PAGE) for i in range(6)]
    assert span(core.merge_regions(again, 1, 2 * PAGE)) == [(0, 2), (2, 4), (4, 6)]  # the limit of a region's size


@interpreted
@pytest.mark.parametrize("parts", [2, 3])
def test_split_regions_cover_what_they_were_made_of(parts):
    chance = random.Random(7)
    for pages in (1, 2, 3, 10, 1000):
        whole = core.Region(5 * PAGE, (5 + pages) * PAGE)
        whole.age, whole.last_nr_accesses = 4, 3
        found = core.split_regions([whole], parts, chance)
        assert found[0].start == 5 * PAGE and found[-1].end == (5 + pages) * PAGE and len(found) <= parts
        assert all(a.end == b.start for a, b in zip(found, found[1:]))
        assert all(r.size >= PAGE and r.age == 4 and r.last_nr_accesses == 3 for r in found)
        assert len(found) > 1 or pages <= 2


def run(context, used, samples):
    """So many sampling intervals, of which pages `used(address)` says so of are used in each."""

    def look(target, addresses, marked):
        return [used(address) for address in addresses] if addresses else [0] * len(marked)

    for _ in range(samples):
        steps, answer = context.sample(look), None
        try:
            while True:
                answer = steps.send(answer)
        except StopIteration:
            pass


@interpreted
def test_regions_come_to_show_which_memory_is_hot():
    """Of 1024 pages 128 in the middle are used all the time: what is seen as hot is they, as far as chance has come."""
    attributes = core.Attributes(sample_us=10, aggr_us=200, min_nr_regions=10, max_nr_regions=100)
    scheme = core.Scheme((0, MOST), (15, MOST), (0, MOST))
    target = core.Target(1, 101)
    context = core.Context(attributes, [target], [scheme], lambda target: [(0, 1024 * PAGE)], seed=3)
    run(context, lambda address: 400 <= address // PAGE < 528, 20 * 60)
    hot = {page for start, end, *_ in scheme.tried for page in range(start // PAGE, end // PAGE)}
    really = set(range(400, 528))
    assert len(hot & really) > 100 and len(hot - really) < 40
    assert sum(region.size for region in target.regions) == 1024 * PAGE
    assert 10 <= len(target.regions) <= 100


@interpreted
def test_accesses_between_aggregations_are_a_moving_sum():
    """A scheme may be applied after each sample: it sees about as many accesses as an aggregation has, not those since the last one."""
    attributes = core.Attributes(sample_us=10, aggr_us=200, min_nr_regions=3, max_nr_regions=3)
    scheme = core.Scheme((0, MOST), (0, MOST), (0, MOST), apply_interval_us=10)
    context = core.Context(attributes, [core.Target(1, 101, [(0, 64 * PAGE)])], [scheme], None)
    seen = []
    for _ in range(100):
        run(context, lambda address: True, 1)
        seen.append(scheme.tried[0][2] if scheme.tried else 0)
    assert seen[1:21] == list(range(1, 21)) and set(seen[40:]) == {20}
    run(context, lambda address: False, 10)
    assert 8 <= scheme.tried[0][2] <= 12
    again = core.Context(
        attributes, [core.Target(1, 101, [(0, 64 * PAGE)])], [core.Scheme((0, MOST), (0, MOST), (0, MOST))], None
    )
    again.go_on_from(context)
    assert again.schemes[0].tried is None and again.schemes[0].nr_tried == scheme.nr_tried
    assert again.schemes[0].fitting(again.regions()) == scheme.fitting(context.regions())


@interpreted
def test_a_target_that_has_ended_is_dropped():
    context = core.Context(core.Attributes(), [core.Target(1, 7)], [], lambda target: [(0, 64 * PAGE)])
    steps = context.sample(lambda *_: None)
    next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(None)
    assert end.value.value is False and context.targets == []


# -- the files


class Files:
    """A machine in this process, its files by path below ROOT."""

    def __init__(self, loop):
        self.loop, self.coordinator = loop, loop.actors[0]

    def read(self, path):
        return self.coordinator.rpc_read(f"{ROOT}/{path}").strip()

    def write(self, path, value):
        assert self.coordinator.rpc_write(f"{ROOT}/{path}", str(value)) is None

    def refused(self, path, value, number, text):
        with pytest.raises(OSError, match=text) as caught:
            self.write(path, value)
        assert caught.value.errno == number and "\n" not in str(caught.value)


@pytest.fixture
def files(two_nodes):
    return Files(two_nodes)


def stage(write, pid, sample_us=5000, aggr_us=100_000):
    """What `damo start` writes before it turns DAMON on, in its order (src/_damon_sysfs.py)."""
    write("nr_kdamonds", 1)
    write("0/contexts/nr_contexts", 1)
    context = "0/contexts/0"
    write(f"{context}/operations", "vaddr")
    for name, value in (("sample_us", sample_us), ("aggr_us", aggr_us), ("update_us", 1_000_000)):
        write(f"{context}/monitoring_attrs/intervals/{name}", value)
    write(f"{context}/monitoring_attrs/nr_regions/min", 10)
    write(f"{context}/monitoring_attrs/nr_regions/max", 1000)
    write(f"{context}/targets/nr_targets", 1)
    write(f"{context}/targets/0/pid_target", pid)
    write(f"{context}/schemes/nr_schemes", 1)
    scheme = f"{context}/schemes/0"
    for part in ("sz", "nr_accesses", "age"):
        write(f"{scheme}/access_pattern/{part}/min", 0)
        write(f"{scheme}/access_pattern/{part}/max", MOST)
    write(f"{scheme}/action", "stat")
    for name in ("ms", "bytes", "reset_interval_ms"):
        write(f"{scheme}/quotas/{name}", 0)
    for name in ("sz_permil", "nr_accesses_permil", "age_permil"):
        write(f"{scheme}/quotas/weights/{name}", 0)
    write(f"{scheme}/watermarks/metric", "none")
    for name in ("interval_us", "high", "mid", "low"):
        write(f"{scheme}/watermarks/{name}", 0)
    write(f"{scheme}/apply_interval_us", 0)


@interpreted
def test_numbered_directories_come_and_go(files):
    listdir = files.coordinator.rpc_listdir
    assert listdir("/sys/kernel/mm/damon/admin") == ["kdamonds"] and listdir(ROOT) == ["nr_kdamonds"]
    files.write("nr_kdamonds", 2)
    assert listdir(ROOT) == ["0", "1", "nr_kdamonds"] and listdir(f"{ROOT}/0") == ["contexts", "pid", "state"]
    files.write("1/contexts/nr_contexts", 1)
    assert (
        files.read("1/contexts/0/operations") == "vaddr"
        and files.read("0/state") == "off"
        and files.read("0/pid") == "-1"
    )
    assert files.read("1/contexts/0/monitoring_attrs/intervals/aggr_us") == "100000"
    files.refused("nr_kdamonds", (1 << 31) - 1, errno.ENOMEM, "2147483647 directories are too many, at most 4096")
    assert listdir(ROOT) == ["0", "1", "nr_kdamonds"]
    with pytest.raises(FileNotFoundError):
        files.read("0/contexts/1/operations")
    with pytest.raises(IsADirectoryError):
        files.read("1/contexts/0")
    with pytest.raises(PermissionError):
        files.write("0/pid", 1)
    files.write("nr_kdamonds", 1)
    assert listdir(ROOT) == ["0", "nr_kdamonds"] and listdir(f"{ROOT}/0/contexts") == ["nr_contexts"]


@interpreted
def test_what_damo_writes_is_taken_and_turns_it_on(files):
    task = files.loop.task()
    task.mmap("256KiB").touch()
    stage(files.write, task.pid)
    files.write("0/state", "on")
    assert files.read("0/state") == "on" and int(files.read("0/pid")) > 0 and files.loop.machine.every_at_ns > 0
    files.refused("0/state", "on", errno.EBUSY, "is on already")
    files.refused("nr_kdamonds", 2, errno.EBUSY, "a kdamond is running")
    files.write("0/state", "update_schemes_tried_regions")
    assert (
        int(files.read("0/contexts/0/schemes/0/tried_regions/total_bytes")) >= 256 << 10
    )  # as they would be tried now
    files.write("0/state", "clear_schemes_tried_regions")
    assert files.coordinator.rpc_listdir(f"{SCHEME}/tried_regions") == ["total_bytes"]
    files.write("0/contexts/0/monitoring_attrs/nr_regions/max", 200)
    files.write("0/state", "commit")
    assert files.read("0/state") == "on"
    files.write("0/state", "off")
    assert files.read("0/state") == "off" and files.loop.machine.every_at_ns == 0
    files.refused("0/state", "off", errno.EINVAL, "is off: off needs it on")


@interpreted
@pytest.mark.parametrize("path, value, text", [
    ("contexts/nr_contexts", 2, "is '2', must be 0 to 1"),
    ("contexts/0/operations", "pages", "is 'pages', must be vaddr or fvaddr or paddr"),
    ("contexts/0/schemes/0/action", "pageout", "is 'pageout', must be stat"),
    ("contexts/0/schemes/0/quotas/ms", 10, "is '10', must be 0 to 0"),
    ("contexts/0/schemes/0/watermarks/metric", "free_mem_rate", "must be none"),
    ("contexts/0/targets/0/pid_target", -1, "is '-1', must be 0 to 2147483647"),
    ("contexts/0/monitoring_attrs/intervals/sample_us", "often", "is 'often'"),
    ("state", "update_tuned_intervals", "must be on, off, commit"),
])  # fmt: skip
def test_what_is_not_supported_is_refused_in_one_line(files, path, value, text):
    stage(files.write, 1)
    files.refused(f"0/{path}", value, errno.EINVAL, text)


@interpreted
@pytest.mark.parametrize("path, value, text", [
    ("schemes/0/filters/nr_filters", 1, "schemes/0/filters has 1, there are no filters here"),
    ("schemes/0/quotas/goals/nr_goals", 2, "schemes/0/quotas/goals has 2, there are no goals here"),
    ("operations", "paddr", "operations is paddr, there are vaddr and fvaddr"),
    ("targets/0/pid_target", 99999, "pid_target is 99999, there is no such task"),
    ("monitoring_attrs/nr_regions/min", 2, "nr_regions/min is 2, must be at least 3"),
    ("monitoring_attrs/nr_regions/max", 5, "nr_regions/min is 10, must be at most nr_regions/max, 5"),
    ("monitoring_attrs/intervals/sample_us", 200_000, "intervals/sample_us is 200000, must be at most intervals/aggr_us"),
    ("targets/0/regions/nr_regions", 1, "region 0 to 0 of task .* is empty"),
])  # fmt: skip
def test_what_does_not_fit_together_does_not_turn_it_on(files, path, value, text):
    stage(files.write, files.loop.task().pid)
    files.write(f"0/contexts/0/{path}", value)
    files.refused("0/state", "on", errno.EINVAL, text)
    assert files.read("0/state") == "off"


# -- on a running machine


@pytest.mark.skipif(not JIT, reason="processes")
@pytest.mark.parametrize("lockstep", [False, True])
def test_a_running_machine_shows_which_part_is_hot(lockstep):
    """A task uses one MiB of four all the time: its regions have accesses, others have few; beside a function of the driver's."""
    with Machine(nodes=1, cpus_per_node=2, memory_per_node="32MiB", lockstep=lockstep) as machine:
        task, times = machine.task(cpu=1), []
        area = task.mmap("4MiB").touch()
        stage(lambda path, value: machine.write(f"{ROOT}/{path}", value), task.pid, sample_us=20, aggr_us=200)
        machine.write(f"{CONTEXT}/targets/0/regions/nr_regions", 1)
        machine.write(f"{CONTEXT}/targets/0/regions/0/start", area.addr)
        machine.write(f"{CONTEXT}/targets/0/regions/0/end", area.addr + area.nbytes)
        machine.write(f"{ROOT}/0/state", "on")
        timer, begin = machine.every(50_000, times.append), task.clock_ns
        hot = area.addr + (1 << 20)
        while task.clock_ns < begin + 5_000_000:
            task.touch(hot, 1 << 20)
        timer.stop()
        machine.write(f"{ROOT}/0/state", "update_schemes_tried_regions")
        machine.write(f"{ROOT}/0/state", "update_schemes_stats")
        found = []
        for name in machine.listdir(f"{SCHEME}/tried_regions"):
            if name != "total_bytes":
                fields = ("start", "end", "nr_accesses", "age")
                found.append([int(machine.read(f"{SCHEME}/tried_regions/{name}/{field}")) for field in fields])
        assert sum(end - start for start, end, *_ in found) == area.nbytes
        assert int(machine.read(f"{SCHEME}/tried_regions/total_bytes")) == area.nbytes
        assert int(machine.read(f"{SCHEME}/stats/nr_tried")) >= len(found)

        def heat(first, last):
            return sum(n * max(min(end, last) - max(start, first), 0) for start, end, n, _ in found) / (last - first)

        assert heat(hot, hot + (1 << 20)) > 3 * max(
            heat(area.addr, hot), heat(hot + (1 << 20), area.addr + area.nbytes), 0.1
        )
        assert timer.calls == len(times) > 10
        task.exit()
        other = machine.task(cpu=0)
        while machine.read(f"{ROOT}/0/state") == "on\n":  # until it sees that its target has ended
            other.work(100_000)
        assert machine.read(f"{ROOT}/0/pid") == "-1\n"

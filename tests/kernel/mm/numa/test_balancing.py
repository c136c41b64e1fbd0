"""NUMA balancing on a loopback machine: which entries get hints, what a hinting fault does, what the statistics say."""

import errno

import numpy as np
import pytest

from numaemu import uapi
from numaemu.hardware.paging import _PAGE_RW, _PAGE_USER
from numaemu.kernel.include.mm_types import numa_faults_t, numa_group_t, task_t
from numaemu.kernel.mm.numa.cpupid import (
    LAST_CPUPID_MASK,
    cpu_pid_to_cpupid,
    cpupid_match_pid,
    cpupid_pid_unset,
    cpupid_to_cpu,
    folio_last_cpupid,
    folio_xchg_last_cpupid,
)
from numaemu.kernel.mm.numa.fault_stats import task_scan_min
from numaemu.kernel.mm.numa.prot_numa import change_prot_numa
from numaemu.kernel.mm.numa.task_migrate import numa_migrate_preferred
from numaemu.spec.param import PAGE_SIZE

pytestmark = pytest.mark.interpreted
SETTINGS = "/sys/kernel/debug/sched/numa_balancing"
FAST = {"scan_delay_ms": 1, "scan_period_min_ms": 1, "scan_period_max_ms": 4, "scan_size_mb": 1}
PAGES = 16
SLOW = [[5000, 8000], [8000, 5000]]  # ns


@pytest.fixture
def balanced(loopback):
    """Two nodes of two CPUs each; scanning is fast, and so does time pass."""
    loop = loopback(nodes=2, cpus_per_node=2, memory_per_node="16MiB", latency=SLOW)
    for name, value in FAST.items():
        loop.write(f"{SETTINGS}/{name}", str(value))
    loop.write("/proc/sys/kernel/numa_balancing", "1")
    return loop


def written(loop, task, pages=PAGES):
    """A mapping of so many pages, each written to, and none of them in a CPU's LRU batch, where it could not be taken."""
    area = task.mmap(pages * PAGE_SIZE)
    area.touch(write=True)
    loop.drain()
    return area


def nodes(task, area):
    """How many pages of a mapping are on each node."""
    return np.bincount(task.move_pages(area.pages()), minlength=2).tolist()


def run_for(task, area, ms, write=True):
    """Go over a mapping for so many ms of emulated time."""
    until = task.clock_ns + ms * 1_000_000
    while task.clock_ns < until:
        area.touch(write=write)


def hint(loop, task, area):
    """Scan a mapping as the task's CPU does; how many entries have a hint."""
    cpu = loop.cpu(task.cpu)
    (vma,) = [vma for vma in loop.vmas(task) if vma.start <= area.addr < vma.end]
    return change_prot_numa(cpu, vma, np.uint64(area.addr), np.uint64(area.addr + area.nbytes))


def counted(loop, *names):
    stats = loop.vmstat()
    return [stats[name] for name in names]


def test_pages_follow_a_task_and_come_back(balanced):
    task = balanced.task(cpu=0)
    area = written(balanced, task)
    assert nodes(task, area) == [PAGES, 0]
    for cpu, there in ((2, 1), (0, 0)):
        task.sched_setaffinity({cpu})
        run_for(task, area, 12)
        assert nodes(task, area)[there] == PAGES
        balanced.drain()
    updates, faults, local, moved = counted(
        balanced, "numa_pte_updates", "numa_hint_faults", "numa_hint_faults_local", "numa_pages_migrated"
    )
    assert updates == faults == moved == 2 * PAGES and local == 0
    assert counted(balanced, "pgmigrate_success") == [moved]
    assert area.array(np.uint8)[::PAGE_SIZE].sum() == 0
    balanced.audit()


def test_nothing_is_scanned_while_it_is_off(balanced):
    balanced.write("/proc/sys/kernel/numa_balancing", "0")
    task = balanced.task(cpu=0)
    area = written(balanced, task)
    task.sched_setaffinity({2})
    run_for(task, area, 12)
    assert nodes(task, area) == [PAGES, 0]
    assert counted(balanced, "numa_pte_updates", "numa_hint_faults") == [0, 0]


def test_an_entry_with_a_hint_faults_once_and_is_as_before(balanced):
    """Two threads: also what is on the own node gets hints then."""
    task = balanced.task(cpu=0)
    other = task.clone()
    area = written(balanced, task, 4)
    assert hint(balanced, task, area) == 4
    pte = balanced.pte(task, area.addr)
    assert pte & int(_PAGE_USER | _PAGE_RW) == 0
    before = task.counters()["task_minor_faults"]
    area.touch(write=True)
    assert task.counters()["task_minor_faults"] - before == 4  # written again without a second fault
    assert balanced.pte(task, area.addr) & int(_PAGE_USER | _PAGE_RW) == int(_PAGE_USER | _PAGE_RW)
    assert counted(balanced, "numa_hint_faults", "numa_hint_faults_local", "numa_pages_migrated") == [4, 4, 0]
    other.exit()


def test_a_task_alone_gets_no_hints_for_its_own_node(balanced):
    task = balanced.task(cpu=0)
    area = written(balanced, task, 4)
    assert hint(balanced, task, area) == 0
    task.sched_setaffinity({3})
    area.touch(write=False)
    assert hint(balanced, task, area) == 4
    assert hint(balanced, task, area) == 0  # they have one


def test_what_is_passed_over(balanced):
    task = balanced.task(cpu=0)
    area = written(balanced, task, 4)
    zero = task.mmap(4 * PAGE_SIZE)
    zero.touch(write=False)
    child = task.fork(cpu=2)
    child.store([area.addr], np.uint8([1]))
    assert hint(balanced, child, zero) == 0  # the page of zeros
    assert hint(balanced, child, area) == 0  # its own page is on its node, the others are shared copy on write
    child.sched_setaffinity({0})
    child.load([area.addr], np.uint8)
    assert hint(balanced, child, area) == 1


@pytest.mark.parametrize(
    ("policy", "nodes_", "moves"),
    [
        (uapi.MPOL_BIND, "0-1", False),
        (uapi.MPOL_BIND | uapi.MPOL_F_NUMA_BALANCING, "0-1", True),
        (uapi.MPOL_PREFERRED_MANY | uapi.MPOL_F_NUMA_BALANCING, "0-1", True),
        (uapi.MPOL_BIND | uapi.MPOL_F_NUMA_BALANCING, "0", False),
        (uapi.MPOL_INTERLEAVE, "0-1", False),
        (uapi.MPOL_LOCAL, None, False),
    ],
)
def test_policies(balanced, policy, nodes_, moves):
    task = balanced.task(cpu=0)
    area = written(balanced, task)
    task.mbind(area.addr, area.nbytes, policy, nodes_)
    task.sched_setaffinity({2})
    run_for(task, area, 8)
    assert (nodes(task, area)[1] > 0) is moves


def test_balancing_is_a_flag_of_bind_and_preferred_many_only(balanced):
    task = balanced.task(cpu=0)
    balancing = uapi.MPOL_F_NUMA_BALANCING
    for mode in (uapi.MPOL_INTERLEAVE, uapi.MPOL_PREFERRED, uapi.MPOL_WEIGHTED_INTERLEAVE):
        with pytest.raises(OSError) as caught:
            task.set_mempolicy(mode | balancing, "0")
        assert caught.value.errno == errno.EINVAL
    task.set_mempolicy(uapi.MPOL_BIND | balancing | uapi.MPOL_F_STATIC_NODES, "0-1")
    assert task.get_mempolicy() == (uapi.MPOL_BIND | balancing | uapi.MPOL_F_STATIC_NODES, [0, 1])
    area = written(balanced, task, 1)
    assert f"{area.addr:08x} bind=static|balancing:0-1" in balanced.read(f"/proc/{task.pid}/numa_maps")


def test_read_only_files_and_shared_memory_stay(balanced):
    balanced.create_file("/f", 4 * PAGE_SIZE)
    task = balanced.task(cpu=0)
    with task.open("/f", uapi.O_RDWR) as file:
        library = task.mmap(4 * PAGE_SIZE, uapi.PROT_READ, uapi.MAP_PRIVATE, file)
        private = task.mmap(4 * PAGE_SIZE, flags=uapi.MAP_PRIVATE, file=file)
    shared = task.mmap(4 * PAGE_SIZE, flags=uapi.MAP_SHARED | uapi.MAP_ANONYMOUS)
    for area in (library, private, shared):
        area.touch(write=False)
    private.touch(write=True)
    balanced.drain()
    task.sched_setaffinity({2})
    for _ in range(20):
        for area in (library, private, shared):
            area.touch(write=False)
    assert nodes(task, library) == nodes(task, shared) == [4, 0]
    assert nodes(task, private) == [0, 4]


def test_a_full_node_takes_no_pages(balanced):
    task, filler = balanced.task(cpu=0), balanced.task(cpu=2)
    area = written(balanced, task)
    filler.set_mempolicy(uapi.MPOL_PREFERRED, "1")
    filler.mmap("15600KiB").touch(write=True)
    task.sched_setaffinity({2})
    run_for(task, area, 8)
    assert nodes(task, area) == [PAGES, 0]
    assert counted(balanced, "numa_hint_faults")[0] >= PAGES


def test_the_statistics_of_a_task(balanced):
    task = balanced.task(cpu=0)
    area = written(balanced, task)
    task.sched_setaffinity({2})
    run_for(task, area, 20)
    task.sched_setaffinity({0})
    run_for(task, area, 20)
    lines = balanced.read(f"/proc/{task.pid}/sched").splitlines()
    shown = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    assert int(shown["mm->numa_scan_seq"]) >= 2
    assert int(shown["numa_pages_migrated"]) == counted(balanced, "numa_pages_migrated")[0]
    assert int(shown["numa_preferred_nid"]) in (0, 1) and int(shown["total_numa_faults"]) > 0
    assert "current_node=0, numa_group_id=0" in lines
    assert any(line.startswith("numa_faults node=1 task_private=") for line in lines)


def test_threads_that_share_memory_become_a_group(balanced):
    """The one with the lower number of two groups of equal size joins the other, when it meets the other's last access."""
    task = balanced.task(cpu=0)
    other = task.clone(cpu=2)
    mine, theirs = written(balanced, task), written(balanced, other)
    words = task_t.array(balanced.machine.tasks)
    for area, order in ((theirs, (task, other, task)), (mine, (other, task, other))):
        for who in order:
            hint(balanced, who, area)
            who.store(area.pages(), np.uint64([1]))
    group = words[task._number].numa_group
    assert group != 0 and words[other._number].numa_group == group
    assert f"Ngid:\t{task.pid}\n" in balanced.read(f"/proc/{other.pid}/status")
    members = numa_group_t.array(balanced.machine.numa_groups)[group]
    assert (members.nr_tasks, members.refcount) == (2, 2)
    other.exit()
    assert (members.nr_tasks, members.refcount) == (1, 1)
    task.exit()
    assert members.refcount == 0


def test_a_huge_page_moves_whole(loopback):
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="24MiB", latency=SLOW)
    for name, value in FAST.items():
        loop.write(f"{SETTINGS}/{name}", str(value))
    loop.write("/sys/kernel/mm/transparent_hugepage/enabled", "always")
    loop.write("/proc/sys/kernel/numa_balancing", "1")
    task = loop.task(cpu=0)
    area = task.mmap("4MiB")
    area.touch(write=True)
    task.sched_setaffinity({1})
    task.store(area.pages()[::64], np.uint64([7]))
    hint(loop, task, area)
    task.load(area.pages()[::512], np.uint64)
    assert counted(loop, "thp_migration_success")[0] >= 1
    huge, pages = counted(loop, "numa_huge_pte_updates", "numa_pages_migrated")
    assert huge >= 1 and pages >= 512
    assert task.load(area.pages()[::64], np.uint64).tolist() == [7] * (len(area.pages()) // 64)
    loop.audit()


def test_last_cpupid(loopback):
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="16MiB")
    page = loop.page(100)
    page.flags = 0x5
    assert folio_last_cpupid(page) == LAST_CPUPID_MASK and cpupid_pid_unset(LAST_CPUPID_MASK)
    one, two = cpu_pid_to_cpupid(3, 0x1234), cpu_pid_to_cpupid(1000, 77)
    assert folio_xchg_last_cpupid(page, one) == LAST_CPUPID_MASK
    assert folio_xchg_last_cpupid(page, two) == one
    assert (cpupid_to_cpu(one), cpupid_to_cpu(two)) == (3, 1000)
    assert cpupid_match_pid(0x5634, one) and not cpupid_match_pid(77, one)
    assert int(page.flags) & 0xFFFF == 0x5
    page.flags = 0


def test_the_shortest_period_follows_the_memory(balanced):
    task = balanced.task(cpu=0)
    written(balanced, task, 16)
    words = task_t.array(balanced.machine.tasks)[task._number]
    balanced.write(f"{SETTINGS}/scan_period_min_ms", "3000")
    assert task_scan_min(balanced.machine, words) == 3000
    balanced.write(f"{SETTINGS}/scan_size_mb", "4096")  # more than 2560 MB a second are not scanned
    balanced.write(f"{SETTINGS}/scan_period_min_ms", "10")
    assert task_scan_min(balanced.machine, words) == 1000


def test_a_task_goes_to_its_memory(balanced):
    """Half of what it uses is shared, so that its pages stay on the node where most are; it may run on both."""
    task, other = balanced.task(cpu=0), balanced.task(cpu=2)
    area = written(balanced, task)
    task.sched_setaffinity({2})
    assert task.sched_setaffinity({0, 2}) == 2
    words = task_t.array(balanced.machine.tasks)[task._number]
    words.numa_migrate_to = 1  # as task_numa_migrate leaves word
    area.touch(write=False)
    assert (task.cpu, task.node, words.numa_migrate_to) == (0, 0, 0)
    other.exit()


def statistics(balanced, task, by_node, preferred):
    """Give a task statistics as if it had taken so many private faults on each node."""
    words = task_t.array(balanced.machine.tasks)[task._number]
    faults = numa_faults_t.array(balanced.machine.numa_faults_table)[task._number].faults
    for node, count in enumerate(by_node):
        faults[2 * node + 1] = count
    words.numa_faults, words.total_numa_faults, words.numa_preferred_nid = 1, sum(by_node), preferred
    return words


def test_where_a_task_would_go(balanced):
    """To an idle CPU of the node with its memory, if that has no more tasks then than ours; where all are busy it changes places
    with a task that loses less than it wins.
    """
    task = balanced.task(cpu=2)
    task.mmap("4KiB").touch()
    words = statistics(balanced, task, (900, 100), preferred=0)

    def wanted():
        words.numa_migrate_retry_ns = words.numa_migrate_to = 0
        numa_migrate_preferred(balanced.cpu(2))
        return words.numa_migrate_to - 1

    assert wanted() == -1  # it may not leave its CPU
    task.sched_setaffinity({0, 1, 2})
    assert wanted() == 0
    first, second = (balanced.task(cpu=cpu) for cpu in (0, 1))
    first.mmap("4KiB").touch()
    assert wanted() == -1  # there would be two tasks on one node and none on ours
    second.mmap("4KiB").touch()
    stays = statistics(balanced, first, (1000, 0), preferred=0)
    leaves = statistics(balanced, second, (600, 400), preferred=0)
    assert wanted() == -1  # neither may come to ours
    for who, cpu in ((first, 0), (second, 1)):
        who.sched_setaffinity({cpu, 2})
    assert (wanted(), leaves.numa_migrate_to, stays.numa_migrate_to) == (1, 3, 0)

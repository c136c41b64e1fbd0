"""Control groups: the files, what a cpuset allows, what follows when it changes, what is charged to a group."""

import errno

import numpy as np
import pytest

from numaemu import (
    __GFP_COMP,
    __GFP_HARDWALL,
    __GFP_NORETRY,
    __GFP_NOWARN,
    GFP_ATOMIC,
    GFP_KERNEL,
    GFP_KERNEL_ACCOUNT,
    GFP_USER,
    MPOL_BIND,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_PREFERRED,
    Machine,
    OutOfMemory,
)
from numaemu.kernel.fs.proc import tree as proc
from numaemu.kernel.fs.sysfs import cgroup
from numaemu.kernel.include.mm_types import cgroup_t, policy_t
from numaemu.kernel.mm.space.mempolicy import mpol_new, mpol_rebind_policy
from numaemu.uapi import MAP_ANONYMOUS, MAP_HUGETLB, MAP_PRIVATE, MAP_SHARED

U = np.uint64
ROOT = "/sys/fs/cgroup"


@pytest.fixture
def four(loopback):
    """Four nodes with one CPU each, and a group /sys/fs/cgroup/g with both controllers."""
    loop = loopback(nodes=4, cpus_per_node=1, memory_per_node="8MiB")
    loop.system_of = loop.actors[0].system
    loop.write(ROOT + "/cgroup.subtree_control", "+cpuset +memory")
    proc.mkdir(loop.system_of, ROOT + "/g")
    return loop


def read(loop, path):
    return proc.read(loop.actors[0].system, path)


def fails(loop, path, text):
    """The errno of a write."""
    with pytest.raises(OSError) as caught:
        proc.write(loop.actors[0].system, path, text)
    return caught.value.errno


def charged(text):
    """{name: bytes} of memory.stat."""
    return {name: int(nbytes) for name, nbytes in (line.split() for line in text.splitlines())}


def status(loop, task, name):
    lines = read(loop, f"/proc/{task.pid}/status").splitlines()
    return next(line.split(":\t")[1] for line in lines if line.startswith(name + ":"))


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_the_tree(four):
    system = four.system_of
    assert read(four, ROOT + "/cgroup.controllers") == "cpuset memory\n"
    assert {"cpuset.cpus", "cpuset.mems", "cpuset.mems.effective", "cgroup.procs", "memory.stat"} <= set(
        proc.listdir(system, ROOT + "/g")
    )
    assert read(four, ROOT + "/g/cpuset.mems") == "\n" and read(four, ROOT + "/g/cpuset.mems.effective") == "0-3\n"
    four.write(ROOT + "/g/cpuset.mems", "1,2-3")
    assert read(four, ROOT + "/g/cpuset.mems") == read(four, ROOT + "/g/cpuset.mems.effective") == "1-3\n"
    assert [fails(four, ROOT + "/g/cpuset.mems", text) for text in ("4", "x", "2-1", "1,")] == [errno.EINVAL] * 4
    assert fails(four, ROOT + "/g/cgroup.procs", "99999") == errno.ESRCH
    assert fails(four, ROOT + "/g/cgroup.subtree_control", "+cpu") == errno.EINVAL
    for path, number in (("/g", errno.EEXIST), ("/none/x", errno.ENOENT)):
        with pytest.raises(OSError) as caught:
            proc.mkdir(system, ROOT + path)
        assert caught.value.errno == number
    proc.mkdir(system, ROOT + "/g/inner")
    assert "cpuset.mems" not in proc.listdir(system, ROOT + "/g/inner")
    with pytest.raises(OSError) as caught:
        proc.rmdir(system, ROOT + "/g")
    assert caught.value.errno == errno.EBUSY
    proc.rmdir(system, ROOT + "/g/inner")
    proc.rmdir(system, ROOT + "/g")
    assert "g" not in proc.listdir(system, ROOT)


@pytest.mark.interpreted
def test_inner_groups_have_no_processes_and_inherit_what_they_do_not_set(four):
    task, system = four.task(), four.system_of
    proc.mkdir(system, ROOT + "/g/inner")
    four.write(ROOT + "/g/cpuset.mems", "1-2")
    four.write(ROOT + "/g/cgroup.subtree_control", "+cpuset")
    assert fails(four, ROOT + "/g/cgroup.procs", str(task.pid)) == errno.EBUSY
    four.write(ROOT + "/g/inner/cgroup.procs", str(task.pid))
    assert status(four, task, "Mems_allowed_list") == "1-2"
    four.write(ROOT + "/g/inner/cpuset.mems", "2-3")
    assert status(four, task, "Mems_allowed_list") == "2"
    four.write(ROOT + "/g/cpuset.mems", "0")  # nothing in common: as the parent
    assert status(four, task, "Mems_allowed_list") == read(four, ROOT + "/g/inner/cpuset.mems.effective").strip() == "0"
    assert read(four, f"/proc/{task.pid}/cgroup") == "0::/g/inner\n"
    assert read(four, ROOT + "/g/inner/cgroup.procs") == f"{task.pid}\n"


# -- what follows --------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_memory_follows_the_cpuset(four):
    """A process that comes into a group, and one whose group changes: pages, policies, children."""
    task = four.task(cpu=0)
    area = task.mmap(64 << 12).touch()
    four.write(ROOT + "/g/cpuset.mems", "2")
    four.write(ROOT + "/g/cgroup.procs", str(task.pid))
    assert set(area.nodes().tolist()) == {2} and status(four, task, "Mems_allowed_list") == "2"
    assert set(task.mmap(64 << 12).touch().nodes().tolist()) == {2}
    child = task.fork()
    four.write(ROOT + "/g/cpuset.mems", "1,3")
    assert status(four, child, "Mems_allowed_list") == "1,3"
    assert set(area.nodes().tolist()) <= {1, 3}
    assert not {0, 2} & set(child.mmap(64 << 12).touch().nodes().tolist())
    four.audit()


@pytest.mark.interpreted
def test_huge_pages_of_a_pool_follow_the_cpuset(loopback):
    """Only nodes that the group allows serve, and only what is free there can be reserved."""
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="32MiB")
    for node in range(2):
        loop.write(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages", "4")
    loop.write(ROOT + "/cgroup.subtree_control", "+cpuset")
    proc.mkdir(loop.actors[0].system, ROOT + "/g")
    loop.write(ROOT + "/g/cpuset.mems", "1")
    task, size = loop.task(cpu=0), 2 << 20
    loop.write(ROOT + "/g/cgroup.procs", str(task.pid))
    with pytest.raises(OSError, match=r"4 huge pages of 2MiB are to be had on the nodes that the task may use \(1\)"):
        task.mmap(5 * size, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    for huge in (MAP_PRIVATE, MAP_SHARED):
        area = task.mmap(2 * size, flags=huge | MAP_ANONYMOUS | MAP_HUGETLB)
        task.store([area.addr, area.addr + size], [1, 2])
        assert set(area.nodes().tolist()) == {1}
    other = loop.task(cpu=0).mmap(2 * size, flags=MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB)
    other.task.store([other.addr], [3])
    assert other.nodes()[0] == 0
    loop.audit()


@pytest.mark.interpreted
def test_policies_follow_by_rank_and_static_ones_stay(four):
    task = four.task(cpu=0)
    static = four.task(cpu=0)
    task.set_mempolicy(MPOL_INTERLEAVE, [0, 1])
    static.set_mempolicy(MPOL_BIND | MPOL_F_STATIC_NODES, [0, 3])
    area = task.mmap(16 << 12)
    task.mbind(area.addr, area.nbytes, MPOL_BIND, [1])
    four.write(ROOT + "/g/cpuset.mems", "2,3")
    for each in (task, static):
        four.write(ROOT + "/g/cgroup.procs", str(each.pid))
    assert task.get_mempolicy() == (MPOL_INTERLEAVE, [2, 3])
    assert static.get_mempolicy()[1] == [0, 3]  # what was asked for; in force is 3
    assert set(static.mmap(32 << 12).touch().nodes().tolist()) == {3}
    assert set(area.touch().nodes().tolist()) == {3}
    four.write(ROOT + "/g/cpuset.mems", "2")
    four.write(ROOT + "/g/cpuset.mems", "0-3")
    assert task.get_mempolicy() == (MPOL_INTERLEAVE, [0])
    four.write(ROOT + "/g/cpuset.mems", "3")
    with pytest.raises(OSError):
        task.set_mempolicy(MPOL_BIND, [1])


@pytest.mark.interpreted
@pytest.mark.parametrize("mode, flags, asked, mems, then", [
    (MPOL_INTERLEAVE, 0, 0b0011, 0b1100, 0b1100), (MPOL_INTERLEAVE, 0, 0b0101, 0b0110, 0b0010),
    (MPOL_BIND, MPOL_F_STATIC_NODES, 0b0011, 0b1110, 0b0010), (MPOL_BIND, MPOL_F_STATIC_NODES, 0b0001, 0b1110, 0b1110),
    (MPOL_BIND, MPOL_F_RELATIVE_NODES, 0b0011, 0b1100, 0b1100), (MPOL_BIND, MPOL_F_RELATIVE_NODES, 0b1000, 0b0110, 0b0100),
    (MPOL_PREFERRED, 0, 0b0010, 0b0001, 0b0010)])  # fmt: skip
def test_rebinding(mode, flags, asked, mems, then):
    memory = np.zeros(8, U)
    policy = policy_t.at(memory.ctypes.data)
    assert mpol_new(0b1111, policy, mode, flags, asked) == 0
    mpol_rebind_policy(policy, mems)
    assert policy.nodes == then


@pytest.mark.interpreted
def test_a_task_leaves_a_cpu_it_may_not_be_on(four):
    task = four.task(cpu=0)
    four.write(ROOT + "/g/cgroup.procs", str(task.pid))
    four.write(ROOT + "/g/cpuset.cpus", "2-3")
    assert task.cpu == 2
    task.sched_setaffinity({1, 3})
    assert task.cpu == 3
    with pytest.raises(OSError):
        task.sched_setaffinity({0, 1})
    with pytest.raises(OSError, match="cpuset"):
        task.fork(cpu=1)
    assert task.fork(cpu=2).cpu == 2


# -- walls ---------------------------------------------------------------------------------------------------


def confined(loop, mems, cpu=0):
    task = loop.task(cpu=cpu, name="confined")
    loop.write(ROOT + "/g/cpuset.mems", mems)
    loop.write(ROOT + "/g/cgroup.procs", str(task.pid))
    return task


def nodes_of(task, gfp):
    """The nodes of the pages that an allocation gets until it fails."""
    pages = iter(lambda: task.kernel.alloc_page(gfp | __GFP_NORETRY | __GFP_NOWARN), None)
    return {task.kernel.page(pfn)["node"] for pfn in pages}


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "mask, nodes",
    [(GFP_USER, {1}), (GFP_KERNEL, {0, 1, 2, 3}), (GFP_KERNEL | __GFP_HARDWALL, {1}), (GFP_ATOMIC, {0, 1, 2, 3})],
)
def test_hardwall_confines_and_the_kernels_own_needs_do_not(four, mask, nodes):
    """__GFP_HARDWALL stays in the cpuset even if nothing is left there; without it the slow path goes everywhere."""
    task = confined(four, "1")
    assert task.kernel.page(task.kernel.alloc_page(mask))["node"] == 1
    assert nodes_of(task, mask) == nodes


def test_oom_by_cpuset(four):
    """The constraint, the group's name, and that a task of other nodes is spared."""
    other = four.task(cpu=3, name="large")
    other.mmap("6MiB").touch()
    four.write(ROOT + "/cgroup.subtree_control", "+cpuset")
    proc.mkdir(four.system_of, ROOT + "/elsewhere")
    four.write(ROOT + "/elsewhere/cpuset.mems", "3")
    four.write(ROOT + "/elsewhere/cgroup.procs", str(other.pid))
    task = confined(four, "1")
    proc.mkdir(four.system_of, ROOT + "/g/inner")  # which has no controllers: those of g count
    four.write(ROOT + "/g/inner/cgroup.procs", str(task.pid))
    with pytest.raises(OutOfMemory):
        task.mmap("12MiB").touch()
    log = "\n".join(four.system_of.kmsg)
    constraint = "constraint=CONSTRAINT_CPUSET,nodemask=(null),cpuset=g,mems_allowed=1,global_oom"
    assert f"oom-kill:{constraint},task_memcg=/g,task=confined" in log
    assert "task=confined" in log and other.clock_ns
    four.audit()


@pytest.mark.interpreted
def test_move_pages_stays_in_the_cpuset(four):
    task = confined(four, "0-1")
    area = task.mmap(4 << 12).touch()
    with pytest.raises(OSError) as caught:
        task.move_pages(area.pages(), nodes=2)
    assert caught.value.errno == errno.EACCES
    assert task.move_pages(area.pages(), nodes=1).tolist() == [1] * 4


# -- accounting ----------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_account_charges_the_group_until_the_pages_are_freed(four):
    """Page tables and GFP_KERNEL_ACCOUNT count for the group, wherever the task is when they go; the root is not charged."""
    task, kernel = four.task(cpu=0), lambda: charged(read(four, ROOT + "/g/memory.stat"))["kernel"]
    loose = task.kernel.alloc_pages(GFP_KERNEL_ACCOUNT, 2)
    four.write(ROOT + "/g/cgroup.procs", str(task.pid))
    assert kernel() == 0
    one = task.kernel.alloc_page(GFP_KERNEL_ACCOUNT)
    block = task.kernel.alloc_pages(GFP_KERNEL_ACCOUNT, 2)
    whole = task.kernel.alloc_pages(GFP_KERNEL_ACCOUNT | __GFP_COMP, 3)
    task.kernel.alloc_pages(GFP_KERNEL, 3)
    assert kernel() == 13 << 12
    task.mmap(4096).touch()
    tables = cgroup_t.array(four.machine.cgroups)[1].kernel_pages - 13
    assert tables > 0
    four.audit()
    four.write(ROOT + "/cgroup.procs", str(task.pid))
    for pfn, order in ((one, 0), (block, 2), (whole, 3), (loose, 2)):
        task.kernel.free_pages(pfn, order)
    assert kernel() == tables << 12
    task.exit()
    assert kernel() == 0
    four.audit()


@pytest.mark.interpreted
def test_each_frame_says_who_is_charged_for_it(four):
    """Kernel memory that a group is charged for has the group's number + 1; what tasks map is the root's; slabs and free frames have 0."""
    task = four.task()
    four.write(ROOT + "/g/cgroup.procs", str(task.pid))
    charged, free = task.kernel.alloc_page(GFP_KERNEL_ACCOUNT), task.kernel.alloc_page(GFP_KERNEL)
    memory = task.mmap("4KiB").touch()
    words = np.frombuffer(proc.read(four.system_of, "/proc/kpagecgroup"), "<u8")
    number = cgroup.lookup(four.system_of, ROOT + "/g").number
    assert number > 0 and words[charged] == number + 1 and words[free] == 0
    assert words[four.pfn(task, memory.addr)] == 1
    task.kernel.free_page(charged)
    task.kernel.free_page(free)
    assert np.frombuffer(proc.pread(four.system_of, "/proc/kpagecgroup", 8, 8 * charged), "<u8")[0] == 0
    four.audit()


def test_a_group_that_is_charged_lends_its_number_to_nobody(four):
    task = four.task()
    four.write(ROOT + "/g/cgroup.procs", str(task.pid))
    pfn = task.kernel.alloc_page(GFP_KERNEL_ACCOUNT)
    four.write(ROOT + "/cgroup.procs", str(task.pid))
    proc.rmdir(four.system_of, ROOT + "/g")
    proc.mkdir(four.system_of, ROOT + "/again")
    assert cgroup.lookup(four.system_of, ROOT + "/again").number == 2
    task.kernel.free_page(pfn)
    four.audit()


@pytest.mark.interpreted
def test_what_a_group_that_is_gone_is_charged_counts_in_those_above(four):
    task, system = four.task(), four.system_of
    proc.mkdir(system, ROOT + "/g/inner")
    four.write(ROOT + "/g/cgroup.subtree_control", "+memory")
    four.write(ROOT + "/g/inner/cgroup.procs", str(task.pid))
    pfn = task.kernel.alloc_page(GFP_KERNEL_ACCOUNT)
    four.write(ROOT + "/cgroup.procs", str(task.pid))
    proc.rmdir(system, ROOT + "/g/inner")
    assert charged(read(four, ROOT + "/g/memory.stat"))["kernel"] == 4096
    task.kernel.free_page(pfn)
    assert charged(read(four, ROOT + "/g/memory.stat"))["kernel"] == 0
    proc.mkdir(system, ROOT + "/other")  # with the number that is free again
    four.write(ROOT + "/other/cgroup.procs", str(task.pid))
    task.kernel.alloc_page(GFP_KERNEL_ACCOUNT)
    assert charged(read(four, ROOT + "/other/memory.stat"))["kernel"] == 4096
    assert charged(read(four, ROOT + "/g/memory.stat"))["kernel"] == 0


# -- at once, on a real machine --------------------------------------------------------------------------------


def work(task, rounds):
    """Write a mapping, let a child read it back, map more: wrong words."""
    area, wrong = task.mmap("512KiB"), 0
    for n in range(rounds):
        task.store(area.pages(), np.arange(128, dtype=U) + U(n))
        child = task.fork()
        wrong += int((child.load(area.pages()) != np.arange(128, dtype=U) + U(n)).sum())
        child.exit()
        task.munmap(task.mmap("128KiB").touch().addr, 128 << 10)
    return wrong


def test_cpusets_change_while_their_tasks_work():
    with Machine(nodes=2, cpus_per_node=2, memory_per_node="64MiB") as machine:
        machine.write(ROOT + "/cgroup.subtree_control", "+cpuset +memory")
        machine.mkdir(ROOT + "/g")
        running = [machine.spawn(work, 60, cpu=cpu) for cpu in range(4)]
        for handle in running:
            try:
                machine.write(ROOT + "/g/cgroup.procs", handle.pid)
            except ProcessLookupError:  # it has ended
                pass
        for n in range(20):
            machine.write(ROOT + "/g/cpuset.mems", ("0", "1", "0-1")[n % 3])
        assert [handle.result() for handle in running] == [0] * 4
        machine.check()
        assert set(charged(machine.read(ROOT + "/g/memory.stat")).values()) == {0}
        machine.rmdir(ROOT + "/g")

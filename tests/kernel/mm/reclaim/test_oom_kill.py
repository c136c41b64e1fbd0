"""The OOM killer: who is chosen, that its memory comes back wherever it is, and that nobody else is harmed."""

import errno
import time

import numba
import numpy as np
import pytest

from numaemu import (
    GFP_KERNEL,
    MADV_PAGEOUT,
    MAP_ANONYMOUS,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MPOL_BIND,
    Machine,
    MachineCheck,
    OutOfMemory,
    load_u64,
)
from numaemu.compiler.atomic import fetch_or
from numaemu.kernel.include.gfp import ___GFP_NORETRY, GFP_HIGHUSER_MOVABLE, gfp_text
from numaemu.kernel.include.mm_types import MM_SWAPENTS, OOM_VICTIM, task_t
from numaemu.kernel.mm.page_alloc.report.show_mem import dump_unreclaimable_slab
from numaemu.kernel.mm.reclaim.oom_kill import Panic, oom_badness, total_pages
from numaemu.kernel.mm.swap import swapfile, swapon

SMALL = dict(nodes=2, cpus_per_node=2, memory_per_node="16MiB")
SHARED = MAP_SHARED | MAP_ANONYMOUS
UNRESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE  # more than there is


def filled(task, size, value, flags=UNRESERVED):
    """A mapping whose every page begins with `value`."""
    mapping = task.mmap(size, flags=flags)
    task.store(mapping.pages(), np.uint64(value))
    return mapping


def holds(task, mapping, value):
    return set(task.load(mapping.pages()).tolist()) == {value}


# -- the choice ----------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(loopback):
    return loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB")


@pytest.mark.interpreted
def test_the_largest_goes_although_another_asks(tiny):
    big, small = tiny.task(cpu=1, name="big"), tiny.task(cpu=0, name="small")
    filled(big, "4MiB", 1)
    kept = filled(small, "512KiB", 2)
    more = filled(small, "3800KiB", 3)
    assert holds(small, kept, 2) and holds(small, more, 3)
    assert tiny.vmstat()["oom_kill"] == 1 and tiny.vmstat()["allocstall_movable"] > 0
    with pytest.raises(
        OutOfMemory,
        match=rf"task {big.pid} \(big\) on cpu 1: killed .* with 4096 kB resident: "
        rf"task {small.pid} asked for memory of nodes 0-1",
    ):
        big.mmap(4096)
    with pytest.raises(OSError) as caught:
        big.mmap(4096)
    assert caught.value.errno == errno.ESRCH
    tiny.drain()
    tiny.audit()


@pytest.mark.interpreted
def test_a_panic_names_the_setting_that_keeps_memory_back(tiny):
    """vm.min_free_kbytes near all of memory: nobody can run, and nobody is there to be killed."""
    for kbytes, names in (
        ("128", "memory$"),
        ("7800", "memory: vm.min_free_kbytes is 7800 of 81[0-9]{2} kB of memory$"),
    ):
        tiny.write("/proc/sys/vm/min_free_kbytes", kbytes)
        filled_up = [zone.free_pages for zone in tiny.zones()]
        for zone in tiny.zones():
            zone.free_pages = 0  # no last attempt helps
        with pytest.raises(Panic, match=f"System is deadlocked on {names}"):
            tiny.actors[0].oom.out_of_memory(GFP_KERNEL, 0, 3, 0)
        for zone, pages in zip(tiny.zones(), filled_up):
            zone.free_pages = pages


@pytest.mark.interpreted
def test_a_victim_is_waited_for_until_its_pages_are_free(tiny):
    """Nobody uses its address space any more, but whoever did last is still taking it apart (exit_mmap): that frees memory soon."""
    task, killer = tiny.task(), tiny.actors[0].oom
    task.mmap(4096).touch()
    number, mm = int(task_t.array(tiny.machine.tasks)[task._number].mm), tiny.mm(task)
    killer.dying[number] = int(mm.id), 0
    mm.oom_state, users, pgd = OOM_VICTIM, int(mm.users), int(mm.pgd)
    assert killer.dying_mm() == number
    mm.users = 0
    assert killer.dying_mm() == number
    mm.pgd = np.uint64(0)
    assert killer.dying_mm() == 0 and killer.dying == {}
    mm.users, mm.pgd, mm.oom_state = users, np.uint64(pgd), 0
    tiny.audit()


@pytest.mark.interpreted
def test_badness_counts_pages_and_the_tables_below_the_top_level(tiny):
    """One touched page and its pud, pmd and leaf table: 4 pages; nothing touched: 0."""
    task = tiny.task()
    struct = task_t.array(tiny.machine.tasks)[task._number]
    assert oom_badness(tiny.machine, struct, 1000) == 0
    task.mmap(4096).touch()
    assert oom_badness(tiny.machine, struct, 1000) == 4


@pytest.mark.interpreted
def test_the_adjustment_spares_and_prefers(tiny):
    never, first, asks = (tiny.task(cpu=n % 2, name=name) for n, name in enumerate(("never", "first", "asks")))
    coordinator = tiny.actors[0]
    coordinator.rpc_write(f"/proc/{never.pid}/oom_score_adj", "-1000")
    coordinator.rpc_write(f"/proc/{first.pid}/oom_score_adj", "500")
    kept = filled(never, "3600KiB", 1)
    filled(first, "256KiB", 2)
    with pytest.raises(OutOfMemory, match=r"\(asks\)"):
        asks.mmap("16MiB", flags=UNRESERVED).touch()
    with pytest.raises(OutOfMemory, match=r"\(first\)"):
        first.mmap(4096)
    assert holds(never, kept, 1)
    assert tiny.vmstat()["oom_kill"] == 2
    victims = [line.split("task=")[1].split(",")[0] for line in coordinator.system.kmsg if line.startswith("oom-kill:")]
    assert victims == ["first", "asks"]
    tiny.drain()
    tiny.audit()


@pytest.mark.interpreted
def test_a_bound_allocation_spares_who_is_bound_elsewhere(tiny):
    elsewhere, asks = tiny.task(cpu=1, name="elsewhere"), tiny.task(cpu=0, name="asks")
    elsewhere.set_mempolicy(MPOL_BIND, [1])
    asks.set_mempolicy(MPOL_BIND, [0])
    kept = filled(elsewhere, "3500KiB", 1)
    with pytest.raises(OutOfMemory, match=r"\(asks\) .*: it asked for memory of nodes 0 and"):
        asks.mmap("16MiB", flags=UNRESERVED).touch()
    assert holds(elsewhere, kept, 1)
    log = list(tiny.actors[0].system.kmsg)
    assert log[0].startswith(
        "asks invoked oom-killer: gfp_mask=0x100dca(GFP_HIGHUSER_MOVABLE|__GFP_ZERO), order=0, oom_sc"
    )
    assert log[1] == "Mem-Info:"
    assert log[-2].startswith(
        "oom-kill:constraint=CONSTRAINT_MEMORY_POLICY,nodemask=0,cpuset=/,mems_allowed=0-1,global_oom,"
        f"task_memcg=/,task=asks,pid={asks.pid},uid=0"
    )
    assert log[-1].startswith(f"Out of memory: Killed process {asks.pid} (asks) total-vm:16516kB, anon-rss:")
    assert not any("elsewhere" in line for line in log)  # not eligible, so not in the table


@pytest.mark.interpreted
def test_a_process_is_spared_only_if_all_its_threads_are_bound_elsewhere(tiny):
    """The first thread is bound to node 1, where the process has its memory, the second one may use node 0 (oom_cpuset_eligible)."""
    first, asks = tiny.task(cpu=1, name="first"), tiny.task(cpu=0, name="asks")
    first.clone(cpu=1)
    first.set_mempolicy(MPOL_BIND, [1])
    asks.set_mempolicy(MPOL_BIND, [0])
    filled(first, "3500KiB", 1)
    tiny.write(f"/proc/{first.pid}/oom_score_adj", "500")
    with pytest.raises(OutOfMemory):
        asks.mmap("16MiB", flags=UNRESERVED).touch()
    victims = [
        line.split("task=")[1].split(",")[0] for line in tiny.actors[0].system.kmsg if line.startswith("oom-kill:")
    ]
    assert victims == ["first", "asks"]


@pytest.mark.interpreted
def test_who_asks_goes_first_if_set_so(tiny):
    coordinator = tiny.actors[0]
    coordinator.rpc_write("/proc/sys/vm/oom_kill_allocating_task", "1")
    big, asks = tiny.task(cpu=1), tiny.task(cpu=0, name="asks")
    kept = filled(big, "6MiB", 1)
    with pytest.raises(OutOfMemory, match="asks"):
        asks.mmap("8MiB", flags=UNRESERVED).touch()
    assert holds(big, kept, 1)
    assert f"Out of memory (oom_kill_allocating_task): Killed process {asks.pid} (asks)" in tiny.read("/dev/kmsg")


@pytest.mark.interpreted
def test_shared_memory_of_an_idle_victim_on_the_same_cpu_comes_back(tiny):
    victim, asks = tiny.task(cpu=0, name="victim"), tiny.task(cpu=0, name="asks")
    filled(victim, "6MiB", 1, flags=SHARED)
    area = filled(asks, "5600KiB", 2)
    assert holds(asks, area, 2) and tiny.vmstat()["oom_kill"] == 1 and tiny.vmstat()["nr_shmem"] == 0
    with pytest.raises(OutOfMemory, match="victim"):
        victim.brk()


@pytest.mark.interpreted
def test_some_allocations_fail_instead(tiny):
    """Linux kills nobody for them: NORETRY, THISNODE, blocks above order 3."""
    task = tiny.task()
    held = list(iter(lambda: task.kernel.alloc_pages(GFP_KERNEL | ___GFP_NORETRY), None))
    assert len(held) > 1800
    assert task.kernel.alloc_pages(GFP_KERNEL, 4) is None
    assert tiny.vmstat()["oom_kill"] == 0
    with pytest.raises(OutOfMemory):
        task.kernel.alloc_pages(GFP_KERNEL)


def test_swap_counts_in_the_report_and_in_the_points(loopback):
    """What lies in swap is the task's too: swapents, points, the total they are measured by, and the totals of the report."""
    loop = loopback(nodes=2, cpus_per_node=1, memory_per_node="4MiB")
    loop.actors[0].rpc_swapon("/dev/vdb", 2 << 20, None, "disk")
    swapper, last = loop.task(cpu=0, name="swapper"), loop.task(cpu=1, name="last")
    area = filled(swapper, "2MiB", 1)
    swapper.madvise(area.addr, area.nbytes, MADV_PAGEOUT)
    swapped = loop.mm(swapper).rss[MM_SWAPENTS]
    assert swapped > 400
    struct = task_t.array(loop.machine.tasks)[swapper._number]
    ram = sum(zone.managed_pages for zone in loop.zones())
    assert total_pages(loop.machine) == ram + 511
    assert oom_badness(loop.machine, struct, 1) >= swapped
    with pytest.raises(OutOfMemory):
        filled(last, "11MiB", 2)
    log = list(loop.actors[0].system.kmsg)
    free = next(line for line in log if line.startswith("Free swap"))
    assert "Total swap = 2044kB" in log and int(free.split("=")[1].strip("kB ")) < 100
    row = next(line for line in log if line.endswith(" swapper") and line.startswith("["))
    assert int(row.split("]")[1].split()[8]) == loop.mm(swapper).rss[MM_SWAPENTS]
    cached = next(line for line in log if line.endswith(" pages in swap cache"))
    assert int(cached.split()[0]) >= 0
    loop.audit()


def test_gfp_flags_as_linux_prints_them():
    assert gfp_text(GFP_HIGHUSER_MOVABLE) == (0x100CCA, "GFP_HIGHUSER_MOVABLE")
    assert gfp_text(GFP_KERNEL) == (0xCC0, "GFP_KERNEL")
    assert gfp_text(0) == (0, "none")


# -- a machine of processes ----------------------------------------------------------------------------------


@pytest.fixture
def machine():
    with Machine(**SMALL) as made:
        yield made


def test_scores(machine):
    task = machine.task(name="scored")
    filled(task, "8MiB", 1)
    score, adjust = f"/proc/{task.pid}/oom_score", f"/proc/{task.pid}/oom_score_adj"
    assert abs(int(machine.read(score)) - (1000 + 250) * 2 // 3) <= 2
    assert machine.read(adjust) == "0\n"
    thread, child = task.clone(cpu=1), task.fork(cpu=2)
    machine.write(adjust, "-1000")
    assert machine.read(score) == "0\n" and machine.read(f"/proc/{thread.pid}/oom_score_adj") == "-1000\n"
    assert machine.read(f"/proc/{child.pid}/oom_score_adj") == "0\n"
    machine.write(adjust, "1000")
    assert int(machine.read(score)) > 1333
    for wrong in ("1001", "-1001", "much"):
        with pytest.raises(OSError, match="must be -1000 to 1000"):
            machine.write(adjust, wrong)


@numba.njit(cache=True)
def spin(cpu, address):
    """Read a word until it is 1, which it never is."""
    while load_u64(cpu, address) != np.uint64(1):
        pass


def spinner(task, address, flag):
    task.call(spin, np.uint64(address))


@pytest.mark.parametrize("flags", [MAP_ANONYMOUS | 2, SHARED])
def test_threads_inside_accesses_die_with_their_memory(machine, flags):
    """The victim's threads read one page for ever, with every translation in their TLBs."""
    before = machine.check()
    victim = machine.task(cpu=3, name="victim")
    area = filled(victim, "12MiB", 5, flags=flags)
    threads = [victim.clone(spinner, area.addr, None, cpu=cpu) for cpu in (1, 2)]
    while not all(cpu["loads"] > 10_000 for cpu in machine.stats()["cpus"][1:3]):
        time.sleep(0.01)
    asks = machine.task(cpu=0)
    machine.write(f"/proc/{asks.pid}/oom_score_adj", "-900")
    kept = filled(asks, "26MiB", 6)
    for thread in threads:
        with pytest.raises(OutOfMemory, match="killed by the OOM killer"):
            thread.result(60)
    with pytest.raises(OutOfMemory):
        victim.brk()
    assert holds(asks, kept, 6)
    assert machine.stats()["vmstat"]["oom_kill"] == 1
    asks.exit()
    after = machine.check()
    assert all(after[z]["used"] == before[z]["used"] and after[z]["tables"] == 0 for z in before)


def eat(task, size):
    return filled(task, size, task.pid).nbytes


def eat_with_children(task, size):
    """Allocates and forks, so that several address spaces want memory on several CPUs."""
    children = [task.fork(eat, size, cpu=cpu) for cpu in range(4)]
    filled(task, size, 1)
    return [child.result() for child in children]


@pytest.mark.parametrize("function", [eat, eat_with_children])
def test_all_cpus_run_out_at_once(machine, function):
    before = machine.check()
    bystander = machine.task(cpu=1, name="bystander")
    machine.write(f"/proc/{bystander.pid}/oom_score_adj", "-1000")
    kept = filled(bystander, "2MiB", 9)
    for _ in range(3):
        killed = 0
        sizes = ("20MiB", "40MiB")  # the larger ones never fit, whoever runs beside them
        for handle in [machine.spawn(function, size, cpu=cpu) for size in sizes for cpu in range(4)]:
            try:
                handle.result(120)
            except OutOfMemory:
                killed += 1
        assert killed >= 4 and holds(bystander, kept, 9)
    while len(machine.stats()["tasks"]) > 1:
        pass  # children of a parent that was killed before they were
    machine.check()
    bystander.exit()
    after = machine.check()
    assert all(after[z]["used"] == before[z]["used"] and after[z]["tables"] == 0 for z in before)
    assert machine.stats()["tasks"] == []


def wait_for_kill(task, path):
    """Holds memory and computes; no operation after the kill."""
    filled(task, "20MiB", 1)
    print("filled", flush=True)
    while not path.exists():
        time.sleep(0.01)
    return "alive"


def test_a_function_that_was_killed_between_operations_has_no_result(machine, tmp_path, capsys):
    handle = machine.spawn(wait_for_kill, tmp_path / "go", cpu=1)
    while "filled" not in capsys.readouterr().out:
        time.sleep(0.01)
    asks = machine.task(cpu=0)
    kept = filled(asks, "16MiB", 6)
    (tmp_path / "go").touch()
    with pytest.raises(OutOfMemory, match="wait_for_kill"):
        handle.result(60)
    assert holds(asks, kept, 6)
    machine.check()


@pytest.mark.parametrize("setting, bind, text", [("1", None, "system-wide"), ("2", [0], "compulsory")])
def test_panic_on_oom(setting, bind, text):
    with Machine(**SMALL) as machine:
        machine.write("/proc/sys/vm/panic_on_oom", setting)
        task = machine.task()
        if bind:
            task.set_mempolicy(MPOL_BIND, bind)
        with pytest.raises(
            MachineCheck, match=f"Kernel panic - not syncing: Out of memory: {text} panic_on_oom is enabled"
        ):
            task.mmap("64MiB", flags=UNRESERVED).touch()


def test_nobody_left_to_kill():
    with Machine(**SMALL) as machine:
        task = machine.task()
        machine.write(f"/proc/{task.pid}/oom_score_adj", "-1000")
        with pytest.raises(MachineCheck, match="System is deadlocked on memory"):
            task.mmap("64MiB", flags=UNRESERVED).touch()


# -- victims that do not run ---------------------------------------------------------------------------------


def test_a_victim_in_the_middle_of_accesses_ends_without_the_cpu(tiny):
    """It waits for the CPU that has chosen it, and that CPU for memory."""
    victim, asks = tiny.task(cpu=0, name="victim"), tiny.task(cpu=0, name="asks")
    filled(victim, "6MiB", 1, flags=SHARED)
    task_t.array(tiny.machine.tasks)[victim._number].preempted = 1
    area = filled(asks, "5600KiB", 2)
    assert holds(asks, area, 2) and tiny.vmstat()["oom_kill"] == 1 and tiny.vmstat()["nr_shmem"] == 0
    with pytest.raises(OutOfMemory, match="victim"):
        victim.brk()


def walk_for_ever(task, size):
    mapping = filled(task, size, 3)
    print("filled", flush=True)
    while True:
        task.load(mapping.pages())


def test_a_victim_whose_slice_is_over_tells_its_function(capsys):
    with Machine(
        nodes=1, cpus_per_node=1, memory_per_node="16MiB", sysctl={"kernel.sched_base_slice_ns": 100_000}
    ) as machine:
        handle = machine.spawn(walk_for_ever, "9MiB")
        while "filled" not in capsys.readouterr().out:
            time.sleep(0.01)
        asks = machine.task()
        kept = filled(asks, "8MiB", 4)
        with pytest.raises(OutOfMemory, match="walk_for_ever"):
            handle.result(60)
        assert holds(asks, kept, 4)
        machine.check()


def test_swapoff_is_the_first_victim_and_gives_up(loopback):
    """Linux marks who empties a swap area as the origin of running out of memory: others keep theirs."""
    loop = loopback(nodes=1, cpus_per_node=1, memory_per_node="4MiB")
    swapon.swapon(loop.machine, "area", 4 << 20)
    tasks = [loop.task() for _ in range(3)]
    areas = [filled(task, "1800KiB", n) for n, task in enumerate(tasks)]
    kind = swapon.swapoff_begin(loop.machine, "area")
    swapon.try_to_unuse(int(loop.cpu().address), kind)
    with pytest.raises(OSError, match="do not fit into memory"):
        swapon.swapoff_end(loop.machine, kind)
    assert loop.vmstat()["oom_kill"] == 0 and "Out of memory: Killed process (swapoff)" in loop.read("/dev/kmsg")
    assert all(holds(task, area, n) for n, (task, area) in enumerate(zip(tasks, areas, strict=True)))
    loop.audit()


@pytest.mark.interpreted
def test_the_report_lists_slab_caches_if_they_have_most_of_the_memory(tiny):
    """should_dump_unreclaim_slab: more pages of caches that cannot shrink than on all LRU lists."""
    task, system = tiny.task(), tiny.actors[0].system
    filled(task, "256KiB", 1)
    tiny.drain()
    assert dump_unreclaimable_slab(system) == []
    for _ in range(200):
        task.kernel.kmalloc(4000, GFP_KERNEL)
    title, columns, *lines = dump_unreclaimable_slab(system)
    assert title == "Unreclaimable slab info:" and columns.split() == ["Name", "Used", "Total"]
    used, there = {line.split()[0]: line.split()[1:] for line in lines}["kmalloc-4k"]
    assert int(used.removesuffix("KB")) == 800 <= int(there.removesuffix("KB")) <= 864
    with pytest.raises(OutOfMemory):
        task.mmap("16MiB", flags=UNRESERVED).touch()
    assert title not in tiny.read("/dev/kmsg")  # by then the task had more


@pytest.mark.interpreted
def test_swapoff_is_the_first_victim_for_bound_allocations_too_but_after_a_panic_that_is_asked_for(tiny):
    """Its process is bound to no nodes, so its end may help; vm.panic_on_oom is looked at before anybody is chosen."""
    swapon.swapon(tiny.machine, "area", 4 << 20)
    asks, killer = tiny.task(cpu=0, name="asks"), tiny.actors[0].oom
    asks.set_mempolicy(MPOL_BIND, [0])
    asks.mmap(4096).touch()
    fetch_or(swapfile.swap_of(tiny.machine).info[0], "flags", swapon.SWP_OOM_ORIGIN)  # swapoff is under way
    counts = [zone.free_pages for zone in tiny.zones()]
    for zone in tiny.zones():
        zone.free_pages = 0  # no last attempt helps
    tiny.cpu(0).task = asks._number
    tiny.write("/proc/sys/vm/panic_on_oom", "2")
    with pytest.raises(Panic, match="compulsory panic_on_oom is enabled"):
        killer.out_of_memory(GFP_KERNEL, 0, 1, 0)
    tiny.write("/proc/sys/vm/panic_on_oom", "0")
    assert not swapon.swapoff_killed(tiny.machine, 0)
    killer.out_of_memory(GFP_KERNEL, 0, 1, 0)
    assert swapon.swapoff_killed(tiny.machine, 0) and tiny.vmstat()["oom_kill"] == 0
    for zone, pages in zip(tiny.zones(), counts):
        zone.free_pages = pages
    assert holds(asks, asks.mmap(4096), 0)

"""When nothing is left, one process has to go: Linux's mm/oom_kill.c.

    asking CPU: slow path -> MSG_OOM -> coordinator: out_of_memory, select_bad_process, oom_kill_process (marks the tasks)
                                        -> CPUs of the victim that are between two operations: exit_mm there, at once
             <- the victim's address space: the asking CPU takes its pages itself (oom_reaper), then tries again

So memory comes back although the victim may be anywhere: idle, waiting for memory itself (its allocation fails), or
inside accesses (its entries are gone, and its next fault says that it is dead). Linux reaps private memory only; here
shared ranges are unmapped too, since that is how a task inside accesses learns of its end: Linux sends it an interrupt.
A victim stays a zombie until its function has been told.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire
from numaemu.compiler.decorators import callback, entry, kernel
from numaemu.compiler.pointer import address_of
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.fork import exit_mm, mmget_not_zero, mmput, release_task
from numaemu.kernel.core.smp import MSG_OOM, let_others_run, machine_of, read_trylock, read_unlock, request
from numaemu.kernel.include.gfp import __GFP_HARDWALL, __GFP_THISNODE, gfp_text
from numaemu.kernel.include.internal import PF_OOM_ORIGIN, unpack_alloc
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    OOM_NONE,
    OOM_REAPED,
    OOM_REAPING,
    OOM_SKIP,
    OOM_VICTIM,
    TASK_RUNNING,
    VM_HUGETLB,
    pool_t,
    task_name,
    task_t,
)
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, WMARK_HIGH, WMARK_MIN, kilobytes, wmark_pages, zone_of
from numaemu.kernel.include.trace import MARK_VICTIM, trace_on, trace_record
from numaemu.kernel.mm.fault.zap import zap_page_range
from numaemu.kernel.mm.huge.hugetlb_pool import hugetlb_total_pages
from numaemu.kernel.mm.page_alloc.pcplist import drain_local_pages
from numaemu.kernel.mm.page_alloc.report.shortage import read_text, shortage_text, write_text
from numaemu.kernel.mm.page_alloc.report.show_mem import (
    cpuset_name,
    dump_unreclaimable_slab,
    memcg_path,
    mems_allowed,
    show_mem,
)
from numaemu.kernel.mm.page_alloc.slowpath import fatal_signal_pending
from numaemu.kernel.mm.page_alloc.watermark import gfp_zone, zone_watermark_ok
from numaemu.kernel.mm.space.vma_index import vma_index, vma_of
from numaemu.kernel.mm.swap.swapon import kill_swapoff
from numaemu.spec.param import MAX_NODES, PAGE_SIZE
from numaemu.spec.units import list_text
from numaemu.uapi import MPOL_BIND, SIGKILL

U = np.uint64
OOM_SCORE_ADJ_MIN, OOM_SCORE_ADJ_MAX = -1000, 1000
EXIT_ASKS = 1000  # allocations that may ask in vain before a victim that has not ended holds up no other; assumed
CONSTRAINT_NONE, CONSTRAINT_CPUSET, CONSTRAINT_MEMORY_POLICY = range(3)
CONSTRAINTS = ("CONSTRAINT_NONE", "CONSTRAINT_CPUSET", "CONSTRAINT_MEMORY_POLICY")
AGAIN, HOPELESS = 0, -1  # answers to MSG_OOM beside an address space to reap


# -- on the asking CPU ---------------------------------------------------------------------------------------


@kernel("bool(cpu_t*, i64)")
def __oom_reap_task_mm(cpu, mm_number):
    """Take every page out of a victim's address space; False: somebody changes it at this moment."""
    machine = machine_of(cpu)
    mm = mm_of(machine, mm_number)
    if not read_trylock(address_of(mm, "mmap_lock")):
        return False
    for position in range(mm.map_count):
        vma = vma_of(machine, vma_index(machine, mm_number)[position])
        if vma.flags & VM_HUGETLB == 0:  # would only fill the pool of huge pages
            zap_page_range(cpu, mm_number, vma.start, vma.end)
    read_unlock(address_of(mm, "mmap_lock"))
    return True


@kernel("void(cpu_t*, i64)")
def exit_idle_victims(cpu, mm_number):
    """Tasks of the victim on this CPU do not run, as another one does: they stand between two operations, or two accesses
    (sched.py), and get the CPU only when we give it up, which we do not do before we have memory. So they are ended here.
    """
    machine = machine_of(cpu)
    for number in range(1, pool_t.at(machine.task_pool).used + 1):
        task = task_t.array(machine.tasks)[number]
        if task.mm == mm_number and task.cpu == cpu.id and number != cpu.task and task.oom_victim == task.pid:
            exit_mm(cpu, number, SIGKILL)


@kernel("bool(cpu_t*, i64)")
def oom_reap_task_mm(cpu, mm_number):
    """oom_reap_task: False if there was nothing to do, or it could not be done now."""
    if not mmget_not_zero(cpu, mm_number):
        return False
    mm = mm_of(machine_of(cpu), mm_number)
    done = False
    exit_idle_victims(cpu, mm_number)
    if compare_exchange(mm, "oom_state", OOM_VICTIM, OOM_REAPING) == OOM_VICTIM:
        done = __oom_reap_task_mm(cpu, mm_number)
        drain_local_pages(cpu)
        compare_exchange(mm, "oom_state", OOM_REAPING, OOM_REAPED if done else OOM_VICTIM)  # unless given up: SKIP
    mmput(cpu, mm_number)
    if done:
        drain_local_pages(cpu)
    return done


@kernel("void(cpu_t*, i64)")
def trace_victim(cpu, mm_number):
    """The tracepoint mark_victim: the first task that uses the address space. It is in the ring of the CPU that has asked."""
    machine = machine_of(cpu)
    for number in range(1, pool_t.at(machine.task_pool).used + 1):
        task = task_t.array(machine.tasks)[number]
        if task.mm == mm_number and task.pid == task.tgid:
            trace_record(cpu, MARK_VICTIM, U(task.pid), U(0), U(0), U(0), U(0))
            return


@callback("u64(u64, u64, u64)")
def alloc_pages_may_oom(cpu_address, packed, nodemask):
    """__alloc_pages_may_oom, from the slow path: 1 to try again, 0: the allocation (pack_alloc) fails."""
    cpu = cpu_t.at(cpu_address)
    if fatal_signal_pending(cpu):
        return U(0)
    gfp, order, _more = unpack_alloc(packed)
    mm_number = request(cpu, 0, MSG_OOM, gfp, order, np.int64(nodemask))
    if trace_on(cpu, MARK_VICTIM) and mm_number > 0:
        trace_victim(cpu, mm_number)
    if mm_number == HOPELESS or fatal_signal_pending(cpu) or cpu.flags & PF_OOM_ORIGIN:
        return U(0)  # swapoff, which was chosen now if not before
    if mm_number == AGAIN or not oom_reap_task_mm(cpu, mm_number):
        let_others_run(cpu)
    return U(1)


@entry("void(u64, i64)")
def oom_exit(cpu_address, number):
    """A victim's end, on its CPU between two operations."""
    exit_mm(cpu_t.at(cpu_address), number, SIGKILL)


@entry("void(u64, i64)")
def oom_release(cpu_address, number):
    """The zombie's function has been told: its number may be used again."""
    release_task(cpu_t.at(cpu_address), number)


# -- in the coordinator --------------------------------------------------------------------------------------


class Panic(Exception):
    """The kernel gives up."""


class OomControl:
    """struct oom_control: one allocation that nobody can serve, and what was decided about it."""

    def __init__(self, system, gfp, order, nodemask, cpu_number):
        self.system, self.gfp, self.order, self.cpu_number = system, gfp, order, cpu_number
        machine = system.machine
        self.tasks = task_t.array(machine.tasks)
        self.current = self.tasks[cpu_t.array(machine.cpus)[cpu_number].task]
        self.nodemask = nodemask & ((1 << machine.nr_nodes) - 1)
        self.constraint, self.totalpages, self.chosen, self.chosen_points = CONSTRAINT_NONE, 0, 0, None
        self.message = "Out of memory"


def total_pages(machine):
    """totalram_pages() + total_swap_pages"""
    ram = sum(zone_of(machine, number).managed_pages for number in range(machine.nr_nodes * MAX_NR_ZONES))
    return ram + machine.total_swap_pages


def present_pages(machine, nodemask):
    """Pages of some nodes."""
    return sum(
        zone_of(machine, node * MAX_NR_ZONES + kind).present_pages
        for node in range(machine.nr_nodes)
        if nodemask >> node & 1
        for kind in range(MAX_NR_ZONES)
    )


def walls_of(oc):
    """The nodes that the asking task's cpuset lets the allocation have."""
    return int(oc.current.mems_allowed) if oc.gfp & __GFP_HARDWALL else int(oc.system.machine.node_mask)


def cpuset_limited(oc):
    """True if the asking task's cpuset keeps it from a zone that would do."""
    machine, walled = oc.system.machine, ~int(oc.current.mems_allowed)
    return bool(oc.gfp & __GFP_HARDWALL) and any(
        walled >> node & 1 and zone_of(machine, node * MAX_NR_ZONES + kind).managed_pages
        for node in range(machine.nr_nodes)
        if oc.nodemask >> node & 1
        for kind in range(gfp_zone(machine, oc.gfp) + 1)
    )


def constrained_alloc(oc):
    """Fill in constraint and totalpages: what the allocation might have used, and all swap."""
    machine = oc.system.machine
    oc.totalpages = total_pages(machine)
    if oc.gfp & __GFP_THISNODE:
        return
    if int(machine.memory_mask) & ~oc.nodemask:
        oc.totalpages = machine.total_swap_pages + present_pages(machine, oc.nodemask)
        oc.constraint = CONSTRAINT_MEMORY_POLICY
    elif cpuset_limited(oc):
        oc.totalpages = machine.total_swap_pages + present_pages(machine, int(oc.current.mems_allowed))
        oc.constraint = CONSTRAINT_CPUSET


def oom_badness(machine, task, totalpages):
    """The pages that the end of a task would give back, plus its oom_score_adj in thousandths; None: never."""
    if task.pid == 1 or task.mm == 0 or task.oom_score_adj == OOM_SCORE_ADJ_MIN:
        return None
    mm = mm_of(machine, task.mm)
    if mm.oom_state == OOM_SKIP:
        return None
    rss = sum(mm.rss[kind] for kind in (MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES, MM_SWAPENTS))
    return rss + mm.pgtables + task.oom_score_adj * (totalpages // 1000)


def oom_score(machine, task):
    """/proc/<pid>/oom_score: proc_oom_score"""
    totalpages = total_pages(machine)
    badness = oom_badness(machine, task, totalpages)
    return 0 if badness is None else int((1000 + int(badness * 1000 / totalpages)) * 2 / 3)


def processes(oc):
    """for_each_process: the number of one living thread of each, oldest first."""
    found, seen = [], set()
    for number in range(1, pool_t.at(oc.system.machine.task_pool).used + 1):
        task = oc.tasks[number]
        if task.state == TASK_RUNNING and task.mm and task.tgid not in seen:
            seen.add(task.tgid)
            found.append(number)
    return sorted(found, key=lambda number: oc.tasks[number].tgid)


def mempolicy_in_oom_domain(task, nodemask):
    """False for a task bound to other nodes than those that ran out."""
    return task.policy.mode != MPOL_BIND or int(task.policy.nodes) & nodemask != 0


def oom_cpuset_eligible(oc):
    """The tgids of processes whose end may give memory that the allocation may have: one of the threads may use it."""
    found = set()
    for number in range(1, pool_t.at(oc.system.machine.task_pool).used + 1):
        thread = oc.tasks[number]
        if oc.constraint == CONSTRAINT_MEMORY_POLICY:
            may_help = mempolicy_in_oom_domain(thread, oc.nodemask)
        else:
            may_help = int(thread.mems_allowed) & int(oc.current.mems_allowed)
        if thread.state == TASK_RUNNING and may_help:
            found.add(thread.tgid)
    return found


def select_bad_process(oc):
    """oc.chosen: the task with the most points; the youngest of equals, as Linux's >= over its list gives."""
    eligible = oom_cpuset_eligible(oc)
    for number in processes(oc):
        task = oc.tasks[number]
        points = oom_badness(oc.system.machine, task, oc.totalpages) if task.tgid in eligible else None
        if points is not None and (oc.chosen_points is None or points >= oc.chosen_points):
            oc.chosen, oc.chosen_points = number, points


def last_attempt_helps(oc):
    """Linux's last try under the high watermark, lest a kill that has just freed memory is followed by another."""
    machine = oc.system.machine
    highest = gfp_zone(machine, oc.gfp)
    nodes = oc.nodemask & int(oc.current.mems_allowed)
    for node in range(machine.nr_nodes):
        for kind in range(highest + 1) if nodes >> node & 1 else ():
            zone = zone_of(machine, node * MAX_NR_ZONES + kind)
            if zone.managed_pages and zone_watermark_ok(zone, oc.order, wmark_pages(zone, WMARK_HIGH), highest, 0):
                return True
    return False


def kept_back(system):
    """The settings that leave so little memory that nobody can run: what a panic shall name."""
    zones = [zone_of(system.machine, number) for number in range(system.machine.nr_nodes * MAX_NR_ZONES)]
    total, least = (sum(pages) for pages in zip(*((zone.managed_pages, zone.watermark[WMARK_MIN]) for zone in zones)))
    pools, names = int(hugetlb_total_pages(system.machine)), []
    if 2 * least > total:
        names.append(f"vm.min_free_kbytes is {system.sysctl['vm.min_free_kbytes']}")
    if 2 * pools > total:
        names.append(f"the pools of huge pages have {kilobytes(pools)} kB")
    return f": {' and '.join(names)} of {kilobytes(total)} kB of memory" if names else ""


class OomKiller:
    """The coordinator's part: what was decided, and who is dying."""

    def __init__(self, system):
        self.system, self.machine = system, system.machine
        self.busy = False  # one decision at a time: oom_lock
        self.dying = {}  # mm number: (mm id, when its owner was chosen)

    def log(self, *lines):
        self.system.kmsg.extend(lines)

    def dying_mm(self):
        """An address space whose end will give memory back soon, or 0 (oom_evaluate_task's abort)."""
        for number, (mm_id, asked) in list(self.dying.items()):
            mm = mm_of(self.machine, number)
            in_use = mm.users > 0 or load_acquire(mm, "pgd") != 0
            if mm.id == mm_id and in_use and mm.oom_state in (OOM_VICTIM, OOM_REAPING, OOM_REAPED):
                if asked < EXIT_ASKS:
                    self.dying[number] = mm_id, asked + 1
                    return number
                exchange(mm, "oom_state", OOM_SKIP)  # final: a reaper's compare-exchange no longer succeeds
            del self.dying[number]
        return 0

    def out_of_memory(self, gfp, order, nodemask, cpu_number):
        """(answer for the CPU, numbers of the tasks marked as victims)"""
        oc = OomControl(self.system, gfp, order, nodemask, cpu_number)
        dying = self.dying_mm()
        if dying:
            return dying, []
        if last_attempt_helps(oc):
            return AGAIN, []
        constrained_alloc(oc)
        self.check_panic_on_oom(oc)
        if (
            self.system.sysctl["vm.oom_kill_allocating_task"]
            and oc.current.mm
            and oc.current.tgid in oom_cpuset_eligible(oc)
            and oom_badness(self.machine, oc.current, oc.totalpages) is not None
        ):
            oc.chosen = cpu_t.array(self.machine.cpus)[cpu_number].task
            oc.message = "Out of memory (oom_kill_allocating_task)"
        elif kill_swapoff(self.machine):  # oom_task_origin has the most points of all; its process runs under no cpuset
            self.dump_header(oc)
            self.log("Out of memory: Killed process (swapoff)")
            return AGAIN, []
        else:
            select_bad_process(oc)
        if not oc.chosen:
            self.dump_header(oc)
            self.log("Out of memory and no killable processes...")
            raise Panic("System is deadlocked on memory" + kept_back(self.system))
        return self.oom_kill_process(oc)

    def check_panic_on_oom(self, oc):
        setting = self.system.sysctl["vm.panic_on_oom"]
        if setting == 2 or setting == 1 and oc.constraint == CONSTRAINT_NONE:
            self.dump_header(oc)
            raise Panic(f"Out of memory: {'compulsory' if setting == 2 else 'system-wide'} panic_on_oom is enabled")

    def dump_header(self, oc):
        """Who asked for what, the memory there is, the tasks."""
        task = oc.current
        linux, name = gfp_text(oc.gfp)
        self.log(
            f"{task_name(task) or 'swapper'} invoked oom-killer: gfp_mask={linux:#x}({name}), order={oc.order}, "
            f"oom_score_adj={task.oom_score_adj}",
            *show_mem(self.system),
            *dump_unreclaimable_slab(self.system),
        )
        if self.system.sysctl["vm.oom_dump_tasks"]:
            self.dump_tasks(oc)

    def dump_tasks(self, oc):
        """Log a line for each process that may be killed: its pages by kind, page tables in bytes, swap entries,
        oom_score_adj.
        """
        self.log(
            "Tasks state (memory values in pages):",
            "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents "
            "oom_score_adj name",
        )
        eligible = oom_cpuset_eligible(oc)
        for number in processes(oc):
            task = oc.tasks[number]
            mm = mm_of(self.machine, task.mm)
            if task.tgid in eligible:
                anon, file, shmem = (mm.rss[kind] for kind in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES))
                self.log(
                    f"[{task.pid:7d}] {task.uid:5d} {task.tgid:5d} {mm.total_vm:8d} {anon + file + shmem:8d} {anon:8d} "
                    f"{file:8d} {shmem:9d} {mm.pgtables * PAGE_SIZE:8d} {mm.rss[MM_SWAPENTS]:8d}         "
                    f"{task.oom_score_adj:5d} {task_name(task)}"
                )

    def oom_kill_process(self, oc):
        """Report, count and mark every task that uses the victim's memory; AGAIN if the victim has ended by itself.

        Nothing holds the victim meanwhile: ids of address spaces and pids tell whether a number still means the same.
        """
        victim = oc.tasks[oc.chosen]
        mm_number = victim.mm
        mm = mm_of(self.machine, mm_number)
        mm_id = mm.id
        if mm_number == 0 or victim.mm != mm_number:
            return AGAIN, []
        self.dump_header(oc)
        policy = oc.constraint == CONSTRAINT_MEMORY_POLICY
        mask = list_text(n for n in range(MAX_NODES) if oc.nodemask >> n & 1) if policy else "(null)"
        self.log(
            f"oom-kill:constraint={CONSTRAINTS[oc.constraint]},nodemask={mask},"
            f"cpuset={cpuset_name(self.system, oc.current)},mems_allowed={list_text(mems_allowed(oc.current))},"
            f"global_oom,task_memcg={memcg_path(self.system, victim)},task={task_name(victim)},pid={victim.pid},uid={victim.uid}"
        )
        anon, file, shmem = (mm.rss[kind] for kind in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES))
        self.log(
            f"{oc.message}: Killed process {victim.pid} ({task_name(victim)}) total-vm:{kilobytes(mm.total_vm)}kB, "
            f"anon-rss:{kilobytes(anon)}kB, file-rss:{kilobytes(file)}kB, shmem-rss:{kilobytes(shmem)}kB, UID:{victim.uid} "
            f"pgtables:{kilobytes(mm.pgtables)}kB oom_score_adj:{victim.oom_score_adj}"
        )
        self.machine.oom_kills += 1
        self.dying[mm_number] = mm_id, 0
        compare_exchange(mm, "oom_state", OOM_NONE, OOM_VICTIM)
        why = shortage_text(self.machine, oc.gfp, oc.order, oc.nodemask, walls_of(oc))
        marked, before = [], None
        while marked != before:  # a thread may be cloned meanwhile, by one not yet marked
            before, marked = (
                marked,
                [
                    n
                    for n, pid in self.users_of(oc, mm_number, mm_id)
                    if self.mark(oc, oc.tasks[n], pid, anon + file + shmem, why)
                ],
            )
        if mm.id == mm_id:
            return mm_number, marked
        compare_exchange(mm, "oom_state", OOM_VICTIM, OOM_NONE)  # another address space's by now: it is no victim
        return AGAIN, marked

    def users_of(self, oc, mm_number, mm_id):
        """(number, pid) of each task in an address space; none if that has ended, whatever its number means now."""
        users = []
        for number in range(1, pool_t.at(self.machine.task_pool).used + 1):
            pid = oc.tasks[number].pid
            if oc.tasks[number].mm == mm_number and oc.tasks[number].pid == pid:
                users.append((number, pid))
        return users if mm_of(self.machine, mm_number).id == mm_id else []

    @staticmethod
    def mark(oc, task, pid, rss, why):
        """mark_oom_victim and SIGKILL. The mark is the pid, so that the next task of this number is not meant by it."""
        task.oom_rss, task.oom_nodes, task.oom_asker = rss, oc.nodemask, oc.current.pid
        write_text(task, why)
        task.oom_victim = pid
        return task.state == TASK_RUNNING


def epitaph(machine, task):
    """What the victim's function is told."""
    nodes = list_text(n for n in range(machine.nr_nodes) if int(task.oom_nodes) >> n & 1)
    asker = "it" if task.oom_asker == task.pid else f"task {task.oom_asker}"
    return (
        f"task {task.pid} ({task_name(task)}) on cpu {task.cpu}: killed by the OOM killer with "
        f"{kilobytes(task.oom_rss)} kB resident: {asker} asked for memory of nodes {nodes} and nobody could serve: "
        f"{read_text(task)}"
    )

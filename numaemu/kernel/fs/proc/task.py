"""/proc/<pid>/maps, numa_maps and status: Linux's fs/proc/task_mmu.c and fs/proc/array.c.

The coordinator reads other processes' tasks and address spaces here without a lock (pagewalk.py says why), so it takes
a copy of the VMAs, checks it, and at the end whether the task it has told about is still the same one.
"""

import errno
import os

import numpy as np

from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.fs.inode import file_of, inode_name, inode_of
from numaemu.kernel.fs.proc.pagewalk import FIRST_NODE, NR_COUNTS, walk_page_range
from numaemu.kernel.fs.sysfs.node import list_text, mask_text
from numaemu.kernel.fs.sysfs.sysctl import invalid, strtoul
from numaemu.kernel.include.mm_types import (
    MM_ANONPAGES,
    MM_FILEPAGES,
    MM_SHMEMPAGES,
    MM_SWAPENTS,
    TASK_NAME_BYTES,
    TASK_RUNNING,
    VM_EXEC,
    VM_HUGETLB,
    VM_MAYSHARE,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
    mapping_t,
    numa_group_t,
    pool_t,
    sp_node_t,
    task_name,
    task_t,
    vma_t,
)
from numaemu.kernel.include.mmzone import kilobytes
from numaemu.kernel.mm.huge.hugetlb_pool import hstate_at
from numaemu.kernel.mm.page_alloc.report.show_mem import mems_allowed
from numaemu.kernel.mm.reclaim.oom_kill import OOM_SCORE_ADJ_MAX, OOM_SCORE_ADJ_MIN, oom_score
from numaemu.kernel.mm.space.vma_index import vma_index
from numaemu.spec.param import MAX_NODES, MAX_SP_NODES, PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import (
    MPOL_BIND,
    MPOL_DEFAULT,
    MPOL_F_NUMA_BALANCING,
    MPOL_F_RELATIVE_NODES,
    MPOL_F_STATIC_NODES,
    MPOL_INTERLEAVE,
    MPOL_LOCAL,
    MPOL_PREFERRED,
    MPOL_PREFERRED_MANY,
    MPOL_WEIGHTED_INTERLEAVE,
)

# fmt: off
POLICY_MODES = {MPOL_DEFAULT: "default", MPOL_PREFERRED: "prefer", MPOL_BIND: "bind", MPOL_INTERLEAVE: "interleave",
                MPOL_WEIGHTED_INTERLEAVE: "weighted interleave", MPOL_LOCAL: "local",
                MPOL_PREFERRED_MANY: "prefer (many)"}
# fmt: on
POLICY_FLAGS = {MPOL_F_STATIC_NODES: "static", MPOL_F_RELATIVE_NODES: "relative", MPOL_F_NUMA_BALANCING: "balancing"}
NAME_COLUMN = 25 + 8 * 6  # where show_vma_header_prefix lets the name begin: its width, and a space
SHMEM_DEVICE = "00:01"  # the kernel's own mount of shmem, the first without a device
DISK_DEVICE = "fe:00"  # /dev/vda
TMPFS_DEVICE = "00:18"  # /dev/shm, a later mount without a device; assumed
SHMEM_NAME = "/dev/zero (deleted)"  # shmem_zero_setup
HUGETLBFS_DEVICE, HUGETLB_NAME = "00:11", "/anon_hugepage (deleted)"  # hugetlb_file_setup; the mount as recorded
TRIES = 100  # for a copy of the VMAs that nobody changed meanwhile; assumed


def live_tasks(machine):
    """The table of tasks as it is, and the numbers of those alive."""
    tasks = task_t.array(machine.tasks).as_numpy(pool_t.at(machine.task_pool).used + 1)
    return tasks, np.flatnonzero((tasks["state"] == TASK_RUNNING) & (tasks["mm"] != 0))


def pids(machine):
    """The thread groups there are: what ls /proc shows."""
    tasks, numbers = live_tasks(machine)
    return sorted({int(tasks[n]["pid"]) for n in numbers if tasks[n]["pid"] == tasks[n]["tgid"]})


def threads(machine, tgid):
    """The pids of a process's threads: what ls /proc/<pid>/task shows."""
    tasks, numbers = live_tasks(machine)
    return sorted(int(tasks[n]["pid"]) for n in numbers if tasks[n]["tgid"] == tgid)


def number_of_pid(machine, pid):
    """The task's place in the table, or 0: there is none."""
    tasks, numbers = live_tasks(machine)
    return next((int(n) for n in numbers if tasks[n]["pid"] == pid), 0)


def gone(path):
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def show(system, pid, name, make):
    """/proc/<pid>/<name>, which make(system, task's number, mm's number) gives; FileNotFoundError if there is no such
    task, or it ends meanwhile.
    """
    number = number_of_pid(system.machine, pid)
    if number == 0:
        raise gone(f"/proc/{pid}/{name}")
    task = task_t.array(system.machine.tasks)[number]
    mm_number = task.mm
    mm = mm_of(system.machine, mm_number)
    mm_id = mm.id
    text = make(system, number, mm_number)
    if (task.pid, task.mm, mm.id, task.state) != (pid, mm_number, mm_id, TASK_RUNNING):
        raise gone(f"/proc/{pid}/{name}")
    return text


# -- mappings ------------------------------------------------------------------------------------------------


def copy_vmas(machine, mm_number):
    """An address space's VMAs by address, copied at a moment when nobody changed them, if there is one."""
    for _ in range(TRIES):
        mm, used = mm_of(machine, mm_number), pool_t.at(machine.vma_pool).used
        index = vma_index(machine, mm_number).as_numpy(mm.map_count).copy()
        index = index[(index > 0) & (index <= used)]
        vmas = vma_t.array(machine.vmas).as_numpy(used + 1)[index]
        sound = (vmas["mm"] == mm_number) & (vmas["start"] < vmas["end"])
        sound[1:] &= vmas["end"][:-1] <= vmas["start"][1:]
        if sound.all() and len(index) == mm.map_count and mm.mmap_lock >= 0:
            break
        os.sched_yield()
    return vmas[sound]


def is_initial_heap(mm, vma):
    """vma_is_initial_heap"""
    return vma["start"] < mm.brk and vma["end"] > mm.start_brk


def is_initial_stack(mm, vma):
    """vma_is_initial_stack"""
    return vma["start"] <= mm.start_stack <= vma["end"]


def permissions(flags):
    """rwxp"""
    letters = "".join(
        letter if flags & bit else "-" for bit, letter in ((VM_READ, "r"), (VM_WRITE, "w"), (VM_EXEC, "x"))
    )
    return letters + ("s" if flags & VM_MAYSHARE else "p")


def file_name(machine, vma):
    """The file a VMA maps, as /proc shows it; "" if it maps none."""
    if vma["file"]:
        return inode_name(inode_of(machine, file_of(machine, int(vma["file"])).inode))
    if vma["flags"] & VM_HUGETLB:
        return HUGETLB_NAME
    return SHMEM_NAME if vma["flags"] & VM_SHARED else ""


def show_map_vma(machine, mm, vma):
    """A line of maps. A shared object's inode number is that of its mapping."""
    name, inode, device = file_name(machine, vma), vma["mapping"], SHMEM_DEVICE
    if vma["file"]:
        inode = file_of(machine, int(vma["file"])).inode
        tmpfs = SHMEM_DEVICE if name.startswith("/memfd:") else TMPFS_DEVICE
        device = tmpfs if inode_of(machine, inode).object else DISK_DEVICE
    if vma["flags"] & VM_HUGETLB:
        device = HUGETLBFS_DEVICE
    backed = bool(name)
    if not backed and is_initial_heap(mm, vma):
        name = "[heap]"
    elif not backed and is_initial_stack(mm, vma):
        name = "[stack]"
    offset, device, inode = (int(vma["pgoff"]) << PAGE_SHIFT, device, inode) if backed else (0, "00:00", 0)
    prefix = f"{vma['start']:08x}-{vma['end']:08x} {permissions(vma['flags'])} {offset:08x} {device} {inode} "
    return (prefix.ljust(NAME_COLUMN) + name if name else prefix) + "\n"


def maps(system, _number, mm_number):
    """/proc/<pid>/maps"""
    mm = mm_of(system.machine, mm_number)
    return "".join(show_map_vma(system.machine, mm, vma) for vma in copy_vmas(system.machine, mm_number))


def mpol_to_str(mode, flags, nodes):
    """A policy in words, as in numa_maps and the mount option of tmpfs."""
    text = POLICY_MODES[mode]
    words = [word for bit, word in POLICY_FLAGS.items() if flags & bit]
    text += "=" * bool(words) + "|".join(words)
    return f"{text}:{list_text(n for n in range(MAX_NODES) if int(nodes) >> n & 1)}" if nodes else text


def page_words(counts, page_kb):
    """What numa_maps says of the pages of a range: nothing if there are none."""
    pages, dirty, anon, mapcount_max, active, swapcache, writeback = counts[:FIRST_NODE].tolist()
    if not pages:
        return []
    shown = (
        ("anon", anon, anon),
        ("dirty", dirty, dirty),
        ("mapped", pages, pages not in (anon, dirty)),
        ("mapmax", mapcount_max, mapcount_max > 1),
        ("swapcache", swapcache, swapcache),
        ("active", active, active < pages),
        ("writeback", writeback, writeback),
    )
    nodes = [f"N{node}={n}" for node, n in enumerate(counts[FIRST_NODE:].tolist()) if n]
    return [f"{name}={value}" for name, value, when in shown if when] + nodes + [f"kernelpagesize_kB={page_kb}"]


def policy_of_vma(machine, vma):
    """The policy of a VMA, as it begins: its own, or that of the shared object that it maps (__get_vma_policy)."""
    number = vma["i_mapping"] or (vma["mapping"] if vma["flags"] & (VM_SHARED | VM_HUGETLB) == VM_SHARED else 0)
    mapping = mapping_t.array(machine.mappings)[int(number)]
    if not number or (mapping.host and not mapping.tmpfs):
        return vma["policy"]
    at, found = int(mapping.first_policy), {"mode": MPOL_DEFAULT}
    for _ in range(MAX_SP_NODES):  # it may change meanwhile
        if not at:
            break
        node = sp_node_t.array(machine.sp_nodes)[at]
        if node.start <= vma["pgoff"] < node.end:
            found = {field: node.policy.as_numpy()[field] for field in ("mode", "flags", "nodes")}
        at = int(node.next)
    return found


def show_numa_map(system, task, mm_number, vma):
    """A line of numa_maps."""
    mm, counts = mm_of(system.machine, mm_number), np.zeros(NR_COUNTS, np.int64)
    own = policy_of_vma(system.machine, vma)
    policy = own if own["mode"] != MPOL_DEFAULT else task.policy.as_numpy()
    words = [f"{vma['start']:08x}", mpol_to_str(int(policy["mode"]), int(policy["flags"]), policy["nodes"])]
    if name := file_name(system.machine, vma):
        words.append("file=" + name.replace(" ", "\\040"))
    elif is_initial_heap(mm, vma):
        words.append("heap")
    elif is_initial_stack(mm, vma):
        words.append("stack")
    huge, page_kb = vma["flags"] & VM_HUGETLB, 4
    if huge:
        words.append("huge")
        page_kb = 4 << int(hstate_at(system.machine, int(vma["hstate"])).order)
    walk_page_range(int(system.machine.address), mm_number, vma["start"], vma["end"], counts, 0)
    return " ".join(words + page_words(counts, page_kb)) + "\n"


def numa_maps(system, number, mm_number):
    """/proc/<pid>/numa_maps"""
    task = task_t.array(system.machine.tasks)[number]
    return "".join(show_numa_map(system, task, mm_number, vma) for vma in copy_vmas(system.machine, mm_number))


# -- status --------------------------------------------------------------------------------------------------


def text_pages(mm):
    """Pages of the program's code; 0 in a task that runs none."""
    return int((mm.end_code + PAGE_SIZE - 1 >> PAGE_SHIFT) - (mm.start_code >> PAGE_SHIFT))


def memory_fields(machine, mm):
    """task_mem, in kB. The top-level table is not in VmPTE, as in mm_pgtables_bytes. Nothing pins pages."""
    text = min(text_pages(mm), mm.exec_vm)
    anon, file, shmem = (mm.rss[i] for i in (MM_ANONPAGES, MM_FILEPAGES, MM_SHMEMPAGES))
    rss = anon + file + shmem
    pages = {
        "VmPeak": max(mm.hiwater_vm, mm.total_vm),
        "VmSize": mm.total_vm,
        "VmLck": mm.locked_vm,
        "VmPin": 0,
        "VmHWM": max(mm.hiwater_rss, rss),
        "VmRSS": rss,
        "RssAnon": anon,
        "RssFile": file,
        "RssShmem": shmem,
        "VmData": mm.data_vm,
        "VmStk": mm.stack_vm,
        "VmExe": text,
        "VmLib": mm.exec_vm - text,
        "VmPTE": mm.pgtables,
        "VmSwap": mm.rss[MM_SWAPENTS],
        "HugetlbPages": mm.hugetlb_usage,
    }
    return {name: f"{kilobytes(n):8d} kB" for name, n in pages.items()}


def statm(system, _number, mm_number):
    """/proc/<pid>/statm, in pages: proc_pid_statm"""
    mm = mm_of(system.machine, mm_number)
    anon, shared = mm.rss[MM_ANONPAGES], mm.rss[MM_FILEPAGES] + mm.rss[MM_SHMEMPAGES]
    return f"{mm.total_vm} {anon + shared} {shared} {text_pages(mm)} 0 {mm.data_vm + mm.stack_vm} 0\n"


def status(system, number, mm_number):
    """/proc/<pid>/status: the lines of proc_pid_status that concern tasks, memory and placement, in its order.

    Not there: groups, signals and capabilities, which are not emulated. A task runs on the CPU it was put on and nowhere else, so that is what it is allowed.
    """
    machine, task = system.machine, task_t.array(system.machine.tasks)[number]
    running = cpu_t.array(machine.cpus)[task.cpu].task == number
    tasks, alive = live_tasks(machine)
    fields = {
        "Name": task_name(task),
        "State": "R (running)" if running else "S (sleeping)",
        "Tgid": task.tgid,
        "Ngid": numa_group_t.array(machine.numa_groups)[task.numa_group].gid if task.numa_group else 0,
        "Pid": task.pid,
        "PPid": task.ppid,
        "TracerPid": 0,
        "Uid": "\t".join([str(task.uid)] * 4),
        **memory_fields(machine, mm_of(machine, mm_number)),
        "Threads": int((tasks[alive]["tgid"] == task.tgid).sum()),
        "Cpus_allowed": mask_text([task.cpu], machine.nr_cpus),
        "Cpus_allowed_list": list_text([task.cpu]),
        "Mems_allowed": mask_text(mems_allowed(task), MAX_NODES),
        "Mems_allowed_list": list_text(mems_allowed(task)),
        "voluntary_ctxt_switches": task.nvcsw,
        "nonvoluntary_ctxt_switches": task.nivcsw,
    }
    return "".join(f"{name}:\t{value}\n" for name, value in fields.items())


# -- oom -----------------------------------------------------------------------------------------------------


def show_oom_score(system, number, _mm_number):
    """/proc/<pid>/oom_score"""
    return f"{oom_score(system.machine, task_t.array(system.machine.tasks)[number])}\n"


def show_oom_score_adj(system, number, _mm_number):
    """/proc/<pid>/oom_score_adj"""
    return f"{task_t.array(system.machine.tasks)[number].oom_score_adj}\n"


def write_oom_score_adj(system, pid, text):
    """__set_oom_adj: for every thread, and every process that shares the memory."""
    value = strtoul(text.strip())
    if value is None or not OOM_SCORE_ADJ_MIN <= value <= OOM_SCORE_ADJ_MAX:
        raise invalid(f"oom_score_adj is {text.strip()!r}, must be {OOM_SCORE_ADJ_MIN} to {OOM_SCORE_ADJ_MAX}")
    number, (_, alive) = number_of_pid(system.machine, pid), live_tasks(system.machine)
    tasks = task_t.array(system.machine.tasks)
    for other in alive.tolist():
        if tasks[other].mm == tasks[number].mm:
            tasks[other].oom_score_adj = value


def show_comm(system, number, _mm_number):
    """/proc/<pid>/comm"""
    return task_name(task_t.array(system.machine.tasks)[number]) + "\n"


def write_comm(system, pid, text):
    """comm_write: at most 15 bytes"""
    task = task_t.array(system.machine.tasks)[number_of_pid(system.machine, pid)]
    for i, byte in enumerate(text.strip("\n").encode()[: TASK_NAME_BYTES - 1].ljust(TASK_NAME_BYTES, b"\0")):
        task.comm[i] = byte


# fmt: off
PID_FILES = {"maps": maps, "numa_maps": numa_maps, "status": status, "oom_score": show_oom_score,
             "oom_score_adj": show_oom_score_adj, "comm": show_comm, "statm": statm}
# fmt: on
PID_WRITERS = {"comm": write_comm, "oom_score_adj": write_oom_score_adj}

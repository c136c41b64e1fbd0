"""What every part of a CPU's operations may use of the whole: `base.Operations` sets it, or another part has it."""

from collections.abc import Callable
from typing import Any


class Part:
    """The base of the parts, which says what each finds in `self`."""

    process: Any  # cpu.Cpu
    machine: Any  # machine_t
    address: int  # of this CPU's cpu_t, for compiled functions
    tasks: Any  # task_t[]
    kmap_slots: list[int]  # addresses that the task has mapped by kmap_atomic
    preempt_disable: Callable[..., Any]
    preempt_enable: Callable[..., Any]
    preempt_count: int
    accessing: Callable[..., Any]
    refused: Callable[..., Any]
    oom_killed: Callable[..., Any]
    end_turn: Callable[..., Any]
    running_alone: tuple[int, int] | None  # (number, pid) of the task that keeps the turn
    buffer: Callable[..., Any]
    kernel_write: Callable[..., Any]
    might_alloc: Callable[..., Any]
    copy_out: Callable[..., Any]
    checked_gfp: Callable[..., Any]
    checked_nid: Callable[..., Any]
    present: Callable[..., Any]
    page_address: Callable[..., Any]
    put_on_disk: Callable[..., Any]
    nodemask: Callable[..., Any]
    kernel_bytes: Callable[..., Any]
    cpus_allowed: Callable[..., Any]
    sched_setaffinity: Callable[..., Any]

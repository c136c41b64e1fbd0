"""One word of a task's memory, loaded or stored: what an array's element in a workload is, in one call of compiled code.

`access_word` does what an operation of one access does in five calls: has the task ended, make it run and go inside, the access,
go outside, what has become of the task meanwhile. Whatever is not plain is left to the operations that any task has.
"""

import ctypes
from typing import Any

import numpy as np

from numaemu.api.access import load, store
from numaemu.compiler.decorators import entry, hot
from numaemu.compiler.pointer import u8, u16, u32, u64
from numaemu.errors import KernelBug, SegmentationFault
from numaemu.hardware.controller import begin_overlap, end_overlap
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.core.sched import GONE, HERE, VICTIM, ZOMBIE, standing_of, task_standing
from numaemu.kernel.core.smp import leave
from numaemu.kernel.syscalls.common import end_access, go_inside
from numaemu.operations.part import Part

U = np.uint64
DONE = 64  # beside the bits of task_standing: the word was accessed


@hot
def load_bits(cpu, address, nbytes):
    """The bits of one load, of 1, 2, 4 or 8 bytes."""
    if nbytes == 8:
        return load(cpu, address, u64)
    if nbytes == 4:
        return U(load(cpu, address, u32))
    if nbytes == 2:
        return U(load(cpu, address, u16))
    return U(load(cpu, address, u8))


@hot
def store_bits(cpu, address, nbytes, bits):
    """One store, of the lowest `nbytes` bytes of a word."""
    if nbytes == 8:
        store(cpu, address, bits, u64)
    elif nbytes == 4:
        store(cpu, address, bits & U(0xFFFFFFFF), u32)
    elif nbytes == 2:
        store(cpu, address, bits & U(0xFFFF), u16)
    else:
        store(cpu, address, bits & U(0xFF), u8)


@entry("i64(u64, i64, i64, u64, i64, i64, u64, u64)", nogil=True)
def access_word(cpu_address, number, pid, address, nbytes, write, bits, loaded):
    """Load the word at an address to the host address `loaded`, or store `bits` there, as task `pid`: DONE, unless the task has ended or
    is on another CPU; and as task_standing says, how it stands then. Raises what an access raises, and is inside then.
    """
    cpu = cpu_t.at(cpu_address)
    standing = standing_of(cpu, number, pid)
    if standing & (GONE | ZOMBIE) != 0 or standing & HERE == 0:
        return standing
    go_inside(cpu, number)
    timed = cpu.timed != U(0)
    if timed:
        begin_overlap(cpu)
    if write != 0:
        store_bits(cpu, address, nbytes, bits)
    else:
        u64.array(loaded)[0] = load_bits(cpu, address, nbytes)
    if timed:
        end_overlap(cpu)
    leave(cpu)
    return DONE | standing_of(cpu, number, pid)


class WordOperations(Part):
    """The part of Operations that accesses one word."""

    # Written by access_word, as the last thing that it does in the CPU's turn, and read before that turn is given up: so it is no
    # other task's value.
    loaded: Any
    loaded_address: int

    def prepare_words(self):
        """Where compiled code puts a value that was loaded."""
        self.loaded = ctypes.c_uint64()
        self.loaded_address = ctypes.addressof(self.loaded)

    def word(self, task_number, address, nbytes, write, bits):
        """Access a word: the bits that it holds then, or held."""
        pid = self.tasks[task_number].pid
        words = task_number, pid, address, nbytes, write, bits, self.loaded_address
        self.accessing(task_number, access_word, self.address, *words)
        return self.loaded.value

    def word_at_once(self, task_number, pid, address, nbytes, write, bits):
        """The operation `word` of task `pid`, turn and all. None: it has to be done as any other one, by `run`."""
        if self.running_alone is not None:
            return None
        turn, key, standing = self.process.turn, (task_number, pid), 0
        turn.enter(key)
        try:
            standing = access_word(self.address, task_number, pid, address, nbytes, write, bits, self.loaded_address)
            if standing & VICTIM and standing & DONE:
                raise self.oom_killed(task_number)
            return self.loaded.value if standing & DONE else None
        except (SegmentationFault, KernelBug) as error:
            raise self.word_refused(task_number, pid, error) from None
        finally:
            if standing == DONE | HERE:
                turn.leave(key, True)
            else:
                self.end_turn(task_number, pid)

    def word_refused(self, task_number, pid, error):
        """What is wrong with an access, as `accessing` and `run_in_turn` tell it."""
        try:
            told = self.refused(task_number, error)
        except KernelBug as bug:
            told = bug
        finally:
            end_access(self.address)
        return self.oom_killed(task_number) if task_standing(self.address, task_number, pid) & VICTIM else told

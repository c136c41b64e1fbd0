"""What a task reads and writes, for /proc/<pid>/io: Linux's include/linux/task_io_accounting_ops.h."""

from numaemu.compiler.decorators import hot
from numaemu.kernel.include.mm_types import machine_t, task_t
from numaemu.spec.param import PAGE_SIZE

# of task->ioac: bytes and calls of read(2), write(2) and their kin; bytes that disks were read for, that will be written, that
# need not be written any more
RCHAR, WCHAR, SYSCR, SYSCW, READ_BYTES, WRITE_BYTES, CANCELLED_WRITE_BYTES = range(7)
NR_IOAC = 7
IOAC = ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes")


@hot
def ioac_of(cpu):
    """The running task's; where none runs nobody looks at it."""
    return task_t.array(machine_t.at(cpu.machine).tasks)[cpu.task].ioac


@hot
def account_read_call(cpu, result):
    """A call of read(2) has ended: add_rchar, inc_syscr."""
    ioac_of(cpu)[RCHAR] += max(result, 0)
    ioac_of(cpu)[SYSCR] += 1


@hot
def account_write_call(cpu, result):
    """A call of write(2) has ended: add_wchar, inc_syscw."""
    ioac_of(cpu)[WCHAR] += max(result, 0)
    ioac_of(cpu)[SYSCW] += 1


@hot
def task_io_account_read(cpu):
    """A page is read from a disk."""
    ioac_of(cpu)[READ_BYTES] += PAGE_SIZE


@hot
def task_io_account_write(cpu):
    """A page of a file has become dirty, and will be written some day."""
    ioac_of(cpu)[WRITE_BYTES] += PAGE_SIZE


@hot
def task_io_account_cancelled_write(cpu):
    """A dirty page has been cut off."""
    ioac_of(cpu)[CANCELLED_WRITE_BYTES] += PAGE_SIZE

"""Descriptors: Linux's fs/file.c. A process has a table of open files (files_struct), which its threads share and fork copies.

Parent and child then have the same open files, with one position, and each its own right to close them. Who changes a
table holds its lock; who looks a file up does so without, as Linux does: it takes a reference unless the count is 0, and
looks again whether the descriptor still means that file, as its number may be another's by then.
"""

import numpy as np

from numaemu.compiler.atomic import fetch_add, load_acquire, store_release
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, address_of, i64, u64
from numaemu.kernel.core.pool import pool_get, pool_put
from numaemu.kernel.core.smp import machine_of, spin_lock, spin_unlock
from numaemu.kernel.fs.inode import file_of, get_file
from numaemu.kernel.include.refcount import refcount_inc_not_zero
from numaemu.kernel.mm.cache.truncate import fput
from numaemu.kernel.mm.space.mempolicy import current_task
from numaemu.spec.param import MAX_OPEN
from numaemu.uapi import RLIMIT_NOFILE, errno

U = np.uint64
EBADF, EMFILE = errno.EBADF, errno.EMFILE
FD_CLOEXEC = 1 << 32  # of a word of the table, beside the number of the open file; 0: the descriptor is free
FILE = FD_CLOEXEC - 1
FIRST_FD = 3  # as if a shell had opened 0, 1 and 2, which are not there

# Shared words of files_struct_t: the word | its writer | why a reader may trust it.
# - descriptors | Any thread of the process under lock; each holds a count of its open file. | Without the lock: a
#   count is taken unless it is 0, then the descriptor is looked at again.
# fmt: off
files_struct_t = Struct("files_struct_t", [
    ("count", i64),              # atomically: threads that share it
    ("lock", u64),               # spin lock
    # under the lock; a word is set with release and read without the lock
    ("nr", i64),                 # descriptors below this one may be open
    ("fd", i64, MAX_OPEN),
])
# fmt: on


@hot
def files_of(machine, number):
    return files_struct_t.array(machine.files_structs)[number]


@hot
def my_files(cpu):
    """The descriptor table of the running task."""
    return files_of(machine_of(cpu), current_task(cpu).files)


# -- tables --------------------------------------------------------------------------------------------------


@kernel("i64(cpu_t*)")
def alloc_files(cpu):
    """An empty table; its number, or 0: there are too many."""
    machine = machine_of(cpu)
    number = pool_get(cpu, machine.files_struct_pool)
    if number != 0:
        files = files_of(machine, number)
        files.count, files.lock, files.nr = 1, U(0), FIRST_FD
        for fd in range(FIRST_FD):
            files.fd[fd] = 0
    return number


@kernel("i64(cpu_t*, i64)")
def dup_fd(cpu, of_number):
    """A copy of a table, which means the same open files; its number, or 0."""
    machine, number = machine_of(cpu), alloc_files(cpu)
    if number == 0:
        return 0
    files, of = files_of(machine, number), files_of(machine, of_number)
    spin_lock(cpu, address_of(of, "lock"))
    files.nr = of.nr
    for fd in range(of.nr):
        word = of.fd[fd]
        if word != 0:
            get_file(machine, word & FILE)
        files.fd[fd] = word
    spin_unlock(address_of(of, "lock"))
    return number


@kernel("void(cpu_t*, i64, bool)")
def close_range(cpu, number, only_cloexec):
    """Close every descriptor of a table, or only those that execve closes (do_close_on_exec)."""
    machine = machine_of(cpu)
    files = files_of(machine, number)
    for fd in range(load_acquire(files, "nr")):
        spin_lock(cpu, address_of(files, "lock"))
        word = files.fd[fd]
        gone = word != 0 and (not only_cloexec or word & FD_CLOEXEC != 0)
        if gone:
            store_release(files.fd, fd, 0)
        spin_unlock(address_of(files, "lock"))
        if gone:
            fput(cpu, word & FILE)


@kernel("void(cpu_t*, i64)")
def put_files_struct(cpu, number):
    """One user of a table less; with the last one all its files are closed."""
    if fetch_add(files_of(machine_of(cpu), number), "count", -1) == 1:
        close_range(cpu, number, False)
        pool_put(cpu, machine_of(cpu).files_struct_pool, number)


@kernel("i64(cpu_t*, i64, bool)")
def copy_files(cpu, of_number, share):
    """The table of a new task: its parent's (a thread), a copy of that (a process), or (of 0) an empty one. 0: no room."""
    if of_number == 0:
        return alloc_files(cpu)
    if not share:
        return dup_fd(cpu, of_number)
    fetch_add(files_of(machine_of(cpu), of_number), "count", 1)
    return of_number


# -- descriptors ---------------------------------------------------------------------------------------------


@kernel("bool(file_t*)")
def get_file_rcu(file):
    """One more user of an open file, unless it is being closed by its last one."""
    return refcount_inc_not_zero(i64.array(address_of(file, "count")))


@kernel("i64(cpu_t*, i64)")
def fget(cpu, fd):
    """The open file of a descriptor of the running task, held until fput; 0: there is none."""
    machine, files = machine_of(cpu), my_files(cpu)
    while fd >= 0 and fd < load_acquire(files, "nr"):
        number = load_acquire(files.fd, fd) & FILE
        if number == 0:
            return 0
        if get_file_rcu(file_of(machine, number)):
            if load_acquire(files.fd, fd) & FILE == number:
                return number
            fput(cpu, number)
    return 0


@kernel("i64(cpu_t*, i64)")
def fd_install(cpu, word):
    """The lowest free descriptor for an open file, which it takes over from the caller; or -EMFILE (alloc_fd, fd_install)."""
    files, fd, end = my_files(cpu), FIRST_FD, np.int64(current_task(cpu).rlim[2 * RLIMIT_NOFILE])
    spin_lock(cpu, address_of(files, "lock"))
    while fd < files.nr and files.fd[fd] != 0:
        fd += 1
    if fd < end:
        store_release(files.fd, fd, word)
        if fd == files.nr:
            store_release(files, "nr", fd + 1)
    spin_unlock(address_of(files, "lock"))
    return fd if fd < end else -EMFILE


@kernel("i64(cpu_t*, i64, i64)")
def replace_fd(cpu, fd, word):
    """Let a descriptor mean another open file, which it takes over, or (0) none: the old word, or -EBADF. The caller lets
    the old file go.
    """
    files = my_files(cpu)
    if fd < 0 or fd >= np.int64(current_task(cpu).rlim[2 * RLIMIT_NOFILE]):
        return -EBADF
    spin_lock(cpu, address_of(files, "lock"))
    old = 0
    if fd < files.nr:
        old = files.fd[fd]
        store_release(files.fd, fd, word)
    elif word != 0:
        for between in range(files.nr, fd):
            files.fd[between] = 0
        store_release(files.fd, fd, word)
        store_release(files, "nr", fd + 1)
    spin_unlock(address_of(files, "lock"))
    return old


@kernel("i64(cpu_t*, i64)")
def close_fd(cpu, fd):
    """close(2): 0 or -EBADF."""
    old = replace_fd(cpu, fd, 0)
    if old <= 0:
        return -EBADF
    fput(cpu, old & FILE)
    return 0


@kernel("i64(cpu_t*, i64, i64)")
def do_dup(cpu, fd, target):
    """dup(2), or dup2(2) to descriptor `target` (not -1): the new descriptor, which does not close on exec; or -errno."""
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    if target == fd:
        fput(cpu, number)
        return fd
    old = 0
    if target < 0:
        target = fd_install(cpu, number)
    else:
        old = replace_fd(cpu, target, number)
    if target < 0 or old < 0:
        fput(cpu, number)
    elif old > 0:
        fput(cpu, old & FILE)
    return old if old < 0 else target

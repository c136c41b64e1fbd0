"""System calls on files, run by the CPU the task is on, and what the driver asks of the machine's files.

Names are host addresses of NAME_WORDS words, the rest zeros; buffers are host addresses. Results are values or -errno.
"""

import numpy as np

from numaemu.compiler.decorators import entry, hot, kernel
from numaemu.compiler.native import clear_bytes, copy_bytes
from numaemu.compiler.pointer import address_of, u64
from numaemu.hardware.paging import PAGE_MASK
from numaemu.hardware.processor import cpu_t
from numaemu.kernel.arch.pgtable import mm_of
from numaemu.kernel.core.smp import machine_of, read_lock, read_unlock, write_lock, write_unlock
from numaemu.kernel.core.xarray import xa_find, xa_load
from numaemu.kernel.fs.disk import disk_store_page
from numaemu.kernel.fs.file import FD_CLOEXEC, close_fd, do_dup, fd_install, fget
from numaemu.kernel.fs.hugetlbfs import hstate_file, hugetlbfs_get_inode, hugetlbfs_read, is_hugetlbfs
from numaemu.kernel.fs.inode import (
    EEXIST,
    NAME_WORDS,
    alloc_file,
    bmap,
    create,
    extend,
    file_of,
    inode_of,
    link_inode,
    lookup,
    new_inode,
    shmem_get_inode,
)
from numaemu.kernel.include.mm import PFN_UP
from numaemu.kernel.include.mm_types import VM_LOCKED, VM_SHARED
from numaemu.kernel.include.task_io_accounting_ops import account_read_call, account_write_call
from numaemu.kernel.mm.cache.fadvise import generic_fadvise
from numaemu.kernel.mm.cache.filemap import MAX_FILE_BYTES, filemap_read, generic_file_write, vfs_fsync
from numaemu.kernel.mm.cache.page_writeback import filemap_write_and_wait_range, wb_timer
from numaemu.kernel.mm.cache.shmem_file import shmem_file_read, shmem_file_write
from numaemu.kernel.mm.cache.truncate import do_truncate, do_unlink, drop_pagecache, fput, iput, ksys_sync
from numaemu.kernel.mm.fault.rmap import mapping_of
from numaemu.kernel.mm.space.gup import vm_mmap_pgoff
from numaemu.kernel.mm.space.vma_index import find_position, range_is_mapped, vma_index, vma_of
from numaemu.kernel.syscalls.common import mmap_lock, running
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE
from numaemu.uapi import (
    MS_INVALIDATE,
    MS_SYNC,
    O_ACCMODE,
    O_APPEND,
    O_CLOEXEC,
    O_CREAT,
    O_EXCL,
    O_RDONLY,
    O_TRUNC,
    O_WRONLY,
    SEEK_CUR,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SEEK_SET,
    errno,
)

U = np.uint64
EBADF, EBUSY, EINVAL, ENOENT, ENOMEM, ENXIO = (
    errno.EBADF,
    errno.EBUSY,
    errno.EINVAL,
    errno.ENOENT,
    errno.ENOMEM,
    errno.ENXIO,
)
AT_F_POS = -1 << 63  # an offset: where the file stands


@hot
def fget_mode(cpu, fd, refused):
    """The open file of a descriptor, held, unless it is open in the mode `refused` only (O_RDONLY, O_WRONLY); 0: EBADF."""
    number = fget(cpu, fd)
    if number != 0 and file_of(machine_of(cpu), number).flags & O_ACCMODE == refused:
        fput(cpu, number)
        return 0
    return number


@hot
def vfs_read(cpu, number, pos, buffer, nbytes):
    """Read up to `nbytes` at `pos` of an open file into host memory at `buffer`: bytes read, or a negative errno."""
    if hstate_file(machine_of(cpu), number) >= 0:
        return hugetlbfs_read(cpu, file_of(machine_of(cpu), number).inode, pos, buffer, nbytes)
    if inode_of(machine_of(cpu), file_of(machine_of(cpu), number).inode).object != 0:
        return shmem_file_read(cpu, number, pos, buffer, nbytes)
    return filemap_read(cpu, number, pos, buffer, nbytes)


@hot
def vfs_write(cpu, number, pos, buffer, nbytes):
    """Write `nbytes` from host memory at `buffer` to an inode at `pos`: bytes written, or a negative errno."""
    if is_hugetlbfs(machine_of(cpu), inode_of(machine_of(cpu), number)):
        return -EINVAL  # such a file can only be mapped
    if inode_of(machine_of(cpu), number).object != 0:
        return shmem_file_write(cpu, number, pos, buffer, nbytes)
    return generic_file_write(cpu, number, pos, buffer, nbytes)


@kernel("i64(cpu_t*, u64, i64)")
def do_open(cpu, name, flags):
    """The inode that open(2) means, held; or -errno."""
    while True:
        number = lookup(cpu, name)
        if number == -ENOENT and flags & O_CREAT:
            number = create(cpu, name)
            if number == -EEXIST:
                continue  # another was faster
        elif number > 0 and flags & O_CREAT and flags & O_EXCL:
            iput(cpu, number)
            return -EEXIST
        return number


@kernel("i64(cpu_t*, i64, i64)")
def open_inode(cpu, number, flags):
    """A descriptor of a file that the caller holds, and gives up: the descriptor, -ENFILE or -EMFILE."""
    file = alloc_file(cpu, number, flags)
    if file < 0:
        iput(cpu, number)
        return file
    fd = fd_install(cpu, file | FD_CLOEXEC if flags & O_CLOEXEC else file)
    if fd < 0:
        fput(cpu, file)
    return fd


@entry("i64(u64, i64, u64, i64)")
def sys_open(cpu_address, task_number, name, flags):
    """open(2): a descriptor, or -errno."""
    cpu = running(cpu_address, task_number)
    number = do_open(cpu, name, flags)
    if number < 0:
        return number
    if flags & O_TRUNC:
        error = do_truncate(cpu, number, 0)
        if error != 0:
            iput(cpu, number)
            return error
    return open_inode(cpu, number, flags)


@entry("i64(u64, i64, u64, i64, i64)")
def sys_memfd_create(cpu_address, task_number, name, flags, hstate):
    """memfd_create(2): a descriptor of a tmpfs file without a name, but for `name` in /proc; or -errno.

    `hstate` is the pool of a file of huge pages, -1 for any other.
    """
    cpu = running(cpu_address, task_number)
    number = shmem_get_inode(cpu) if hstate < 0 else hugetlbfs_get_inode(cpu, hstate)
    if number < 0:
        return number
    inode = inode_of(machine_of(cpu), number)
    for i in range(NAME_WORDS):
        inode.name[i] = u64.array(name)[i]
    return open_inode(cpu, number, flags)


@entry("i64(u64, i64, i64)")
def sys_close(cpu_address, task_number, fd):
    return close_fd(running(cpu_address, task_number), fd)


@entry("i64(u64, i64, i64, i64)")
def sys_dup(cpu_address, task_number, fd, target):
    """dup(2), or dup2(2) to the descriptor `target` if that is not -1."""
    return do_dup(running(cpu_address, task_number), fd, target)


@kernel("i64(cpu_t*, i64, u64, i64)")
def read_at_position(cpu, number, buffer, nbytes):
    """read(2) of an open file, where it stands."""
    file = file_of(machine_of(cpu), number)
    lock = address_of(file, "f_pos_lock")
    write_lock(cpu, lock)
    result = vfs_read(cpu, number, file.f_pos, buffer, nbytes)
    file.f_pos += max(result, 0)
    write_unlock(lock)
    return result


@entry("i64(u64, i64, i64, i64, u64, i64)", nogil=True)
def sys_read(cpu_address, task_number, fd, pos, buffer, nbytes):
    """read(2), or pread(2) where `pos` is not AT_F_POS."""
    cpu = running(cpu_address, task_number)
    if pos < 0 and pos != AT_F_POS:
        return -EINVAL
    number = fget_mode(cpu, fd, O_WRONLY)
    if number == 0:
        return -EBADF
    wb_timer(cpu)
    if nbytes < 0:
        result = -EINVAL
    elif pos != AT_F_POS:
        result = vfs_read(cpu, number, pos, buffer, nbytes)
    else:
        result = read_at_position(cpu, number, buffer, nbytes)
    account_read_call(cpu, result)
    fput(cpu, number)
    return result


@entry("i64(u64, i64, i64, u64, i64, i64)", nogil=True)
def read_through(cpu_address, task_number, fd, buffer, chunk, nbytes):
    """read(2) in pieces of `chunk` bytes, each over the last one; how many bytes came. A system call for each piece."""
    done = 0
    while done < nbytes:
        cpu = running(cpu_address, task_number)
        number = fget_mode(cpu, fd, O_WRONLY)
        if number == 0:
            return -EBADF
        wb_timer(cpu)
        result = read_at_position(cpu, number, buffer, min(chunk, nbytes - done))
        account_read_call(cpu, result)
        fput(cpu, number)
        if result <= 0:
            return done if done > 0 else result
        done += result
    return done


@kernel("i64(cpu_t*, i64, u64, i64)")
def write_at_position(cpu, number, buffer, nbytes):
    """write(2) to an open file, where it stands, or at the end of the file (O_APPEND)."""
    machine = machine_of(cpu)
    file = file_of(machine, number)
    lock, append = address_of(file, "f_pos_lock"), file.flags & O_APPEND
    write_lock(cpu, lock)
    result = vfs_write(cpu, file.inode, -1 if append else file.f_pos, buffer, nbytes)
    if result > 0:
        file.f_pos = inode_of(machine, file.inode).i_size if append else file.f_pos + result
    write_unlock(lock)
    return result


@entry("i64(u64, i64, i64, i64, u64, i64)", nogil=True)
def sys_write(cpu_address, task_number, fd, pos, buffer, nbytes):
    """write(2), or pwrite(2) where `pos` is not AT_F_POS."""
    cpu = running(cpu_address, task_number)
    if pos < 0 and pos != AT_F_POS:
        return -EINVAL
    number = fget_mode(cpu, fd, O_RDONLY)
    if number == 0:
        return -EBADF
    wb_timer(cpu)
    file = file_of(machine_of(cpu), number)
    if pos != AT_F_POS:
        result = vfs_write(cpu, file.inode, -1 if file.flags & O_APPEND else pos, buffer, nbytes)
    else:
        result = write_at_position(cpu, number, buffer, nbytes)
    account_write_call(cpu, result)
    fput(cpu, number)
    return result


@kernel("i64(machine_t*, inode_t*, i64, bool)")
def seek_hole_data(machine, inode, offset, data):
    """SEEK_DATA (`data`) or SEEK_HOLE: where the next byte that was written lies, or the next that was not; or -ENXIO.

    A file of the disk has its place there for every byte; one of tmpfs has holes where it has no pages.
    """
    size, index = inode.i_size, offset >> PAGE_SHIFT
    if offset < 0 or offset >= size:
        return -ENXIO
    if inode.object == 0 or is_hugetlbfs(machine, inode):
        return offset if data else size
    mapping = mapping_of(machine, inode.object)
    if data:
        index = xa_find(machine, mapping, index, (size - 1) >> PAGE_SHIFT)
        return max(offset, index << PAGE_SHIFT) if index >= 0 else -ENXIO
    while index << PAGE_SHIFT < size and xa_load(machine, mapping, index) != U(0):
        index += 1
    return min(size, max(offset, index << PAGE_SHIFT))


@kernel("i64(machine_t*, file_t*, i64, i64)")
def vfs_llseek(machine, file, offset, whence):
    """Move a file's position (SEEK_*): where it is then, or a negative errno."""
    if whence == SEEK_CUR:
        offset += file.f_pos
    elif whence == SEEK_END:
        offset += inode_of(machine, file.inode).i_size
    elif whence == SEEK_DATA or whence == SEEK_HOLE:
        offset = seek_hole_data(machine, inode_of(machine, file.inode), offset, whence == SEEK_DATA)
        if offset < 0:
            return offset
    elif whence != SEEK_SET:
        return -EINVAL
    if offset < 0 or offset > MAX_FILE_BYTES:
        return -EINVAL
    file.f_pos = offset
    return offset


@entry("i64(u64, i64, i64, i64, i64)")
def sys_lseek(cpu_address, task_number, fd, offset, whence):
    """lseek(2): the new position in bytes, or a negative errno."""
    cpu = running(cpu_address, task_number)
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    result = vfs_llseek(machine_of(cpu), file_of(machine_of(cpu), number), offset, whence)
    fput(cpu, number)
    return result


@entry("i64(u64, i64, i64)", nogil=True)
def sys_fsync(cpu_address, task_number, fd):
    """fsync(2): 0, or -errno."""
    cpu = running(cpu_address, task_number)
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    vfs_fsync(cpu, file_of(machine_of(cpu), number).inode)
    fput(cpu, number)
    return 0


@entry("i64(u64, i64, i64, i64, i64, i64)", nogil=True)
def sys_fadvise(cpu_address, task_number, fd, offset, length, advice):
    """posix_fadvise(2): 0, or -errno."""
    cpu = running(cpu_address, task_number)
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    result = generic_fadvise(cpu, number, offset, length, advice) if offset >= 0 else -EINVAL
    fput(cpu, number)
    return result


@entry("i64(u64, i64, i64, i64)", nogil=True)
def sys_ftruncate(cpu_address, task_number, fd, size):
    """ftruncate(2): `size` in bytes; 0 or a negative errno."""
    cpu = running(cpu_address, task_number)
    if size < 0:
        return -EINVAL
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    file = file_of(machine_of(cpu), number)
    result = -EINVAL if file.flags & O_ACCMODE == O_RDONLY else do_truncate(cpu, file.inode, size)
    fput(cpu, number)
    return result


@entry("i64(u64, i64, i64, i64[])")
def sys_fstat(cpu_address, task_number, fd, answer):
    """Of fstat(2) st_size and st_ino, to `answer`: 0 or -EBADF."""
    cpu = running(cpu_address, task_number)
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    answer[1] = file_of(machine_of(cpu), number).inode
    answer[0] = inode_of(machine_of(cpu), answer[1]).i_size
    fput(cpu, number)
    return 0


@entry("i64(u64, i64, u64, u64, i64, i64, i64, u64)")
def sys_mmap_file(cpu_address, task_number, hint, length, prot, flags, fd, offset):
    """mmap(2) of an open file from byte `offset` on."""
    cpu = running(cpu_address, task_number)
    if offset & ~PAGE_MASK != U(0):
        return -EINVAL
    number = fget(cpu, fd)
    if number == 0:
        return -EBADF
    result = vm_mmap_pgoff(cpu, hint, length, prot, flags, number, np.int64(offset >> U(PAGE_SHIFT)))
    fput(cpu, number)
    return result


@entry("i64(u64, i64, u64, u64, i64)", nogil=True)
def sys_msync(cpu_address, task_number, start, length, flags):
    """msync(2): with MS_SYNC write what is dirty of the files that shared mappings in the range show; 0 or -errno."""
    cpu = running(cpu_address, task_number)
    machine = machine_of(cpu)
    end = start + ((length + U(PAGE_SIZE - 1)) & PAGE_MASK)
    if start & ~PAGE_MASK != U(0) or flags & ~(MS_SYNC | MS_INVALIDATE | 1) or flags & (MS_SYNC | 1) == MS_SYNC | 1:
        return -EINVAL
    if end < start:
        return -ENOMEM
    read_lock(cpu, mmap_lock(cpu))
    position = find_position(machine, cpu.mm, start)
    busy = False
    while position < mm_of(machine, cpu.mm).map_count:
        vma = vma_of(machine, vma_index(machine, cpu.mm)[position])
        if vma.start >= end:
            break
        if flags & MS_INVALIDATE and vma.flags & VM_LOCKED:
            busy = True
            break
        if flags & MS_SYNC and vma.file != 0 and vma.flags & VM_SHARED:
            first = vma.pgoff + np.int64((max(start, vma.start) - vma.start) >> U(PAGE_SHIFT))
            last = vma.pgoff + np.int64((min(end, vma.end) - vma.start) >> U(PAGE_SHIFT))
            filemap_write_and_wait_range(cpu, file_of(machine, vma.file).inode, first, last)
        position += 1
    mapped = range_is_mapped(machine, cpu.mm, start, end)
    read_unlock(mmap_lock(cpu))
    if busy:
        return -EBUSY
    return 0 if mapped else -ENOMEM


# -- for the driver ------------------------------------------------------------------------------------------


@entry("i64(u64, i64, u64)")
def make_file(cpu_address, size, seed):
    """A new file of `size` bytes on the disk, without a name yet: its inode, held; or -errno. `seed` 0: zeros."""
    cpu = cpu_t.at(cpu_address)
    number = new_inode(cpu)
    if number < 0:
        return number
    inode = inode_of(machine_of(cpu), number)
    error = extend(cpu, inode, PFN_UP(size), True) if size <= MAX_FILE_BYTES else -EINVAL
    if error != 0:
        iput(cpu, number)
        return error
    inode.seed, inode.seed_bytes, inode.i_size = seed, size if seed != U(0) else 0, size
    return number


@entry("i64(u64, i64, u64)")
def link_file(cpu_address, number, name):
    """Let a file be found under a name, and let it go: 0, or -EEXIST and it is gone."""
    cpu = cpu_t.at(cpu_address)
    error = link_inode(cpu, number, name)
    iput(cpu, number)
    return error


@entry("void(u64, i64, u64, i64, u64)")
def fill_file(cpu_address, number, data, nbytes, bounce):
    """Put contents on the disk, as if they had always been there: nothing is cached, nothing counted as written."""
    cpu = cpu_t.at(cpu_address)
    inode = inode_of(machine_of(cpu), number)
    for index in range(PFN_UP(nbytes)):
        n = min(nbytes - (index << PAGE_SHIFT), PAGE_SIZE)
        clear_bytes(bounce, PAGE_SIZE)
        copy_bytes(bounce, data + U(index << PAGE_SHIFT), n)
        disk_store_page(machine_of(cpu), bmap(inode, index), bounce)


@entry("i64(u64, u64)")
def sys_unlink(cpu_address, name):
    """unlink(2)"""
    return do_unlink(cpu_t.at(cpu_address), name)


@entry("i64(u64)", nogil=True)
def sys_sync(cpu_address):
    """sync(2): pages written."""
    return ksys_sync(cpu_t.at(cpu_address))


@entry("i64(u64)", nogil=True)
def sys_drop_caches(cpu_address):
    """What 1 in /proc/sys/vm/drop_caches does: pages dropped."""
    return drop_pagecache(cpu_t.at(cpu_address))

"""What a Machine shows of its /proc and /sys: a part of the class, of which tools that look in need nothing else."""

import errno
import os


class Tree:
    """The files of a machine. Its class says how the coordinator is asked."""

    def _ask(self, method, *args):
        raise NotImplementedError

    def _ask_path(self, method, path, *args):
        raise NotImplementedError

    def read(self, path):
        """The text of a file of the emulated /proc or /sys; of /proc/<pid>/auxv, which is binary, the bytes."""
        return self._ask_path("read", path)

    def write(self, path, value, task=None):
        """Write to a file of the emulated /proc or /sys; as a task, where its policy decides (nr_hugepages_mempolicy)."""
        return self._ask_path("write", path, str(value), *([] if task is None else [task._number]))

    def pagemap(self, pid, addr, nbytes):
        """The words of /proc/<pid>/pagemap for a range, one per page: bit 63 present, 62 a swap or migration entry, 61
        shared, 56 mapped once, 55 soft-dirty, 0 to 54 the frame. The file itself would be 256 GiB long.
        """
        return self._ask("pagemap", pid, addr, nbytes)

    def pread(self, path, nbytes, offset=0):
        """Bytes of a file of the emulated /proc or /sys from an offset on; those with a word for each frame or page
        (/proc/kpageflags, /proc/kpagecount, /proc/<pid>/pagemap) are large.
        """
        return self._ask_path("pread", path, nbytes, offset)

    def pwrite(self, path, data, offset=0):
        """Write bytes to a file of the emulated /sys from an offset on: to /sys/kernel/mm/page_idle/bitmap."""
        return self._ask_path("pwrite", path, bytes(data), offset)

    def readlink(self, path):
        """The target of a symbolic link in the emulated /sys; OSError (EINVAL) if the path is none."""
        kind, target = self.kind(path)
        if kind != "link":
            number = errno.EINVAL if kind else errno.ENOENT
            raise OSError(number, os.strerror(number), path)
        return target

    def kind(self, path):
        """What is at a path of the emulated /proc or /sys: ("dir", ""), ("link", its target), ("file", "r", "w" or "rw"), or
        ("", ""): nothing is.
        """
        return self._ask_path("kind", path)

    def export(self, directory):
        """Write a snapshot of /proc and /sys below a directory, for tools that take a root; how many files and links."""
        from numaemu.windows.export import export

        return export(self, directory)

    def mount(self, directory):
        """Show /proc and /sys below a directory, live, through FUSE (numaemu[mount]): a context manager with `close()`."""
        from numaemu.windows.mount import Mount

        return Mount(self, directory)

    def listdir(self, path):
        """The names in a directory of the emulated /proc or /sys."""
        return self._ask_path("listdir", path)

    def mkdir(self, path):
        """A new control group below /sys/fs/cgroup."""
        self._ask_path("mkdir", path)

    def rmdir(self, path):
        """Take a control group away; it must have neither tasks nor groups."""
        self._ask_path("rmdir", path)

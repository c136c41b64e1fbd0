"""A running machine's /proc and /sys as a live file system (FUSE), to read and to write, control groups included.

A thread of the driver serves it. Files are made when they are read from their beginning, so that a tool which keeps one open and
reads it again sees what is there then. Whatever happens to the driver, nothing stays mounted: a shell waits for its end.
"""

import ctypes
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import threading

from numaemu.errors import ConfigError, MachineCheck
from numaemu.host.extras import need
from numaemu.windows.view import SOMEBODY, Reader, View

WITH_READER = re.compile(r"/proc/(\d+/|self/|thread-self/|$)")  # where it matters who asks
MODES = {"dir": stat.S_IFDIR | 0o755, "link": stat.S_IFLNK | 0o777}
RIGHTS = {"r": 0o444, "w": 0o200, "rw": 0o644, "": 0}
SIGNALS = (signal.SIGHUP, signal.SIGTERM)  # for which libfuse ends its loop, where nobody else has a handler
BY_RANGES = (
    "/pagemap",
    "/kpageflags",
    "/kpagecount",
    "/kpagecgroup",
    "/page_idle/bitmap",
)  # files of words by frame or page
WATCH = 'read line || fusermount3 -u -z -q -- "$0"'  # what a shell does that waits for the driver's end, on a pipe
LOOK_S, MOUNT_S = 0.01, 10.0  # how often, and how long at most, to look whether a mount is there


def is_there():
    """True if what serves a file system can be loaded."""
    try:
        need("mfusepy", "mount", "")
    except ConfigError:
        return False
    return True


def reader_of(path, pid):
    """Who asks, by its number where it runs: only for what depends on it."""
    if not WITH_READER.match(path):
        return SOMEBODY
    try:
        with open(f"/proc/{pid}/status") as file:
            fields = dict(
                line.rstrip("\n").split(":\t", 1) for line in file if line.startswith(("Name", "NSpid", "NStgid"))
            )
        return Reader(int(fields["NStgid"].split()[-1]), fields["Name"])
    except (OSError, KeyError, ValueError):  # it has ended, or the host's kernel does not say
        return SOMEBODY


class Files:
    """Answers requests of the host's kernel, a method each; errors go there as their numbers."""

    use_ns = True

    def __init__(self, machine, mfusepy):
        self.mfusepy = mfusepy
        self.view, self.machine, self.opened, self.guard, self.last = (View(machine), machine, {}, threading.Lock(), 0)

    def ask(self, function, *args):
        """What the machine answers; its errors are the file's."""
        try:
            return function(*args)
        except MachineCheck:
            raise self.mfusepy.FuseOSError(errno.ENODEV) from None
        except OSError as error:
            raise self.mfusepy.FuseOSError(error.errno or errno.EIO) from None
        except ValueError:
            raise self.mfusepy.FuseOSError(errno.EINVAL) from None

    def look(self, method, path):
        """What is seen at a path by who asks."""
        return self.ask(method, path, reader_of(f"{path}/", self.mfusepy.fuse_get_context()[2]))

    def getattr(self, path, fh=None):
        """What stat(2) says; sizes are 0, as /proc's are."""
        kind, what = self.look(self.view.kind, path)
        if not kind:
            raise self.mfusepy.FuseOSError(errno.ENOENT)
        mode = MODES[kind] if kind in MODES else stat.S_IFREG | RIGHTS[what]
        size = len(what) if kind == "link" else 0
        return {
            "st_mode": mode,
            "st_nlink": 2 if kind == "dir" else 1,
            "st_size": size,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
        }

    def readdir(self, path, fh):
        return [".", "..", *self.look(self.view.listdir, path)]

    def readlink(self, path):
        return self.look(self.view.kind, path)[1]

    def open(self, path, flags):
        """A number for a file that may be opened so; nothing is made yet."""
        kind, rights = self.look(self.view.kind, path)
        wanted = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}[flags & os.O_ACCMODE]
        if kind == "file" and not set(wanted) <= set(rights):
            raise self.mfusepy.FuseOSError(errno.EACCES)
        with self.guard:
            self.last += 1
            self.opened[self.last] = None
            return self.last

    def read(self, path, size, offset, fh):
        """Bytes of a file as it was when its beginning was read; of words by frame or page, as they are now."""
        if path.endswith(BY_RANGES):
            return self.ask(self.machine.pread, path, size, offset)
        if offset == 0 or self.opened.get(fh) is None:
            self.opened[fh] = self.look(self.view.read, path)
        return self.opened[fh][offset : offset + size]

    def release(self, path, fh):
        self.opened.pop(fh, None)
        return 0

    def truncate(self, path, length, fh=None):
        return 0  # of `echo 1 > file`

    def write(self, path, data, offset, fh):
        """A text as a whole, or words at an offset."""
        if path.endswith(BY_RANGES):
            self.ask(self.machine.pwrite, path, data, offset)
        else:
            self.ask(self.machine.write, path, os.fsdecode(bytes(data)))
        return len(data)

    def unlink(self, path):
        raise self.mfusepy.FuseOSError(errno.EPERM)

    def create(self, path, mode, fi=None):
        raise self.mfusepy.FuseOSError(errno.EACCES)

    def mkdir(self, path, mode):
        self.ask(self.machine.mkdir, path)
        return 0

    def rmdir(self, path):
        self.ask(self.machine.rmdir, path)
        return 0


def operations(machine):
    """The module mfusepy, and its operations of a machine."""
    mfusepy = need("mfusepy", "mount", "a mount of /proc and /sys")
    return mfusepy, type("Operations", (Files, mfusepy.Operations), {})(machine, mfusepy)


def libfuse_leaves_signals(saved):
    """Give signals that would end the driver back to it: libfuse has taken those that nobody handled."""
    libc = ctypes.CDLL(None, use_errno=True)
    for number, handler in saved.items():
        if handler == signal.SIG_DFL:
            libc.signal(int(number), None)


class Mount:
    """A mount that ends with `close()`, at the end of a `with` block, or with the driver."""

    def __init__(self, machine, directory):
        self.directory = os.path.abspath(directory)
        self.mfusepy, self.files = operations(machine)
        if shutil.which("fusermount3") is None:
            raise ConfigError("a mount of /proc and /sys needs fusermount3, which the host has not (package fuse3)")
        try:
            os.makedirs(self.directory, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"mount: {directory}: {str(error.strerror).lower()}") from None
        if os.path.ismount(self.directory):
            raise ConfigError(f"mount: something is mounted on {directory}")
        if os.listdir(self.directory):
            raise ConfigError(f"mount: {directory} is not empty")
        self.watcher = subprocess.Popen(
            ["sh", "-c", WATCH, self.directory], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self.start({"fsname": "numaemu", "subtype": "numaemu"}, self.directory)
        except BaseException:
            self.close()
            raise

    def start(self, options, place):
        """Serve in a thread, until nothing is mounted any more; return when the first request can be answered."""
        self.failure = None
        here, saved = os.open(".", os.O_PATH), {number: signal.getsignal(number) for number in SIGNALS}
        self.thread = threading.Thread(target=self.serve, args=(place, options), daemon=True, name="fuse")
        self.thread.start()
        try:
            self.wait_until_there()
        finally:
            os.fchdir(here)  # libfuse goes to /
            os.close(here)
            libfuse_leaves_signals(saved)

    def serve(self, place, options):
        try:
            self.mfusepy.FUSE(self.files, place, foreground=True, nothreads=True, direct_io=True, **options)
        except Exception as error:
            self.failure = error

    def wait_until_there(self):
        """Until the mount answers."""
        waited = 0.0
        while True:
            self.thread.join(LOOK_S)
            waited += LOOK_S
            if not self.thread.is_alive() or waited > MOUNT_S:
                raise ConfigError(f"mount: {self.directory} could not be mounted: {self.failure or 'no answer'}")
            if os.path.ismount(self.directory) and os.listdir(self.directory):
                return

    def __enter__(self):
        return self.directory

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Unmount, even if somebody has a file open there."""
        if self.thread.is_alive():
            subprocess.run(["fusermount3", "-u", "-z", "-q", self.directory], check=False)
            self.thread.join(MOUNT_S)
        if self.watcher.poll() is None:
            self.watcher.communicate(b"\n")  # there is nothing left to unmount

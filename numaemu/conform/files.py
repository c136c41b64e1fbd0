"""Steps of a recorded scenario that read and write files."""

from typing import Any

import numpy as np

from numaemu import uapi

PAGE = 4096  # bytes
OVERSLEEP_MS = 2  # how much longer a pause was than it says; measured
CHUNK = 64 << 10  # bytes of one read(2) or write(2) of a recorded program


def write_pages(task, address, pages):
    """One byte of each page."""
    task.store(np.arange(pages, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(address), np.zeros(1, np.uint8))


class FileSteps:
    """What a replay (replay.py) does with files."""

    machine: Any
    mounted = False  # the disk, on /mnt

    def place(self, path):
        """Where a file of the recorded machine is: its root is a tmpfs, so all but the mounted disk lies in memory."""
        return path if path.startswith("/mnt/") and self.mounted else f"/dev/shm{path.removeprefix('/dev/shm')}"

    @staticmethod
    def user_buffer(process):
        """The program's buffer of CHUNK bytes, for a moment."""
        buffer = process.task.mmap(CHUNK)
        write_pages(process.task, buffer.addr, CHUNK // PAGE)
        buffer.munmap()

    def op_read_file(self, process, step):
        """read(2) of CHUNK bytes at a time, with a pause after every `chunk` bytes."""
        self.user_buffer(process)
        pause, done = step.get("pause_ms", 0), 0
        with process.task.open(self.place(step["path"])) as file:
            file.seek(step.get("offset", 0))
            if step.get("random_adv"):
                file.fadvise(0, 0, uapi.POSIX_FADV_RANDOM)
            length = step.get("length", file.size - step.get("offset", 0))
            portion = step.get("chunk", length) if pause else length
            while done < length:
                n = file.read_through(min(portion, length - done), min(CHUNK, step.get("chunk", CHUNK)))
                done += n
                if n == 0:
                    break
                if pause:
                    process.task.sleep(pause + OVERSLEEP_MS)
                    self.machine.settle()
        return {"ret": done, "errno": 0, "minflt": 0, "majflt": 0}

    def op_write_file(self, process, step):
        """A new file, write(2) of CHUNK bytes at a time."""
        self.user_buffer(process)
        with process.task.open(self.place(step["path"]), uapi.O_RDWR | uapi.O_CREAT | uapi.O_TRUNC) as file:
            n = sum(file.write(bytes(min(CHUNK, step["size"] - done))) for done in range(0, step["size"], CHUNK))
            if step.get("fsync"):
                file.fsync()
        return {"ret": n, "errno": 0, "minflt": 0, "majflt": 0}

    def op_fadvise_dontneed(self, process, step):
        """The pages of a file, or of a part of it, are not needed any more."""
        with process.task.open(self.place(step["path"])) as file:
            file.fadvise(step.get("offset", 0), step.get("length", 0), uapi.POSIX_FADV_DONTNEED)
        return {"ret": 0, "errno": 0}

    def op_write_proc(self, process, step):
        """A write to a file of /proc or /sys by the task; its own are called /proc/self."""
        path, value = step["path"].replace("/proc/self/", f"/proc/{process.task.pid}/"), str(step["value"])
        self.machine.write(path, value)
        return {"ret": len(value), "errno": 0}

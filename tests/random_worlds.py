"""The worlds of random_programs.py: what a random program does, and what it must see.

A *world* is a set of address spaces with tasks, of files and shared objects; each step does something to the machine and to the
model, or looks whether both agree. A page of the model is a list of what it may hold (several after MADV_FREE), None if a task
was killed while it wrote.
"""

import errno
import random

import numpy as np

from numaemu import BusError, OutOfMemory, SegmentationFault
from numaemu import uapi as U

PAGE = 4096
ZEROS = bytes(PAGE)
REFUSED = (
    errno.ENOMEM,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINVAL,
    errno.EIO,
    errno.ENOSPC,
)  # what Linux may answer under pressure


class Differs(Exception):
    """The machine and the model do not agree."""


class Backing:
    """A file or a shared object: its pages, by index."""

    def __init__(self, size, path=None):
        self.size, self.path, self.pages = size, path, {}

    def get(self, index):
        """What a page may hold. What a mapping has stored behind the end is there until the page is written to the disk."""
        pages, at = self.pages.get(index, [ZEROS]), self.size - index * PAGE
        if pages is None or not 0 < at < PAGE:
            return pages
        return list(dict.fromkeys([*pages, *(page[:at] + ZEROS[at:] for page in pages)]))

    def grow(self, size):
        """The file is longer: what was behind its end may be seen from now on."""
        if self.size % PAGE and size > self.size:
            self.pages[self.size // PAGE] = self.get(self.size // PAGE)
        self.size = max(self.size, size)


class Area:
    """A page's worth of a mapping: where its contents are, what it allows."""

    def __init__(self, prot, backing=None, index=0, shared=False, pool=False):
        self.prot, self.backing, self.index, self.shared, self.pool = prot, backing, index, shared, pool
        self.borrowed = False  # a private page of a pool that came by a fork

    def copy(self):
        area = Area(self.prot, self.backing, self.index, self.shared, self.pool)
        area.borrowed = self.pool and not self.shared
        return area


class Space:
    """An address space: its mapped pages by number, the contents of private ones, its tasks and open files."""

    def __init__(self):
        self.areas, self.own, self.locked, self.tasks, self.files = {}, {}, set(), [], []

    def contents(self, page):
        area = self.areas[page]
        if not area.shared and page in self.own:
            return self.own[page]
        return area.backing.get(area.index) if area.backing else [ZEROS]

    def set(self, page, contents):
        area = self.areas[page]
        if area.shared:
            area.backing.pages[area.index] = contents
        else:
            self.own[page] = contents

    def forget(self, pages):
        for page in pages:
            self.areas.pop(page, None)
            self.own.pop(page, None)
            self.locked.discard(page)

    def copied(self, pages):
        """Locked pages that may be stored to are private copies from then on (populate_vma_page_range breaks COW)."""
        for page in self.locked.intersection(pages):
            area = self.areas[page]
            if area.backing and not area.shared and area.prot & 2 and page not in self.own:
                self.own[page] = self.contents(page)

    def runs(self):
        """Stretches of neighbours of one kind: [(first page, pages)]."""
        found = []
        for page in sorted(self.areas):
            if found and found[-1][0] + found[-1][1] == page and self.areas[page].pool == self.areas[page - 1].pool:
                found[-1][1] += 1
            else:
                found.append([page, 1])
        return found

    def fork(self):
        child = Space()
        child.areas = {page: area.copy() for page, area in self.areas.items()}
        child.own = {page: None if c is None else list(c) for page, c in self.own.items()}
        for page, area in self.areas.items():
            if (
                area.borrowed
            ):  # it may have been taken away, which the parent finds out by a SIGBUS; the child has zeros then
                child.own[page] = None  # (hugetlb_dup_vma_private clears the mark)
        child.files = list(self.files)
        return child


class World:
    """What one program does: `machine` for what only the driver may do, or None inside a task; `root` its first task."""

    def __init__(self, shape, seed, machine=None, root=None):
        self.shape, self.seed, self.machine = shape, seed, machine
        self.random, self.spaces, self.swaps, self.bytes, self.steps, self.last = random.Random(seed), [], [], 0, {}, []
        if root is not None:
            self.join(Space(), root)
        self.names = [name.removeprefix("do_") for name in dir(self) if name.startswith("do_")]
        self.weights = [
            WEIGHTS.get(name, 2) if machine is not None or name not in DRIVERS else 0 for name in self.names
        ]

    def join(self, space, task):
        if space not in self.spaces:
            self.spaces.append(space)
        space.tasks.append(task)

    def drop(self, space):
        if space in self.spaces:
            self.spaces.remove(space)

    def step(self):
        """False: all tasks of a program that cannot make new ones have gone."""
        if not self.spaces:
            if self.machine is None:
                return False
            self.join(Space(), self.machine.task(cpu=self.random.randrange(self.shape["cpus"])))
        name = self.random.choices(self.names, self.weights)[0]
        space = self.random.choice(self.spaces)
        task = self.random.choice(space.tasks)
        self.last = [*self.last[-11:], (name, task.pid)]
        self.steps[name] = self.steps.get(name, 0) + 1
        try:
            getattr(self, "do_" + name)(space, task)
        except OutOfMemory:
            self.steps["killed"] = self.steps.get("killed", 0) + 1
            self.drop(space)
        except OSError as error:
            if error.errno not in REFUSED:  # ESRCH neither: who is killed is told so
                raise
        return True

    def pick(self, space, allows=0, pool=None):
        """Some pages of one stretch, all of which allow it, or none."""
        runs = [run for run in space.runs() if pool is None or space.areas[run[0]].pool == pool]
        if not runs:
            return range(0)
        first, n = self.random.choice(runs)
        at = first + self.random.randrange(n)
        end = min(at + self.random.choice((1, 1, 2, 5, 16, 64)), first + n)
        if space.areas[first].pool:
            huge = self.shape["huge"] // PAGE
            at, end = at // huge * huge, -(-end // huge) * huge
        pages = []
        for page in range(at, end):
            area = space.areas[page]
            if area.prot & allows != allows or self.behind_the_end(area):
                break
            pages.append(page)
        return range(at, at + len(pages))

    @staticmethod
    def behind_the_end(area):
        return area.backing is not None and area.index * PAGE >= area.backing.size

    # -- mappings

    def prot(self):
        return self.random.choice((U.PROT_NONE, U.PROT_READ, *[U.PROT_READ | U.PROT_WRITE] * 6))

    def mapped(self, space, mapping, npages, **area):
        first = mapping.addr // PAGE
        if any(page in space.areas for page in range(first, first + npages)):
            raise Differs(f"mmap gave {mapping.addr:#x}, where something is mapped")
        backing, index = area.pop("backing", None), area.pop("index", 0)
        for i in range(npages):
            space.areas[first + i] = Area(backing=backing, index=index + i, **area)

    def do_mmap(self, space, task):
        n = self.random.choice((1, 2, 3, 8, 30, self.shape["pages"], self.shape["huge"] // PAGE))
        if len(space.areas) + n > self.shape["most"]:
            return self.do_munmap(space, task)
        shared, prot = self.random.random() < 0.3, self.prot()
        flags = (U.MAP_SHARED if shared else U.MAP_PRIVATE) | U.MAP_ANONYMOUS
        flags |= self.random.choice((0, 0, 0, U.MAP_POPULATE, U.MAP_NORESERVE))
        mapping = task.mmap(n * PAGE, prot, flags)
        self.mapped(space, mapping, n, prot=prot, shared=shared, backing=Backing(n * PAGE) if shared else None)

    def do_mmap_pool(self, space, task):
        huge = self.shape["huge"]
        if any(area.pool for area in space.areas.values()):
            return
        shared = self.random.random() < 0.5
        mapping = task.mmap(huge, flags=(U.MAP_SHARED if shared else U.MAP_PRIVATE) | U.MAP_ANONYMOUS | U.MAP_HUGETLB)
        self.mapped(
            space, mapping, huge // PAGE, prot=3, shared=shared, pool=True, backing=Backing(huge) if shared else None
        )

    def do_mmap_file(self, space, task):
        if not space.files or len(space.areas) > self.shape["most"]:
            return
        file, backing = self.random.choice(space.files)
        pages = -(-backing.size // PAGE)
        if pages == 0:
            return
        first = self.random.randrange(pages)
        n, shared = self.random.randint(1, pages - first), self.random.random() < 0.6
        mapping = task.mmap(
            n * PAGE, 3, U.MAP_SHARED if shared else U.MAP_PRIVATE, file=task.fdopen(file), offset=first * PAGE
        )
        self.mapped(space, mapping, n, prot=3, shared=shared, backing=backing, index=first)

    def do_munmap(self, space, task):
        pages = self.pick(space)
        if pages:
            task.munmap(pages[0] * PAGE, len(pages) * PAGE)
            space.forget(pages)

    def do_mprotect(self, space, task):
        pages, prot = self.pick(space), self.prot()
        if pages:
            task.mprotect(pages[0] * PAGE, len(pages) * PAGE, prot)
            for page in pages:
                space.areas[page].prot = prot
            space.copied(pages)

    def do_mremap(self, space, task):
        """Move some pages elsewhere, as they are."""
        pages = self.pick(space, pool=False)
        if not pages:
            return
        room = task.mmap(len(pages) * PAGE, U.PROT_NONE, U.MAP_PRIVATE | U.MAP_ANONYMOUS | U.MAP_NORESERVE).addr
        try:
            moved = task.mremap(
                pages[0] * PAGE, len(pages) * PAGE, len(pages) * PAGE, U.MREMAP_MAYMOVE | U.MREMAP_FIXED, room
            )
        except OSError as error:
            if error.errno not in (errno.EFAULT, errno.EINVAL, errno.ENOMEM):
                raise
            task.munmap(room, len(pages) * PAGE)  # they are of several mappings
            return
        for i, page in enumerate(pages):
            space.areas[moved.addr // PAGE + i] = space.areas.pop(page)
            if page in space.own:
                space.own[moved.addr // PAGE + i] = space.own.pop(page)
            if page in space.locked:
                space.locked.remove(page)
                space.locked.add(moved.addr // PAGE + i)

    # -- contents

    def changed(self, contents, at, data):
        return None if contents is None else [old[:at] + data + old[at + len(data) :] for old in contents]

    def wrote(self, space, address, data):
        done = 0
        while done < len(data):
            page, at = divmod(address + done, PAGE)
            part = data[done : done + PAGE - at]
            space.set(page, self.changed(space.contents(page), at, part) if len(part) < PAGE else [part])
            done += len(part)

    def unknown(self, space, pages):
        """A task was killed while it wrote: what others see there may be old or new."""
        for page in pages:
            if space.areas[page].shared:
                space.set(page, None)

    def without_reserve(self, space, pages):
        """A SIGBUS among these pages. A forked process has no huge pages reserved: the pool may have none for it, and may take away
        one that it shares with the process that has. So they may hold anything; but it must be about a pool.
        """
        if not all(space.areas[page].pool for page in pages):
            raise
        for page in pages:
            space.set(page, None)

    def compare(self, space, address, data, what):
        self.bytes += len(data)
        done = 0
        while done < len(data):
            page, at = divmod(address + done, PAGE)
            part = data[done : done + PAGE - at]
            may = space.contents(page)
            if may is not None and not any(old[at : at + len(part)] == part for old in may):
                old = may[0][at : at + len(part)]
                wrong = next(i for i in range(len(part)) if old[i] != part[i])
                area = space.areas[page]
                raise Differs(
                    f"{what} {address:#x}: byte {at + wrong:#x} of page {page:#x} ({'shared' if area.shared else 'private'}, "
                    f"of {area.backing.path if area.backing else None}, prot {area.prot}, pool {area.pool}) is "
                    f"{part[wrong : wrong + 8].hex()}, must be {old[wrong : wrong + 8].hex()}"
                )
            done += len(part)

    def do_write(self, space, task):
        pages = self.pick(space, allows=3)
        if not pages:
            return
        at = self.random.randrange(PAGE)
        room = len(pages) * PAGE - at
        data = self.random.randbytes(min(room, self.random.choice((1, 7, 64, PAGE, 4 * PAGE))))
        try:
            task.write(pages[0] * PAGE + at, data)
        except BusError:
            self.without_reserve(space, pages)
            return
        except OutOfMemory:
            self.unknown(space, pages)
            raise
        self.wrote(space, pages[0] * PAGE + at, data)

    def do_fill(self, space, task):
        """A word to each page, at any place in it, also across its end."""
        pages = self.pick(space, allows=3)
        kind = np.dtype(self.random.choice(("u1", "u2", "u4", "u8")))
        at = self.random.choice((0, 8, PAGE - kind.itemsize, PAGE - kind.itemsize // 2))
        addresses = [page * PAGE + at for page in pages if at + kind.itemsize <= PAGE or page + 1 in pages]
        if not addresses:
            return
        data = self.random.randbytes(kind.itemsize)
        try:
            task.store(np.uint64(addresses), np.frombuffer(data, kind)[0])
        except BusError:
            self.without_reserve(space, pages)
            return
        except OutOfMemory:
            self.unknown(space, pages)
            raise
        for address in addresses:
            self.wrote(space, address, data)

    def do_load(self, space, task):
        pages = self.pick(space, allows=1)
        kind = np.dtype(self.random.choice(("u1", "u2", "u4", "u8")))
        at = self.random.choice((0, 8, PAGE - kind.itemsize, PAGE - kind.itemsize // 2))
        addresses = [page * PAGE + at for page in pages if at + kind.itemsize <= PAGE or page + 1 in pages]
        try:
            values = task.load(np.uint64(addresses), kind) if addresses else ()
        except BusError:
            self.without_reserve(space, pages)
            return
        for address, value in zip(addresses, values, strict=True):
            self.compare(space, address, value.tobytes(), "load")

    def do_read(self, space, task):
        pages = self.pick(space, allows=1)
        if not pages:
            return
        try:
            data = task.read(pages[0] * PAGE, len(pages) * PAGE)
        except BusError:
            self.without_reserve(space, pages)
            return
        self.compare(space, pages[0] * PAGE, data, "read")

    def do_forbidden(self, space, task):
        """What a mapping does not allow, or what has none, is not done."""
        pages = [page for page, area in space.areas.items() if not area.prot & 2 and not self.behind_the_end(area)]
        page = self.random.choice(pages) if pages else self.random.randrange(1 << 17, 1 << 18)
        if page in space.areas or not pages:
            try:
                task.write(page * PAGE, b"X")
            except SegmentationFault:
                return
            raise Differs(f"a write to page {page:#x} was done: {'read-only' if page in space.areas else 'not mapped'}")

    def do_behind_the_end(self, space, task):
        pages = [
            page
            for page, area in space.areas.items()
            if area.prot & 1 and self.behind_the_end(area) and (area.shared or page not in space.own)
        ]
        if pages:
            page = self.random.choice(pages)
            try:
                task.read(page * PAGE, 1)
            except BusError:
                return
            raise Differs(f"page {page:#x}, behind the end of {space.areas[page].backing.path}, was read")

    # -- advice, places

    def do_madvise(self, space, task):
        advice = self.random.choice(
            (
                *[U.MADV_PAGEOUT] * 4,
                *[U.MADV_DONTNEED] * 2,
                U.MADV_COLD,
                U.MADV_WILLNEED,
                U.MADV_HUGEPAGE,
                U.MADV_COLLAPSE,
                U.MADV_COLLAPSE,
                *[U.MADV_FREE] * 2,
            )
        )
        pages = self.pick(space, pool=False)
        if not pages:
            return
        areas = [space.areas[page] for page in pages]
        if advice == U.MADV_FREE and any(area.backing for area in areas):
            return
        if advice == U.MADV_FREE:  # also if only a part is done
            for page in pages:
                old = space.contents(page)
                space.own[page] = None if old is None else [*old, *[ZEROS][: ZEROS not in old]]
        try:
            task.madvise(pages[0] * PAGE, len(pages) * PAGE, advice)
        except OSError:
            if advice == U.MADV_DONTNEED:  # one is locked; those before it are gone
                space.own.update((page, None) for page in pages if page in space.own)
            raise
        if advice == U.MADV_DONTNEED:
            for page in pages:
                space.own.pop(page, None)

    def do_mlock(self, space, task):
        pages = self.pick(space, pool=False)
        if pages:
            lock = self.random.choice((task.mlock, task.munlock, task.munlock))
            space.locked.update(pages)  # also if only a part is done
            try:
                lock(pages[0] * PAGE, len(pages) * PAGE)
            except (OSError, OutOfMemory):
                space.own.update((page, None) for page in pages if not space.areas[page].shared)
                raise
            if lock == task.munlock:
                space.locked.difference_update(pages)
            space.copied(pages)

    def do_place(self, space, task):
        pages, node = self.pick(space), self.random.randrange(self.shape["nodes"])
        if pages and self.random.random() < 0.5:
            task.mbind(pages[0] * PAGE, len(pages) * PAGE, U.MPOL_PREFERRED, node, U.MPOL_MF_MOVE)
        elif pages:
            task.move_pages(np.arange(pages[0], pages[-1] + 1, dtype=np.uint64) * np.uint64(PAGE), node, U.MPOL_MF_MOVE)

    def do_new_file(self, space, task):
        if len(space.files) > 5:
            file, _ = space.files.pop(self.random.randrange(len(space.files)))
            return task.fdopen(file).close()
        place = self.random.choice(("/mnt", "/dev/shm", "memfd"))
        name, size = f"{self.seed}-{self.random.randrange(1 << 30)}", self.random.randint(1, 40 * PAGE)
        file = (
            task.memfd_create(name)
            if place == "memfd"
            else task.open(f"{place}/{name}", U.O_RDWR | U.O_CREAT | U.O_EXCL)
        )
        backing = Backing(0, file.path)
        space.files.append((file, backing))
        file.truncate(size)
        backing.size = size

    def do_pwrite(self, space, task):
        if not space.files:
            return
        file, backing = self.random.choice(space.files)
        offset, data = (
            self.random.randrange(40 * PAGE),
            self.random.randbytes(self.random.choice((1, 100, PAGE, 3 * PAGE))),
        )
        pages = range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1)
        try:
            done = task.fdopen(file).pwrite(data, offset)
        except (OSError, OutOfMemory):
            backing.pages.update((index, None) for index in pages)
            self.abandon(backing)
            raise
        if done:
            backing.grow(offset + done)
        for index in pages:
            begin, end = max(index * PAGE, offset), min((index + 1) * PAGE, offset + done)
            if begin < end:
                backing.pages[index] = self.changed(
                    backing.get(index), begin - index * PAGE, data[begin - offset : end - offset]
                )

    def abandon(self, backing):
        """It is not known how long a file is: nobody uses it any more."""
        for space in list(self.spaces):
            space.files = [(file, other) for file, other in space.files if other is not backing]
            if any(area.backing is backing for area in space.areas.values()):
                self.drop(space)
                for task in space.tasks:
                    try:
                        task.exit()
                    except (OSError, OutOfMemory):
                        pass

    def do_pread(self, space, task):
        if not space.files:
            return
        file, backing = self.random.choice(space.files)
        offset, n = self.random.randrange(backing.size + 1), self.random.choice((1, 100, PAGE, 9 * PAGE))
        data = task.fdopen(file).pread(n, offset)
        if len(data) != min(n, backing.size - offset):
            raise Differs(f"pread of {n} at {offset} of {backing.path} ({backing.size} bytes) gave {len(data)}")
        self.bytes += len(data)
        for index in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1) if data else ():
            begin, end = max(index * PAGE, offset), min((index + 1) * PAGE, offset + len(data))
            part, may = data[begin - offset : end - offset], backing.get(index)
            if may is not None and not any(old[begin - index * PAGE : end - index * PAGE] == part for old in may):
                raise Differs(f"pread {backing.path}: page {index} differs, it begins with {part[:8].hex()}")

    def do_truncate(self, space, task):
        if not space.files:
            return
        file, backing = self.random.choice(space.files)
        size = self.random.randrange(40 * PAGE)
        task.fdopen(file).truncate(size)
        old, backing.size = backing.size, size
        first = -(-min(size, old) // PAGE)
        for index in [index for index in backing.pages if index >= first]:
            del backing.pages[index]
        last, at = divmod(min(size, old), PAGE)
        if at and backing.get(last) is not None:  # behind an old end may be what a mapping has stored there
            cut = [page[:at] + ZEROS[at:] for page in backing.get(last)]
            backing.pages[last] = cut if size <= old else [*backing.get(last), *cut]
        if size < old:
            for other in self.spaces:
                for page in [
                    page for page, area in other.areas.items() if area.backing is backing and area.index >= first
                ]:
                    other.own.pop(page, None)

    def do_fsync(self, space, task):
        if space.files:
            task.fdopen(self.random.choice(space.files)[0]).fsync()

    # -- tasks

    def full(self):
        return sum(len(space.tasks) for space in self.spaces) >= 5

    def do_fork(self, space, task):
        if not self.full():
            self.join(space.fork(), task.fork(cpu=self.random.randrange(self.shape["cpus"])))

    def do_clone(self, space, task):
        if not self.full():
            space.tasks.append(task.clone(cpu=self.random.randrange(self.shape["cpus"])))

    def do_exit(self, space, task):
        if sum(len(other.tasks) for other in self.spaces) > 1:
            space.tasks.remove(task)
            if not space.tasks:
                self.drop(space)
            task.exit()

    def do_affinity(self, space, task):
        task.sched_setaffinity(self.random.randrange(self.shape["cpus"]))

    # -- what only the driver does

    def do_swap(self, space, task):
        if self.swaps and self.random.random() < 0.5:
            self.machine.swapoff(self.swaps[-1])
            self.swaps.pop()
        elif len(self.swaps) < 3:
            kind = "disk" if self.swaps else self.random.choice(("disk", "disk", "zram"))
            self.swaps.append(self.machine.swapon(self.random.choice((1, 4, 16)) << 20, kind=kind))

    def do_settings(self, space, task):
        path, values = self.random.choice(
            (
                ("vm/swappiness", (0, 60, 200)),
                ("vm/drop_caches", (1, 2, 3)),
                ("vm/compact_memory", (1,)),
                ("vm/page-cluster", (0, 3)),
                ("vm/dirty_ratio", (1, 20, 90)),
                ("vm/nr_hugepages", (0, 1, 3)),
                ("vm/watermark_scale_factor", (10, 300)),
            )
        )
        self.machine.write(f"/proc/sys/{path}", str(self.random.choice(values)))

    def do_huge(self, space, task):
        self.machine.write(
            "/sys/kernel/mm/transparent_hugepage/enabled", self.random.choice(("always", "madvise", "never"))
        )

    def do_check(self, space, task):
        self.machine.check()

    def look_at(self, space, page):
        try:
            data = space.tasks[0].read(page * PAGE, PAGE)
        except BusError:
            self.without_reserve(space, [page])
            return
        self.compare(space, page * PAGE, data, "read at the end")

    def look_at_everything(self):
        for space in list(self.spaces):
            try:
                for first, n in space.runs():
                    for page in range(first, first + n):
                        if space.areas[page].prot & 1 and not self.behind_the_end(space.areas[page]):
                            self.look_at(space, page)
            except (OutOfMemory, OSError):
                self.drop(space)


DRIVERS = ("swap", "settings", "huge", "check")
# fmt: off
WEIGHTS = dict(mmap=6, mmap_pool=1, mmap_file=4, mprotect=4, mremap=4, write=12, fill=12, load=8, read=8, madvise=10, pwrite=4, pread=4,
               fork=3, exit=1.5, clone=1.5, mlock=1, check=0.3, huge=0.5, swap=1, settings=1, forbidden=2, behind_the_end=1)
# fmt: on

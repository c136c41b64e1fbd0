"""Slow, obvious twins of address spaces: a dictionary of pages, each with its bytes. Nothing here knows the package."""

PAGE = 4096
NONE, READ, WRITE = 0, 1, 2


# fmt: off
AT_FORK = {"DONTFORK": lambda now: "skip " + now, "DOFORK": lambda now: now.replace("skip ", ""),
           "WIPEONFORK": lambda now: "wipe " + now, "KEEPONFORK": lambda now: now.replace("wipe ", "")}
# fmt: on


class Segfault(Exception):
    """Nothing is mapped there, or it may not be accessed so; `done` bytes were accessed before."""


class Bus(Segfault):
    """Behind the end of what is mapped."""


class Failed(Exception):
    """A call fails: its argument is the errno's name."""


class Object:
    """What shared mappings show: a file, or shared memory, of so many pages."""

    def __init__(self, nr_pages, data=b"", path=None):
        self.path = path
        data = data.ljust(nr_pages * PAGE, b"\0")
        self.pages = [bytearray(data[n * PAGE : (n + 1) * PAGE]) for n in range(nr_pages)]


class Page:
    """A page of an address space. It shows its own bytes, if it has some, else the object's, else zeros.

    `own` is a list: what it may hold. There are two after MADV_FREE: what it held, and zeros, until somebody looks.
    """

    def __init__(self, prot, shared=False, object=None, index=0, own=None, lazy=False, at_fork="copy"):
        self.prot, self.shared, self.object, self.index, self.own, self.lazy = prot, shared, object, index, own, lazy
        self.at_fork = at_fork  # words: "skip" (MADV_DONTFORK), "wipe" (MADV_WIPEONFORK), "copy"

    def backing(self):
        """The object's page; None: there is no object."""
        if self.object is None:
            return None
        if self.index >= len(self.object.pages):
            raise Bus
        return self.object.pages[self.index]

    def contents(self):
        """What may be seen here."""
        return self.own or [self.backing() or bytearray(PAGE)]

    def write(self, offset, data):
        if self.shared:
            self.backing()[offset : offset + len(data)] = data
            return
        self.own = [bytearray(content) for content in self.contents()]
        self.lazy = False
        for content in self.own:
            content[offset : offset + len(data)] = data

    def seen(self, offset, data):
        """Somebody has read this; False: it is not what may be there."""
        fitting = [content for content in self.contents() if content[offset : offset + len(data)] == data]
        if self.own and fitting and not self.lazy:
            self.own = fitting
        return bool(fitting)

    def forget(self):
        """MADV_DONTNEED"""
        self.own, self.lazy = None, False

    def free(self):
        """MADV_FREE: what it holds may be gone at any time, until it is written to."""
        if self.own:
            self.own, self.lazy = [*self.own, bytearray(PAGE)], True

    def copy(self):
        if "wipe" in self.at_fork:
            return self.next(0)
        own = self.own and [bytearray(content) for content in self.own]
        return Page(self.prot, self.shared, self.object, self.index, own, self.lazy, self.at_fork)

    def next(self, n):
        """What a mapping that grows by `n` pages shows there."""
        return Page(self.prot, self.shared, self.object, self.index + n, at_fork=self.at_fork)


class Space:
    """An address space: {page number: Page}."""

    def __init__(self, pages=None):
        self.pages = pages or {}

    def fork(self):
        return Space({number: page.copy() for number, page in self.pages.items() if "skip" not in page.at_fork})

    def mmap(self, at, n, prot, shared=False, object=None, index=0):
        if shared and object is None:
            object = Object(n)
        for i in range(n):
            self.pages[at + i] = Page(prot, shared, object, index + i)

    def munmap(self, at, n):
        for number in range(at, at + n):
            self.pages.pop(number, None)

    def run(self, at, n):
        """How many pages from `at` on are mapped without a hole, `n` at most."""
        return next((i for i in range(n) if at + i not in self.pages), n)

    def mprotect(self, at, n, prot):
        mapped = self.run(at, n)
        for number in range(at, at + mapped):
            self.pages[number].prot = prot
        if mapped < n:
            raise Failed("ENOMEM")

    def madvise(self, at, n, advice, locked):
        """`advice`: DONTNEED, FREE, what is to be done at fork, or another that changes no byte. `locked`: pages that mlock has."""
        hole = False
        for number in range(at, at + n):
            page = self.pages.get(number)
            if page is None:
                hole = True
                continue
            if number in locked or advice in ("FREE", "WIPEONFORK") and (page.shared or page.object):
                raise Failed("EINVAL")
            if advice == "DONTNEED":
                page.forget()
            elif advice == "FREE":
                page.free()
            elif advice in AT_FORK:
                page.at_fork = AT_FORK[advice](page.at_fork)
        if hole:
            raise Failed("ENOMEM")

    def move(self, at, old, new, to, keep):
        """mremap, when it has found `to`: what was there is gone."""
        last = self.pages[at + old - 1] if old else None
        moved = [self.pages[at + i] for i in range(min(old, new))]
        if to != at:
            self.munmap(to, new)
            self.munmap(at, old)
            if keep:
                for i, page in enumerate(moved):
                    self.pages[at + i] = page.next(0)
        else:
            self.munmap(at + new, max(old - new, 0))
        for i, page in enumerate(moved):
            self.pages[to + i] = page
        for i in range(old, new):
            self.pages[to + i] = last.next(1 + i - old)

    def access(self, address, nbytes, needed):
        """(page, offset, where in the data, how much) of each page an access touches, as far as it comes; then it raises."""
        done = 0
        while done < nbytes:
            page, offset = self.pages.get((address + done) // PAGE), (address + done) % PAGE
            if page is None or not page.prot & needed:
                raise Segfault
            page.contents() if page.own is None else None
            n = min(PAGE - offset, nbytes - done)
            yield page, offset, done, n
            done += n

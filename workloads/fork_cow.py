"""fork and copy on write, told by the page structs: who shares which frame, and when a page is really copied.

A parent writes three pages and forks; then both sides read and write. After each step a row shows what the tables and
the page structs say. Look for:
  - fork copies no page: both tables name the same frame, no longer writable, and its counts are 2;
  - a read needs no fault, a write copies: the writer gets a frame of its own, the other one keeps the old;
  - the last one that is left with a frame does not copy: its write makes it writable again, the same frame;
  - an exit drops its references; a page that was never copied becomes its sole owner's again.
"""

import numpy as np

LOCKSTEP = True
MACHINE = dict(nodes=1, cpus_per_node=1, memory_per_node="64MiB")
PG_anon_exclusive = 1 << 19  # of page->flags: kernel/include/mm_types.py
ROW = "{:44} {:>7} {:>7} {:>7} {:>7} {:>9}  {}"


def frame_of(task, addr):
    """(pfn, True if writable) as the task's table has it, or None."""
    *_, leaf = task.walk(addr)
    return None if leaf["pfn"] is None else (leaf["pfn"], leaf["writable"])


def shown(place):
    return "-" if place is None else f"{place[0]:x}{' w' if place[1] else '  '}"


class Story:
    """Prints a row after each step: the frames of both tasks, the counts of the page they are about, copies so far."""

    def __init__(self, machine, parent):
        self.machine, self.parent, self.child, self.told = machine, parent, None, {}
        print(ROW.format("", "parent", "child", "ref", "map", "exclusive", ""))

    def step(self, name, addr, function=None):
        before = self.machine.stats()["vmstat"]
        if function:
            function()
            self.machine.check()  # an audit; it also ends the references of pages on their way to an LRU list
        after = self.machine.stats()["vmstat"]
        places = [task and frame_of(task, addr) for task in (self.parent, self.child)]
        asked = self.parent or self.child
        page = asked.kernel.page((places[0] or places[1])[0])
        other = asked.kernel.page(places[1][0]) if places[0] and places[1] and places[1][0] != places[0][0] else None
        counts = [f"{page[what]}{f'+{other[what]}' if other else ''}" for what in ("refcount", "mapcount")]
        exclusive = "yes" if page["flags"] & PG_anon_exclusive else "no"
        faults = after["pgfault"] - before["pgfault"]
        print(ROW.format(name, *map(shown, places), *counts, exclusive, "" if not function else f"{faults} faults"))
        self.told[name] = [shown(place).split()[0] for place in places] + [*counts, exclusive, faults]


def main(machine):
    parent = machine.task(cpu=0, name="parent")
    pages = [int(page) for page in parent.mmap(3 * 4096).touch().pages()]
    parent.store(pages, np.array([1, 2, 3], np.uint64))
    machine.check()
    story = Story(machine, parent)

    def fork():
        story.child = parent.fork()

    def write(who, page, value):
        return lambda: getattr(story, who).store([pages[page]], np.uint64(value))

    story.step("page 0: the parent has written it", pages[0])
    story.step("fork", pages[0], fork)
    story.step("the child reads page 0", pages[0], lambda: story.child.load([pages[0]]))
    story.step("the child writes page 0: a copy", pages[0], write("child", 0, 10))
    story.step("the parent writes page 0: it is alone, reuse", pages[0], write("parent", 0, 11))
    story.step("page 1: as fork left it", pages[1])
    story.step("the parent writes page 1: a copy", pages[1], write("parent", 1, 21))
    story.step("the child writes page 1: it is alone, reuse", pages[1], write("child", 1, 20))
    story.step("page 2: as fork left it", pages[2])
    values = [task.load(pages).tolist() for task in (parent, story.child)]

    def end():
        child, story.child = story.child, None
        child.exit()

    story.step("the child exits", pages[2], end)
    story.step("the parent writes page 2: it is alone, reuse", pages[2], write("parent", 2, 31))
    print(f"the parent reads {values[0]}, the child {values[1]}: each its own")
    parent.exit()
    writes = [name for name in story.told if "writes" in name]
    return {
        "pages shared by fork": 3,
        "copied": sum("copy" in name for name in writes),
        "made writable again": sum("reuse" in name for name in writes),
        "faults": sum(story.told[name][-1] for name in story.told),
    }

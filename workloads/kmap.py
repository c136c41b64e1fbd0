"""High memory on a 32-bit machine: pages that the kernel cannot address until it maps them, and how few it may map.

The kernel's gigabyte holds 896 MiB of the direct map; the rest of memory is reached through windows. Look for:
  - a page of high memory has no address; kmap gives it one, the same for everybody, until kunmap;
  - there are 1024 such addresses: who wants one more waits until somebody gives one back;
  - addresses given back are not used again before all CPUs have forgotten them, in one flush for the whole window;
  - kmap_atomic has 16 addresses for each CPU, needs no other CPU and never waits, but nothing in between may sleep.
"""

from numaemu import GFP_HIGHUSER, GFP_KERNEL, KernelBug

LOCKSTEP = True
MACHINE = "x86-32"
LAST_PKMAP = 1024


def waiter(task, page):
    """Needs an address and gets it when there is one."""
    address = task.kernel.kmap(page)
    task.kernel.write(address, b"at last")
    task.kernel.kunmap(page)
    return address


def fill_window(task, first):
    """Map as many pages as there are addresses."""
    return [task.kernel.kmap(page) for page in range(first, first + LAST_PKMAP)]


def flushes(machine):
    return machine.stats()["vmstat"]["nr_tlb_remote_flush"]


def text(address):
    return "none" if address is None else f"{address:#x}"


def main(machine):
    task, steps = machine.task(cpu=0, name="kmap"), {}
    kernel = task.kernel
    low, high, first = (
        kernel.alloc_page(GFP_KERNEL),
        kernel.alloc_page(GFP_HIGHUSER),
        kernel.alloc_pages(GFP_HIGHUSER, 10),
    )
    steps["a page of low memory"] = text(kernel.page_address(low))
    steps["a page of high memory"] = text(kernel.page_address(high))
    steps["... after kmap"] = text(kernel.kmap(high))
    kernel.kunmap(high)
    before = flushes(machine)
    window = machine.run(fill_window, first, cpu=0)
    steps["1024 pages mapped"] = (
        f"{min(window):#x} to {max(window):#x}, {flushes(machine) - before} flush of the window"
    )
    waiting = machine.spawn(waiter, high, cpu=1)
    steps["one more"] = f"waits, its address is {text(kernel.page_address(high))}"
    kernel.kunmap(first + 7)
    steps["... after a kunmap"] = f"{waiting.result():#x}, which was page 8's: {window[7]:#x}"
    for page in range(first, first + LAST_PKMAP):
        if page != first + 7:
            kernel.kunmap(page)
    slots = [kernel.kmap_atomic(page) for page in (high, first)]
    steps["kmap_atomic, twice"] = ", ".join(map(text, slots))
    try:
        kernel.kmap(high)
    except KernelBug as bug:
        steps["kmap in between"] = str(bug).partition(" on cpu")[0]
    for address in reversed(slots):
        kernel.kunmap_atomic(address)
    kernel.free_pages(first, 10)
    kernel.free_page(high)
    kernel.free_page(low)
    task.exit()
    return steps

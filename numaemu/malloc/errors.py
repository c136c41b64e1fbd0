"""What goes wrong with a heap: the error names the block, and its neighbours by what their headers say."""

from numaemu.errors import NumaemuError

WORD = (1 << 64) - 1

# what a call, or the checker, has found
WILD, MISALIGNED, FREE_TWICE, OVERRUN, BROKEN, UNDERRUN = range(1, 7)
FREE, USED, FIXED, CACHED, BIG, TOP_CHUNK = range(6)  # what a block is; FIXED: the heap's own
RIGHT, BACK, ELSEWHERE, UNKNOWN, UNMARKED = range(5)  # what the entry of a list is
ENTRIES = {
    BACK: "whose link back does not lead to the entry before it",
    ELSEWHERE: "that belongs elsewhere by its size or address",
    UNKNOWN: "that the map or count of its list does not know",
    UNMARKED: "that has no mark of this cache",
}

_FOUND = {
    WILD: "no block of the heap begins there",
    MISALIGNED: "it is not aligned as blocks are",
    FREE_TWICE: "it is free already",
    OVERRUN: "its tags do not agree: something wrote beyond the end of a block, or before its beginning",
    BROKEN: "its header is no header: something wrote beyond the end of a block, or before its beginning",
    UNDERRUN: "the tags of the block before it do not agree: something wrote beyond the end of that block",
}
STATES = {
    FREE: "free",
    USED: "used",
    FIXED: "the heap's own",
    CACHED: "in a thread's cache",
    BIG: "a mapping of its own",
    TOP_CHUNK: "the top",
}


class HeapError(NumaemuError):
    """A heap was misused: free of what is free already or no block, or a header that something wrote over.

    `code` says what, `pointer` what was freed; `blocks` are the block before it, the block that it lies in and the block behind:
    (address, size, state in words) each, or None where there is none.
    """

    def __init__(self, code, pointer, *blocks):
        super().__init__(int(code), int(pointer), *map(int, blocks))
        self.code, self.pointer = int(code), int(pointer)
        numbers = [int(number) for number in blocks]
        self.blocks = [known(*numbers[i : i + 3]) for i in range(0, len(numbers), 3)]

    def __str__(self):
        text = f"heap: block {self.pointer & WORD:#x}: {_FOUND.get(self.code, 'wrong')}"
        names = ("before it", "it lies in", "behind it")
        parts = [f"{name} {told(*block)}" for name, block in zip(names, self.blocks, strict=False) if block]
        return text + (f" ({'; '.join(parts)})" if parts else "")


def known(address, size, state):
    """A block as an error has it; None: there is none, or its header is no header."""
    return (address, size, STATES[state]) if state in STATES else None


def told(address, size, state):
    """A block in words."""
    return f"{address:#x}, {size} bytes, {state}"

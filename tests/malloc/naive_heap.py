"""A slow, obvious twin of fit and coalescing: a heap as a list of (address, size, used)."""


class NaiveHeap:
    """Boundary tags without tags: blocks in the order of addresses, found by looking at each."""

    def __init__(self, start, fit="first", growth=4096, least=16):
        self.blocks, self.end = [], start + 16  # addresses of payloads; the block's header lies 4 bytes before
        self.fit, self.growth, self.least, self.rover = fit, growth, least, start + 16
        if growth:
            self.grow(growth)

    def grow(self, size):
        self.blocks.append([self.end, size, False])
        self.end += size
        self.join()

    def join(self):
        joined = []
        for address, size, used in self.blocks:
            if joined and not used and not joined[-1][2]:
                joined[-1][1] += size
                if self.rover == address or joined[-1][0] < self.rover < joined[-1][0] + joined[-1][1]:
                    self.rover = joined[-1][0]
            else:
                joined.append([address, size, used])
        self.blocks = joined

    def find(self, size):
        free = [block for block in self.blocks if not block[2] and block[1] >= size]
        if self.fit == "best":
            return min(free, key=lambda block: block[1], default=None)
        if self.fit == "next":
            free = [b for b in free if b[0] >= self.rover] + [b for b in free if b[0] < self.rover]
            if free:
                self.rover = free[0][0]
        return free[0] if free else None

    def malloc(self, nbytes):
        if nbytes <= 0:
            return 0
        size = max(-(-(nbytes + 8) // 8) * 8, self.least)
        block = self.find(size)
        if block is None:
            self.grow(max(size, self.growth))
            block = self.blocks[-1]
        at = self.blocks.index(block)
        block[2] = True
        if block[1] - size >= self.least:
            self.blocks.insert(at + 1, [block[0] + size, block[1] - size, False])
            block[1] = size
        return block[0]

    def free(self, address):
        next(block for block in self.blocks if block[0] == address)[2] = False
        self.join()

"""Structs in shared memory as Python sees them: `Pointer` and `Items`, over the bytes at an address.

The JIT is off, or it is a process's own Python code. Every kind of word and every struct has `get`, called with an address: the
word's value, or a Pointer to the struct; words also `put`. Each struct has a class of its own, with a property for each field:
interpreted code does little else than read and write fields.
"""

import ctypes
import functools
import itertools

import numpy as np

# fmt: off
_CTYPES = {"u1": ctypes.c_uint8, "u2": ctypes.c_uint16, "u4": ctypes.c_uint32, "u8": ctypes.c_uint64,
           "i4": ctypes.c_int32, "i8": ctypes.c_int64, "f4": ctypes.c_float, "f8": ctypes.c_double}
# fmt: on
_ADDRESSES = 1 << 47  # that a process of the host may have


def _all_words(kind):
    """All words of a kind that may be addressed: to be read, to be written, and by how many bits an address is shifted. An array may
    not begin at address 0, so item i lies at (i + 1) << shift.
    """
    words = (kind.ctype * (_ADDRESSES // kind.nbytes - 1)).from_address(kind.nbytes)
    readable = np.frombuffer(words, kind.dtype) if kind.scalar else words  # unsigned: as NumPy's scalars
    return readable, words, kind.nbytes.bit_length() - 1


def _word_access(kind):
    """get(address) and put(address, value) of a kind of word, which need not be aligned."""
    nbytes, convert, one = kind.nbytes, kind.convert, kind.ctype.from_address
    scalar = kind.scalar or convert
    readable, words, shift = kind.words

    def get(address):
        if address & (nbytes - 1):
            return scalar(one(address).value)
        return readable[(address >> shift) - 1]

    def put(address, value):
        if address & (nbytes - 1):
            one(address).value = convert(value)
        else:
            words[(address >> shift) - 1] = convert(value)

    return get, put


class Pointer:
    """The address of one struct; its fields are attributes."""

    __slots__ = ("address",)
    struct = None  # its class's

    def __init__(self, address):
        self.address = address

    def __getattr__(self, name):
        raise AttributeError(f"struct {self.struct.name} has no field {name}")

    def as_numpy(self):
        """The struct as a NumPy record over the same bytes."""
        raw = (ctypes.c_char * self.struct.nbytes).from_address(self.address)
        return np.frombuffer(raw, self.struct.dtype)[0]

    def __repr__(self):
        return f"<{self.struct.name} at {self.address:#x}>"


class Items:
    """The address of the first of many structs or words; `length` None means unknown. Made by the `items` of its kind."""

    __slots__ = ()

    def _at(self, index):
        """The address of an item."""
        index = int(index)
        if self.length is not None and not 0 <= index < self.length:
            raise IndexError(f"index {index} of {self.length} {self.kind.name}")
        return self.address + index * self.kind.nbytes

    def as_numpy(self, length=None):
        """The items as a NumPy array over the same bytes."""
        length = self.length if length is None else length
        raw = (ctypes.c_char * (self.kind.nbytes * length)).from_address(self.address)
        return np.frombuffer(raw, self.kind.dtype)

    def __repr__(self):
        return f"<{self.kind.name}[{'' if self.length is None else self.length}] at {self.address:#x}>"


class Words(Items):
    """Of words. `first`: the number of the first among all words of its kind, or None if it is not aligned."""

    __slots__ = ("address", "kind", "length", "readable", "first")

    def __init__(self, address, kind, length=None):
        self.address, self.kind, self.length = address, kind, length
        self.readable, _, shift = kind.words
        self.first = None if address & (kind.nbytes - 1) else (address >> shift) - 1

    def __getitem__(self, index):
        if index.__class__ is not int:
            index = int(index)
        length, first = self.length, self.first
        if first is not None and (length is None or 0 <= index < length):
            return self.readable[first + index]
        return self.kind.get(self._at(index))

    def __setitem__(self, index, value):
        self.kind.put(self._at(index), value)


class Structs(Items, dict):
    """Of structs: by its index the Pointer to each that has been asked for."""

    __slots__ = ("address", "kind", "length")
    __eq__, __ne__, __hash__ = object.__eq__, object.__ne__, object.__hash__  # not of what it holds just now

    def __init__(self, address, kind, length=None):
        self.address, self.kind, self.length = address, kind, length

    def __missing__(self, index):
        pointer = self.kind.pointer(self._at(index))
        if next(_kept) > _MOST_KEPT:
            forget()
            self.clear()
        dict.__setitem__(self, int(index), pointer)
        return pointer

    def __setitem__(self, index, value):
        raise TypeError(f"struct {self.kind.name} is written field by field")

    def __iter__(self):
        return map(self.__getitem__, range(self.length))

    def __bool__(self):
        return True

    __len__ = None
    __contains__ = None


class Kept(dict):
    """What is made of an address when it is first asked for. Interpreted code asks for the same structs again and again."""

    __slots__ = ("make",)
    every = []

    def __init__(self, make):
        self.make = make
        Kept.every.append(self)

    def __missing__(self, address):
        made = self.make(address)
        if next(_kept) > _MOST_KEPT:
            forget()
        self[address] = made
        return made


_MOST_KEPT = 30_000  # things, of 200 bytes or so
_kept = itertools.count(1)


def forget():
    """Keep nothing of what has been kept, which is an address and no more."""
    global _kept
    _kept = itertools.count(1)
    for each in Kept.every:
        each.clear()


def _field(kind, count, offset):
    """The property of one field."""
    if count or isinstance(kind, Struct):
        make = functools.partial(kind.items, kind=kind, length=count) if count else kind.pointer
        inner = Kept(lambda address: make(address + offset))
        return property(lambda pointer: inner[pointer.address])
    (readable, words, shift), convert = kind.words, kind.convert
    offset -= kind.nbytes

    def read(pointer):
        return readable[(pointer.address + offset) >> shift]

    def write(pointer, value):
        words[(pointer.address + offset) >> shift] = convert(value)

    return property(read, write)


def _pointer_class(struct):
    """The class of pointers to a struct."""
    fields = {f: _field(kind, struct.counts[f], struct.offsets[f]) for f, kind in struct.kinds.items()}
    return type(struct.name, (Pointer,), {"__slots__": (), "struct": struct, **fields})


STRUCTS = {}  # every Struct by its name, for signatures


class Scalar:
    """A machine word as an element of arrays: `u64.array(address)[i]`."""

    items = Words

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.name, self.nbytes = self.dtype.name, self.dtype.itemsize

        self.ctype, self.convert = _CTYPES[self.dtype.str[1:]], float if self.dtype.kind == "f" else int
        self.scalar = self.dtype.type if self.dtype.kind == "u" else None  # NumPy's; other words are ints and floats
        self.words = _all_words(self)
        self.get, self.put = _word_access(self)
        self.arrays = Kept(lambda address: Words(address, self))

    def array(self, address, length=None):
        return self.arrays[int(address)] if length is None else Words(int(address), self, length)

    def __reduce__(self):
        return _scalar_of, (self.dtype.str,)


def _scalar_of(dtype):
    return next(s for s in SCALARS.values() if s.dtype.str == dtype)


u8, u16, u32, u64 = (Scalar(t) for t in ("u1", "u2", "u4", "u8"))
i32, i64 = Scalar("i4"), Scalar("i8")
f32, f64 = Scalar("f4"), Scalar("f8")
SCALARS = {"u8": u8, "u16": u16, "u32": u32, "u64": u64, "i32": i32, "i64": i64, "f32": f32, "f64": f64}


class Struct:
    """A named layout: fields (name, kind[, count]) in order, aligned as C aligns them.

    `kind` is a Scalar or another Struct; `offsets[name]` are bytes; `nbytes` the size with padding. `dtype` is the
    same layout for NumPy. A size given is asserted, so that a change of layout is seen at import.
    """

    items = Structs

    def __init__(self, name, fields, nbytes=None):
        self.name, self.kinds, self.counts = name, {}, {}
        for field, kind, *count in fields:
            if hasattr(Pointer, field):
                raise AssertionError(
                    f"struct {name}: a field may not be called {field}, every pointer has that already"
                )
            self.kinds[field], self.counts[field] = kind, (count[0] if count else None)
        self.dtype = np.dtype(
            [(f, k.dtype, (self.counts[f],)) if self.counts[f] else (f, k.dtype) for f, k in self.kinds.items()],
            align=True,
        )
        self.offsets = {f: self.dtype.fields[f][1] for f in self.kinds}
        self.nbytes, self.misaligned = self.dtype.itemsize, self.dtype.alignment - 1
        self.pointer = _pointer_class(self)
        self.get = Kept(lambda address: self.pointer(self._aligned(address))).__getitem__
        self.arrays = Kept(lambda address: Structs(self._aligned(address), self))
        if nbytes is not None and self.nbytes != nbytes:
            raise AssertionError(f"struct {name} is {self.nbytes} bytes, must be {nbytes}")
        STRUCTS[name] = self

    def at(self, address):
        return self.get(int(address))

    def array(self, address, length=None):
        address = int(address)
        return self.arrays[address] if length is None else Structs(self._aligned(address), self, length)

    def _aligned(self, address):
        if address & self.misaligned:
            raise AssertionError(f"struct {self.name} at {address:#x}, must be at a multiple of {self.misaligned + 1}")
        return address

    def __reduce__(self):
        return _struct_named, (self.name,)

    def __repr__(self):
        return f"<struct {self.name}, {self.nbytes} bytes>"


def _struct_named(name):
    return STRUCTS[name]

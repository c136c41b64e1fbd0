"""Page-table formats: how many levels there are, where an address's indices lie, how an entry is laid out in memory.

    format            address bits, from the top table down to the page      entry    tables
    x86-64-4level     9 pgd   9 pud   9 pmd   9 pte   12                      8 bytes  512 entries
    x86-64-5level     9 pgd   9 p4d   9 pud   9 pmd   9 pte   12              8        512
    x86-32            10 pgd  10 pte  12                                      4        1024
    arm64-39          9 pgd   9 pmd   9 pte   12                              8        512
    arm64-48          9 pgd   9 pud   9 pmd   9 pte   12                      8        512

In memory an entry lies as the architecture's manual has it. Code sees every one in one form, that of x86-64 (Intel SDM
vol. 3A, 4.5), translated where it is loaded and stored:

    63  58..52   51..12             11..9     8  7   6  5  4    3    2    1    0
    NX  --       frame address      software  G  PS  D  A  PCD  PWT  U/S  R/W  P

An x86-32 entry is the lower half of it. An arm64 descriptor (Arm ARM, VMSAv8-64) says the same with other bits:

    58..55    54   53   51   47..12         11  10  9..8  7    6    4..2      1          0
    software  UXN  PXN  DBM  frame address  nG  AF  SH    RO   EL0  AttrIndx  not block  valid

    R/W is DBM; D is a clear RO beside DBM (what hardware does at the first store), or a software bit; A is AF; U/S is EL0;
    NX is UXN of a user's page and PXN of the kernel's. A table's descriptor has no such bits: it forbids nothing.

What is not present is software's, and is stored as it is; x86-32 keeps swap entries from bit 8 on to have room for them.

Host addresses of entries carry their format in the bits that alignment leaves free, so whoever holds one can use it:
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, exchange, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.compiler.pointer import Struct, u32, u64
from numaemu.spec.formats import FORMATS
from numaemu.spec.param import PAGE_SHIFT, PAGE_SIZE

U = np.uint64

_PAGE_PRESENT, _PAGE_RW, _PAGE_USER, _PAGE_PWT, _PAGE_PCD = U(1 << 0), U(1 << 1), U(1 << 2), U(1 << 3), U(1 << 4)
_PAGE_ACCESSED, _PAGE_DIRTY, _PAGE_PSE, _PAGE_GLOBAL = U(1 << 5), U(1 << 6), U(1 << 7), U(1 << 8)
_PAGE_SOFTW1, _PAGE_SOFTW2, _PAGE_SOFTW3 = U(1 << 9), U(1 << 10), U(1 << 11)
_PAGE_NX = U(1 << 63)
_PAGE_TABLE = _PAGE_PRESENT | _PAGE_RW | _PAGE_USER | _PAGE_ACCESSED
_KERNPG_TABLE = _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED
PTE_PFN_MASK = U(0x000F_FFFF_FFFF_F000)

PTE_SHIFT = U(PAGE_SHIFT)  # address bits of the lowest level
PAGE_MASK = ~U(PAGE_SIZE - 1)  # the bits of an address that say which page
ENTRY_4_BYTES, ENTRY_ARM64, ENTRY_ARM64_TABLE = U(1), U(2), U(6)  # in the address of an entry; 0: x86-64 (formats.py)
FORMAT_MASK, ENTRY_MASK = U(3), U(7)

# fmt: off
paging_t = Struct("paging_t", [          # set at boot; a copy in machine_t and in every cpu_t
    ("pgdir_shift", u64),                # of the top level: an entry there covers 2**pgdir_shift bytes
    ("table_bits", u64),                 # a table has 2**table_bits entries
    ("table_mask", u64), ("entry_shift", u64),           # its entries - 1; an entry is 2**entry_shift bytes
    ("pte_format", u64), ("table_format", u64),          # ENTRY_*: of entries that map pages, of those above
    ("canonical_shift", u64),            # an address is valid if from this bit on all bits are equal
    ("task_size", u64),                  # addresses of users lie below
    ("kernel_start", u64),               # addresses of the kernel lie from here on; among them
    ("page_offset", u64),                # the direct map: where the kernel sees physical address 0 (PAGE_OFFSET)
    ("vmalloc_start", u64), ("vmalloc_end", u64),
    ("nx", u64),                         # _PAGE_NX, or 0: the format cannot forbid execution
    ("stack_top", u64),                  # where a new program's stack ends (STACK_TOP): with five levels as with four
    ("elf_et_dyn_base", u64),            # where a position-independent program is loaded
    ("mmap_rnd_bits", u64), ("stack_rnd_mask", u64), ("brk_rnd", u64),       # by how much addresses are random: pages, bytes
])
# fmt: on


def set_paging(paging, name):
    """Write a format's figures into a paging_t."""
    for field, value in FORMATS[name].items():
        setattr(paging, field, value)
    paging.table_mask = (1 << FORMATS[name]["table_bits"]) - 1


# -- arm64 -----------------------------------------------------------------------------------------------------

_VALID, _PAGE_TYPE, _EL0, _RDONLY, _INNER_SHAREABLE, _AF, _NG = (
    U(1),
    U(2),
    U(1 << 6),
    U(1 << 7),
    U(3 << 8),
    U(1 << 10),
    U(1 << 11),
)
_DBM, _PXN, _UXN, _ARM_DIRTY, _ARM_SPECIAL = U(1 << 51), U(1 << 53), U(1 << 54), U(1 << 55), U(1 << 56)
_NORMAL_NC = U(2 << 2)  # AttrIndx of memory that is not cached
_ARM_PFN_MASK = U(0x0000_FFFF_FFFF_F000)


@kernel("u64(u64)")
def arm64_encode(pte):
    """The descriptor of a page or block for an entry in the common form."""
    if pte & _PAGE_PRESENT == U(0):
        return pte
    user = pte & _PAGE_USER != U(0)
    raw = (pte & _ARM_PFN_MASK) | _VALID | _INNER_SHAREABLE
    raw |= U(0) if pte & _PAGE_PSE != U(0) else _PAGE_TYPE
    raw |= _EL0 | _PXN if user else _UXN
    if pte & _PAGE_NX != U(0):
        raw |= _UXN if user else _PXN
    if pte & _PAGE_RW != U(0):
        raw |= _DBM if pte & _PAGE_DIRTY != U(0) else _DBM | _RDONLY
    else:
        raw |= _RDONLY | _ARM_DIRTY if pte & _PAGE_DIRTY != U(0) else _RDONLY
    raw |= _AF if pte & _PAGE_ACCESSED != U(0) else U(0)
    raw |= U(0) if pte & _PAGE_GLOBAL != U(0) else _NG
    raw |= _NORMAL_NC if pte & _PAGE_PCD != U(0) else U(0)
    return raw | ((pte & (_PAGE_SOFTW1 | _PAGE_SOFTW2 | _PAGE_SOFTW3)) << U(47))  # bits 9 to 11 become 56 to 58


@kernel("u64(u64)")
def arm64_decode(raw):
    """The entry in the common form for the descriptor of a page or block."""
    if raw & _VALID == U(0):
        return raw
    user = raw & _EL0 != U(0)
    pte = (raw & _ARM_PFN_MASK) | _PAGE_PRESENT
    pte |= U(0) if raw & _PAGE_TYPE != U(0) else _PAGE_PSE
    pte |= _PAGE_USER if user else U(0)
    pte |= _PAGE_NX if raw & (_UXN if user else _PXN) != U(0) else U(0)
    if raw & _DBM != U(0):
        pte |= _PAGE_RW if raw & _RDONLY != U(0) else _PAGE_RW | _PAGE_DIRTY
    elif raw & _ARM_DIRTY != U(0):
        pte |= _PAGE_DIRTY
    pte |= _PAGE_ACCESSED if raw & _AF != U(0) else U(0)
    pte |= U(0) if raw & _NG != U(0) else _PAGE_GLOBAL
    pte |= _PAGE_PCD if raw & _NORMAL_NC != U(0) else U(0)
    return pte | ((raw >> U(47)) & (_PAGE_SOFTW1 | _PAGE_SOFTW2 | _PAGE_SOFTW3))


# -- 32 bits: swap entries need 24 bits -------------------------------------------------------------------------

_SWAP = U(1 << 3)  # a swap entry: not present, this bit, and not _MIGRATION
_MIGRATION = U(1 << 10)


@kernel("u64(u64)")
def x86_32_encode(pte):
    if pte & (_PAGE_PRESENT | _SWAP) == _SWAP and pte & _MIGRATION == U(0):
        return ((pte >> PTE_SHIFT) << U(8)) | (pte & U(0xFF))
    return pte & U(0xFFFF_FFFF)


@kernel("u64(u64)")
def x86_32_decode(raw):
    if raw & (_PAGE_PRESENT | _SWAP) == _SWAP:
        return ((raw >> U(8)) << PTE_SHIFT) | (raw & U(0xFF))
    return raw


# -- entries in memory --------------------------------------------------------------------------------------------


@kernel("u64(u64, u64)")
def encode(pte, where):
    """The word in memory for an entry in the common form, at an address that tells the format."""
    if where & ENTRY_4_BYTES != U(0):
        return x86_32_encode(pte)
    if where & ENTRY_MASK == ENTRY_ARM64_TABLE and pte & (_PAGE_PRESENT | _PAGE_PSE) == _PAGE_PRESENT:
        return (pte & _ARM_PFN_MASK) | _VALID | _PAGE_TYPE
    return arm64_encode(pte)


@kernel("u64(u64, u64)")
def decode(raw, where):
    """The other way round."""
    if where & ENTRY_4_BYTES != U(0):
        return x86_32_decode(raw)
    if where & ENTRY_MASK == ENTRY_ARM64_TABLE and raw & (_VALID | _PAGE_TYPE) == _VALID | _PAGE_TYPE:
        return (raw & _ARM_PFN_MASK) | _PAGE_TABLE
    return arm64_decode(raw)


@kernel("u64(u64)")
def load_foreign(where):
    if where & ENTRY_4_BYTES != U(0):
        return decode(U(load_acquire(u32.array(where & ~FORMAT_MASK), 0)), where)
    return decode(load_acquire(u64.array(where & ~ENTRY_MASK), 0), where)


@kernel("u64(u64, u64, u64)")
def cmpxchg_foreign(where, old, new):
    """entry_cmpxchg for a format that is not x86-64's: the entry that was there, in the common form."""
    if where & ENTRY_4_BYTES != U(0):
        raw = U(
            compare_exchange(
                u32.array(where & ~FORMAT_MASK), 0, np.uint32(encode(old, where)), np.uint32(encode(new, where))
            )
        )
        return decode(raw, where)
    return decode(compare_exchange(u64.array(where & ~ENTRY_MASK), 0, encode(old, where), encode(new, where)), where)


@kernel("u64(u64, u64)")
def exchange_foreign(where, new):
    if where & ENTRY_4_BYTES != U(0):
        return decode(U(exchange(u32.array(where & ~FORMAT_MASK), 0, np.uint32(encode(new, where)))), where)
    return decode(exchange(u64.array(where & ~ENTRY_MASK), 0, encode(new, where)), where)


@hot
def entry_load(where):
    """The entry at a host address (with its format), in the common form."""
    return load_acquire(u64.array(where), 0) if where & FORMAT_MASK == U(0) else load_foreign(where)


@hot
def entry_cmpxchg(where, old, new):
    """Atomically put `new` in the place of `old`; the entry that was there."""
    if where & FORMAT_MASK == U(0):
        return compare_exchange(u64.array(where), 0, old, new)
    return cmpxchg_foreign(where, old, new)


@hot
def entry_exchange(where, new):
    """Atomically put `new` there; the entry that was there."""
    return exchange(u64.array(where), 0, new) if where & FORMAT_MASK == U(0) else exchange_foreign(where, new)


@hot
def entry_at(paging, table, address, shift):
    """Host address, with its format, of the entry of `address` in a table whose entries cover 2**shift bytes each."""
    index = (address >> shift) & paging.table_mask
    return (table + (index << paging.entry_shift)) | (paging.pte_format if shift == PTE_SHIFT else paging.table_format)

"""Tables of structs handed out by number, from 1: tasks, address spaces, VMAs, mappings. Shared by all CPUs, locked."""

from numaemu.compiler.decorators import kernel
from numaemu.compiler.pointer import address_of, i64
from numaemu.kernel.core.smp import spin_lock, spin_unlock
from numaemu.kernel.include.mm_types import pool_t
from numaemu.kernel.include.mmdebug import VM_BUG_ON


@kernel("i64(cpu_t*, u64)")
def pool_get(cpu, address):
    """An unused number of the pool at `address`, or 0: the table is full. The caller writes every field."""
    pool = pool_t.at(address)
    lock = address_of(pool, "lock")
    spin_lock(cpu, lock)
    number = 0
    if pool.nr_returned > 0:
        pool.nr_returned -= 1
        number = i64.array(pool.returned)[pool.nr_returned]
    elif pool.used + 1 < pool.capacity:
        pool.used += 1
        number = pool.used
    spin_unlock(lock)
    return number


@kernel("void(cpu_t*, u64, i64)")
def pool_put(cpu, address, number):
    """Give a number back."""
    pool = pool_t.at(address)
    lock = address_of(pool, "lock")
    spin_lock(cpu, lock)
    VM_BUG_ON(number < 1 or number > pool.used or pool.nr_returned >= pool.used)
    i64.array(pool.returned)[pool.nr_returned] = number
    pool.nr_returned += 1
    spin_unlock(lock)

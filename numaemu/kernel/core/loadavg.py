"""Averages that fade with time, in fixed point: Linux's kernel/sched/loadavg.c."""

from numaemu.compiler.decorators import hot

FSHIFT = 11  # bits behind the point: include/linux/sched/loadavg.h
FIXED_1 = 1 << FSHIFT


@hot
def fixed_power_int(x, n):
    """x^n, with FSHIFT bits behind the point."""
    result = FIXED_1
    while n > 0:
        if n & 1:
            result = (result * x + (1 << FSHIFT - 1)) >> FSHIFT
        n >>= 1
        x = (x * x + (1 << FSHIFT - 1)) >> FSHIFT
    return result


@hot
def calc_load(load, exp, active):
    """The average after one more look, at which it was `active`; all with FSHIFT bits behind the point."""
    new = load * exp + active * (FIXED_1 - exp)
    return (new + (FIXED_1 - 1 if active >= load else 0)) >> FSHIFT


@hot
def calc_load_n(load, exp, active, n):
    """The same after n looks."""
    return calc_load(load, fixed_power_int(exp, n), active)


def load_text(load):
    """LOAD_INT and LOAD_FRAC, as the files show an average."""
    return f"{load >> FSHIFT}.{((load & (FIXED_1 - 1)) * 100) >> FSHIFT:02d}"

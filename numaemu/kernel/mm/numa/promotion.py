"""Which pages of a slow tier are hot enough to be promoted: Linux's rule of NUMA_BALANCING_MEMORY_TIERING in kernel/sched/fair.c.

Hot is what is used soon after it was scanned (numa_hint_fault_latency). Where the fast node has room anyway every page that is used
comes; else the threshold is adjusted so that as many pages are candidates as numa_balancing_promote_rate_limit_MBps lets through.
"""

import numpy as np

from numaemu.compiler.atomic import compare_exchange, load_acquire
from numaemu.compiler.decorators import hot, kernel
from numaemu.kernel.core.smp import machine_of
from numaemu.kernel.include.mmzone import (
    MAX_NR_ZONES,
    WMARK_PROMO,
    ZONE_MOVABLE,
    node_of,
    page_of,
    wmark_pages,
    zone_of,
)
from numaemu.kernel.include.vmstat import PGPROMOTE_CANDIDATE, mod_node_page_state, node_page_state
from numaemu.kernel.mm.numa.cpupid import PAGE_ACCESS_TIME_MASK, folio_xchg_access_time
from numaemu.kernel.mm.numa.prot_numa import jiffies_ms
from numaemu.kernel.mm.numa.tiering import FAULTS, policy_promotes
from numaemu.kernel.mm.page_alloc.watermark import zone_watermark_ok
from numaemu.spec.param import PAGE_SHIFT

U = np.uint64
NUMA_MIGRATION_ADJUST_STEPS = 16
MSEC_PER_SEC = 1000
ENOUGH_PAGES = 1 << (30 - PAGE_SHIFT)  # 1 GiB


@kernel("bool(machine_t*, i64)")
def pgdat_free_space_enough(machine, node):
    """True if a node has so much free memory that all that is used may come."""
    enough = max(ENOUGH_PAGES, node_of(machine, node).nr_present_pages >> 4)
    for kind in range(MAX_NR_ZONES - 1, -1, -1):
        zone = zone_of(machine, node * MAX_NR_ZONES + kind)
        if zone.present_pages > 0 and zone_watermark_ok(
            zone, 0, wmark_pages(zone, WMARK_PROMO) + enough, ZONE_MOVABLE, 0
        ):
            return True
    return False


@hot
def numa_hint_fault_latency(cpu, page):
    """ms since the page was scanned."""
    now = jiffies_ms(cpu)
    return (now - folio_xchg_access_time(page, now)) & PAGE_ACCESS_TIME_MASK


@kernel("bool(cpu_t*, i64, i64, i64)")
def numa_promotion_rate_limit(cpu, node, rate_limit, pages):
    """Count candidates of a node; True if there were more than `rate_limit` pages in this second."""
    machine, now = machine_of(cpu), jiffies_ms(cpu)
    pgdat = node_of(machine, node)
    mod_node_page_state(machine, cpu.id, node, PGPROMOTE_CANDIDATE, pages)
    candidates, start = node_page_state(machine, node, PGPROMOTE_CANDIDATE), load_acquire(pgdat, "nbp_rl_start_ms")
    if now - start > MSEC_PER_SEC and compare_exchange(pgdat, "nbp_rl_start_ms", start, now) == start:
        pgdat.nbp_rl_nr_cand = candidates
    return candidates - pgdat.nbp_rl_nr_cand >= rate_limit


@kernel("void(cpu_t*, i64, i64, i64)")
def numa_promotion_adjust_threshold(cpu, node, rate_limit, reference_ms):
    """Once in scan_period_max_ms: fewer candidates are wanted, or more may come."""
    machine, now = machine_of(cpu), jiffies_ms(cpu)
    pgdat, period = node_of(machine, node), machine.numa_scan_period_max_ms
    start = load_acquire(pgdat, "nbp_th_start_ms")
    if now - start <= period or compare_exchange(pgdat, "nbp_th_start_ms", start, now) != start:
        return
    wanted = rate_limit * period // MSEC_PER_SEC
    candidates = node_page_state(machine, node, PGPROMOTE_CANDIDATE)
    came, step = candidates - pgdat.nbp_th_nr_cand, reference_ms * 2 // NUMA_MIGRATION_ADJUST_STEPS
    threshold = pgdat.nbp_threshold if pgdat.nbp_threshold != 0 else reference_ms
    if came > wanted * 11 // 10:
        threshold = max(threshold - step, step)
    elif came < wanted * 9 // 10:
        threshold = min(threshold + step, reference_ms * 2)
    pgdat.nbp_th_nr_cand, pgdat.nbp_threshold = candidates, threshold


@kernel("bool(cpu_t*, i64, i64, i64)")
def should_promote(cpu, pfn, pages, node):
    """True if a page of a slow tier, which has just taken a hinting fault, is to come to `node`."""
    machine = machine_of(cpu)
    pgdat = node_of(machine, node)
    if machine.tiering_samples == FAULTS:
        return policy_promotes(cpu, pfn, pages, node, numa_hint_fault_latency(cpu, page_of(machine, pfn)))
    if pgdat_free_space_enough(machine, node):
        pgdat.nbp_threshold = 0
        return True
    reference, rate_limit = machine.numa_hot_threshold_ms, machine.numa_promote_rate_limit << (20 - PAGE_SHIFT)
    numa_promotion_adjust_threshold(cpu, node, rate_limit, reference)
    threshold = pgdat.nbp_threshold if pgdat.nbp_threshold != 0 else reference
    if numa_hint_fault_latency(cpu, page_of(machine, pfn)) >= threshold:
        return False
    return not numa_promotion_rate_limit(cpu, node, rate_limit, pages)

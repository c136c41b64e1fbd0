"""What a CPU does for `task.kernel` with whole pages: the part of Operations that asks the page allocator."""

from numaemu.errors import KernelBug
from numaemu.kernel.include.mm_types import task_name
from numaemu.kernel.include.mmzone import MAX_NR_ZONES, ZONE_HIGHMEM, page_of, page_zone, zone_of
from numaemu.kernel.mm.page_alloc.page_alloc import BAD_TEXTS, compound_head, compound_order
from numaemu.kernel.mm.page_alloc.report.trail import read_trail
from numaemu.kernel.syscalls import allocators as syscalls
from numaemu.kernel.syscalls import vmalloc as vmalloc_calls
from numaemu.operations.part import Part
from numaemu.spec.param import MAX_ORDER


class PageOperations(Part):
    """The operations on pages of the kernel."""

    def alloc_pages(self, task_number, gfp, order, nid, nodes):
        mask = self.check_allocation(gfp, order, nid, nodes)
        self.might_alloc(gfp, "alloc_pages")
        return syscalls.kernel_alloc_pages(self.address, task_number, gfp, order, nid, mask)

    def check_allocation(self, gfp, order, nid, nodes):
        """The mask of the nodes that may serve; raise if there are none such, or no blocks of this order."""
        self.checked_gfp(gfp)
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order {order} must be 0 to {MAX_ORDER} (MAX_PAGE_ORDER)")
        for node in nodes or ():
            self.checked_nid(node, 0)
        self.checked_nid(nid)
        return int(self.machine.node_mask) if nodes is None else self.nodemask(nodes)

    def explain_pages(self, task_number, gfp, order, nid, nodes):
        """(pfn, steps of the trail, how many more there were)"""
        mask = self.check_allocation(gfp, order, nid, nodes)
        pfn = syscalls.kernel_explain_pages(self.address, task_number, gfp, order, nid, mask)
        return pfn, *read_trail(self.machine, self.process.cpu_number)

    def page_address(self, task_number, pfn):
        """Where a page lies in the direct map, or where kmap has put it; 0: it is high memory that is not mapped."""
        self.present(pfn, 0)
        if page_zone(self.machine, pfn) % MAX_NR_ZONES == ZONE_HIGHMEM:
            return int(vmalloc_calls.kernel_page_address_high(self.address, pfn))
        return int(self.machine.paging.page_offset) + (pfn << 12)

    def virt_to_pfn(self, task_number, address):
        """The page at an address of the direct map; a pfn stays one."""
        if address < self.machine.paging.page_offset:
            return address
        pfn = (address - int(self.machine.paging.page_offset)) >> 12
        self.kernel_bytes(address, 1)
        return pfn

    def free_hot_cold_page(self, task_number, pfn, cold):
        self.present(pfn, 0)
        bad = syscalls.kernel_free_hot_cold_page(self.address, task_number, pfn, cold)
        if bad:
            raise self.bad_page(task_number, pfn, 0, bad)

    def free_pages(self, task_number, pfn, order):
        self.present(pfn, order)
        bad = syscalls.kernel_free_pages(self.address, task_number, pfn, order)
        if bad:
            raise self.bad_page(task_number, pfn, order, bad)

    def present(self, pfn, order):
        """Raise unless 2**order page structs are there."""
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order {order} must be 0 to {MAX_ORDER}")
        for at in (pfn, pfn + (1 << order) - 1):
            zone = zone_of(self.machine, page_zone(self.machine, at)) if 0 <= at < self.machine.max_pfn else None
            if zone is None or not zone.start_pfn <= at < zone.start_pfn + zone.spanned_pages:
                raise KernelBug(f"pfn {at} order {order}: no memory there")

    def bad_page(self, task_number, pfn, order, bad):
        """bad_page: the kernel's log gets the page struct, the caller the exception."""
        page, why = page_of(self.machine, pfn), BAD_TEXTS[bad]
        allocated = f", allocated with order {page.order}" if page.refcount > 0 else ""
        self.process.printk(
            [
                f"BUG: Bad page state in process {task_name(self.tasks[task_number])}  pfn:{pfn:05x}",
                f"page: refcount:{page.refcount} mapcount:{page.mapcount} mapping:{page.mapping} index:{page.index:#x} "
                f"pfn:{pfn:#x}",
                f"flags: {int(page.flags):#x} order:{page.order}",
                f"page dumped because: {why}",
            ]
        )
        return KernelBug(f"Bad page state: pfn {pfn} order {order}: {why}{allocated}; it was not freed")

    def page(self, task_number, pfn):
        """Node, zone and counts of a page, for who looks inside."""
        self.present(pfn, 0)
        page, zone = page_of(self.machine, pfn), page_zone(self.machine, pfn)
        head = compound_head(self.machine, pfn)
        return {
            "pfn": pfn,
            "compound_head": head,
            "compound_order": compound_order(page_of(self.machine, head)),
            "node": zone // MAX_NR_ZONES,
            "zone": zone % MAX_NR_ZONES,
            "flags": int(page.flags),
            "refcount": page.refcount,
            "mapcount": page.mapcount,
        }

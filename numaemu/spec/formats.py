"""The page-table formats of a machine file, with the fields of paging.py's `paging_t`; what they mean stands there."""

# fmt: off
_X86_64 = dict(table_bits=9, entry_shift=3, pte_format=0, table_format=0, nx=1 << 63, stack_top=(1 << 47) - 4096,
               elf_et_dyn_base=0x5555_5555_4000, mmap_rnd_bits=28, stack_rnd_mask=0x3F_FFFF, brk_rnd=1 << 30)
_ARM64 = dict(table_bits=9, entry_shift=3, pte_format=2, table_format=6, nx=1 << 63, mmap_rnd_bits=18,
              stack_rnd_mask=0x3_FFFF, brk_rnd=1 << 30)
# fmt: on
# where the kernel lives: Linux's Documentation/arch/x86/x86_64/mm.rst, arch/arm64/include/asm/{memory,pgtable}.h
# fmt: off
FORMATS = {
    "x86-64-4level": dict(_X86_64, pgdir_shift=39, canonical_shift=47, task_size=(1 << 47) - 4096,
                          kernel_start=0xFFFF_8000_0000_0000, page_offset=0xFFFF_8880_0000_0000,
                          vmalloc_start=0xFFFF_C900_0000_0000, vmalloc_end=0xFFFF_E900_0000_0000),
    "x86-64-5level": dict(_X86_64, pgdir_shift=48, canonical_shift=56, task_size=(1 << 56) - 4096,
                          kernel_start=0xFF00_0000_0000_0000, page_offset=0xFF11_0000_0000_0000,
                          vmalloc_start=0xFFA0_0000_0000_0000, vmalloc_end=0xFFD2_0000_0000_0000),
    "x86-32": dict(table_bits=10, entry_shift=2, pte_format=1, table_format=1, nx=0, pgdir_shift=22,
                   canonical_shift=32, task_size=0xC000_0000, kernel_start=0xC000_0000, stack_top=0xC000_0000,
                   elf_et_dyn_base=0x40_0000, mmap_rnd_bits=8, stack_rnd_mask=0x7FF, brk_rnd=32 << 20,
                   page_offset=0xC000_0000, vmalloc_start=0, vmalloc_end=0),      # as memory and CPUs leave room: init_mm.py
    "arm64-39": dict(_ARM64, pgdir_shift=30, canonical_shift=39, task_size=1 << 39, kernel_start=0xFFFF_FF80_0000_0000,
                     stack_top=1 << 39, elf_et_dyn_base=0x55_5555_5000, page_offset=0xFFFF_FF80_0000_0000,
                     vmalloc_start=0xFFFF_FFC0_8000_0000, vmalloc_end=0xFFFF_FFFE_BF80_0000),
    "arm64-48": dict(_ARM64, pgdir_shift=39, canonical_shift=48, task_size=1 << 48, kernel_start=0xFFFF_0000_0000_0000,
                     stack_top=1 << 48, elf_et_dyn_base=0xAAAA_AAAA_A000, page_offset=0xFFFF_0000_0000_0000,
                     vmalloc_start=0xFFFF_8000_8000_0000, vmalloc_end=0xFFFF_FDFF_BF80_0000),
}
LEVEL_NAMES = {"x86-64-4level": ("pgd", "pud", "pmd", "pte"), "x86-64-5level": ("pgd", "p4d", "pud", "pmd", "pte"),
               "x86-32": ("pgd", "pte"), "arm64-39": ("pgd", "pmd", "pte"), "arm64-48": ("pgd", "pud", "pmd", "pte")}
# fmt: on

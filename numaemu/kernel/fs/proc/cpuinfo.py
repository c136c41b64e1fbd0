"""/proc/cpuinfo: Linux's arch/x86/kernel/cpu/proc.c and arch/arm64/kernel/cpuinfo.c.

What the emulated processor has not is left out, as Linux does: it has no clock frequency, no family and no model numbers. A
node is a package, a CPU one of its cores.
"""

PHYSICAL_BITS = 46  # MAX_PHYSMEM_BITS with four levels: what a machine's memory and its holes fit into
X86_32_PHYSICAL_BITS = 32


def x86_flags(topology):
    """The flags of x86 that what is emulated amounts to, in the order of cpufeatures.h."""
    long_mode = topology.paging.startswith("x86-64")
    flags = ["pse", "pge"] + (["nx", "pdpe1gb", "lm"] if long_mode else [])
    flags += ["pcid"] if topology.asids else []
    return flags + (["la57"] if topology.paging == "x86-64-5level" else [])


def address_sizes(topology):
    """Bits of physical and of virtual addresses."""
    if topology.paging == "x86-32":
        return X86_32_PHYSICAL_BITS, 32
    return PHYSICAL_BITS, 57 if topology.paging == "x86-64-5level" else 48


def x86(topology, cpu):
    """One CPU's lines: show_cpuinfo."""
    node = topology.nodes[topology.node_of_cpu(cpu)]
    physical, virtual = address_sizes(topology)
    fields = {
        "processor": cpu,
        "vendor_id": "numaemu",
        "model name": f"numaemu {topology.paging}",
        "physical id": node.id,
        "siblings": len(node.cpus),
        "core id": node.cpus.index(cpu),
        "cpu cores": len(node.cpus),
        "apicid": cpu,
        "initial apicid": cpu,
        "flags": " ".join(x86_flags(topology)),
        "TLB size": f"{topology.l2.entries} 4K pages",
        "address sizes": f"{physical} bits physical, {virtual} bits virtual",
    }
    return "".join(f"{name}{tabs(name)}: {value}\n" for name, value in fields.items()) + "\n"


def tabs(name):
    """Names of up to seven letters have two tabs behind them, "flags" too; longer ones one."""
    return "\t\t" if len(name) < 8 else "\t"


def arm64(topology, cpu):
    """One CPU's lines: c_show; the model name only stands there for compatible (32-bit) readers, and says what this is."""
    return f"processor\t: {cpu}\nmodel name\t: numaemu {topology.paging}\n\n"


def show_cpuinfo(system):
    """/proc/cpuinfo"""
    make = arm64 if system.topology.paging.startswith("arm64") else x86
    return "".join(make(system.topology, cpu) for cpu in system.topology.cpus)


FILES = {"/proc/cpuinfo": show_cpuinfo}

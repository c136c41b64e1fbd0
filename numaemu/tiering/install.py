"""Loading the policy that a machine file names, before the machine's processes are forked."""

import importlib.util
import pathlib

from numaemu.errors import ConfigError
from numaemu.host import shm
from numaemu.kernel.mm.numa.tiering import ACCESSED, FAULTS, LINUX, page_sample_t, tiering_moves_t
from numaemu.tiering import frequency, linux, tpp

NS_PER_MS = 1_000_000
SHIPPED = {"linux": linux, "tpp": tpp, "frequency": frequency}


def load_policy(name):
    """The module of a shipped policy's name or of a file."""
    if not name.endswith(".py"):
        return SHIPPED[name]
    path = pathlib.Path(name)
    spec = importlib.util.spec_from_file_location(f"tiering_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"tiering is {name}, which is no file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def interval_of(module, name):
    """Its interval in ns."""
    interval = getattr(module, "INTERVAL_MS", None)
    if not isinstance(interval, int) or not 1 <= interval <= 3_600_000:
        raise ConfigError(f"tiering {name}: INTERVAL_MS is {interval!r}, must be a whole number of ms from 1 on")
    return interval * NS_PER_MS


def install_tiering(machine, name):
    """The policy's function and its buffers."""
    module = load_policy(name)
    samples = getattr(module, "SAMPLES", None)
    if samples not in (LINUX, FAULTS, ACCESSED):
        raise ConfigError(f"tiering {name}: SAMPLES is {samples!r}, must be FAULTS or ACCESSED")
    if samples == LINUX:
        return
    if not hasattr(getattr(module, "decide", None), "address"):
        raise ConfigError(f'tiering {name}: decide must be a function with @callback("u64(u64, u64, u64)")')
    machine.on_tiering = module.decide.address
    machine.tiering_interval_ns = interval_of(module, name) if samples == ACCESSED else 0
    machine.page_samples = shm.shared_block(page_sample_t.nbytes * machine.nr_cpus)
    machine.tiering_moves = shm.shared_block(tiering_moves_t.nbytes * machine.nr_cpus)
    machine.tiering_samples = samples

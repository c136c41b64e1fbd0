"""Libraries that are not installed with numaemu, as they are large: they are imported when they are used."""

import importlib

from numaemu.errors import ConfigError


def need(module, extra, purpose):
    """A module, or a line that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise ConfigError(f"{purpose} needs the package {name}, which {why}: pip install 'numaemu[{extra}]'") from None
    except OSError as error:  # mfusepy without libfuse
        raise ConfigError(f"{purpose} needs a library that the host has not: {error}") from None

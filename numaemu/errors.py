"""The exceptions a user of numaemu meets.

Every one takes plain message arguments, so that it survives pickling on its way from a CPU's
process to the driver.  A system call that fails raises OSError with Linux's errno instead.
"""


class NumaemuError(Exception):
    """Base class of everything numaemu raises on purpose."""


class ConfigError(NumaemuError):
    """Wrong usage or a wrong machine file; nothing was started (exit status 2)."""

    @classmethod
    def at(cls, where: str, text: str) -> "ConfigError":
        """One clear line: what is wrong, and in brackets the place it stands in."""
        line = f"{text} ({where})" if where else text
        return cls("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class MachineCheck(NumaemuError):
    """A process of the emulator died, or its state is inconsistent (exit status 3)."""


class KernelBug(NumaemuError):
    """Kernel code misused kernel memory: an overrun, a double free, a use after free, objects left in a cache."""


class SegmentationFault(NumaemuError):
    """An access to an address that is not mapped, or not mapped for this access (SIGSEGV)."""


class BusError(NumaemuError):
    """An access to a mapped address that nothing backs, as beyond the end of a file (SIGBUS)."""


class OutOfMemory(NumaemuError):
    """The task was OOM-killed: memory ran out, and its end gave most of it back."""


def note(error: BaseException, **what: object) -> None:
    """Keep something with an exception, as attributes. AttributeError: it takes none."""
    for name, value in what.items():
        setattr(error, name, value)


class NumaemuWarning(UserWarning):
    """Base class of what numaemu warns of."""


class HostMemoryWarning(NumaemuWarning):
    """A machine has more memory than its host has free."""


class CompiledAgainWarning(NumaemuWarning):
    """A function of the user's has been compiled again and again, which takes long each time."""

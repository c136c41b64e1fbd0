"""The compiled kernel as one file: loaded in a tenth of a second by whoever imports the package.

An image holds every compiled function of the package as an object of its own, as LLVM made it, in the order of declaration.
Objects name the functions they call by symbol, and callees are declared first: each is linked as soon as it is declared.
The file's name carries the stamp of the sources and of everything else that machine code depends on.
"""
import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import pathlib
import pickle
import sys
import typing

import llvmlite
import numba
from llvmlite import binding as llvm
from numba import _dynfunc
from numba.core import environment, registry
from numba.core.runtime import rtsys

from numaemu.build import DEBUG, PACKAGE, package_stamp

FLAVOUR = "debug" if DEBUG else "release"


class Compiled(typing.NamedTuple):
    """One function: its object code, the name in it that is called, and Numba's environment of it."""
    code: bytes
    name: str
    environments: tuple           # names of the words that point to it, and to those of what was inlined
    constants: tuple              # what it holds


def stamp():
    """A short hash over the sources, the compilers, Python and the host's CPU."""
    parts = (package_stamp(), numba.__version__, llvmlite.__version__, sys.version, llvm.get_host_cpu_name(),
             llvm.get_host_cpu_features().flatten())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def places():
    """Directories where images may lie, the best first."""
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    named = os.environ.get("NUMBA_CACHE_DIR")
    return [pathlib.Path(p) for p in (named, PACKAGE / "__pycache__", pathlib.Path(user) / "numaemu") if p]


def find():
    """The path of the image of this package, or None."""
    name = f"{FLAVOUR}-{stamp()}.image"
    return next((place / name for place in places() if (place / name).exists()), None)


def writable_place():
    """The first of the places that can be written, or None."""
    for place in places():
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place
    return None


@contextlib.contextmanager
def only_one_makes_it(place):
    """Others that want the same image wait here."""
    with open(place / f"{FLAVOUR}.image.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def save(place, functions):
    """Write an image of {symbol: Compiled} whole or not at all; older ones of this flavour go."""
    path = place / f"{FLAVOUR}-{stamp()}.image"
    unfinished = path.with_suffix(f".{os.getpid()}")
    try:
        unfinished.write_bytes(pickle.dumps(functions))
        for old in place.glob(f"{FLAVOUR}-*.image"):
            old.unlink(missing_ok=True)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


class Image:
    """A loaded one: `image[symbol]` is there if the package declared it."""

    def __init__(self, path):
        self.functions, self.environments = pickle.loads(path.read_bytes()), []

    def __contains__(self, symbol):
        return symbol in self.functions

    @functools.cached_property
    def engine(self):
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        rtsys.initialize(registry.cpu_target.target_context)           # gives LLVM the helpers that Numba's code calls
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    def link(self, symbol, function):
        """The address of a function; whatever it calls has been linked before."""
        compiled = self.functions[symbol]
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(compiled.code))
        if DEBUG:                             # exceptions with arguments need it, which only this build's kernels raise
            self.give_environment(compiled, function)
        return self.engine.get_function_address(compiled.name)

    def give_environment(self, compiled, function):
        env = environment.Environment(function.__globals__)
        env.consts.extend(compiled.constants)
        for word in map(self.engine.get_global_value_address, compiled.environments):
            if word:
                ctypes.c_void_p.from_address(word).value = id(env)
        self.environments.append(env)
        return env

    def link_for_python(self, symbol, function):
        """A function that Python calls: Numba's wrapper, with its environment."""
        address, env = self.link(symbol, function), self.give_environment(self.functions[symbol], function)
        return _dynfunc.make_function(sys.modules[function.__module__], function.__name__, function.__doc__ or "", address, env,
                                      (self, env))

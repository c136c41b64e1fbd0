"""Machine code of an image, made callable in this process.

Objects name the functions they call by symbol. What the image holds is linked as it is declared, callees first, in a tenth of a
second for the whole kernel. What it does not hold yet becomes a stub: whoever calls it waits until it has been compiled
(compiler/foreman.py), and from then on goes through the stub's word to the code. A stub passes every register on as it came, so it
fits any signature; its address is the same in all processes that are forked, and each links for itself.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import pathlib
import sys
import threading
import traceback

import llvmlite
import numba
from llvmlite import binding as llvm
from numba import _dynfunc
from numba.core import environment, registry
from numba.core.runtime import rtsys

from numaemu.compiler import foreman
from numaemu.compiler.build import DEBUG, JIT, PACKAGE, package_stamp
from numaemu.compiler.image import COMPLETE, Image
from numaemu.host.trust import usable

FLAVOUR = "debug" if DEBUG else "release"
COMPILING = foreman.COMPILING in os.environ  # this process is a compiler: it declares, and links nothing
STUBS = 64  # made at a time

_STUB = """
define void @"numaemu.stub.{number}"(...) "thunk" {{
  %code = load ptr, ptr inttoptr (i64 {word} to ptr)
  musttail call void (...) %code(...)
  ret void
}}
define void @"numaemu.wait.{number}"(...) "thunk" {{
  call void inttoptr (i64 {resolve} to ptr)(i64 {number})
  %code = load ptr, ptr inttoptr (i64 {word} to ptr)
  musttail call void (...) %code(...)
  ret void
}}
"""


def mute_lock_events():
    """Numba notes each time LLVM's lock is taken, for measurements that nobody makes here: a tenth of the time."""
    import numba.core.compiler  # noqa: F401  (asks for the events)
    from llvmlite.binding import ffi

    for callbacks in list(getattr(getattr(ffi.lib, "_lock", None), "_cblist", [])):
        ffi.unregister_lock_callback(*callbacks)


def tools_stamp():
    """A short hash over the compilers, Python and the host's CPU."""
    parts = (
        numba.__version__,
        llvmlite.__version__,
        sys.version,
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def places():
    """Directories where the image may lie, the best first: if the user names one, that one, unless it is not to be trusted."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    if named and usable(named) and usable(pathlib.Path(named, image_name())):
        return [pathlib.Path(named)]
    return [PACKAGE / "__pycache__", foreman.user_directory(), foreman.own_directory()]


def image_name():
    """The name of the image of these sources on this host."""
    return f"{FLAVOUR}-{tools_stamp()}-{package_stamp()[:16]}.image"


def image_path():
    """Where the image of this package lies, or will: in the first place where it is complete, or else can grow."""
    name, growing = image_name(), []
    for place in places():
        with contextlib.suppress(OSError):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not usable(place) or not usable(place / name):
                continue  # another user's code is not run
            if os.access(place, os.W_OK):
                growing.append(place / name)
            elif Image(place / name).read()[-1:] == [COMPLETE]:
                return place / name
    if not growing:
        raise RuntimeError("compiled code can be kept in none of " + ", ".join(map(str, places())))
    return next((path for path in growing if path.exists()), growing[0])


class Linker:
    """What links the package's functions into this process."""

    def __init__(self, image):
        self.image, self.environments = image, []
        self.waiting, self.resolved = [], set()  # (symbol, function, address of its word) by the stub's number; symbols
        self.words = []  # the stubs' words: where each jumps
        self.free_stubs = []  # (address, word) of those that have no function yet
        self.lock = threading.RLock()
        self.resolve = ctypes.CFUNCTYPE(None, ctypes.c_int64)(self._resolve)

    @functools.cached_property
    def engine(self):
        """LLVM's linker for this process, without any module so far."""
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        rtsys.initialize(registry.cpu_target.target_context)  # gives LLVM the helpers that Numba's code calls
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        return llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)

    @functools.cached_property
    def quick(self):
        """For stubs, which need no optimising."""
        return llvm.Target.from_default_triple().create_target_machine(opt=0, jit=True)

    def address(self, symbol, function):
        """Where other functions call this one."""
        return self.link(symbol, function) if self.image.holds(symbol) else self.stub(symbol, function)

    def link(self, symbol, function):
        """The address of a function that the image holds; whatever it calls has been declared before."""
        compiled = self.image.functions[symbol]
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(compiled.code))
        if DEBUG:  # exceptions with arguments need it, which only this build's functions raise
            self.give_environment(compiled, function)
        return self.engine.get_function_address(compiled.name)

    def give_environment(self, compiled, function):
        """Make the environment of a compiled function (its constants, the globals of its module) and write its address
        where the code looks for it.
        """
        env = environment.Environment(function.__globals__)
        env.consts.extend(compiled.constants)
        for word in map(self.engine.get_global_value_address, compiled.environments):
            if word:
                ctypes.c_void_p.from_address(word).value = id(env)
        self.environments.append(env)
        return env

    def link_for_python(self, symbol, function):
        """A function that Python calls: Numba's wrapper, with its environment."""
        address, env = self.link(symbol, function), self.give_environment(self.image.functions[symbol], function)
        return _dynfunc.make_function(
            sys.modules[function.__module__], function.__name__, function.__doc__ or "", address, env, (self, env)
        )

    def for_python(self, symbol, function):
        """The same, which waits at its first call if the image does not hold it yet."""
        return self.link_for_python(symbol, function) if self.image.holds(symbol) else Later(self, symbol, function)

    def wait_and_link_for_python(self, symbol, function):
        with self.lock:
            foreman.wait_for(self.image, symbol)
            return self.link_for_python(symbol, function)

    # -- stubs

    def stub(self, symbol, function):
        """The address of code that waits for the function, then calls it."""
        if not self.free_stubs:
            self.make_stubs()
        address, word = self.free_stubs.pop()
        self.waiting.append((symbol, function, word))
        return address

    def make_stubs(self):
        """Make STUBS more addresses that may stand for functions which are not compiled yet: the first call of one
        waits for it.
        """
        first, words = len(self.waiting), (ctypes.c_uint64 * STUBS)()
        resolve = ctypes.cast(self.resolve, ctypes.c_void_p).value
        places = [ctypes.addressof(words) + i * ctypes.sizeof(ctypes.c_uint64) for i in range(STUBS)]
        source = "".join(_STUB.format(number=first + i, word=places[i], resolve=resolve) for i in range(STUBS))
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(self.quick.emit_object(llvm.parse_assembly(source))))
        for i in range(STUBS):
            words[i] = self.engine.get_function_address(f"numaemu.wait.{first + i}")
        self.words.append(words)
        self.free_stubs = [
            (self.engine.get_function_address(f"numaemu.stub.{first + i}"), places[i]) for i in reversed(range(STUBS))
        ]

    def _resolve(self, number):
        """Called by a stub: put the function's address into its word, or end the process."""
        try:
            symbol, function, word = self.waiting[number]
            with self.lock:
                if symbol not in self.resolved:
                    foreman.wait_for(self.image, symbol)
                    address = self.link(symbol, function)
                    llvm.add_symbol(symbol, address)  # who is linked from now on needs no stub
                    ctypes.c_uint64.from_address(word).value = address
                    self.resolved.add(symbol)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(70)  # no kernel can go on without what it has called


class Later:
    """A function for Python that is compiled when it is first called."""

    def __init__(self, linker, symbol, function):
        self.linker, self.symbol, self.function = linker, symbol, function
        functools.update_wrapper(self, function)

    @functools.cached_property
    def linked(self):
        return self.linker.wait_and_link_for_python(self.symbol, self.function)

    def __call__(self, *args):
        return self.linked(*args)


def open_image():
    """The package's image. Where there is none, compilers begin at once: this process will need them."""
    image = Image(image_path())
    if image.path.exists():
        image.read()
    else:
        foreman.start(image.path)
    return image


def compile_everything(progress=lambda n, total: None):
    """Complete the package's image, so that nothing has to wait later; nothing to do with the JIT off. `progress`: see
    foreman.wait_for_all.
    """
    if JIT:
        foreman.wait_for_all(Image(image_path()), progress)


LINKER = Linker(open_image()) if JIT and not COMPILING else None

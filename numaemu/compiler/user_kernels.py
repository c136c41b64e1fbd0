"""Users' compiled functions that no file holds: of a notebook, of __main__, made inside another function.

They travel by their contents. Who gets one looks whether this process has it already; else whether another process of the same
driver has compiled it, in a directory that the driver's fork server makes and takes away. So each is compiled once for each kind
of arguments in the life of a driver, by whoever needs it first, while others that need it wait.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import pickle
import shutil
import sys
import warnings
import weakref

DIRECTORY = "NUMAEMU_KERNELS"  # in the environment of emulator processes: where the machine code lies
_PREFIX = "kernels."  # and the pid of the fork server
LIBRARIES = ("numaemu.malloc.", "numaemu.gc.")
FIRST_LIBRARY = "numaemu: compiling a kind of heap or a collector for the first time; this takes ten seconds or more"

_made = {}  # key: dispatcher, in this process
_keys = weakref.WeakKeyDictionary()  # Python function: the hash of its contents
_itself = weakref.WeakKeyDictionary()  # Python function: its dispatcher, if it calls itself


def make_directory(place):
    """In the fork server: a new directory in `place`, for those that it forks. What others that were killed have left goes."""
    for old in pathlib.Path(place).glob(f"{_PREFIX}*"):
        if not os.path.exists(f"/proc/{old.name.removeprefix(_PREFIX)}"):
            shutil.rmtree(old, ignore_errors=True)
    path = pathlib.Path(place, f"{_PREFIX}{os.getpid()}")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    os.environ[DIRECTORY] = str(path)


def remove_directory():
    """Take this process's directory away."""
    if path := os.environ.get(DIRECTORY):
        shutil.rmtree(path, ignore_errors=True)


def compiled_anew(payload, options):
    """The compiled function that a pickled Python function and its options make."""
    key = hashlib.sha256(payload + repr(sorted(options.items())).encode()).hexdigest()[:32]
    if key not in _made:
        import numba

        function = pickle.loads(payload)
        function.__module__ = "__main__"  # machine code is loaded for a module that there is
        dispatcher = _itself.get(function) or numba.njit(**options, nogil=True)(function)
        if os.environ.get(DIRECTORY):
            share(dispatcher, key)
        _made.setdefault(key, dispatcher)
    return _made[key]


def itself(function, options):
    """The dispatcher of a function whose contents are just being read, for its own calls."""
    import numba

    _itself[function] = numba.njit(**options, nogil=True)(function)
    return _itself[function]


def share(dispatcher, key):
    """Let a dispatcher look for machine code in the driver's directory, and compile while no other process compiles the same."""
    from numba.core.caching import FunctionCache

    class Cache(FunctionCache):
        def _index_key(self, sig, codegen):
            return sig, codegen.magic_tuple()  # the contents are in the directory's name

    place = pathlib.Path(os.environ[DIRECTORY], key)
    place.mkdir(exist_ok=True)
    _keys[dispatcher.py_func] = key
    dispatcher._cache, compile_it = Cache(dispatcher.py_func), dispatcher.compile

    def compile_once(sig):
        with open(place / "lock", "w") as lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot be kept, for what it refers to
            fcntl.flock(lock, fcntl.LOCK_EX)
            return compile_it(sig)

    dispatcher.compile = compile_once


def directory_of(function):
    """Where the machine code of a function lies that no file holds, or None."""
    key, place = _keys.get(function), os.environ.get(DIRECTORY)
    return os.path.join(place, key) if key and place else None


def say_once():
    """Tell a person, once in the life of a driver, why the first use of a kind of heap or of a collector takes long."""
    try:
        os.close(os.open(pathlib.Path(os.environ[DIRECTORY], "said"), os.O_CREAT | os.O_EXCL))
    except (KeyError, OSError):  # another CPU was first; or nobody would know
        return
    print(FIRST_LIBRARY, file=sys.stderr, flush=True)


def watch(tell):
    """In a CPU's process: tell(name, where) each time a user's function has been compiled that Numba does not keep beside its file;
    say so when a library of the package is compiled.
    """
    from numba.core import caching, event

    class Listener(event.Listener):
        def on_start(self, compiled):
            if compiled.data["dispatcher"].py_func.__module__.startswith(LIBRARIES):
                say_once()

        def on_end(self, compiled):
            dispatcher = compiled.data["dispatcher"]
            function, kept = dispatcher.py_func, type(dispatcher._cache) is caching.FunctionCache
            if not kept and not function.__module__.startswith("numaemu."):
                code = function.__code__
                with contextlib.suppress(Exception):  # the machine may be ending
                    tell(function.__qualname__, f"{code.co_filename}, line {code.co_firstlineno}")

    event.register("numba:compile", Listener())

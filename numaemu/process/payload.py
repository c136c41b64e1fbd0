"""Functions on their way to another process.

A function of an importable file travels by name, so that its user kernels come from their cache; the file's path
goes along for processes that could not find it. A function of a notebook, of `__main__` or inside another function
travels by value (cloudpickle).
"""

import importlib
import importlib.util
import pickle
import sys
import threading

from numaemu.process.wire import dumps

_loading = threading.Lock()  # tasks start in threads: none may see a module whose text another still runs


def dump_function(function, args):
    """Bytes that `load_function` turns into (function, args) in another process."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    source = None
    if module is not None and module.__name__ != "__main__" and getattr(module, "__file__", None):
        source = module.__name__, module.__file__
    return pickle.dumps((source, dumps((function, args))))


def load_function(payload):
    """(function, args)"""
    source, body = pickle.loads(payload)
    if source:
        with _loading:
            load_module(*source)
    return pickle.loads(body)


def load_module(name, path):
    """Import the file at `path` as module `name`, unless it is there or can be found by its name."""
    if name in sys.modules:
        return sys.modules[name]
    parent = name.rpartition(".")[0]
    if not parent or parent in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ImportError(f"{path} is no file of Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
    return importlib.import_module(name)

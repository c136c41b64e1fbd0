"""A fresh machine's first compilation, by as many processes as it has CPUs.

Functions call each other through linker symbols, so each can be compiled without its callees. Every process imports the
whole package and compiles its share of it for Numba's cache; whoever asked then loads everything from there. A file beside
the cache, named after the package's stamp, says that it is complete.
"""
import os
import subprocess
import sys

from numaemu.build import DEBUG, JIT, PACKAGE, package_stamp

MOST = 8                 # processes; each needs about 400 MB
WORKER = """
import sys
from numaemu.compile import on_compiled
on_compiled(lambda name: print(name, flush=True))
import numaemu.coordinator
"""


def marker():
    """The file that says that the cache is complete."""
    return PACKAGE / "__pycache__" / f"numaemu-{package_stamp()[:16]}{'-debug' if DEBUG else ''}.compiled"


def can_write_cache():
    """True if the marker, and so the cache in the tree, can be written here."""
    try:
        marker().parent.mkdir(exist_ok=True)
    except OSError:
        return False
    return os.access(marker().parent, os.W_OK)


def compile_share(i, n):
    environment = {**os.environ, "NUMAEMU_COMPILE_SHARE": f"{i}/{n}", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True, env=environment)


def precompile(progress):
    """Fill the cache if it is not complete; `progress(name)` is told of functions that have been compiled.

    Should a process fail, or the cache lie where no marker can be written, the functions are compiled as they are loaded.
    """
    n = min(len(os.sched_getaffinity(0)), MOST)
    if not JIT or n == 1 or "NUMAEMU_COMPILE_SHARE" in os.environ or marker().exists() or not can_write_cache():
        return
    workers = [compile_share(i, n) for i in range(n)]
    try:
        for line in workers[0].stdout:           # the others are about as far
            progress(line.strip())
        for worker in workers:
            worker.communicate()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stdout.close()
    if all(worker.returncode == 0 for worker in workers):
        marker().touch()

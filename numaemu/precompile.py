"""Making the image: a fresh machine's first compilation, by as many processes as it has CPUs.

Functions call each other through linker symbols, so each can be compiled without its callees. Every process imports the
whole package and compiles what it has claimed of it: chunks of functions that stand together, whose numbers wait in a
pipe. Whoever asked puts the shares together.
"""
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np

from numaemu import image
from numaemu.build import JIT

MOST = 8                 # processes; each needs about 400 MB
CHUNK = 12               # functions
CHUNKS = 4096            # more than there ever are
CLAIMS, PART = "NUMAEMU_CLAIMS", "NUMAEMU_PART"          # a process that compiles: the pipe's number, the file for its share
WORKER = "from numaemu.precompile import SHARE; import numaemu.coordinator; SHARE.write()"       # it imports every function

listeners = []           # called with the name of each function that is compiled for an image


class Share:
    """What this process compiles for an image: chunk by chunk, as it claims them."""

    def __init__(self, claims):
        self.claims, self.declared, self.claimed, self.functions = claims, 0, -1, {}

    def is_mine(self):
        """True if the function that is being declared is to be compiled here."""
        number, self.declared = self.declared // CHUNK, self.declared + 1
        while self.claimed < number:
            word = os.read(self.claims, 2)
            self.claimed = int.from_bytes(word, "little") if word else CHUNKS
        return self.claimed == number

    def add(self, symbol, compiled):
        if symbol in self.functions:
            raise AssertionError(f"{symbol} is declared twice")
        self.functions[symbol] = compiled
        os.write(1, f"{symbol}\n".encode())           # whole lines, as several processes write into one pipe

    def write(self):
        pathlib.Path(os.environ[PART]).write_bytes(pickle.dumps(self.functions))


SHARE = Share(int(os.environ[CLAIMS])) if CLAIMS in os.environ else None


def start_worker(claims, output, part):
    env = {**os.environ, CLAIMS: str(claims), PART: str(part), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", WORKER], stdout=output, env=env, pass_fds=[claims])


def compile_all(progress):
    """{symbol: Compiled} of the whole package, or None if a process failed (it has said why)."""
    claims, write_claims = os.pipe()
    os.write(write_claims, np.arange(CHUNKS, dtype="<u2").tobytes())
    os.close(write_claims)
    names, output = os.pipe()
    with tempfile.TemporaryDirectory() as directory:
        parts = [pathlib.Path(directory, str(i)) for i in range(min(len(os.sched_getaffinity(0)), MOST))]
        workers = [start_worker(claims, output, part) for part in parts]
        os.close(output)
        os.close(claims)
        try:
            with open(names) as lines:
                for line in lines:
                    progress(line.strip())
            if any([worker.wait() for worker in workers]):
                return None
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
        functions = {}
        for part in parts:
            functions.update(pickle.loads(part.read_bytes()))
        return functions


def announce(name):
    for listener in listeners:
        listener(name)


def open_image(progress=announce):
    """The package's image, made if there is none; None where nothing is compiled or no image can be had.

    Without one, every process compiles what it imports, each time.
    """
    if not JIT or SHARE is not None:
        return None
    path, place = image.find(), image.writable_place()
    if path is None and place is not None:
        with image.only_one_makes_it(place):
            path = image.find()
            if path is None and (functions := compile_all(progress)) is not None:
                path = image.save(place, functions)
    return image.Image(path) if path else None

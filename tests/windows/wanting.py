"""Tests that need something of the host are skipped where it is not there, with a reason that the summary shows."""

import importlib
import os
import shutil
import subprocess

import pytest


def need_program(*names):
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"WANTING: the program {name} is not installed")


def need_package(*names):
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:
            pytest.skip(f"WANTING: the package {name} cannot be loaded: {error}")


def need_fuse():
    need_package("mfusepy")
    need_program("fusermount3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("WANTING: /dev/fuse cannot be opened here")


def need_namespaces():
    need_program("unshare")
    done = subprocess.run(["unshare", "-Urmpf", "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"WANTING: user namespaces are not allowed here: {done.stderr.strip()}")

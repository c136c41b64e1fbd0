"""What pyproject.toml cannot say: an installation carries the workloads, which lie beside the package in the repository."""

import pathlib
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithWorkloads(build_py):
    """Puts workloads/ into the package. An editable installation finds the folder in the clone."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = pathlib.Path(self.build_lib, "numaemu", "workloads")
            target.mkdir(parents=True, exist_ok=True)
            for path in sorted(pathlib.Path(__file__).parent.glob("workloads/*.py")):
                shutil.copy(path, target)


setup(cmdclass={"build_py": BuildWithWorkloads})

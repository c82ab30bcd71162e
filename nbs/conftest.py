"""pytest collects the notebooks too.

Each is executed from its first cell to its last in a plain Jupyter kernel; nothing is stored.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / ".ci/notebooks.py"


class NotebookFailed(Exception):
    pass


class NotebookItem(pytest.Item):
    def runtest(self):
        environment = dict(os.environ)
        if "PYTEST_XDIST_WORKER" in environment:  # as many kernels as cores: a thread each
            environment.setdefault("OMP_NUM_THREADS", "1")
        done = subprocess.run(
            [sys.executable, RUN, "test", self.path],
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode:
            raise NotebookFailed(done.stdout + done.stderr)

    def repr_failure(self, excinfo):
        if excinfo.errisinstance(NotebookFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"notebook {self.path.name}"


class NotebookFile(pytest.File):
    def collect(self):
        yield NotebookItem.from_parent(self, name="runs")


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts:
        return NotebookFile.from_parent(parent, path=file_path)
    return None

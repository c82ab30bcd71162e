"""pytest collects the notebooks too; nothing is stored.

Each is executed twice from its first cell to its last: in a fork of a process that has imported the
libraries, and, among the slow tests, in a plain Jupyter kernel of its own, which computes as a
processor without vector instructions and with two threads would.
"""

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / ".ci/notebooks.py"


OTHER_MACHINE = {
    "ATEN_CPU_CAPABILITY": "default",
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "passive",  # two kernels at a time on two cores
}


class NotebookFailed(Exception):
    pass


def environment() -> dict[str, str]:
    "As many notebooks at a time as there are workers: a thread each, if nothing else is asked for"
    threads = {"OMP_NUM_THREADS": "1"} if "PYTEST_XDIST_WORKER" in os.environ else {}
    return threads | os.environ


@cache
def server() -> tuple[subprocess.Popen, Path]:
    "The process of this worker that runs notebooks, and the file to which they print"
    log = Path(tempfile.mkstemp(prefix="notebooks-", suffix=".log")[1])
    process = subprocess.Popen(
        [sys.executable, RUN, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        env=environment(),
        text=True,
    )
    return process, log


class WarmNotebook(pytest.Item):
    "In a fork of the server"

    def runtest(self):
        process, log = server()
        before = log.stat().st_size
        process.stdin.write(f"{self.path}\n")
        process.stdin.flush()
        if process.stdout.readline().strip() != "0":
            raise NotebookFailed(log.read_bytes()[before:].decode(errors="replace"))

    def repr_failure(self, excinfo):
        if excinfo.errisinstance(NotebookFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"notebook {self.path.name}"


class KernelNotebook(WarmNotebook):
    "In a plain Jupyter kernel of its own"

    def runtest(self):
        done = subprocess.run(
            [sys.executable, RUN, "test", self.path],
            capture_output=True,
            text=True,
            env=os.environ | OTHER_MACHINE,
        )
        if done.returncode:
            raise NotebookFailed(done.stdout + done.stderr)


class NotebookFile(pytest.File):
    def collect(self):
        yield WarmNotebook.from_parent(self, name="runs")
        kernel = KernelNotebook.from_parent(self, name="runs_in_a_plain_kernel")
        kernel.add_marker("slow")
        yield kernel


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts:
        return NotebookFile.from_parent(parent, path=file_path)
    return None


def pytest_sessionfinish():
    if server.cache_info().currsize:
        process, log = server()
        process.stdin.close()
        process.wait()
        log.unlink()

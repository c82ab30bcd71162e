"""pytest collects the notebooks too; nothing is stored.

Each is executed twice from its first cell to its last, in forks of a process that has imported
the libraries: in the fork itself, and, among the slow tests, in a plain Jupyter kernel, which
computes as a processor without vector instructions and with two threads would. Those that take
longest are among the slow tests either way.
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

LONG = {  # more than half of the time that all take
    "index",
    "judging/06_choosing",
    "lab/01_demo",
    "lab/05_orders",
    "lab/06_torch_pruning",
    "lab/10_families",
    "lab/15_bench_llm",
    "lab/24_alps",
    "lab/25_sparse_swaps",
    "lab/40_gpu_checks",
    "lab/41_gpu",
    "method/04_balance",
    "method/08_repair",
    "models/04_transformers_experts",
    "running/00_stages",
    "theory/descent",
    "theory/pairs",
    "tutorials/digits",
    "tutorials/llm",
    "tutorials/onnx",
    "tutorials/slurm",
    "tutorials/torch_layers",
    "tutorials/your_model",
}


class NotebookFailed(Exception):
    pass


def environment() -> dict[str, str]:
    "As many notebooks at a time as there are workers: a thread each, if nothing else is asked for"
    threads = {"OMP_NUM_THREADS": "1"} if "PYTEST_XDIST_WORKER" in os.environ else {}
    return threads | os.environ


@cache
def server(kernel: bool) -> tuple[subprocess.Popen, Path]:
    "The process of this worker that runs notebooks, and the file to which they print"
    log = Path(tempfile.mkstemp(prefix="notebooks-", suffix=".log")[1])
    process = subprocess.Popen(
        [sys.executable, RUN, "serve", *(["kernel"] if kernel else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.open("w"),
        env=os.environ | OTHER_MACHINE if kernel else environment(),
        text=True,
    )
    servers.append((process, log))
    return process, log


servers: list[tuple[subprocess.Popen, Path]] = []


class WarmNotebook(pytest.Item):
    "In a fork of the server"

    kernel = False

    def runtest(self):
        process, log = server(self.kernel)
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
    "In a plain Jupyter kernel"

    kernel = True


class NotebookFile(pytest.File):
    def collect(self):
        warm = WarmNotebook.from_parent(self, name="runs")
        name = self.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
        if name in LONG:
            warm.add_marker("slow")
        yield warm
        kernel = KernelNotebook.from_parent(self, name="runs_in_a_plain_kernel")
        kernel.add_marker("slow")
        yield kernel


def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts:
        return NotebookFile.from_parent(parent, path=file_path)
    return None


def pytest_sessionfinish():
    for process, log in servers:
        process.stdin.close()
        process.wait()
        log.unlink()

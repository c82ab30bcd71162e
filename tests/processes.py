"""Functions, and the interpreter, in processes of their own.

Processes are forked from a server that has imported the libraries once, and has done nothing
else: starting one takes a moment, where a new interpreter takes many seconds to import torch.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from torch import distributed as dist

SECONDS = 300  # after which a process is ended
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch.distributed.fsdp", "timm", "transformers", "open_clip.hf_model", "pytest", "sklearn"]
)


def _enter(function: Callable, args: tuple, rank: int, world: int, folder: str) -> None:
    "Call `function`, in a group of `world` processes unless `world` is 0; write down errors."
    try:
        if world:
            meeting = f"file://{folder}/meeting"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
        function(*args)
        if world:
            dist.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error{rank}").write_text(traceback.format_exc())
        raise


def _run(
    function: Callable, args: tuple, world: int, seconds: float = SECONDS
) -> tuple[list[int], str]:
    "Exit codes of the processes, and what they say went wrong."
    with TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_enter, args=(function, args, rank, world, folder))
            for rank in range(max(world, 1))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()
        errors = [file.read_text() for file in sorted(Path(folder).glob("error*"))]
        return [process.exitcode for process in processes], "\n".join(errors)


def alone(function: Callable, *args, seconds: float = SECONDS) -> int:
    "Exit code of `function(*args)` in a process of its own; −9 if it was killed or took `seconds`."
    codes, errors = _run(function, args, 0, seconds)
    assert not errors, errors
    return codes[0]


def together(function: Callable, *args, world: int = 2) -> None:
    "Call `function(*args)` in each of `world` processes of one group of `torch.distributed`."
    codes, errors = _run(function, args, world)
    assert codes == [0] * world, errors or codes


TESTS = Path(__file__).parent
BEGUN = dict(os.environ)
READ_AT_IMPORT = ("ATEN_", "HF_", "MKL_", "MPL", "OMP_", "PYTHON", "TORCH", "TRANSFORMERS_")


def as_begun(environment: dict[str, str]) -> bool:
    "Is all that libraries read when they are imported as it was for the server?"
    return all(
        environment.get(name) == BEGUN.get(name)
        for name in {*environment, *BEGUN}
        if name.startswith(READ_AT_IMPORT)
    )


def _interpret(args: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    "What `python -c CODE …` and `python FILE …` do, with standard output and error into files"
    for number, file in enumerate(outputs, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    code, file = (args[1], None) if args[0] == "-c" else (None, args[0])
    sys.argv = args if file else ["-c", *args[2:]]
    ours = (TESTS, TESTS.parent / ".ci")
    sys.path[:] = [p for p in sys.path if p and Path(p) not in ours]
    sys.path.insert(0, str(Path(file).parent) if file else "")
    if file:
        runpy.run_path(file, run_name="__main__")
        return
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(code, "<string>", "exec"), main.__dict__)


class Interpreter:
    "A process that `python -c CODE …` or `python FILE …` would be, started in a moment"

    def __init__(self, args: list[str], cwd: str, environment: dict[str, str]):
        self.args = args
        self.folder = TemporaryDirectory()
        self.outputs = [str(Path(self.folder.name) / name) for name in ("stdout", "stderr")]
        for file in self.outputs:
            Path(file).touch()
        given = (args, cwd, environment, self.outputs)
        self.process = CONTEXT.Process(target=_interpret, args=given)
        self.process.start()

    def poll(self) -> int | None:
        "Its exit status; None while it runs"
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> subprocess.CompletedProcess:
        "What it printed, and its exit status, at its end"
        self.process.join()
        said = [Path(file).read_text() for file in self.outputs]
        self.folder.cleanup()
        return subprocess.CompletedProcess(self.args, self.process.exitcode, *said)

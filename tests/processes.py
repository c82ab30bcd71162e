"""Functions in processes of their own.

Processes are forked from a server that has imported the libraries once, and has done nothing
else: starting one takes a moment, where a new interpreter takes many seconds to import torch.
"""

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

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


def _run(function: Callable, args: tuple, world: int) -> tuple[list[int], str]:
    "Exit codes of the processes, and what they say went wrong."
    with TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_enter, args=(function, args, rank, world, folder))
            for rank in range(max(world, 1))
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        errors = [file.read_text() for file in sorted(Path(folder).glob("error*"))]
        return [process.exitcode for process in processes], "\n".join(errors)


def alone(function: Callable, *args) -> int:
    "Exit code of `function(*args)` in a process of its own; −9 if it was killed."
    codes, errors = _run(function, args, world=0)
    assert not errors, errors
    return codes[0]


def together(function: Callable, *args, world: int = 2) -> None:
    "Call `function(*args)` in each of `world` processes of one group of `torch.distributed`."
    codes, errors = _run(function, args, world)
    assert codes == [0] * world, errors or codes

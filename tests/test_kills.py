"""Everything that writes, killed at random moments until it is done.

Each task runs in children that are killed with SIGKILL after a random time; the next child takes
up what the one before left. They are forks of a process that ran nothing but what they start
from: no fork survives threads that another test has left. In the end the files must be those of a
run that nobody killed, to the last bit where they hold no times, and no box may be left.
`SPP_KILLS=40` kills each task 40 times.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from causal import CAUSAL, TEXT, words
from families import randomised, small_vit
from outputs import cuts_write, parts, picked_write, searched_folder, values
from processes import alone

import spp
from spp.core.files import recover
from spp.core.formats import load_json
from spp.lab.demo import demo
from spp.llm.running import KIND as LLM
from spp.llm.running import run_llm
from spp.running.recipes import RECIPES, Recipe
from spp.running.runs import run, run_search
from spp.training.family import joint, walk
from spp.training.finetune import finetune

KILLS = int(os.environ.get("SPP_KILLS", "2"))
TIMED = ("times.json", "latency.json", "results.json", "demo.json", "table.csv", ".lock")


def search(out: Path) -> None:
    model, data = small_vit()
    spp.search(model, data, steps=30, checkpoint=out / "a.run", progress=False).save(out / "a.path")


def tune(out: Path) -> None:
    model, data = small_vit()
    given = dict(checkpoint=out / "a.run", every=1, log=out / "a.jsonl", progress=False)
    finetune(model, data, None, 4, 1e-3, **given)
    spp.save(model, out / "tuned")


def repaired(out: Path) -> None:
    path, data = parts()["path"], parts()["batches"]
    how = dict(checkpoint=out / "repair.run", progress=False)
    spp.save(path.cut(params=0.6, align=1, repair=data, repair_options=how), out / "repaired")


def cuts(out: Path) -> None:
    cuts_write(out / "cuts")


def picked(out: Path) -> None:
    picked_write(out / "picked")


def searched(out: Path) -> None:
    RECIPES["tiny"] = Recipe("test_vit", 1, 1, 1, 4, 1e-3)
    run_search("tiny", out=out / "run", smoke=True, progress=False, device="cpu")


def walked(out: Path) -> None:
    path, data = parts()["path"], parts()["batches"]
    given = dict(keep=out / "members", checkpoint=out / "walk.run", every=1, progress=False)
    walk(path, data, (0.8, 0.6, 0.5), 4, align=1, **given)


def family(out: Path) -> None:
    path, data = parts()["path"], parts()["batches"]
    given = dict(checkpoint=out / "joint.run", every=1, progress=False, sizes=4, align=1)
    joint(path, data, (1.0, 0.6), 3, **given).save(out / "family")


def recipe(out: Path) -> None:
    RECIPES["tiny"] = Recipe("test_vit", 1, 1, 1, 4, 1e-3)
    run("tiny", out=out / "run", smoke=True, progress=False, device="cpu")


def llm(out: Path) -> None:
    given = dict(sparsity=0.5, n=4, length=16)
    run_llm(str(out.parent / "dense"), out / "llm", str(out.parent / "text.txt"), **given)


def shown(out: Path) -> None:
    demo(out / "demo", steps=2, epochs=1, budgets=(1.0, 0.5), orders=("spp",), progress=False)


def saved(out: Path) -> None:
    for k in range(20):
        spp.save(parts()["small" if k % 2 else "model"], out / "model")


TASKS = [search, tune, repaired, cuts, picked, searched, walked, family, recipe, llm, shown, saved]


def child_of(task, after: float | None) -> bool:
    "Run `task` in a child, killed after some seconds; was it killed?"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.manual_seed(0)
            random.seed(0)
            with open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)
            task()
            code = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the task failed"
    return os.WIFSIGNALED(status)


def held(out: Path) -> dict[str, bytes]:
    "The files of a task by name, without those that hold times"
    found = {}
    for file in sorted(out.rglob("*")):
        if file.is_file() and file.name not in (*TIMED, "spp-files.json", "accuracy.png"):
            found[str(file.relative_to(out))] = file.read_bytes()
        if file.name == "llm.json":
            told = load_json(file, LLM)
            found[file.name] = str({k: v for k, v in told.items() if k != "seconds"}).encode()
    return {name: x for name, x in found.items() if not name.endswith("llm/llm.json")}


def places(folder: Path) -> tuple[Path, Path]:
    "Folders for the undisturbed and the killed run, and a dense language model beside them"
    randomised(CAUSAL["llama_gqa"]()).save_pretrained(folder / "dense")
    words().save_pretrained(folder / "dense")
    (folder / "text.txt").write_text(TEXT[0] * 3)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    parts()
    searched_folder()
    return folder / "whole", folder / "killed"


def check(killed: Path, whole: Path) -> None:
    "The files are those of the undisturbed run, and the next start leaves no box"
    for folder in (killed, *filter(Path.is_dir, killed.rglob("*"))):
        for file in list(folder.iterdir()):
            recover(file)
    assert not list(killed.rglob(".spp-*")) and not list(killed.rglob("*.kept"))
    assert held(killed) == held(whole)


def kill_at_random(task: Callable, folder: Path) -> None:
    "Compare a run of `task` that was killed again and again with one that was not"
    torch.set_num_threads(1)  # of a pool of threads a fork has the locks, but not the threads
    whole, killed = places(folder)
    since = time.time()
    child_of(partial(task, whole), None)
    seconds = time.time() - since
    chance = random.Random(task.__name__)
    kills = 0
    while kills < KILLS:
        if child_of(partial(task, killed), chance.uniform(0, seconds)):
            kills += 1
            continue
        check(killed, whole)
        shutil.rmtree(killed)
        killed.mkdir()
    child_of(partial(task, killed), None)
    check(killed, whole)
    if task is saved:
        assert values(spp.load(killed / "model")) == values(parts()["small"])


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_killed_at_random(task, tmp_path):
    assert alone(kill_at_random, task, tmp_path, seconds=60 * (KILLS + 10)) == 0

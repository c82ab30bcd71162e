"A recipe from the command line, and a run that is killed in each of its stages."

import fcntl
import json
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from command import inside, python, refused, spp
from safetensors.torch import load_file

from spp import load
from spp.cutting.budget import HEADS
from spp.judging.baselines import baseline
from spp.judging.data import digits_vit
from spp.running.folder import write_json
from spp.running.recipes import RECIPES, Recipe
from spp.running.runs import run, searched


@pytest.mark.slow
def test_smoke_at_full_resolution(tmp_path):
    done = spp("run", "deit_tiny", "--smoke", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "run/results.csv")
    assert table.asked.tolist() == [1.0, 0.75, 0.5]
    assert ((table.asked - 0.01 < table.share) & (table.share <= table.asked)).all()
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["arguments"]["smoke"] is True


def test_balanced_heads(tmp_path, monkeypatch):
    "With `balance=`, the dense model of the run is a balanced one; asked again, nothing changes"
    monkeypatch.setitem(RECIPES, "tiny", Recipe("test_vit", 1, 1, 1, 4, 1e-3))
    settings = dict(smoke=True, update=1, progress=False)
    plain = run("tiny", out=tmp_path / "plain", **settings)
    balanced = run("tiny", out=tmp_path / "balanced", balance=2, **settings)
    assert load(tmp_path / "balanced/balanced") is not None
    assert not balanced.equals(plain)
    again = run("tiny", out=tmp_path / "balanced", balance=2, **settings)
    assert again.to_dict() == balanced.to_dict()


RUN = """
import os, signal, sys
import spp.running.runs as runs
from spp.running.recipes import RECIPES, Recipe
from spp.running.runs import run, searched

dies = int(sys.argv[2])
generated = runs.generated


class Mortal(list):
    "Batches; the process is killed, as on a cluster, when batch number `dies` is asked for"

    def __iter__(self):
        global dies
        for batch in super().__iter__():
            if dies == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            dies -= 1
            yield batch


runs.generated = lambda *args: Mortal(generated(*args))
RECIPES["tiny"] = Recipe("test_vit", 30, 4, 4, 4, 1e-3)
settings = dict(balance=2, update=30, finetune=4, ema=0.9, progress=False)
settings |= dict(repair=8) if sys.argv[3] == "repair" else dict(repair=0, prune=4)
run("tiny", out=sys.argv[1], smoke=True, **settings)
"""


# at which batch it dies; what is there then, and what is not
KILLED = {
    "walk": [
        (3, "run.json", "balanced"),
        (48, "search.run", "order.path"),
        (55, "prune.run", "params_0.75"),
        (17, "params_0.75.run", "params_0.75"),
    ],
    "repair": [
        (3, "run.json", "balanced"),
        (48, "search.run", "order.path"),
        (52, "order.path", "repaired/params_0.75"),
        (10, "repaired/params_0.75", "repaired/params_0.50"),
        (14, "params_0.75.run", "params_0.75"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_killed_in_each_stage(tmp_path, kind):
    """Killed in any stage, a run ends at the same bits.

    Each process looks at the first batch of its data: two, and one for each checkpoint.
    """
    script = tmp_path / "run.py"
    script.write_text(RUN)
    want, got = tmp_path / "want", tmp_path / "got"
    done = python(script, want, -1, kind)
    assert done.returncode == 0, done.stderr

    def there():
        return {str(p.relative_to(got)) for p in got.rglob("*")}

    for dies, has, lacks in KILLED[kind]:
        done = python(script, got, dies, kind)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert has in there(), (dies, there())
        assert lacks not in there(), (dies, there())
    done = python(script, got, -1, kind)
    assert done.returncode == 0, done.stderr
    before = {"walk": "pruned", "repair": "repaired"}[kind]
    for name in ("params_0.75", "params_0.50", f"{before}/params_0.50"):
        a, b = (load_file(at / name / "model.safetensors") for at in (want, got))
        assert all(torch.equal(a[k], b[k]) for k in a), name
    for name in ("results.csv", "params_0.50.jsonl"):
        assert (want / name).read_text() == (got / name).read_text()
    assert not {name for name in there() if name.endswith(".run")}


FULL = """
import resource, signal, sys
from spp.running.recipes import RECIPES, Recipe
from spp.running.runs import run, searched

RECIPES["tiny"] = Recipe("test_vit", 2, 1, 1, 4, 1e-3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails as on a full disk
if int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    run("tiny", out=sys.argv[1], smoke=True, progress=False)
except OSError as error:
    sys.exit(f"spp: {error}")
"""


@pytest.mark.slow
def test_full_disk(tmp_path):
    "A disk that is full while a model is saved: an error, nothing half-written; the run resumes"
    script, out = tmp_path / "run.py", tmp_path / "run"
    script.write_text(FULL)
    refused(python(script, out, 200_000), "dense could not be written", "disk full?", status=1)
    assert [x.name for x in out.iterdir() if x.name != ".lock"] == ["run.json"]
    assert python(script, out, 0).returncode == 0
    for done in ("repaired", "params_0.75", "params_0.50"):  # as it was before the repair
        shutil.rmtree(out / done)
    for done in ("results.json", "results.csv", "latency.json", "scores.json"):
        (out / done).unlink()
    full = python(script, out, 200_000)
    refused(full, "params_0.75 could not be written", "is the disk full?", status=1)

    def half_written(file: Path) -> bool:
        hidden = file.name.startswith(".") and file.name != ".lock"
        model = file.suffix == ".safetensors" and file.parent.name != "dense"
        return model or hidden

    assert (out / "order.path").exists()
    assert not list(filter(half_written, out.rglob("*")))
    done = python(script, out, 0)
    assert done.returncode == 0, done.stderr
    assert (out / "results.csv").exists()


def test_no_slurm(tmp_path, monkeypatch):
    "Without Slurm: what is missing, and what works"
    monkeypatch.setenv("PATH", "")
    done = inside("run", "deit_tiny", "--smoke", "--cluster", "slurm", cwd=tmp_path)
    refused(done, "no Slurm here: the command `sbatch` is not there", "local", status=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", [inside, pytest.param(spp, marks=pytest.mark.slow)])
def test_a_folder_has_one_run(tmp_path, start):
    "A second process is told who writes there, another recipe that the folder is taken"
    args = ("run", "deit_tiny", "--smoke", "--out", tmp_path)
    with open(tmp_path / ".lock", "w") as f:
        f.write("process 7 on somewhere")
        f.flush()
        fcntl.flock(f, fcntl.LOCK_EX)
        text = f"another run is writing to {tmp_path} (process 7 on somewhere)"
        refused(start(*args), text, status=1)
    write_json(tmp_path / "run.json", dict(recipe="deit_small", seed=0))
    baseline("random", digits_vit()).save(tmp_path / "order.path")  # its search is done
    refused(start(*args), "belongs to another run: recipe was 'deit_small', now 'deit_tiny'")


def test_whole_heads(tmp_path, monkeypatch):
    "`spp search --heads whole`: whole heads leave, also in `spp cut`, unless it is asked otherwise"
    monkeypatch.setitem(RECIPES, "tiny", Recipe("test_vit", 1, 1, 1, 4, 1e-3))
    out = tmp_path / "run"
    how = ("--smoke", "--update", 1, "--out", out, "--quiet")
    assert inside("search", "tiny", *how, "--heads", "whole").returncode == 0
    path = searched(out)
    assert path.heads == "whole"
    want = {heads: path.cut(params=0.8, heads=heads).spp.widths for heads in HEADS}
    assert want["whole"] != want["dimensions"]
    for options, heads in (((), "whole"), (("--heads", "dimensions"), "dimensions")):
        assert inside("cut", out, "--params", 0.8, *options).returncode == 0
        assert load(out / "cuts/params_0.80").spp.widths == want[heads]
    refused(inside("cut", out, "--params", 0.8, "--heads", "half"), "known are dimensions, whole")
    refused(inside("run", "tiny", *how, "--heads", "dimensions"), "heads")

"A recipe from the command line, and killed in each of its stages"

import fcntl
import json
import os
import signal
import subprocess
import sys

import pandas as pd
import torch
from safetensors.torch import load_file


def test_smoke_at_full_resolution(tmp_path):
    r = subprocess.run(
        [
            sys.executable,
            "-c",
            "from spp.running.cli import main; main()",
            "run",
            "deit_tiny",
            "--smoke",
            "--out",
            tmp_path / "run",
        ],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr
    table = pd.read_csv(tmp_path / "run/results.csv")
    assert (
        table.asked.tolist() == [1.0, 0.75, 0.5]
        and ((table.asked - 0.01 < table.share) & (table.share <= table.asked)).all()
    )
    assert json.loads((tmp_path / "run/results.json").read_text())["arguments"]["smoke"] is True


RUN = """
import os, signal, sys
import spp.running.recipes as recipes
from spp.running.recipes import RECIPES, Recipe, run
dies, generated = int(sys.argv[2]), recipes.generated
class Mortal(list):                        # batches of a process that ends, as on a cluster, when batch `dies` is asked for
    def __iter__(self):
        global dies
        for batch in super().__iter__():
            if dies == 0: os.kill(os.getpid(), signal.SIGKILL)
            dies -= 1; yield batch
recipes.generated = lambda *a: Mortal(generated(*a))
RECIPES["tiny"] = Recipe("test_vit", 30, 4, 4, 4, 1e-3)
run("tiny", out=sys.argv[1], smoke=True, balance=2, update=30, prune=4, finetune=4, ema=.9, progress=False)
"""


def test_killed_in_each_stage(tmp_path):
    "While heads are balanced, in the search, in the walk, in a fine-tuning: the same command ends at the same bits and the same table"
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def go(out, dies):
        return subprocess.run(
            [sys.executable, script, out, str(dies)], capture_output=True, text=True
        )

    r = go(tmp_path / "want", -1)
    assert r.returncode == 0, r.stderr

    def there():
        return {p.name for p in (tmp_path / "got").iterdir()}

    for dies, has, lacks in (
        (1, "run.json", "balanced"),
        (45, "search.run", "order.path"),
        (50, "prune.run", "params_0.75"),
        (12, "params_0.75.run", "params_0.75"),
    ):
        r = go(tmp_path / "got", dies)
        assert r.returncode == -signal.SIGKILL, r.stderr
        assert has in there() and lacks not in there(), (dies, there())
    r = go(tmp_path / "got", -1)
    assert r.returncode == 0, r.stderr
    for name in ("params_0.75", "params_0.50", "pruned/params_0.50"):
        a, b = (load_file(tmp_path / d / name / "model.safetensors") for d in ("want", "got"))
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert (tmp_path / "want/results.csv").read_text() == (
        tmp_path / "got/results.csv"
    ).read_text() and (tmp_path / "want/params_0.50.jsonl").read_text() == (
        tmp_path / "got/params_0.50.jsonl"
    ).read_text()
    assert not {n for n in there() if n.endswith(".run")}


FULL = """
import resource, signal, sys
from spp.running.recipes import RECIPES, Recipe, run
RECIPES["tiny"] = Recipe("test_vit", 2, 1, 1, 4, 1e-3)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)                  # a file that grows beyond the limit fails as on a full disk
if int(sys.argv[2]): resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try: run("tiny", out=sys.argv[1], smoke=True, progress=False)
except OSError as e: sys.exit(f"spp: {e}")
"""


def test_full_disk(tmp_path):
    "A disk that is full while a model is saved: said so, nothing half-written, and the same command goes on"
    script = tmp_path / "run.py"
    script.write_text(FULL)

    def go(limit):
        return subprocess.run(
            [sys.executable, script, tmp_path / "run", str(limit)], capture_output=True, text=True
        )

    r = go(200_000)
    assert (
        r.returncode == 1
        and "could not be written" in r.stderr
        and "is the disk full?" in r.stderr
        and "Traceback" not in r.stderr
    ), r.stderr
    there = list((tmp_path / "run").rglob("*"))
    assert (tmp_path / "run/order.path").exists() and not [
        p
        for p in there
        if p.suffix == ".safetensors" or p.name.startswith(".") and p.name != ".lock"
    ], there
    r = go(0)
    assert r.returncode == 0 and (tmp_path / "run/results.csv").exists(), r.stderr


def test_no_slurm(tmp_path):
    "Where there is no Slurm: what is missing, and what works"
    r = subprocess.run(
        [
            sys.executable,
            "-c",
            "from spp.running.cli import main; main()",
            "run",
            "deit_tiny",
            "--smoke",
            "--cluster",
            "slurm",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": ""},
    )
    assert (
        r.returncode == 1
        and "no Slurm here: the command `sbatch` is not there" in r.stderr
        and "local" in r.stderr
        and "Traceback" not in r.stderr
    ), r.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_has_one_run(tmp_path):
    "A second process is told who is writing there, another recipe that the folder is taken"

    def spp(*a):
        return subprocess.run(
            [
                sys.executable,
                "-c",
                "from spp.running.cli import main; main()",
                "run",
                *a,
                "--smoke",
                "--out",
                tmp_path,
            ],
            capture_output=True,
            text=True,
        )

    with open(tmp_path / ".lock", "w") as f:
        f.write("process 7 on somewhere")
        f.flush()
        fcntl.flock(f, fcntl.LOCK_EX)
        r = spp("deit_tiny")
        assert (
            r.returncode == 1
            and f"another run is writing to {tmp_path} (process 7 on somewhere)" in r.stderr
            and "Traceback" not in r.stderr
        ), r.stderr
    (tmp_path / "run.json").write_text(json.dumps(dict(recipe="deit_small", seed=0)))
    r = spp("deit_tiny")
    assert (
        r.returncode == 1
        and "holds another run: recipe 'deit_small', now 'deit_tiny'" in r.stderr
        and "Traceback" not in r.stderr
    ), r.stderr

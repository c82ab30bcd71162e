"""A real Slurm on this machine, which .ci/run starts through tests/slurm/cluster.py.

Skipped where there is none.
"""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from spp.running.folder import gathered
from spp.running.slurm import Resources, _double, jobs, launch, rehearse


def slurm_is_there() -> bool:
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo"], capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not slurm_is_there(), reason="no Slurm here"),
]

# jobs import the functions below from this file
SETUP = (f"export PYTHONPATH={Path(__file__).parent}:$PYTHONPATH",)


def small(hours=1, **asked):
    "What the jobs of these tests ask for"
    return Resources(hours=hours, cpus=1, memory="2GB", setup=SETUP, **asked)


def wait(job, seconds=240):
    "The result of rank 0"
    end = time.time() + seconds
    while time.time() < end:
        if job.done(force_check=True):
            return job.results()[0]
        time.sleep(1)
    raise TimeoutError(f"job {job.job_id} is {job.state}: {job.stderr()}")


def test_submit(tmp_path):
    (job,) = launch([dict(x=21)], "slurm", small(), folder=tmp_path, function=_double)
    assert wait(job) == 42
    assert jobs(tmp_path).job.tolist() == [job.job_id]
    text = Path(job.paths.submission_file).read_text()
    assert "--signal=USR2@120" in text
    assert "--time=60" in text


def test_rehearsal(tmp_path):
    "What would be submitted, and when it would start; no job is there afterwards"
    script, answer = rehearse(small(hours=2), tmp_path / "jobs")
    assert "#SBATCH --time=120" in script and "#SBATCH --cpus-per-task=1" in script
    assert "submitit.core._submit" in script
    assert "to start at" in answer
    assert not list(tmp_path.glob("jobs/*"))
    with pytest.raises(RuntimeError, match="Slurm refused the job.*[Ii]nvalid feature"):
        rehearse(small(constraint="h900"), tmp_path / "jobs")


@pytest.mark.parametrize(
    "asked, words",
    [
        (dict(constraint="h900"), "[Ii]nvalid feature specification"),
        (dict(partition="no_such"), "invalid partition specified"),
        (dict(gpus=400), "([Ii]nvalid generic resource|configuration is not available)"),
    ],
)
def test_refusal(tmp_path, asked, words):
    "Slurm's own words say what it refuses"
    with pytest.raises(RuntimeError, match=f"Slurm refused the job.*{words}"):
        launch([dict(x=1)], "slurm", small(**asked), folder=tmp_path, function=_double)


def tiny_vit():
    "A ViT that trains in a moment"
    import timm

    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        depth=1,
        embed_dim=32,
        num_heads=2,
        num_classes=4,
    )


def two(out):
    "A fine-tuning on two processes; each writes the weights that it has at the end"
    import torch
    import torch.distributed as dist

    from spp import finetune

    torch.manual_seed(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    model = tiny_vit()
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 4
    batches = zip(images.split(8), labels.split(8))
    mine = [(x.chunk(world)[rank], y.chunk(world)[rank]) for x, y in batches]
    finetune(model, mine, epochs=2, progress=False)
    weights = torch.cat([p.flatten() for p in model.parameters()]).tolist()
    Path(f"{out}/{rank}.json").write_text(json.dumps(dict(world=world, weights=weights)))
    return world


def test_two_processes(tmp_path):
    "Two gloo processes under srun train one model: equal weights in both"
    where = dict(folder=tmp_path / "jobs", function=two)
    (job,) = launch([dict(out=str(tmp_path))], "slurm", small(tasks=2), **where)
    assert wait(job) == 2
    a, b = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert a["world"] == 2
    assert a["weights"] == b["weights"]
    assert len(a["weights"]) > 1000


def slow(out, epochs=40):
    "A fine-tuning that takes a while and writes checkpoints, and the step at which it began"
    import torch

    from spp import finetune

    torch.manual_seed(0)
    model = tiny_vit()
    data = [(torch.randn(4, 3, 16, 16), torch.arange(4)) for _ in range(5)]
    first = []

    def before(step, steps):
        if not first:
            first.append(step)
            with open(f"{out}/began", "a") as file:
                file.write(f"{step}\n")
        time.sleep(0.1)

    keep = dict(checkpoint=f"{out}/run", every=1)
    finetune(model, data, epochs=epochs, before=before, progress=False, **keep)
    total = torch.cat([p.flatten() for p in model.parameters()]).double().sum().item()
    return [total, first[0]]


@pytest.mark.slow
def test_preempted_and_resumed(tmp_path):
    "After Slurm's signal, the job is queued again and resumes at the step of its checkpoint"
    where = dict(folder=tmp_path / "jobs", function=slow)
    (job,) = launch([dict(out=str(tmp_path))], "slurm", small(), **where)
    end = time.time() + 120
    while not (tmp_path / "run").exists() and time.time() < end:
        time.sleep(0.5)
    time.sleep(2)
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    total, began = wait(job)
    begins = [int(x) for x in (tmp_path / "began").read_text().split()]
    assert len(begins) == 2
    assert begins[0] == 0
    assert begins[1] == began > 5
    (tmp_path / "whole").mkdir()
    assert slow(str(tmp_path / "whole"))[0] == pytest.approx(total, abs=1e-4)


@pytest.mark.slow
def test_an_array_with_a_cap(tmp_path):
    "A sweep of a recipe: an array, two jobs at a time, and one table of the results"
    trial = dict(recipe="deit_tiny", smoke=True, params=(0.75,), update=1, batch=2, progress=False)
    runs = [dict(trial, out=str(tmp_path / f"seed{seed}"), seed=seed) for seed in range(3)]
    submitted = launch(runs, "slurm", small(), folder=tmp_path / "jobs", at_once=2)
    assert "%2" in next((tmp_path / "jobs").glob("*_submission.sh")).read_text()
    assert all("_" in job.job_id for job in submitted)
    for job in submitted:
        wait(job, 400)
    table = gathered([r["out"] for r in runs])
    assert table.state.tolist() == ["finished"] * 6
    assert sorted(table.seed.unique()) == [0, 1, 2]
    assert jobs(tmp_path / "jobs").progress.tolist() == ["finished"] * 3

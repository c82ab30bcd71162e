"A real Slurm on this machine (started by .ci/run through tests/slurm/cluster.py); skipped where there is none"

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from spp.running.slurm import Resources, jobs, launch

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(
        shutil.which("sinfo") is None
        or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
        reason="no Slurm here",
    ),
]
SMALL = dict(
    cpus=1, memory="2GB", setup=(f"export PYTHONPATH={Path(__file__).parent}:$PYTHONPATH",)
)  # the functions below are this file's


def wait(job, seconds=240):
    end = time.time() + seconds
    while time.time() < end:
        if job.done(force_check=True):
            return job.results()[0]  # of rank 0
        time.sleep(1)
    raise TimeoutError(f"job {job.job_id} is {job.state}: {job.stderr()}")


def test_submit(tmp_path):
    from spp.running.slurm import _double

    job = launch(
        [dict(x=21)], "slurm", Resources(hours=1, **SMALL), folder=tmp_path, function=_double
    )[0]
    assert wait(job) == 42 and jobs(tmp_path).job.tolist() == [job.job_id]
    text = Path(job.paths.submission_file).read_text()
    assert "--signal=USR2@120" in text and "--time=60" in text


def test_constraint_and_refusal(tmp_path):
    from spp.running.slurm import _double

    for asked, words in (
        (dict(constraint="h900"), "[Ii]nvalid feature specification"),
        (dict(partition="no_such"), "invalid partition specified"),
        (dict(gpus=400), "([Ii]nvalid generic resource|configuration is not available)"),
    ):
        with pytest.raises(RuntimeError, match=f"Slurm refused the job.*{words}"):
            launch(
                [dict(x=1)],
                "slurm",
                Resources(hours=1, **asked, **SMALL),
                folder=tmp_path,
                function=_double,
            )


def two(out):
    "A fine-tuning on two processes; what each rank holds at the end"
    import timm
    import torch
    import torch.distributed as dist

    from spp import finetune

    torch.manual_seed(0)
    rank, world = dist.get_rank(), dist.get_world_size()
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        depth=1,
        embed_dim=32,
        num_heads=2,
        num_classes=4,
    )
    images, labels = torch.randn(32, 3, 16, 16), torch.arange(32) % 4
    finetune(
        model,
        [
            (images[i : i + 8].chunk(world)[rank], labels[i : i + 8].chunk(world)[rank])
            for i in range(0, 32, 8)
        ],
        epochs=2,
        progress=False,
    )
    with open(f"{out}/{rank}.json", "w") as f:
        json.dump(
            dict(
                world=world, weights=torch.cat([p.flatten() for p in model.parameters()]).tolist()
            ),
            f,
        )
    return world


def test_two_processes(tmp_path):
    "Two gloo processes under srun train one model: equal weights on both ranks"
    job = launch(
        [dict(out=str(tmp_path))],
        "slurm",
        Resources(hours=1, tasks=2, **SMALL),
        folder=tmp_path / "jobs",
        function=two,
    )[0]
    assert wait(job) == 2
    a, b = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert a["world"] == 2 and a["weights"] == b["weights"] and len(a["weights"]) > 1000


def slow(out, epochs=40):
    "A fine-tuning that takes a while and keeps itself; writes the step it began at"
    import time

    import timm
    import torch

    from spp import finetune

    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        depth=1,
        embed_dim=32,
        num_heads=2,
        num_classes=4,
    )
    data = [(torch.randn(4, 3, 16, 16), torch.arange(4)) for _ in range(5)]
    first = []

    def before(k, n):
        if not first:
            first.append(k)
            open(f"{out}/began", "a").write(f"{k}\n")
        time.sleep(0.1)

    finetune(
        model, data, epochs=epochs, checkpoint=f"{out}/run", every=1, before=before, progress=False
    )
    return [torch.cat([p.flatten() for p in model.parameters()]).double().sum().item(), first[0]]


def test_preempted_and_resumed(tmp_path):
    "Told to go by the signal, the job is queued again and goes on at the step it had kept"
    job = launch(
        [dict(out=str(tmp_path))],
        "slurm",
        Resources(hours=1, **SMALL),
        folder=tmp_path / "jobs",
        function=slow,
    )[0]
    end = time.time() + 120
    while not (tmp_path / "run").exists() and time.time() < end:
        time.sleep(0.5)
    time.sleep(2)
    subprocess.run(["scancel", "--signal=USR2", job.job_id], check=True)
    total, began = wait(job)
    begins = [int(x) for x in (tmp_path / "began").read_text().split()]
    assert begins[0] == 0 and len(begins) == 2 and begins[1] == began > 5
    (tmp_path / "whole").mkdir()
    assert slow(str(tmp_path / "whole"))[0] == pytest.approx(total, abs=1e-4)


def test_an_array_with_a_cap(tmp_path):
    "A sweep of recipes: an array, two at a time, gathered into one table"
    from spp.running.recipes import gathered

    runs = [
        dict(
            recipe="deit_tiny",
            out=str(tmp_path / f"seed{s}"),
            seed=s,
            smoke=True,
            params=(0.75,),
            update=1,
            batch=2,
            progress=False,
        )
        for s in range(3)
    ]
    submitted = launch(
        runs, "slurm", Resources(hours=1, **SMALL), folder=tmp_path / "jobs", at_once=2
    )
    assert "%2" in next((tmp_path / "jobs").glob("*_submission.sh")).read_text() and all(
        "_" in j.job_id for j in submitted
    )
    for j in submitted:
        wait(j, 400)
    table = gathered([r["out"] for r in runs])
    assert table.state.tolist() == ["finished"] * 6 and sorted(table.seed.unique()) == [0, 1, 2]
    assert jobs(tmp_path / "jobs").progress.tolist() == ["finished"] * 3

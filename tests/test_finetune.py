"Fine-tuning across processes: killed and taken up again, and on two as on one"

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

RUN = """
import os, random, signal, sys, numpy as np, timm, torch, torch.distributed as dist
from timm.data import Mixup
from torch.utils.data import DataLoader, TensorDataset
from spp import finetune
from safetensors.torch import save_file
out, checkpoint, dies, how = sys.argv[1], sys.argv[2] or None, int(sys.argv[3]), sys.argv[4]
if dist.is_torchelastic_launched(): dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(0); random.seed(0); np.random.seed(0)
drop = .2 if how == "kill" else 0.
make = lambda **kw: timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=4, **kw)
teacher, model, images = make(), make(drop_rate=drop, drop_path_rate=drop), torch.randn(64, 3, 16, 16); labels = torch.arange(64) % 4
if how == "parallel":
    model.double(); teacher.double()
    batches = [(images[i:i + 16].double(), labels[i:i + 16]) for i in range(0, 64, 16)]
    finetune(model, [tuple(x.chunk(world)[rank] for x in b) for b in batches], teacher, epochs=3, accumulate=2, clip=1., ema=.5, features=.5, log=out + ".jsonl")
elif how == "shard":
    class Dying(list):
        def __iter__(self):
            global dies
            for batch in super().__iter__():
                if dies == 0: sys.exit("dies here")
                dies -= 1; yield batch
    model.double(); teacher.double()
    batches = Dying(tuple(x.chunk(world)[rank] for x in (images[i:i + 16].double(), labels[i:i + 16])) for i in range(0, 64, 16))
    finetune(model, batches, teacher, epochs=3, accumulate=2, clip=1., features=.5, layer_decay=.8, shard=world > 1, checkpoint=checkpoint, every=1, evaluate=lambda m: m.head.weight.norm().item(), log=out + ".jsonl")
    assert type(model.head.weight) is torch.nn.Parameter and not model.training
else:
    class Mortal(DataLoader):
        def __iter__(self):
            global dies
            for batch in super().__iter__():
                if dies == 0: os.kill(os.getpid(), signal.SIGKILL)
                dies -= 1; yield batch
    finetune(model, Mortal(TensorDataset(images, labels), 8, shuffle=True, num_workers=1, generator=torch.Generator().manual_seed(3)), teacher, epochs=3, mixup=Mixup(.8, 1., num_classes=4), ema=.9,
             checkpoint=checkpoint, every=3, evaluate=lambda m: m.head.weight.norm().item(), log=out + ".jsonl")
if rank == 0: save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
if dist.is_initialized(): dist.destroy_process_group()
"""


def python(script, *args, launch=()):
    return subprocess.run(
        [sys.executable, *launch, script, *map(str, args)], capture_output=True, text=True
    )


def test_resume_after_kill(tmp_path):
    "Killed with SIGKILL before the first checkpoint, in the middle of an epoch and in the last one, with dropout, Mixup, an average and a loader of another process"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    want, got, kept = tmp_path / "want", tmp_path / "got", tmp_path / "run"
    r = python(script, want, "", -1, "kill")
    assert r.returncode == 0, r.stderr
    for dies in (2, 13, 12):
        r = python(script, got, kept, dies, "kill")
        assert r.returncode == -signal.SIGKILL and not got.exists(), r.stderr
    r = python(script, got, kept, -1, "kill")
    assert r.returncode == 0, r.stderr
    a, b = load_file(want), load_file(got)
    assert (
        all(torch.equal(a[k], b[k]) for k in a)
        and Path(f"{want}.jsonl").read_text() == Path(f"{got}.jsonl").read_text()
    )
    assert len(Path(f"{got}.jsonl").read_text().splitlines()) == 3 and not [
        p for p in tmp_path.iterdir() if p.name.startswith(".")
    ]


def test_two_processes_are_one(tmp_path):
    "Two processes on halves of each batch train the model of one process on the whole, in float64 to 1e-9"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    one, two = tmp_path / "one", tmp_path / "two"
    r = python(script, one, "", -1, "parallel")
    assert r.returncode == 0, r.stderr
    r = python(
        script,
        two,
        "",
        -1,
        "parallel",
        launch=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    )
    assert r.returncode == 0, r.stderr
    a, b = load_file(one), load_file(two)
    assert all((a[k] - b[k]).abs().max() <= 1e-9 for k in a)
    assert [
        json.loads(x)["loss"] for x in Path(f"{one}.jsonl").read_text().splitlines()
    ] == pytest.approx(
        [json.loads(x)["loss"] for x in Path(f"{two}.jsonl").read_text().splitlines()], abs=1e-6
    )


def test_divided_is_whole(tmp_path):
    "Two processes that each have half of the weights, gradients and moments (FSDP) train the model of one process, in float64 to 1e-9; also if they end and are started again"
    script = tmp_path / "run.py"
    script.write_text(RUN)
    one, two, launch = (
        tmp_path / "one",
        tmp_path / "two",
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    )
    r = python(script, one, "", -1, "shard")
    assert r.returncode == 0, r.stderr
    r = python(script, two, tmp_path / "run", 7, "shard", launch=launch)
    assert (
        r.returncode
        and "dies here" in r.stderr
        and (tmp_path / "run").exists()
        and not two.exists()
    ), r.stderr
    r = python(script, two, tmp_path / "run", -1, "shard", launch=launch)
    assert r.returncode == 0, r.stderr
    a, b = load_file(one), load_file(two)
    assert all((a[k] - b[k]).abs().max() <= 1e-9 for k in a)
    rows = [
        [json.loads(x) for x in Path(f"{f}.jsonl").read_text().splitlines()] for f in (one, two)
    ]
    assert [x["score"] for x in rows[0]] == pytest.approx([x["score"] for x in rows[1]], abs=1e-9)

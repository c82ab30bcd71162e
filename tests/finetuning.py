"""A fine-tuning for `test_finetune.py`, in a process of its own or under `torchrun`.

python finetuning.py OUT CHECKPOINT BATCHES killed|parallel|divided

Trains a small ViT, writes its weights to OUT and its log to OUT.jsonl. The process dies before
batch number BATCHES + 1 that its loader gives; never, if that is negative.
"""

import os
import random
import signal
import sys

import numpy as np
import timm
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from timm.data import Mixup
from torch.utils.data import DataLoader, TensorDataset

from spp import finetune

left = -1  # batches until the process dies


def mortal(batches, die):
    "`batches`, and death when none is left"
    global left
    for batch in batches:
        if left == 0:
            die()
        left -= 1
        yield batch


class MortalLoader(DataLoader):
    def __iter__(self):
        yield from mortal(super().__iter__(), lambda: os.kill(os.getpid(), signal.SIGKILL))


class MortalList(list):
    def __iter__(self):
        yield from mortal(super().__iter__(), lambda: sys.exit("dies here"))


def small_vit(drop=0.0):
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=8,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=4,
        drop_rate=drop,
        drop_path_rate=drop,
    )


def score(model):
    return model.head.weight.norm().item()


def killed(model, teacher, samples, checkpoint, log):
    "Dropout, Mixup, an average, and a loader that shuffles in a process of its own"
    shuffled = torch.Generator().manual_seed(3)
    data = MortalLoader(TensorDataset(*samples), 8, True, num_workers=1, generator=shuffled)
    mix = Mixup(0.8, 1.0, num_classes=4)
    how = dict(mixup=mix, ema=0.9, checkpoint=checkpoint, every=3, evaluate=score, log=log)
    finetune(model, data, teacher, epochs=3, **how)


def batches_of(samples, rank, world):
    "Four batches in float64, of each the part of this process"
    for x, y in zip(*(x.split(16) for x in samples)):
        yield x.double().chunk(world)[rank], y.chunk(world)[rank]


def parallel(model, teacher, samples, checkpoint, log, rank, world):
    "Each process on its part of every batch"
    data = list(batches_of(samples, rank, world))
    how = dict(accumulate=2, clip=1.0, ema=0.5, features=0.5, log=log)
    finetune(model.double(), data, teacher.double(), epochs=3, **how)


def divided(model, teacher, samples, checkpoint, log, rank, world):
    "The weights divided among the processes, if there are several"
    data = MortalList(batches_of(samples, rank, world))
    how = dict(accumulate=2, clip=1.0, features=0.5, layer_decay=0.8, evaluate=score, log=log)
    how |= dict(shard=world > 1, checkpoint=checkpoint, every=1)
    mode = model.training
    finetune(model.double(), data, teacher.double(), epochs=3, **how)
    assert type(model.head.weight) is torch.nn.Parameter
    assert model.training == mode


def main(out, checkpoint, batches, how):
    global left
    left = int(batches)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    several = dist.is_initialized()
    rank, world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (Mixup draws from it)
    teacher = small_vit()
    model = small_vit(drop=0.2 if how == "killed" else 0.0)
    samples = torch.randn(64, 3, 16, 16), torch.arange(64) % 4
    given = (model, teacher, samples, checkpoint or None, out + ".jsonl")
    if how == "killed":
        killed(*given)
    else:
        {"parallel": parallel, "divided": divided}[how](*given, rank, world)
    if rank == 0:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out)
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

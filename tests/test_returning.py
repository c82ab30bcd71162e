"Batches that return: the dense network is not asked again, and nothing else is another"

import pytest
import torch
from families import small_vit
from processes import together
from torch import distributed as dist

from spp import search
from spp.method import objective
from spp.method.objective import ranks

STEPS = 60


def vit():
    "A small ViT, and three batches of pictures"
    model, batches = small_vit()
    return model, [x for x, _ in batches][:3]


def counting(model):
    "A list that grows by one whenever the model runs without gradients"
    calls = []

    def count(*_):
        if not torch.is_grad_enabled():
            calls.append(1)

    model.register_forward_pre_hook(count)
    return calls


def noisy(model):
    "The model, with noise on its outputs"
    model.register_forward_hook(lambda m, x, y: y + 0.1 * torch.randn_like(y))
    return model


class Stops:
    "Batches, again and again, until power fails"

    def __init__(self, batches, after):
        self.batches, self.after = batches, after

    def __iter__(self):
        for k in range(self.after):
            yield self.batches[k % len(self.batches)]
        raise ConnectionError("no power")


@pytest.mark.parametrize("draws", [False, True])
def test_the_same_bits_in_fewer_passes(draws, monkeypatch):
    "What a model that draws random numbers says is another thing each time, and is not kept"
    paths, passes = [], []
    for room in (objective._ROOM, 0):
        monkeypatch.setattr(objective, "_ROOM", room)
        model, batches = vit()
        model = noisy(model) if draws else model
        calls = counting(model)
        torch.manual_seed(0)
        paths.append(search(model, batches, steps=STEPS, progress=False))
        passes.append(len(calls))
    assert torch.equal(paths[0].v, paths[1].v)
    assert passes[1] - passes[0] == (0 if draws else STEPS - len(batches))


def test_resumed_with_the_same_bits(tmp_path):
    "Outputs are not in the checkpoint"
    paths = []
    for stops in (True, False):
        model, batches = vit()
        file = tmp_path / f"{stops}.run"
        how = dict(steps=STEPS, checkpoint=file, data_id="three batches", progress=False)
        if stops:
            with pytest.raises(ConnectionError):
                search(model, Stops(batches, 30 + 40), **how)
        paths.append(search(model, Stops(batches, 10**6), **how))
    assert torch.equal(paths[0].v, paths[1].v)


def search_together():
    "Batches return in the first process alone, and all take part whenever the model runs"
    model, batches = vit()
    if ranks()[0] == 1:
        batches = [x + k / 1000 for k in range(40) for x in batches]
    model.register_forward_pre_hook(lambda *_: dist.barrier())
    search(model, batches, steps=STEPS, progress=False)


def test_processes_wait_for_each_other():
    together(search_together)

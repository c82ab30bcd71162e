"Whole heads as units: exact, within the budget, with keys and values that go with their readers"

import pytest
import torch
from families import FAMILIES, out, randomised, small_vit, to

import spp
from spp import cut, find_pairs, gated
from spp.cutting.budget import Steps, cost_of, solve, unit_costs
from spp.models.pairs import ATTENTION, heads_of, split_units

EXACT = (
    "deit_tiny",
    "beit",
    "swin",
    "open_clip_mha",
    "hf_bert",
    "hf_llama",
    "hf_gpt2",
    "hf_opt",
    "hf_qwen3",
)


def whole_mask(pairs, costs, **budget):
    "A mask by whole heads of an order drawn at random"
    score = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(3))
    return solve(score, pairs, costs, heads="whole", **budget)


@pytest.mark.parametrize("name", EXACT)
def test_whole_heads_gated_equals_cut(name):
    "In float64; a head that stays is as wide as it was"
    model, x = FAMILIES[name]()
    model, x = randomised(model).double(), to(x, torch.float64)
    pairs = find_pairs(model)
    costs = unit_costs(model, pairs)
    for share in (0.7, 0.3):
        mask = whole_mask(pairs, costs, units=share)
        by_site = {}
        for pair, part in zip(pairs, split_units(mask, pairs)):
            if pair.kind in ATTENTION:
                kept = part.any(1)
                assert torch.equal(kept, part.all(1))
                assert torch.equal(by_site.setdefault(pair.site, kept), kept)
        assert cost_of(mask, pairs, costs)["units"] <= share * len(mask)
        with gated(model, pairs, mask.double()), torch.no_grad():
            want = out(model, x)
        with torch.no_grad():
            got = out(cut(model, pairs, mask), x)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_scores_of_heads_decide():
    "The head of the larger mean stays, though the single largest unit is in another"
    model, _ = small_vit()
    pairs = find_pairs(model)
    costs = unit_costs(model, pairs)
    score = torch.zeros(sum(p.n for p in pairs))
    parts = split_units(score, pairs)
    for pair, part in zip(pairs, parts):
        part[:] = 0.1 if pair.kind in ATTENTION else -1.0
        if pair.kind in ATTENTION:
            part[1] = 0.5
            part[0, 0] = 3.0  # of 16: a mean of .28
    steps = Steps(score, pairs, costs, heads="whole")
    dims = sum(p.n // p.groups for p in pairs if p.kind in ATTENTION)
    kept = split_units(steps.take({"units": dims}), pairs)
    for pair, part in zip(pairs, kept):
        want = [g == 1 and pair.kind in ATTENTION for g in range(pair.groups)]
        assert part.any(1).tolist() == want, pair


def test_search_by_heads():
    "A head has one score; the path says so, is cut so, and its checkpoint knows"
    model, batches = small_vit()
    path = spp.search(model, batches, steps=4, heads="whole", progress=False)
    head = heads_of(path.pairs)
    for i in range(int(head.max()) + 1):
        assert path.v[head == i].unique().numel() == 1
        assert path.fisher[head == i].unique().numel() == 1
    assert path.v.unique().numel() > 4
    assert path.heads == "whole"
    assert torch.equal(path.mask(units=0.5), path.mask(units=0.5, heads="whole"))
    assert path.cut(units=0.5).spp.path["heads"] == "whole"


def test_checkpoint_of_other_heads(tmp_path):
    model, batches = small_vit()
    file = tmp_path / "run"
    spp.search(model, batches, steps=3, heads="whole", progress=False, checkpoint=file)
    with pytest.raises(ValueError, match="heads"):
        spp.search(model, batches, steps=3, progress=False, checkpoint=file)


def test_gates_of_heads():
    "The gradient of a shared gate is the mean over its head, against a central difference"
    model, batches = small_vit()
    model = randomised(model).double()
    x = batches[0][0] if isinstance(batches[0], (tuple, list)) else batches[0]
    x, pairs = x.double(), find_pairs(model)
    m = torch.rand(sum(p.n for p in pairs), dtype=torch.float64)

    def at(m):
        with gated(model, pairs, m, whole=True), torch.no_grad():
            return model(x).square().sum().item()

    with gated(model, pairs, m, whole=True) as gates:
        gradient = gates.grad(model(x).square().sum())
    for i in (0, 20, len(m) - 1):
        e = torch.zeros_like(m)
        e[i] = 1e-5
        torch.testing.assert_close(
            (at(m + e) - at(m - e)) / 2e-5, gradient[i].item(), rtol=1e-5, atol=1e-7
        )


def test_uniform_by_heads():
    "In a stock class that knows heads; one that has no number for them keeps them"
    model = randomised(FAMILIES["hf_llama"]()[0])
    pairs = find_pairs(model)
    costs = unit_costs(model, pairs)
    small = cut(model, pairs, whole_mask(pairs, costs, units=0.6, uniform=True))
    assert len({tuple(w.items()) for w in small.spp.widths.values() if "heads" in w}) == 1
    vit = small_vit()[0]
    pairs = find_pairs(vit)
    mask = whole_mask(pairs, unit_costs(vit, pairs), units=0.8, uniform=True)
    for pair, part in zip(pairs, split_units(mask, pairs)):
        assert part.all() == (pair.kind in ATTENTION)


@pytest.mark.parametrize("heads", ["wohle", True, 3, None])
def test_bad_heads(heads):
    model, batches = small_vit()
    with pytest.raises((ValueError, TypeError), match="heads"):
        spp.search(model, batches, steps=2, heads=heads, progress=False)

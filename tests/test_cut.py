"gated ≡ cut: the central law, for families × masks × alignments; and that a cut model is an ordinary one"
import copy
import pytest
import torch
from spp import cut, find_pairs, gated
from spp.pairs import split_units
from spp.path import SolutionPath
from spp.budget import macs_of, params_of

def masks(pairs):
    "Random masks, with the cases that have gone wrong in other tools"
    g = torch.Generator().manual_seed(0); n = sum(p.n for p in pairs)
    random = lambda: torch.rand(n, generator=g) < .5
    yield "random", random()
    yield "sparse", torch.rand(n, generator=g) < .07
    yield "everything", torch.ones(n, dtype=torch.bool)
    yield "nothing", torch.zeros(n, dtype=torch.bool)
    for kind in ("qk", "vo", "mlp"):
        m = random(); parts = split_units(m, pairs)
        next(x for p, x in zip(pairs, parts) if p.kind == kind).zero_()        # a pair of the first block has nothing left
        yield f"no {kind}", m
    m = random(); qk, vo = split_units(m, pairs)[:2]; qk[0] = False; vo[1] = False
    yield "a head without values, another without queries", m

@pytest.mark.parametrize("align", [1, 8])
def test_gated_equals_cut(family, align):
    model, x = family; model, x = model.double(), x.double(); pairs = find_pairs(model); dense = model(x)
    for name, mask in masks(pairs):
        with gated(model, pairs, mask.double()): want = model(x)
        small = cut(model, pairs, mask, align=align)
        assert (small(x) - want).abs().max() <= 1e-10, name
        if name != "everything": assert (want - dense).abs().max() > 1e-3, f"{name}: the test sees nothing"
        for site, w in small.spp.widths.items(): assert all(v % align == 0 or v in (p.size for p in pairs) for k, v in w.items() if k != "heads"), (name, site, w)
    assert torch.equal(model(x), dense)                                        # the dense model was not touched

def test_float32(family):
    model, x = family; pairs = find_pairs(model); mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(3)) < .5
    with gated(model, pairs, mask.float()): want = model(x)
    assert (cut(model, pairs, mask)(x) - want).abs().max() <= 1e-5 * max(1, want.abs().max())

def test_ordinary(family):
    "Original classes, no hooks; survives deepcopy, half precision and export"
    model, x = family; pairs = find_pairs(model); mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(4)) < .5
    small = cut(model, pairs, mask); y = small(x)
    assert type(small) is type(model) and {type(m) for m in small.modules()} <= {type(m) for m in model.modules()}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert torch.equal(copy.deepcopy(small)(x), y)
    assert (copy.deepcopy(small).bfloat16()(x.bfloat16()).float() - y).abs().mean() < .1 * y.abs().mean()
    assert (torch.export.export(small, (x,)).module()(x) - y).abs().max() <= 1e-5 * max(1, y.abs().max())
    names = set(model.state_dict()); assert set(small.state_dict()) == names
    small.train(); small(x).sum().backward(); assert all(p.grad is not None for n, p in small.named_parameters() if n not in ("head_dist.weight", "head_dist.bias"))

def test_budgets_are_true(family):
    "What is asked is counted on the model itself"
    model, x = family; pairs = find_pairs(model); g = torch.Generator().manual_seed(5)
    path = SolutionPath(pairs, torch.rand(sum(p.n for p in pairs), generator=g)).attach(model)
    for b in (.9, .6, .4):
        small = path.cut(params=b); got = params_of(small) / params_of(model); assert b - .02 < got <= b and got == small.spp.got["params"]
        small = path.cut(flops=b); got = macs_of(small, x[:1]) / macs_of(model, x[:1]); assert b - .02 < got <= b and abs(got - small.spp.got["flops"]) < 1e-9
        small = path.cut(units=b); assert b - .02 < small.spp.units[0] / path.n <= b
    assert path.cut(params=int(.5 * params_of(model))).spp.params[0] <= .5 * params_of(model)

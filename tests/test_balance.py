"Balanced heads: the same function for every family, and the law of the cut after it"

import os
import subprocess
import sys

import pytest
import torch
from families import out, small_vit, to

from spp import balance, cut, find_pairs, gated, load, save
from spp.method.balance import moments


def heads_of(model):
    return [p for p in find_pairs(model) if p.kind in ("qk", "vo")]


def test_same_function(family):
    "The model says what it said, in float64 to 1e-9 of it, and other numbers are in its heads; nothing else changes"
    model, x = family
    model, x = model.double(), to(x, torch.float64)
    before = {k: p.clone() for k, p in model.state_dict().items()}
    new = balance(model, [x], batches=1, progress=False)
    a, b = out(model, x), out(new, x)
    assert (
        (a - b).abs().max() <= 1e-9 * a.abs().max()
        and type(new) is type(model)
        and not new.training
    )
    for k, p in model.state_dict().items():
        assert torch.equal(p, before[k]), k
    changed = {k for k, p in new.state_dict().items() if not torch.equal(p, before[k])}
    sites = tuple({p.block for p in heads_of(model)})
    assert changed and all(
        k.startswith(sites) and ".mlp." not in k and "norm" not in k for k in changed
    )


def test_gated_is_cut(family):
    model, x = family
    model, x = model.double(), to(x, torch.float64)
    new = balance(model, [x], batches=1, progress=False)
    pairs = find_pairs(new)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(3)) < 0.5
    with gated(new, pairs, mask.double()):
        want = out(new, x)
    assert (out(cut(new, pairs, mask), x) - want).abs().max() <= 1e-10 * max(1, want.abs().max())


def test_moments_are_equal_and_diagonal(small):
    "On the batches that were looked at, up to the ridge and float32"
    model, data = small
    new = balance(model, data, batches=4, progress=False)
    pairs = heads_of(new)
    for p, (a, b) in zip(pairs, moments(new, pairs, data, batches=4, progress=False)):
        d = a.diagonal(dim1=1, dim2=2)
        size = d.max()
        for m in (a, b):
            assert (m - torch.diag_embed(d)).abs().max() <= 0.01 * size, p


def test_kept(small, tmp_path):
    "Saved and loaded like any other model; half precision stays what it is"
    model, data = small
    new = balance(model, data, batches=1, progress=False)
    x = data[0][0]
    assert torch.equal(load(save(new, tmp_path / "m"))(x), new(x))
    half = balance(model.bfloat16(), [x.bfloat16()], batches=1, progress=False)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and (
        half(x.bfloat16()) - model(x.bfloat16())
    ).float().norm() < 0.1 * model(x.bfloat16()).float().norm()


def test_padding_is_left_out():
    "A sentence tells the same of itself with and without padding"
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
    ).eval()
    pairs = heads_of(model)
    ids, on = torch.randint(50, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    padded = dict(
        input_ids=torch.cat([ids, torch.full((3, 4), 7)], 1),
        attention_mask=torch.cat([on, torch.zeros(3, 4, dtype=torch.long)], 1),
    )
    for (a, b), (c, d) in zip(
        moments(model, pairs, [dict(input_ids=ids, attention_mask=on)], 1, False),
        moments(model, pairs, [padded], 1, False),
    ):
        assert torch.allclose(a, c, atol=1e-5) and torch.allclose(b, d, atol=1e-5)


def test_says_what_is_wrong(small):
    model, data = small
    mlps = [p for p in find_pairs(model) if p.kind == "mlp"]
    with pytest.raises(ValueError, match="nothing to balance"):
        balance(model, data, pairs=mlps)
    with pytest.raises(ValueError, match="has no batches"):
        balance(model, [])
    with pytest.raises(ValueError, match="on the device meta"):
        balance(model.to("meta"), data)


PARALLEL = """
import sys, torch, torch.distributed as dist
from spp import balance, save
sys.path.insert(0, TESTS)
from families import small_vit
if dist.is_torchelastic_launched(): dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
model, batches = small_vit(); model.double()
new = balance(model, [(x.double().chunk(world)[rank], y) for x, y in batches], batches=3, progress=False); save(new, f"{sys.argv[1]}/{world}{rank}")
if dist.is_initialized(): dist.destroy_process_group()
"""


def test_several_processes(tmp_path):
    "Two processes on halves of each batch end with the same bits, and with the moments of one process on the whole"
    script = tmp_path / "run.py"
    script.write_text(f"TESTS = {os.path.dirname(__file__)!r}\n" + PARALLEL)
    for launch in ((), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")):
        r = subprocess.run(
            [sys.executable, *launch, str(script), str(tmp_path)], capture_output=True, text=True
        )
        assert r.returncode == 0, r.stderr
    one, a, b = (load(tmp_path / x) for x in ("10", "20", "21"))
    data = [x.double() for x, _ in small_vit()[1]]
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    for p, (s, t), (u, v) in zip(
        heads_of(one),
        moments(one, heads_of(one), data, 3, False),
        moments(a, heads_of(a), data, 3, False),
    ):
        assert (
            s.diagonal(dim1=1, dim2=2) - u.diagonal(dim1=1, dim2=2)
        ).abs().max() <= 1e-4 * s.abs().max(), p

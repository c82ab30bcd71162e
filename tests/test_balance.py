"Balanced heads: the same function for every family, and the law of the cut after it"

import pytest
import torch
from families import out, small_vit, to
from processes import together

from spp import balance, cut, find_pairs, gated, load, save
from spp.method.balance import moments
from spp.method.objective import ranks


def heads_of(model):
    return [p for p in find_pairs(model) if p.kind in ("qk", "vo")]


def test_same_function_and_cut(family):
    """In float64 the outputs stay the same to 1e-9 of their size; only heads change.

    Gated and cut, the balanced model computes the same.
    """
    model, x = family
    model, x = model.double(), to(x, torch.float64)
    before = {k: p.clone() for k, p in model.state_dict().items()}
    new = balance(model, [x], batches=1, progress=False)
    want = out(model, x)
    assert (want - out(new, x)).abs().max() <= 1e-9 * want.abs().max()
    assert type(new) is type(model)
    assert not new.training
    for k, p in model.state_dict().items():
        assert torch.equal(p, before[k]), k
    changed = {k for k, p in new.state_dict().items() if not torch.equal(p, before[k])}
    blocks = tuple({p.block for p in heads_of(model)})
    assert changed
    for k in changed:
        assert k.startswith(blocks) and ".mlp." not in k and "norm" not in k, k

    pairs = find_pairs(new)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(3)) < 0.5
    with gated(new, pairs, mask.double()):
        want = out(new, x)
    assert (out(cut(new, pairs, mask), x) - want).abs().max() <= 1e-10 * max(1, want.abs().max())


def test_moments_are_equal_and_diagonal(small):
    "On the batches that were looked at, up to the ridge and float32."
    model, data = small
    new = balance(model, data, batches=4, progress=False)
    pairs = heads_of(new)
    for p, (a, b) in zip(pairs, moments(new, pairs, data, batches=4, progress=False)):
        d = a.diagonal(dim1=1, dim2=2)
        for moment in (a, b):
            assert (moment - torch.diag_embed(d)).abs().max() <= 0.01 * d.max(), p


def test_kept(small, tmp_path):
    "Saved and loaded like any other model; half precision stays what it is."
    model, data = small
    new = balance(model, data, batches=1, progress=False)
    x = data[0][0]
    assert torch.equal(load(save(new, tmp_path / "m"))(x), new(x))
    x = x.bfloat16()
    half = balance(model.bfloat16(), [x], batches=1, progress=False)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert (half(x) - model(x)).float().norm() < 0.1 * model(x).float().norm()


def test_padding_is_left_out():
    "The moments of a sentence are the same with and without padding."
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = BertModel(config).eval()
    pairs = heads_of(model)
    ids = torch.randint(50, (3, 9))
    on = torch.ones(3, 9, dtype=torch.long)
    plain = dict(input_ids=ids, attention_mask=on)
    padded = dict(
        input_ids=torch.cat([ids, torch.full((3, 4), 7)], 1),
        attention_mask=torch.cat([on, torch.zeros(3, 4, dtype=torch.long)], 1),
    )
    want = moments(model, pairs, [plain], 1, False)
    for (a, b), (c, d) in zip(want, moments(model, pairs, [padded], 1, False)):
        assert torch.allclose(a, c, atol=1e-5)
        assert torch.allclose(b, d, atol=1e-5)


def test_errors_say_what_is_wrong(small):
    model, data = small
    mlps = [p for p in find_pairs(model) if p.kind == "mlp"]
    with pytest.raises(ValueError, match="nothing to balance"):
        balance(model, data, pairs=mlps)
    with pytest.raises(ValueError, match="has no batches"):
        balance(model, [])
    with pytest.raises(ValueError, match="on the device meta"):
        balance(model.to("meta"), data)


def balance_part(folder):
    "Balance the small ViT on this process's part of each batch, and save it."
    rank, world = ranks()
    model, batches = small_vit()
    mine = [(x.double().chunk(world)[rank], y) for x, y in batches]
    save(balance(model.double(), mine, batches=3, progress=False), f"{folder}/{world}{rank}")


@pytest.mark.slow
def test_several_processes(tmp_path):
    "Two processes on halves of each batch get the same bits, and the moments of one on the whole."
    balance_part(tmp_path)
    together(balance_part, tmp_path)
    one, a, b = (load(tmp_path / x) for x in ("10", "20", "21"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))

    data = [x.double() for x, _ in small_vit()[1]]
    want = moments(one, heads_of(one), data, 3, False)
    for p, (s, _), (u, _) in zip(heads_of(one), want, moments(a, heads_of(a), data, 3, False)):
        off = (s.diagonal(dim1=1, dim2=2) - u.diagonal(dim1=1, dim2=2)).abs().max()
        assert off <= 1e-4 * s.abs().max(), p

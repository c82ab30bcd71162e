"The three pretrained models that registry packages hold: the law at real weights; skipped where the registry is away"
import pytest
import torch
from spp import cut, find_pairs, gated, load, save
from spp.samples import dinov2, minilm, smollm2
from families import out

def model_of(name):
    try: made = {"dinov2": dinov2, "minilm": minilm, "smollm2": smollm2}[name]()
    except ConnectionError as e: pytest.skip(str(e))
    if name == "dinov2": return made, torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    model, tokenizer = made; x = dict(tokenizer(["Pruning makes a model smaller.", "A unit is one index of the inner dimension."], return_tensors="pt", **dict(padding=True) if name == "minilm" else dict(truncation=True, max_length=7)))
    return model, x | ({"use_cache": False} if name == "smollm2" else {})

@pytest.mark.parametrize("name", ["dinov2", "minilm", "smollm2"])
def test_gated_equals_cut(name, tmp_path):
    model, x = model_of(name); pairs = find_pairs(model); g = torch.Generator().manual_seed(0)
    mask = torch.rand(sum(p.n for p in pairs), generator=g) < .7; small = cut(model, pairs, mask, align=8)
    back = load(save(small, tmp_path / "m")); assert torch.equal(out(back, x), out(small, x))
    model.double(); x = x if isinstance(x, dict) else x.double()
    with gated(model, pairs, mask.double()): want = out(model, x)
    assert (out(cut(model, pairs, mask), x) - want).abs().max() <= 1e-10 * max(1, want.abs().max())

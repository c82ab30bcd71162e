"Budgets are met from below, within one percent, on models of real shape; contradictions are told"

import random
import warnings

import open_clip
import pytest
import timm
import torch
import transformers as hf
from command import python

from spp import find_pairs, save_pretrained
from spp.cutting.budget import cost_of, macs_of, params_of, solve, unit_costs
from spp.method.path import SolutionPath
from spp.models.pairs import adapter_of


def clip_vit_b_32():
    vision = open_clip.model.CLIPVisionCfg(layers=12, width=768, patch_size=32)
    text = open_clip.model.CLIPTextCfg(layers=12, width=512, heads=8)
    return open_clip.CLIP(512, vision, text)


_TEXT = dict(hidden_size=768, num_attention_heads=12)
_LLAMA = dict(_TEXT, vocab_size=32000, num_hidden_layers=12, intermediate_size=3072)
SHAPES = {
    "deit_small": lambda: timm.create_model("deit_small_patch16_224"),
    "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "clip_vit_b_32": clip_vit_b_32,
    "bert_base": lambda: hf.BertModel(hf.BertConfig()),
    "opt_125m": lambda: hf.OPTForCausalLM(hf.OPTConfig(**_TEXT)),
    "llama_160m": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA)),
}


def on_meta(shape):
    "A model of this shape, on the device meta: nothing is computed, everything is counted"
    with torch.device("meta"):
        return SHAPES[shape]().eval()


def random_path(model):
    "A path whose order is random"
    pairs = find_pairs(model)
    g = torch.Generator().manual_seed(0)
    return SolutionPath(pairs, torch.rand(sum(p.n for p in pairs), generator=g)).attach(model)


@pytest.mark.parametrize("shape", SHAPES)
def test_within_a_percent(shape):
    "Twenty random budgets of each measure; the first of them is also cut, and counted"
    model = on_meta(shape)
    path = random_path(model)
    dense, rest = path.costs.dense, path.costs.rest(path.pairs)
    one = adapter_of(model).example(model)
    count = {
        "params": params_of,
        "macs": lambda m: macs_of(m, one),
        "units": lambda m: m.spp.units[0],
    }
    draw = random.Random(0)
    for i in range(20):
        for k in count:
            least = rest[k] / dense[k]
            share = draw.uniform(least + 0.02 * (1 - least), 1.0)
            if i == 0:
                cost = count[k](path.cut(**{k: share}))
            else:
                cost = cost_of(path.mask(**{k: share}), path.pairs, path.costs)[k]
            assert share - 0.01 <= cost / dense[k] <= share, (k, share, cost / dense[k])


def test_equal_widths():
    """With uniform=True all layers get the same widths, each its own best units.

    The counts of heads are those that a configuration accepts.
    """
    path = random_path(on_meta("llama_160m"))
    for share in (0.9, 0.7, 0.5):
        small = path.cut(uniform=True, params=share)
        mlps = [w for site, w in small.spp.widths.items() if site.endswith("mlp")]
        heads = [w for site, w in small.spp.widths.items() if site.endswith("attn")]
        assert all(w == mlps[0] for w in mlps)
        assert all(w == heads[0] for w in heads)
        assert 768 % heads[0]["heads"] == 0
        assert heads[0]["head_dim"] == 64
        assert share - 0.06 < small.spp.got["params"] <= share
        assert params_of(small) == small.spp.params[0]
    mask = path.mask(uniform=True, params=0.7).split([p.n for p in path.pairs])
    units = [
        tuple(x.nonzero().flatten().tolist()) for p, x in zip(path.pairs, mask) if p.kind == "glu"
    ]
    assert len(set(units)) == len(units)
    with pytest.raises(
        ValueError, match=r"params=0.05 cannot be met: what is not cut .* Reachable: 0\.\d+ to 1"
    ):
        path.cut(uniform=True, params=0.05)


def test_equal_widths_of_nothing():
    "BERT's own class has no number for fewer or narrower heads: they stay whole"
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = hf.BertModel(hf.BertConfig(vocab_size=50, **shape)).eval()
    path = random_path(model)
    small = path.cut(uniform=True, params=0.9)
    assert {w["head_dim"] for s, w in small.spp.widths.items() if s.endswith("self")} == {8}
    heads = [p for p in path.pairs if p.kind != "mlp"]
    score = torch.rand(sum(p.n for p in heads))
    costs = unit_costs(model, heads)
    with pytest.raises(ValueError, match="uniform=True: no layer of this model can be narrower"):
        solve(score, heads, costs, uniform=True, params=0.9)


def test_several_budgets_and_contradictions():
    "All budgets are met, one of them closely; one that cannot be met is told"
    path = random_path(on_meta("deit_small"))
    asked = dict(params=0.6, macs=0.5, units=0.55)
    got = path.cut(**asked).spp.got
    assert all(got[k] <= share for k, share in asked.items())
    assert max(got[k] / share for k, share in asked.items()) > 0.98
    with pytest.raises(ValueError, match="macs=0.001 cannot be met"):
        path.cut(params=0.6, macs=0.001)


def test_time_is_a_budget(monkeypatch):
    "A latency is predicted from the table and measured; both are told, and all budgets are met"

    def seconds(model, *_):  # a clock that no other process disturbs
        return 1e-8 * sum(p.numel() for p in model.parameters())

    monkeypatch.setattr("spp.cutting.runtimes._seconds", seconds)
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    path = random_path(model).measure(torch.randn(4, 3, 64, 64), rounds=3, progress=False)
    small = path.cut(latency=0.7, params=0.8)
    assert small.spp.got["latency"] <= 0.7
    assert small.spp.got["params"] <= 0.8
    assert small.spp.got["latency, measured"] == pytest.approx(small.spp.got["latency"], abs=0.02)
    assert "latency, measured" in str(small.spp)
    with pytest.raises(ValueError, match="milliseconds"):
        path.cut(latency=1e-6)


WITHOUT_SPP = """
import sys
sys.modules["spp"] = None
import torch
from transformers import AutoModelForCausalLM
folder, want = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder)
y = model(torch.arange(9)[None]).logits
assert (y - torch.load(want, weights_only=True)).abs().max() <= 1e-6
print(model.config.num_key_value_heads, model.config.intermediate_size)
"""


@pytest.mark.slow
def test_equal_widths_without_spp(tmp_path):
    "transformers alone loads a uniform cut of a Llama, where spp cannot be imported"
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=8,
        intermediate_size=96,
        max_position_embeddings=32,
    )
    small = random_path(hf.LlamaForCausalLM(config).eval()).cut(uniform=True, params=0.75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(small, tmp_path / "m")
    torch.save(small(torch.arange(9)[None]).logits, tmp_path / "y.pt")
    r = python("-c", WITHOUT_SPP, tmp_path / "m", tmp_path / "y.pt")
    assert r.returncode == 0, r.stderr
    groups, hidden = map(int, r.stdout.split())
    assert 0 < groups <= 3
    assert 0 < hidden < 96

"Budgets: what is asked is met from below, within one percent, on models of real shape; and contradictions are said"

import random
import subprocess
import sys
import warnings

import open_clip
import pytest
import timm
import torch
import transformers as hf

from spp import find_pairs, save_pretrained
from spp.cutting.budget import cost_of, macs_of, params_of, solve, unit_costs
from spp.method.path import SolutionPath
from spp.models.pairs import adapter_of

_TEXT = dict(hidden_size=768, num_attention_heads=12)
SHAPES = {
    "deit_small": lambda: timm.create_model("deit_small_patch16_224"),
    "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "clip_vit_b_32": lambda: open_clip.CLIP(
        512,
        open_clip.model.CLIPVisionCfg(layers=12, width=768, patch_size=32),
        open_clip.model.CLIPTextCfg(layers=12, width=512, heads=8),
    ),
    "bert_base": lambda: hf.BertModel(hf.BertConfig()),
    "opt_125m": lambda: hf.OPTForCausalLM(hf.OPTConfig(**_TEXT)),
    "llama_160m": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=32000, num_hidden_layers=12, intermediate_size=3072, **_TEXT)
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_within_a_percent(shape):
    "Twenty random targets of each measure, on the device meta: nothing is computed, everything is counted"
    with torch.device("meta"):
        model = SHAPES[shape]().eval()
    pairs, rand = find_pairs(model), random.Random(0)
    path = SolutionPath(
        pairs, torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0))
    ).attach(model)
    one, rest = adapter_of(model).example(model), path.costs.rest(pairs)
    for i in range(20):
        for k, count in (
            ("params", params_of),
            ("flops", lambda m: macs_of(m, one)),
            ("units", lambda m: m.spp.units[0]),
        ):
            least = rest[k] / path.costs.dense[k]
            b = rand.uniform(least + 0.02 * (1 - least), 1.0)
            if i:
                told = cost_of(path.mask(**{k: b}), pairs, path.costs)[k]
            else:
                small = path.cut(**{k: b})
                told = count(small)  # the first is built and counted
            assert b - 0.01 <= told / path.costs.dense[k] <= b, (k, b, told / path.costs.dense[k])


def _random_path(model, seed=0):
    pairs = find_pairs(model)
    return SolutionPath(
        pairs, torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(seed))
    ).attach(model)


def test_equal_widths():
    "uniform=True: the same widths in all layers, each with its own best units; counts of heads that a configuration accepts"
    with torch.device("meta"):
        model = SHAPES["llama_160m"]().eval()
    path = _random_path(model)
    for b in (0.9, 0.7, 0.5):
        small = path.cut(uniform=True, params=b)
        widths = small.spp.widths
        assert (
            len({str(w) for s, w in widths.items() if s.endswith("mlp")}) == 1
            and len({str(w) for s, w in widths.items() if s.endswith("attn")}) == 1
        )
        heads = next(w for s, w in widths.items() if s.endswith("attn"))
        assert 768 % heads["heads"] == 0 and heads["head_dim"] == 64
        assert b - 0.06 < small.spp.got["params"] <= b and params_of(small) == small.spp.params[0]
    units = [
        x.nonzero().flatten().tolist()
        for p, x in zip(
            path.pairs, path.mask(uniform=True, params=0.7).split([p.n for p in path.pairs])
        )
        if p.kind == "glu"
    ]
    assert len({tuple(u) for u in units}) == len(units)
    with pytest.raises(
        ValueError, match=r"params=0.05 cannot be met: what is not cut .* Reachable: 0\.\d+ to 1"
    ):
        path.cut(uniform=True, params=0.05)


def test_equal_widths_of_nothing():
    model = hf.BertModel(
        hf.BertConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
    ).eval()
    path = _random_path(model)
    small = path.cut(uniform=True, params=0.9)
    assert {w["head_dim"] for s, w in small.spp.widths.items() if s.endswith("self")} == {
        8
    }  # BERT's heads cannot be fewer or narrower for its own class
    heads = [p for p in path.pairs if p.kind != "mlp"]
    with pytest.raises(ValueError, match="uniform=True: no layer of this model can be narrower"):
        solve(
            torch.rand(sum(p.n for p in heads)),
            heads,
            unit_costs(model, heads),
            uniform=True,
            params=0.9,
        )


def test_several_budgets_and_contradictions():
    with torch.device("meta"):
        model = SHAPES["deit_small"]().eval()
    path = _random_path(model)
    got = path.cut(params=0.6, flops=0.5, units=0.55).spp.got
    assert (
        got["params"] <= 0.6
        and got["flops"] <= 0.5
        and got["units"] <= 0.55
        and max(got["params"] / 0.6, got["flops"] / 0.5, got["units"] / 0.55) > 0.98
    )
    with pytest.raises(ValueError, match="flops=0.001 cannot be met"):
        path.cut(params=0.6, flops=0.001)


def test_time_is_a_budget():
    "Predicted from the table, and measured; both are told, and all budgets are met"
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
    path = _random_path(model).measure(torch.randn(4, 3, 64, 64), rounds=3, progress=False)
    small = path.cut(latency=0.7, params=0.8)
    assert (
        small.spp.got["latency"] <= 0.7
        and small.spp.got["params"] <= 0.8
        and small.spp.got["latency, measured"] > 0
        and "latency, measured" in str(small.spp)
    )
    with pytest.raises(ValueError, match="milliseconds"):
        path.cut(latency=1e-6)


def test_equal_widths_without_spp(tmp_path):
    "A uniform cut of a Llama-shaped model loads by transformers alone, where spp cannot be imported"
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=61,
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=8,
            intermediate_size=96,
            max_position_embeddings=32,
        )
    ).eval()
    small = _random_path(model).cut(uniform=True, params=0.75)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(small, tmp_path / "m")
    torch.save(small(torch.arange(9)[None]).logits, tmp_path / "y.pt")
    code = (
        f"import sys; sys.modules['spp'] = None\nimport torch; from transformers import AutoModelForCausalLM\nm = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'm')!r})\n"
        f"assert (m(torch.arange(9)[None]).logits - torch.load({str(tmp_path / 'y.pt')!r}, weights_only=True)).abs().max() <= 1e-6; print(m.config.num_key_value_heads, m.config.intermediate_size)"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    groups, hidden = map(int, r.stdout.split())
    assert 0 < groups <= 3 and 0 < hidden < 96

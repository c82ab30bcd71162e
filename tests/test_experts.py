"Experts in one tensor: gated is cut, saved, loaded and run by each of transformers' ways"

import pytest
import sweep
import torch
import transformers as hf
from sweep import distance, inputs, masks, tiny

import spp
from spp.models.pairs import skipped

CLASSES = [
    "AriaTextModel",  # maps transposed
    "DeepseekV3Model",  # beside shared experts and a dense layer
    "GptOssModel",  # transposed, gate and up in turn, biases
    "MixtralForCausalLM",
    "Qwen2MoeModel",
]
OTHER = {"DeepseekV3Model": sweep.OTHER[3]}  # numbers that fit


def made(name):
    "A small random model of a class of transformers in float64, and its input"
    torch.manual_seed(0)
    kind = getattr(hf, name)
    model = sweep.randomised(kind(tiny(kind.config_class, OTHER.get(name, {})))).double()
    return model, sweep.double(inputs(model))


def of_experts(pairs):
    "The pairs of experts"
    return [p for p in pairs if p.side == "experts"]


@pytest.mark.parametrize("name", CLASSES)
def test_law(name, tmp_path):
    "Gated is cut for all masks, and what is loaded is what was saved"
    model, x = made(name)
    pairs = spp.find_pairs(model)
    assert of_experts(pairs)
    with torch.no_grad():
        dense = model(**x)
        with spp.gated(model, pairs):
            assert distance(dense, model(**x)) < 1e-10  # our own function computes the layer
        for _, mask in masks(pairs):
            with spp.gated(model, pairs, mask.double()):
                want = model(**x)
            small = spp.cut(model, pairs, mask, batch=x)
            assert distance(want, small(**x)) < 1e-10
        assert distance(dense, small(**x)) > 1e-3
        spp.save(small, tmp_path / "small")
        loaded = spp.load(tmp_path / "small").double()
        sweep.eager(loaded.config)
        assert distance(small(**x), loaded(**x)) == 0


def test_search_and_repair(tmp_path):
    "A path of a Mixtral meets a budget; its repair leaves experts as they were cut"
    model, x = made("MixtralForCausalLM")
    path = spp.search(model, [x] * 3, steps=2, progress=False)
    small = path.cut(params=0.7)
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert share <= 0.7 and abs(small.spp.got["params"] - share) < 1e-9
    site = of_experts(path.pairs)[0].site
    hidden = small.spp.widths[site]["hidden"]
    layer = small.get_submodule(site)
    assert layer.down_proj.shape[-1] == hidden < model.get_submodule(site).down_proj.shape[-1]
    with pytest.warns(UserWarning, match="experts of 2 layers .* are as they were cut"):
        repaired = path.cut(params=0.7, repair=[x] * 4)
    assert torch.equal(repaired.get_submodule(site).down_proj, layer.down_proj)
    small.save_pretrained(tmp_path / "stock")
    loaded = spp.load(tmp_path / "stock").double()
    sweep.eager(loaded.config)
    with torch.no_grad():
        assert distance(small(**x), loaded(**x)) == 0


def test_gates_of_each_sample():
    "Each sample has its own gates, wherever the router sends its tokens"
    model, x = made("Qwen2MoeModel")
    pairs = spp.find_pairs(model)
    m = torch.rand(2, sum(p.n for p in pairs), dtype=torch.float64)
    with torch.no_grad(), spp.gated(model, pairs) as gates:
        gates.set(m)
        both = model(**x)[0]
        for i in range(2):
            gates.set(m[i])
            one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in x.items()}
            assert (model(**one)[0][0] - both[i]).abs().max() < 1e-9


def test_cost():
    "A unit is computed for the tokens that meet its expert"
    model, x = made("MixtralForCausalLM")
    pairs = of_experts(spp.find_pairs(model))
    small = spp.cut(model, pairs, torch.cat([torch.arange(p.n) % 2 == 0 for p in pairs]))
    from spp.cutting.budget import macs_of, unit_costs

    costs = unit_costs(model, pairs, x)
    leaves = sum(p.n // 2 * one for p, one in zip(pairs, costs.unit["macs"]))
    assert costs.dense["macs"] - leaves == macs_of(small, x)


def test_own_way(monkeypatch):
    "A layer that does more with its experts than their maps say stays, and is named"
    model, _ = made("MixtralForCausalLM")
    layer = model.model.layers[0].mlp.experts
    kind = type(layer)

    class ShiftedExperts(kind):
        def forward(self, x, *args):
            return kind.forward(self, x.roll(1, -1), *args)

    layer.__class__ = ShiftedExperts
    assert {p.site for p in of_experts(spp.find_pairs(model))} == {"model.layers.1.mlp.experts"}
    assert "does more with its experts" in skipped(model)["model.layers.0.mlp.experts"]

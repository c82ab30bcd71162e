"A budget in time, for the runtime that will run the cut; by clocks that no other process disturbs"

import sys

import pytest
import timm
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spp.cutting import runtimes
from spp.cutting.budget import params_of
from spp.cutting.latency import relative_latency
from spp.judging.baselines import baseline


def by_size(model):
    "A clock: less than proportional to the parameters, as where memory is shared"
    return 1e-4 + 1e-8 * params_of(model) ** 0.9


def clocked(make):
    "A runtime whose models are made and run, and then timed by their size"

    def engine(model, x, **options):
        run = make(model, x, **options)

        def clock():
            assert run() > 0
            return by_size(model)

        return clock

    return engine


def small_vit():
    torch.manual_seed(0)
    how = dict(img_size=32, depth=2, embed_dim=96, num_heads=3)
    return timm.create_model("vit_tiny_patch16_224", **how).eval(), torch.randn(2, 3, 32, 32)


def small_llama():
    torch.manual_seed(0)
    how = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    config = LlamaConfig(vocab_size=300, num_key_value_heads=2, max_position_embeddings=64, **how)
    return LlamaForCausalLM(config).eval(), torch.randint(2, 300, (1, 12))


def met(path, asked, heads=None):
    "A cut for a latency: within the budget by the table, and within 5 % of it by the clock"
    small = path.cut(latency=asked, align=4, heads=heads)
    got = small.spp.got
    assert 0.95 * asked <= got["latency"] <= asked
    assert got["latency, measured"] == pytest.approx(asked, rel=0.05)
    assert by_size(small) / by_size(path.model) == pytest.approx(got["latency, measured"])
    return small


@pytest.mark.parametrize("heads", ("dimensions", "whole"))
def test_the_table_adds_up(monkeypatch, heads):
    "What all layers take together is not what each class takes alone; the table says the first"
    monkeypatch.setattr(runtimes, "_seconds", lambda model, x: by_size(model))
    model, x = small_vit()
    path = baseline("random", model).measure(x, rounds=1, progress=False, heads=heads)
    for asked in (0.85, 0.6):
        small = met(path, asked, heads)
    assert small.spp.path["runtime"] == {"runtime": "torch"}


@pytest.mark.slow
def test_onnxruntime(monkeypatch):
    "Every model is exported and run by ONNX Runtime, in the measurement and after the cut"
    engine, options = runtimes.RUNTIMES["onnxruntime"]
    monkeypatch.setitem(runtimes.RUNTIMES, "onnxruntime", (clocked(engine), options))
    model, x = small_vit()
    how = dict(runtime="onnxruntime", runtime_options=dict(threads=1), shares=(0.0, 0.5))
    path = baseline("random", model).measure(x, rounds=1, progress=False, **how)
    small = met(path, 0.7)
    assert small.spp.path["runtime"] == {"runtime": "onnxruntime", "threads": 1}


@pytest.mark.slow
def test_openvino():
    "Its graph is made and run, of a model that takes a dict, too"
    pytest.importorskip("openvino", reason="OpenVINO (pip install openvino) is not here")
    model, ids = small_llama()
    x = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    (share,) = relative_latency([model], model, x, 3, "openvino", threads=1)
    assert 0.02 < share < 50


@pytest.mark.slow
def test_llama_cpp(monkeypatch):
    "Attention is narrowed by heads there, and what is cut for it can be written"
    pytest.importorskip("xllamacpp", reason="llama.cpp (pip install xllamacpp) is not here")
    engine, options = runtimes.RUNTIMES["llama.cpp"]
    monkeypatch.setitem(runtimes.RUNTIMES, "llama.cpp", (clocked(engine), options))
    model, ids = small_llama()
    how = dict(runtime="llama.cpp", runtime_options=dict(new_tokens=2), shares=(0.0, 0.5))
    path = baseline("random", model).measure(ids, rounds=1, progress=False, **how)
    met(path, 0.8, "whole")
    with pytest.raises(ValueError, match="Cut whole heads"):
        path.cut(latency=0.8)


@pytest.mark.parametrize("runtime", runtimes.NEEDED)
def test_what_is_not_installed(monkeypatch, runtime):
    "The error names what is missing and what to install"
    missing = runtimes.NEEDED[runtime][0]
    monkeypatch.setitem(sys.modules, missing, None)
    model, x = small_vit()
    with pytest.raises(ImportError, match=f"needs {missing}.*pip install {missing} "):
        baseline("random", model).measure(x, progress=False, runtime=runtime)
    with pytest.raises(ValueError, match="known are torch, onnxruntime"):
        baseline("random", model).measure(x, progress=False, runtime="tensorrt")

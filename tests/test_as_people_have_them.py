"""Models as people have them: computed weights, adapters, experts, shared blocks, frozen, 16 bits

What a report says is zero or cut is counted on the result, or the call is refused.
"""

import copy
import warnings

import pytest
import timm
import torch
import transformers as hf
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as masks

import spp
from spp.judging.baselines import baseline
from spp.llm.weight_paths import one_shot, weight_path

IDS = torch.randint(0, 99, (4, 12), generator=torch.Generator().manual_seed(0))
SIZES = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_attention_heads=4)
SIZES |= dict(num_hidden_layers=2, num_key_value_heads=2)
DATA = [dict(input_ids=x) for x in IDS.split(2)]


def llama() -> nn.Module:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES)).eval()


def vit() -> nn.Module:
    torch.manual_seed(0)
    how = dict(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    return timm.create_model("vit_tiny_patch16_224", **how).eval()


IMAGES = [(torch.randn(6, 3, 16, 16), torch.arange(6) % 3) for _ in range(2)]


# --- weights that are computed ----------------------------------------------------------------


def with_parametrization(model):
    parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)


def with_mask(model):
    for layer in model.model.layers:
        masks.l1_unstructured(layer.mlp.up_proj, "weight", 0.2)


def with_old_norm(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.nn.utils.weight_norm(model.model.layers[0].mlp.up_proj)


class Bytes(torch.Tensor):
    "Weights as torchao holds them: bytes and scales, few operations, and no numbers to be set"

    @staticmethod
    def __new__(cls, data, scale):
        kept = dict(dtype=scale.dtype, requires_grad=False)
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, **kept)

    def __init__(self, data, scale):
        self.data_, self.scale = data, scale

    @classmethod
    def of(cls, weight):
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def dequantize(self):
        return self.data_ * self.scale

    def __repr__(self):
        return "Bytes"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, weight, *bias = args
            return nn.functional.linear(x, weight.dequantize(), *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].data_, args[0].scale)
        raise NotImplementedError(f"Bytes dispatch: unimplemented operator {func}")


def quantize(model):
    "What `torchao.quantization.quantize_` does to the linear layers of a model, in place"
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Bytes.of(module.weight.detach()), requires_grad=False)


COMPUTED = {
    "parametrization": (with_parametrization, r"remove_parametrizations\(.*up_proj.*'weight'\)"),
    "mask": (with_mask, r"torch.nn.utils.prune.remove\(.*up_proj'\), 'weight'\)"),
    "old weight norm": (with_old_norm, r"remove_weight_norm\(.*up_proj'\), 'weight'\)"),
    "own tensors": (quantize, r"as a Bytes.*quantize the result"),
}
CALLS = {
    "weight_path": lambda m: weight_path(m, IDS, progress=False),
    "one_shot": lambda m: one_shot(m, IDS, "wanda", 0.5, inplace=True, progress=False),
    "search": lambda m: spp.search(m, DATA, steps=2, progress=False),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", COMPUTED)
def test_computed_weights_are_refused(what, call):
    "Zeros that would be computed away are refused with the line that makes the weight plain"
    model = llama()
    hang, words = COMPUTED[what]
    hang(model)
    if (what, call) == ("parametrization", "search"):  # the layer is of another class then
        report = CALLS[call](model).cut(units=0.6).spp
        assert "model.layers.0.mlp" not in report.widths
        assert "model.layers.1.mlp" in report.widths
        return
    with pytest.raises(ValueError, match=f"(?s){words}"):
        CALLS[call](model)


def zeros(model: nn.Module, names) -> tuple[int, int]:
    "Zeros among the weights of layers, as the forward pass sees them, and their number"
    weights = [model.get_submodule(name).weight for name in names]
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


@pytest.mark.parametrize("what", ["mask", "parametrization"])
def test_zeros_are_counted_once_the_remedy_was_followed(what):
    "After the line of the error the zeros asked for are those that are there"
    model = llama()
    COMPUTED[what][0](model)
    for layer in model.model.layers:
        up = layer.mlp.up_proj
        if what == "mask":
            masks.remove(up, "weight")
        elif hasattr(up, "parametrizations"):
            torch.nn.utils.parametrize.remove_parametrizations(up, "weight")
    path = weight_path(model, IDS, progress=False)
    small = path.prune(0.5)
    found, total = zeros(small, path.levels)
    wanted = path.mask(0.5)  # what was zero before stays zero
    gone = [~m | (model.get_submodule(name).weight == 0) for name, m in wanted.items()]
    assert found == sum(int(m.sum()) for m in gone)
    assert abs(found / total - 0.5) < 0.01
    with torch.no_grad():
        small(input_ids=IDS)
    assert zeros(small, path.levels) == (found, total)  # nothing came back in a forward pass


def test_quantized_tensors_are_refused_by_all_that_needs_numbers(tmp_path):
    "With words and not from deep inside; what only runs the model works"
    path = spp.search(llama(), DATA, steps=2, progress=False)
    model = llama()
    quantize(model)
    calls = {
        "find_pairs": lambda: spp.find_pairs(model),
        "attach": lambda: path.attach(model),
        "cut": lambda: spp.cut(model, path.pairs, path.mask(units=0.5)),
        "finetune": lambda: spp.finetune(model, DATA, llama(), epochs=1, progress=False),
        "balance": lambda: spp.balance(model, DATA),
        "repair": lambda: spp.repair(model, path.pairs, path.mask(units=0.5), DATA),
        "save": lambda: spp.save(model, tmp_path / "m"),
    }
    for call in calls.values():
        with pytest.raises((TypeError, ValueError), match=r"as a Bytes.*quantize the result"):
            call()
    found = spp.evaluate(model, DATA, task="fidelity", dense=llama())
    assert found["scores"]["cosine"] > 0.99


def test_zeros_stay_when_the_result_is_quantized():
    "The remedy of the refusal: first prune or cut, then quantize"
    path = weight_path(llama(), IDS, progress=False)
    small = path.prune(0.5)
    before = zeros(small, path.levels)
    quantize(small)
    for name in path.levels:
        layer = small.get_submodule(name)
        layer.weight = nn.Parameter(layer.weight.dequantize())
    found, total = zeros(small, path.levels)
    assert (found >= before[0], total) == (True, before[1])
    assert found - before[0] < 0.01 * total  # numbers that eight bits round to zero


def test_quantized_layers_are_told():
    "Layers that hold no weights to prune are no empty success"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(llama(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(TypeError, match=r"no linear layer .*prune before quantizing"):
        weight_path(model, IDS, progress=False)


def test_adapters_are_merged_first():
    "PEFT's model, and a transformers model with an adapter: refused everywhere, exact once merged"
    peft = pytest.importorskip("peft")
    how = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(llama(), how)
    inside = llama()
    peft.inject_adapter_in_model(how, inside)
    for model in (wrapped, inside):
        for call in CALLS.values():
            with pytest.raises((TypeError, ValueError), match="merge_and_unload"):
                call(model)
        with pytest.raises((TypeError, ValueError), match="merge"):
            spp.finetune(model, DATA, llama(), epochs=1, progress=False)
    merged = wrapped.merge_and_unload()
    path = weight_path(merged, IDS, progress=False)
    found, total = zeros(path.prune(0.5), path.levels)
    assert abs(found / total - 0.5) < 0.01


def test_an_adapter_of_transformers(tmp_path, monkeypatch):
    "`model.add_adapter`: refused by all that needs plain layers, exact once merged as it is told"
    peft = pytest.importorskip("peft")
    from transformers.integrations import peft as inside

    monkeypatch.setattr(inside, "MIN_PEFT_VERSION", "0.17")  # it asks for one not yet released
    how = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = llama()
    model.add_adapter(how)
    searched = spp.search(llama(), DATA, steps=2, progress=False)
    calls = dict(CALLS, attach=searched.attach, save=lambda m: spp.save(m, tmp_path / "m"))
    calls["pretrained"] = lambda m: spp.save_pretrained(m, tmp_path / "m")
    calls["finetune"] = lambda m: spp.finetune(m, DATA, llama(), epochs=1, progress=False)
    for call in calls.values():
        with pytest.raises(TypeError, match=r"own add_adapter .*from_pretrained\(base, folder\)"):
            call(model)
    model.save_pretrained(tmp_path / "adapter")
    merged = peft.PeftModel.from_pretrained(llama(), tmp_path / "adapter").merge_and_unload()
    with torch.no_grad():
        want = model(IDS).logits
        assert (want - llama()(IDS).logits).abs().max() > 0.1
        torch.testing.assert_close(merged(IDS).logits, want, rtol=0, atol=1e-5)
    path = weight_path(merged, IDS, progress=False)
    found, total = zeros(path.prune(0.5), path.levels)
    assert abs(found / total - 0.5) < 0.01


# --- experts and shared blocks ----------------------------------------------------------------


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return hf.MixtralForCausalLM(hf.MixtralConfig(num_local_experts=4, **SIZES)).eval()


def test_what_experts_keep_is_said():
    "The weights that masks do not reach are named and counted, in the warning and in the path"
    model = mixtral()
    with pytest.warns(UserWarning, match=r"masks reach .* left dense.*mlp.experts.gate_up_proj"):
        path = weight_path(model, IDS, progress=False)
    small = path.prune(0.5)
    wide = {n: p for n, p in small.model.layers.named_parameters() if p.dim() > 1}
    found = sum(int((p == 0).sum()) for p in wide.values())
    total = sum(p.numel() for p in wide.values())
    masked = sum(level.numel() for level in path.levels.values())
    assert masked + sum(path.info["left"].values()) == total
    assert found == sum(int((~m).sum()) for m in path.mask(0.5).values())
    assert f"{masked / total:.1%} of the weights of its blocks" in repr(path)
    with pytest.warns(UserWarning, match="left dense"):
        one_shot(model, IDS, "magnitude", 0.5, progress=False)


class OwnExperts(hf.models.mixtral.modeling_mixtral.MixtralExperts):
    "Experts that read the channels of a token one place further"

    def forward(self, x, *args):
        return super().forward(x.roll(1, -1), *args)


def test_a_cut_says_that_experts_stay():
    "In the report of the cut; the report's parameters are counted"
    model = mixtral()
    for layer in model.model.layers:
        layer.mlp.experts.__class__ = OwnExperts
    small = spp.search(model, DATA, steps=3, progress=False).cut(units=0.5)
    assert "left as it was, 2 times: OwnExperts does more with its experts" in repr(small.spp)
    assert small.spp.params[0] == sum(p.numel() for p in small.parameters())
    untouched = small.model.layers[0].mlp.experts.gate_up_proj
    assert torch.equal(untouched, model.model.layers[0].mlp.experts.gate_up_proj)


def test_blocks_that_are_one_module():
    "Masks refuse them; a cut narrows them once, and says what is there"
    model = llama()
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(ValueError, match=r"blocks 0 and 1 of `model.layers` are one module"):
        weight_path(model, IDS, progress=False)
    path = spp.search(model, DATA, steps=3, progress=False)
    mask = path.mask(units=0.5)
    small = path.cut(units=0.5)
    assert small.model.layers[0] is small.model.layers[1]
    assert small.spp.params[0] == sum(p.numel() for p in small.parameters())
    with spp.gated(model, path.pairs) as gates, torch.no_grad():
        gates.set(mask.float())
        want = model(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(small(IDS).logits, want, rtol=1e-5, atol=1e-5)


# --- frozen, without gradients, in 16 bits ----------------------------------------------------


def test_frozen_models():
    "All frozen is an error, few trained a warning; a search needs no trained weight"
    model = vit().requires_grad_(False)
    small = spp.search(model, IMAGES, steps=3, progress=False).cut(units=0.6)
    with pytest.raises(ValueError, match=r"all parameters are frozen.*requires_grad_\(True\)"):
        spp.finetune(small, IMAGES, epochs=1, progress=False)
    small.head.requires_grad_(True)
    before = copy.deepcopy(small.state_dict())
    with pytest.warns(UserWarning, match="parameters are trained, the others are frozen"):
        spp.finetune(small, IMAGES, epochs=1, progress=False)
    moved = [n for n, x in small.state_dict().items() if not torch.equal(x, before[n])]
    assert moved == ["head.weight", "head.bias"]


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_without_gradients(inside):
    "Where gradients are switched off, what needs them says so"
    model = vit()
    small = spp.search(model, IMAGES, steps=2, progress=False).cut(units=0.6)
    calls = {
        "search": lambda: spp.search(model, IMAGES, steps=2, progress=False),
        "finetune": lambda: spp.finetune(small, IMAGES, epochs=1, progress=False),
        "taylor": lambda: baseline("taylor", model, IMAGES),
    }
    for call in calls.values():
        with inside(), pytest.raises(ValueError, match="outside of that block"):
            call()


def test_weights_made_for_inference():
    with torch.inference_mode():
        model = vit()
    with pytest.raises(ValueError, match="was made in torch.inference_mode"):
        spp.search(model, IMAGES, steps=2, progress=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_in_16_bits_count(dtype):
    "Weights of 16 bits end where those of single precision do, but for one rounding"
    dense = vit()
    wide = spp.search(dense, IMAGES, steps=2, progress=False).cut(units=0.6)
    small = copy.deepcopy(wide).to(dtype)
    start = [p.detach().float() for p in small.parameters()]
    wide.load_state_dict({k: x.float() for k, x in small.state_dict().items()})
    data = [(x.to(dtype), y) for x, y in IMAGES]
    seen = []

    def score(model):
        seen.append({p.dtype for p in model.parameters()})
        return model(data[0][0]).float().mean().item()

    how = dict(epochs=10, lr=2e-5, warmup=0.0, weight_decay=0.0, progress=False)
    spp.finetune(wide, [(x.to(dtype).float(), y) for x, y in IMAGES], **how)
    spp.finetune(small, data, copy.deepcopy(dense).to(dtype), share=0.0, evaluate=score, **how)
    assert seen == [{dtype}] * 10
    assert {p.dtype for p in small.parameters()} == {dtype}
    ours, theirs = (
        torch.cat([(p.detach().float() - q).flatten() for p, q in zip(m.parameters(), start)])
        for m in (small, wide)
    )
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > 0.7
    assert abs(ours.norm() / theirs.norm() - 1) < 0.3


def test_training_in_16_bits_resumes(tmp_path):
    "The masters are in the checkpoint: stopped and resumed, the bits are those of one go"
    small = spp.search(vit(), IMAGES, steps=2, progress=False).cut(units=0.6).bfloat16()
    data = [(x.bfloat16(), y) for x, y in IMAGES]
    how = dict(epochs=4, ema=0.9, progress=False)
    straight, stopped = copy.deepcopy(small), copy.deepcopy(small)
    spp.finetune(straight, data, **how)

    def score(model):
        scored.append(0.0)
        if len(scored) == 3:
            raise KeyboardInterrupt
        return 0.0

    scored = []
    run = dict(how, evaluate=score, checkpoint=tmp_path / "run.ckpt")
    with pytest.raises(KeyboardInterrupt):
        spp.finetune(stopped, data, **run)
    assert {p.dtype for p in stopped.parameters()} == {torch.bfloat16}
    kept = (tmp_path / "run.ckpt").read_bytes()
    for again in (copy.deepcopy(small), stopped):  # in a new process, and in this one
        (tmp_path / "run.ckpt").write_bytes(kept)
        spp.finetune(again, data, **run)
        for p, q in zip(again.parameters(), straight.parameters()):
            assert torch.equal(p, q)


# --- what a folder cannot bring back ----------------------------------------------------------


class BertForSequenceClassification(hf.BertForSequenceClassification):
    "A class of one's own with the name of the library's"

    def forward(self, input_ids=None, attention_mask=None, **kw):
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        return hf.modeling_outputs.SequenceClassifierOutput(logits=self.classifier(hidden.mean(1)))


class Renamed(hf.BertForSequenceClassification):
    "A class of one's own with another name"


class Pooled(timm.models.VisionTransformer):
    def forward(self, x):
        return self.head(self.forward_features(x).mean(1))


@pytest.mark.parametrize("kind", [BertForSequenceClassification, Renamed])
def test_classes_of_ones_own_are_refused_at_save(kind, tmp_path):
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    model = kind(hf.BertConfig(num_labels=3, **sizes)).eval()
    small = spp.search(model, DATA, steps=2, progress=False).cut(units=0.6)
    with pytest.raises((TypeError, ValueError), match=kind.__name__):
        spp.save(small, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_what_hangs_on_a_model_is_refused_at_save(tmp_path):
    "A hook or a forward of its own decides the answer and is in no file"
    for hang in (
        lambda m: m.register_forward_hook(lambda module, args, y: y * 2),
        lambda m: setattr(m, "forward", m.forward),
    ):
        small = spp.search(vit(), IMAGES, steps=2, progress=False).cut(units=0.6)
        hang(small)
        with pytest.raises(TypeError, match="would not be the same when loaded.*Take it off"):
            spp.save(small, tmp_path / "m")


def test_preprocessing_and_generation_travel(tmp_path):
    "Mean, deviation and size of a timm model; how a language model writes"
    model = vit()
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "crop_pct": 0.7}
    small = spp.search(model, IMAGES, steps=2, progress=False).cut(units=0.6)
    told = timm.data.resolve_model_data_config(small)
    assert told["mean"] == (0.1, 0.2, 0.3)
    back = spp.load(spp.save(small, tmp_path / "vit"))
    again = timm.data.resolve_model_data_config(back)
    assert {k: again[k] for k in ("mean", "std", "crop_pct", "interpolation")} == {
        k: told[k] for k in ("mean", "std", "crop_pct", "interpolation")
    }
    model = llama()
    model.generation_config.update(do_sample=True, top_p=0.6, temperature=0.9, eos_token_id=2)
    small = spp.search(model, DATA, steps=2, progress=False).cut(units=0.6, uniform=True)
    back = spp.load(spp.save(small, tmp_path / "llama"))
    stock = hf.AutoModelForCausalLM.from_pretrained(spp.save_pretrained(back, tmp_path / "stock"))
    for other in (back, stock):
        found = other.generation_config
        assert (found.do_sample, found.top_p, found.temperature) == (True, 0.6, 0.9)
        assert found.eos_token_id == 2

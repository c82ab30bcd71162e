"Classes of transformers: cut exactly or left alone, with and without a cache, saved and loaded"

import random
import warnings
from pathlib import Path

import pytest
import sweep
import timm
import torch
import transformers as hf
from families import randomised
from sweep import distance, inputs, masks, tiny
from torch import nn

import spp
from spp.judging.baselines import baseline
from spp.lab.records import read_record
from spp.models import proof
from spp.models import transformers_known as known
from spp.models.pairs import skipped
from spp.models.transformers_layers import Outputs

COVERAGE = Path(__file__).resolve().parents[1] / "results" / "coverage.json"
WIDER = [
    "AfmoeModel",  # what its heads put out is gated, dimension by dimension
    "AlbertModel",
    "BloomModel",
    "CTRLModel",  # maps of one letter, an MLP in a Sequential
    "CpmAntModel",  # an MLP whose maps have names of their own
    "DeepseekV3Model",
    "DetrModel",
    "DistilBertModel",
    "FalconModel",
    "GPTNeoXModel",
    "ImageGPTModel",  # values alone of GPT-2's kind of map
    "ModernBertModel",
    "MptModel",
    "Phi3Model",
    "PhiModel",
    "T5Model",
]
OTHER = {"DetrModel": sweep.OTHER[-1], "DeepseekV3Model": sweep.OTHER[3]}  # numbers that fit
DECODERS = [
    "BartForCausalLM",
    "BioGptForCausalLM",
    "GPT2LMHeadModel",
    "MarianForCausalLM",
    "OPTForCausalLM",
    "PegasusForCausalLM",
]
REFUSED = {
    "GLPNModel": "as wide as its hidden units",
    "SegformerModel": "as wide as its hidden units",
    "DoryModel": "a norm (attn_sub_norm) mixes what the heads",
    "Gemma4TextModel": "normalises its values",
}
REFUSED = {name: why for name, why in REFUSED.items() if hasattr(hf, name)}  # Dory: after 5.18


def made(name):
    "A small random model of a class of transformers in float64, and its input"
    torch.manual_seed(0)
    kind = getattr(hf, name)
    model = sweep.randomised(kind(tiny(kind.config_class, OTHER.get(name, {})))).double()
    return model, sweep.double(inputs(model))


@pytest.mark.parametrize("name", WIDER)
def test_wider(name, tmp_path):
    "Attention and MLP of these are found; gated is cut; what is saved is what is loaded"
    model, x = made(name)
    pairs = spp.find_pairs(model)
    kinds = {p.kind for p in pairs}
    assert "vo" in kinds and kinds & {"mlp", "glu"}
    _, mask = next(masks(pairs))
    with torch.no_grad():
        with spp.gated(model, pairs, mask.double()):
            want = model(**x)
        small = spp.cut(model, pairs, mask, batch=x)
        got = small(**x)
        assert distance(want, got) < 1e-10
        assert distance(model(**x), got) > 1e-3
        spp.save(small, tmp_path / "small")
        loaded = spp.load(tmp_path / "small").double()
        sweep.eager(loaded.config)
        assert distance(got, loaded(**x)) == 0


@pytest.mark.parametrize("name", DECODERS)
def test_cache_of_an_empty_layer(name):
    "Scores with a cache are those without, although the first layer has no heads left"
    model, x = made(name)
    pairs = spp.find_pairs(model)
    first = next(p.site for p in pairs if p.kind == "vo")
    mask = torch.cat([torch.full((p.n,), p.site != first) for p in pairs])
    small = spp.cut(model, pairs, mask)
    small.generation_config.eos_token_id = None
    scores = []
    for cache in ("dynamic", "static", None):
        how = dict(use_cache=bool(cache), cache_implementation=cache)
        y = small.generate(
            x["input_ids"],
            max_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
            **{k: v for k, v in how.items() if v is not None},
        )
        scores.append(torch.stack(y.logits))
    assert (scores[0] - scores[2]).abs().max() < 1e-10
    assert (scores[1] - scores[2]).abs().max() < 1e-10


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    "A layer that mixes its hidden units is left alone, with the reason"
    model, _ = made(name)
    assert any(REFUSED[name] in why for why in skipped(model).values())


def test_what_is_listed_was_seen():
    "Each class that is cut without a proof was cut exactly in the whole walk over transformers"
    seen = set()
    for row in read_record(COVERAGE)["rows"]["transformers"].values():
        if row["status"] == "held":
            seen |= set(row["kinds"])  # "class:kind"
    assert known.HELD and known.QUERIES and known.MLPS
    assert not {f"{name}:vo" for name in known.HELD} - seen
    assert not {f"{name}:qk" for name in known.QUERIES} - seen
    assert not {n for n in known.MLPS if not {f"{n}:mlp", f"{n}:glu"} & seen}


class Shifted(nn.Module):
    "Attention of one's own, whose values are read one place further than they are made"

    def __init__(self):
        super().__init__()
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            self.add_module(name, nn.Linear(32, 32))
        self.head_dim = 8

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
        maps = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (m(hidden_states).unflatten(-1, (-1, 8)).transpose(1, 2) for m in maps)
        y = nn.functional.scaled_dot_product_attention(q, k, v.roll(1, -1))
        return self.o_proj(y.transpose(1, 2).flatten(-2)), None


class SoftMLP(nn.Module):
    "An MLP of one's own, whose hidden units know of each other"

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 40), nn.Linear(40, 32)

    def forward(self, x):
        return self.fc2(self.fc1(x).softmax(-1))


def llama(attention=None, mlp=None):
    "A small Llama with layers of one's own"
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, intermediate_size=64))
    for layer in model.model.layers:
        layer.self_attn = attention() if attention else layer.self_attn
        layer.mlp = mlp() if mlp else layer.mlp
    return randomised(model)


@pytest.fixture
def forgotten(monkeypatch):
    "No proof was made before"
    from spp.models import transformers_layers

    monkeypatch.setattr(transformers_layers, "proved", {})
    monkeypatch.setattr("spp.models.transformers.proved", transformers_layers.proved)


BATCHES = [torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0))] * 3


def test_proof_in_a_search(forgotten):
    "A layer that is not what its maps say is left out, and named; the others are searched"
    model = llama(Shifted)
    with pytest.warns(UserWarning, match="layers.0.self_attn: Shifted is not what its maps say"):
        path = spp.search(model, BATCHES, steps=2, progress=False)
    assert {p.kind for p in path.pairs} == {"glu"}
    assert any("Shifted is not" in why for why in path.cut(params=0.9).spp.left)


class Unused(Shifted):
    "An attention layer that no batch of token ids reaches"


def test_what_does_not_run_is_not_shown(forgotten):
    "A layer that the first batch does not reach is left out, and a cut of it refused"
    model = llama()
    model.tower = Unused()
    pairs = spp.find_pairs(model)
    assert any(p.site == "tower" for p in pairs)
    with pytest.warns(UserWarning, match="tower: Unused does not run on this batch"):
        path = spp.search(model, BATCHES, steps=2, progress=False)
    assert "tower" not in {p.site for p in path.pairs}
    with pytest.raises(ValueError, match="Unused does not run on this batch.*Pass one that runs"):
        spp.cut(model, pairs, torch.ones(sum(p.n for p in pairs)))


def test_why_a_proof_failed(forgotten):
    "What a layer holds beside its maps is told when its proof fails"
    model = llama(Shifted)
    for layer in model.model.layers:
        layer.self_attn.mixer = nn.Linear(8, 8)
    with pytest.warns(UserWarning, match=r"\(it holds mixer\)"):
        spp.search(model, BATCHES, steps=2, progress=False)


def test_proof_of_pairs_that_were_given(forgotten):
    "Whoever names the pairs is told that one cannot be cut"
    model = llama(Shifted)
    pairs = spp.find_pairs(model)
    with pytest.raises(ValueError, match="Shifted is not what its maps say"):
        spp.search(model, BATCHES, steps=2, pairs=pairs, progress=False)


def test_proof_in_a_cut(forgotten):
    "A cut makes up an input, and refuses what fails on it"
    model = llama(Shifted)
    pairs = spp.find_pairs(model)
    mask = torch.ones(sum(p.n for p in pairs))
    with pytest.raises(ValueError, match="a cut differs from the gated model"):
        spp.cut(model, pairs, mask)
    assert {p.kind for p in spp.find_pairs(model)} == {"glu"}


def test_trusted(forgotten, monkeypatch):
    "A class that somebody vouches for is cut without a proof"
    monkeypatch.setattr(proof, "TRUSTED", {"Shifted"})
    model = llama(Shifted)
    pairs = spp.find_pairs(model)
    assert proof.unproved(model, pairs) == {}


def test_no_input(forgotten):
    "Where no input can be made up, a cut says what to pass"
    body = llama(Shifted).model.layers[0]
    model = nn.Sequential(body)
    pairs = spp.find_pairs(model)
    with pytest.raises(ValueError, match=r"Pass one: cut\(…, batch=inputs\)"):
        spp.cut(model, pairs, torch.ones(sum(p.n for p in pairs)))


def test_mlp_that_is_none():
    "An MLP whose units know of each other is found out without data"
    model = llama(mlp=SoftMLP)
    assert {p.kind for p in spp.find_pairs(model)} == {"vo"}
    assert any("SoftMLP is no MLP" in why for why in skipped(model).values())


def test_heads_that_stay():
    "A layer that keeps its heads loses none of them to a budget in whole heads"
    model, x = made("T5Model")
    path = spp.search(model, [x] * 3, steps=2, progress=False, heads="whole")
    small = path.cut(params=0.95)
    assert not any(isinstance(m, Outputs) for m in small.modules())
    share = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    assert share <= 0.95 and abs(small.spp.got["params"] - share) < 1e-9


def test_gates_of_each_sample():
    "Where a layer sees patches in place of samples, each has the gates of its sample"
    torch.manual_seed(0)
    model = sweep.randomised(timm.create_model("mobilevit_xxs", num_classes=5)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    pairs = spp.find_pairs(model)
    m = torch.rand(2, sum(p.n for p in pairs), dtype=torch.float64)
    with torch.no_grad(), spp.gated(model, pairs) as gates:
        gates.set(m)
        both = model(x)
        for i in range(2):
            gates.set(m[i])
            assert (model(x[i : i + 1])[0] - both[i]).abs().max() < 1e-9 * both.abs().max()


def test_attention_of_other_classes_of_timm(tmp_path):
    "CaiT's attention layers are of classes of their own: values keep their places"
    torch.manual_seed(0)
    sizes = dict(img_size=32, depth=1, embed_dim=32, num_heads=4, num_classes=5)
    model = sweep.randomised(timm.create_model("cait_xxs24_224", **sizes)).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    pairs = spp.find_pairs(model)
    kinds = {(type(model.get_submodule(p.site)).__name__, p.kind) for p in pairs}
    assert kinds == {("TalkingHeadAttn", "vo"), ("ClassAttn", "vo"), ("Mlp", "mlp")}
    for name, mask in masks(pairs):
        small = spp.cut(model, pairs, mask, batch=x)
        with torch.no_grad(), spp.gated(model, pairs, mask.double()):
            assert distance(model(x), small(x)) < 1e-10, name
        spp.save(small, tmp_path / "small")
        assert torch.equal(spp.load(tmp_path / "small").double()(x), small(x))


def test_attention_over_channels_is_left_alone():
    "XCiT's values mix by their channels: the proof finds out, and says so"
    torch.manual_seed(0)
    sizes = dict(img_size=32, depth=1, embed_dim=32, num_heads=4, num_classes=5)
    model = sweep.randomised(timm.create_model("xcit_nano_12_p16_224", **sizes))
    pairs = spp.find_pairs(model)
    with pytest.raises(ValueError, match="XCA is not what its maps say"):
        spp.cut(model, pairs, torch.ones(sum(p.n for p in pairs)))
    assert any("XCA is not what" in why for why in skipped(model).values())


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_sweep(part):
    "Of sixty classes, always the same ones, none is cut wrongly and none crashes"
    chosen = random.Random(0).sample(sweep.names(), 60)[part::3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [sweep.one(name, 20) for name in chosen]
    print(*rows, sep="\n")
    assert not [str(row) for row in rows if row.status in ("wrong", "crash")]
    assert sum(row.status == "held" for row in rows) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "beit_base_patch16_224",
        "mobilevit_xxs",
        "swin_tiny_patch4_window7_224",
        "vit_relpos_small_patch16_224",  # an MLP that puts out something else than it takes
        "vit_small_patch16_18x2_224",  # attention layers beside each other
    ],
)
def test_sweep_of_timm(name):
    "Attention and MLPs of small models of timm's families are found, and cut exactly"
    row = sweep.one_of_timm(name)
    assert row.status == "held", row
    assert {kind.partition(":")[2] for kind in row.kinds} >= {"vo", "mlp"}


def test_a_number_that_follows_from_others(tmp_path):
    "Falcon's configuration computes head_dim: layers of another width are told, and spp loads them"
    options = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    model = hf.FalconForCausalLM(hf.FalconConfig(**options)).eval()
    small = baseline("random", model).cut(params=0.7)
    with pytest.warns(UserWarning, match="only spp.load can read this model"):
        small.save_pretrained(tmp_path / "small")
    ids = torch.arange(9)[None]
    assert torch.equal(spp.load(tmp_path / "small")(ids).logits, small(ids).logits)

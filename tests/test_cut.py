"gated ≡ cut, for families × masks × alignments; and a cut model is an ordinary one"

import copy

import open_clip
import pytest
import torch
from families import CLIPS, FAMILIES, ROTARY, out, randomised, to

from spp import cut, find_pairs, gated
from spp.cutting.budget import Steps, cost_of, macs_of, params_of
from spp.cutting.cut import differences
from spp.method.objective import answer
from spp.method.path import SolutionPath
from spp.models import open_clip_build
from spp.models.open_clip_heads import HeadAttention
from spp.models.pairs import adapter_of, opened, split_units
from spp.models.timm_heads import Narrow
from spp.models.transformers_heads import NoHeads
from spp.models.transformers_layers import Outputs, Values


def random_mask(pairs, seed=0, share=0.5):
    "A random `share` of all units"
    g = torch.Generator().manual_seed(seed)
    return torch.rand(sum(p.n for p in pairs), generator=g) < share


def masks(pairs):
    "Random masks, with the cases that have gone wrong in other tools"
    g = torch.Generator().manual_seed(0)
    n = sum(p.n for p in pairs)

    def random():
        return torch.rand(n, generator=g) < 0.5

    yield "random", random()
    yield "sparse", torch.rand(n, generator=g) < 0.07
    yield "everything", torch.ones(n, dtype=torch.bool)
    yield "nothing", torch.zeros(n, dtype=torch.bool)
    for kind in dict.fromkeys(p.kind for p in pairs):
        m = random()
        of_kind = [x for p, x in zip(pairs, split_units(m, pairs)) if p.kind == kind]
        of_kind[0].zero_()  # a pair of the first block has nothing left
        yield f"no {kind}", m
    m = random()
    heads = [x for p, x in zip(pairs, split_units(m, pairs)) if p.groups > 1][:2]
    heads[0][0] = False
    heads[1][1] = False
    yield "a head without values, another without queries", m


@pytest.mark.parametrize("align", [1, 8])
def test_gated_equals_cut(family, align):
    model, x = family
    model, x = model.double(), to(x, torch.float64)
    pairs = find_pairs(model)
    dense = out(model, x)
    for name, mask in masks(pairs):
        with gated(model, pairs, mask.double()):
            want = out(model, x)
        small = cut(model, pairs, mask, align=align)
        assert (out(small, x) - want).abs().max() <= 1e-10, name
        if name != "everything":
            assert (want - dense).abs().max() > 1e-3, f"{name}: the test sees nothing"
        sizes = {p.size for p in pairs}
        for site, w in small.spp.widths.items():
            widths = [v for k, v in w.items() if k != "heads"]
            assert all(v % align == 0 or v in sizes for v in widths), (name, site, w)
    assert torch.equal(out(model, x), dense)  # the dense model was not touched


def test_float32(family):
    "In float32 the law holds to 1e-5"
    model, x = family
    pairs = find_pairs(model)
    mask = random_mask(pairs, seed=3)
    with gated(model, pairs, mask.float()):
        want = out(model, x)
    assert (out(cut(model, pairs, mask), x) - want).abs().max() <= 1e-5 * max(1, want.abs().max())


WITH_TIMM = [name for name in FAMILIES if not name.startswith("hf_")]


@pytest.mark.parametrize("name", WITH_TIMM)
def test_fused_or_not(name):
    "The law holds with timm's attention written out and as one fused call"
    model, x = FAMILIES[name]()
    model, x = randomised(model).double(), to(x, torch.float64)
    pairs = find_pairs(model)
    mask = random_mask(pairs, seed=6, share=0.4)
    small = cut(model, pairs, mask)
    seen = []
    for fused in (False, True):
        for m in (*model.modules(), *small.modules()):
            if hasattr(m, "fused_attn"):
                m.fused_attn = fused
        with gated(model, pairs, mask.double()):
            seen.append(out(model, x))
        seen.append(out(small, x))
    assert all((y - seen[0]).abs().max() <= 1e-10 for y in seen)


def test_frozen_stays_frozen(family):
    "Parameters that want no gradient want none in the cut"
    model, _ = family
    pairs = find_pairs(model)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    small = cut(model, pairs, random_mask(pairs, seed=7, share=0.4))
    assert {n: p.requires_grad for n, p in small.named_parameters()} == wanted


# the output does not depend on these
UNUSED = {
    "head_dist.weight",
    "head_dist.bias",
    "post_layernorm.weight",
    "post_layernorm.bias",
}


def test_ordinary(family):
    "Original classes, no hooks; survives deepcopy, half precision and export"
    model, x = family
    pairs = find_pairs(model)
    small = cut(model, pairs, random_mask(pairs, seed=4))
    y = out(small, x)
    inputs = ((), x) if isinstance(x, dict) else ((x,), {})
    assert type(small) is type(model)
    classes = {type(m) for m in small.modules() if not isinstance(m, Narrow)}
    ours = {HeadAttention, NoHeads, Outputs, Values}
    assert classes <= {type(m) for m in model.modules()} | ours
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert torch.equal(out(copy.deepcopy(small), x), y)
    half = out(copy.deepcopy(small).bfloat16(), to(x, torch.bfloat16)).float()
    assert (half - y).abs().mean() < 0.1 * y.abs().mean()
    exported = answer(torch.export.export(small, *inputs).module(), x).out
    assert (exported - y).abs().max() <= 1e-5 * max(1, y.abs().max())
    assert set(small.state_dict()) == set(model.state_dict())
    small.train()
    out(small, x).sum().backward()
    assert all(p.grad.isfinite().all() for n, p in small.named_parameters() if p.grad is not None)
    assert {n for n, p in small.named_parameters() if p.grad is None} <= UNUSED


def test_budgets_are_true(family):
    "What a budget promises is counted on the cut model itself"
    model, x = family
    pairs = find_pairs(model)
    g = torch.Generator().manual_seed(5)
    path = SolutionPath(pairs, torch.rand(sum(p.n for p in pairs), generator=g)).attach(model)
    dense = path.costs.dense
    steps = Steps(path.score, pairs, path.costs).cost
    # no budget is met closer than by the largest step
    finest = {k: c.max() / dense[k] for k, c in steps.items()}
    one = adapter_of(model).example(model)
    count = {"params": params_of, "macs": lambda m: macs_of(m, one)}
    rest = max(path.costs.rest(pairs)[k] / dense[k] for k in count)
    for share in (0.9, 0.6, 0.4):
        if share < rest:
            continue  # rotary attention keeps its queries and keys
        for k in count:
            promised = cost_of(path.mask(**{k: share}), pairs, path.costs)[k] / dense[k]
            assert share - finest[k] < promised <= share
            small = path.cut(**{k: share})
            got = count[k](small) / count[k](model)
            if _takes_more(small, pairs):
                assert got <= promised
            else:
                assert abs(got - promised) < 1e-9
            if k == "params":
                assert got == small.spp.got["params"]
        small = path.cut(units=share)
        assert share - finest["units"] < small.spp.units[0] / path.n <= share
    assert path.cut(params=int(0.7 * params_of(model))).spp.params[0] <= 0.7 * params_of(model)


def _takes_more(small, pairs):
    "Does a layer without values take along queries and keys that no budget counts?"
    alone = {p.site for p in pairs if p.kind == "vo"} - {p.site for p in pairs if p.kind == "qk"}
    return any(w.get("head_dim") == 0 and site in alone for site, w in small.spp.widths.items())


@pytest.mark.parametrize("name", CLIPS)
def test_both_towers_of_a_clip(name):
    "One mask cuts both towers, and each alone keeps the law; a frozen tower stays frozen"
    model, x = FAMILIES[name]()
    model, x = randomised(model).double(), to(x, torch.float64)
    model.visual.requires_grad_(False)
    pairs = find_pairs(model)
    image = torch.cat([torch.full((p.n,), p.block.startswith("visual.")) for p in pairs])
    assert 0 < image.sum() < len(image)
    mask = torch.rand(len(image), generator=torch.Generator().manual_seed(6)) < 0.5
    small = cut(model, pairs, mask)
    dense = model.encode_image(x["image"]), model.encode_text(x["text"])
    with gated(model, pairs, mask.double()):
        want = model.encode_image(x["image"]), model.encode_text(x["text"])
    for a, b, c in zip((small.encode_image(x["image"]), small.encode_text(x["text"])), want, dense):
        assert (a - b).abs().max() <= 1e-10 < 1e-3 < (a - c).abs().max()
    for half in (image, ~image):  # one tower without a single unit, the other whole
        with gated(model, pairs, (half | False).double()):
            want = out(model, x)
        assert (out(cut(model, pairs, half), x) - want).abs().max() <= 1e-10
    assert all(p.requires_grad != n.startswith("visual.") for n, p in small.named_parameters())
    with opened(model, pairs):
        inside = macs_of(model, adapter_of(model).example(model))
    # nothing is hidden in a fast path
    assert inside == macs_of(model, adapter_of(model).example(model))


def test_what_is_left_alone_is_said():
    "Rotary queries and keys stay, with the reason; heads that share values lose the same dimension"
    from spp.models.transformers import pairs

    for name in ROTARY:
        found, skipped = pairs(FAMILIES[name]()[0])
        plain = name == "hf_gpt_neox"  # neither a gate in its MLP nor values that heads share
        assert {p.kind for p in found} == {"vo", "mlp" if plain else "glu"}
        assert {p.groups for p in found if p.kind == "vo"} == {3 if plain else 2}
        reason = "norm" if name == "hf_qwen3" else "rotary"
        assert len(skipped) == 2
        assert all(reason in why for k, why in skipped.items() if k.startswith("qk of"))


@pytest.mark.parametrize(
    "name", ["hf_gpt2", "hf_opt", "hf_llama", "hf_llama_tied", "hf_mistral", "hf_qwen2", "hf_qwen3"]
)
def test_generating(name):
    "With the cache, a cut model writes what it writes without, even where a layer has no heads"
    model, x = FAMILIES[name]()
    ids, pairs = x["input_ids"], find_pairs(randomised(model))
    how = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    for what, mask in masks(pairs):
        small = cut(model, pairs, mask)
        want = ids
        for _ in range(4):
            logits = small(input_ids=want, use_cache=False).logits
            want = torch.cat([want, logits[:, -1:].argmax(-1)], 1)
        got = small.generate(ids, attention_mask=torch.ones_like(ids), **how)
        assert torch.equal(got, want), what


@pytest.mark.parametrize(
    "settings",
    [
        dict(scale_attn_by_inverse_layer_idx=True),
        dict(reorder_and_upcast_attn=True),
        dict(scale_attn_weights=False),
        dict(add_cross_attention=True),
    ],
)
def test_settings_of_gpt2(settings):
    "The scale of a layer stays what it was; cross attention is left alone, with the reason"
    import transformers as hf

    from spp.models.transformers import pairs as look

    shape = dict(vocab_size=61, n_embd=48, n_layer=2, n_head=3, n_positions=32)
    config = hf.GPT2Config(**shape, attn_implementation="eager", **settings)
    model = randomised(hf.GPT2LMHeadModel(config))
    found, left = look(model)
    x = {"input_ids": torch.arange(9)[None], "use_cache": False}
    assert sorted(p.kind for p in found) == ["mlp", "mlp", "qk", "qk", "vo", "vo"]
    if "add_cross_attention" in settings:
        assert set(left) == {f"transformer.h.{i}.crossattention" for i in (0, 1)}
        assert all("attends to another model" in why for why in left.values())
        g = torch.Generator().manual_seed(0)
        x["encoder_hidden_states"] = torch.randn(1, 5, 48, generator=g)
        none = cut(model, found, torch.zeros(sum(p.n for p in found)))
        cached = none(**{**x, "use_cache": True}).logits  # no heads, and a cache of two
        assert torch.allclose(cached, none(**x).logits, atol=1e-6)
    else:
        assert left == {}
    for name, mask in masks(found):
        with gated(model, found, mask.float()):
            want = out(model, x)
        off = (out(cut(model, found, mask), x) - want).abs().max()
        assert off <= 1e-5 * max(1, want.abs().max()), name


def test_what_a_class_computes_itself_is_left_alone():
    "What a class computes from its widths stays: softmax scales, norms over heads, turned values"
    import transformers as hf

    from spp.models.transformers import pairs as look

    small = dict(
        vocab_size=61,
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )

    def of(kind, **kw):
        return look(getattr(hf, kind + "Model")(getattr(hf, kind + "Config")(**small, **kw)))

    found, left = of("MegatronBert")
    assert sorted(p.kind for p in found) == ["mlp", "vo"] and left == {
        "qk of encoder.layer.0.attention.self": "MegatronBertSelfAttention is none of the classes"
        " whose q and k were seen to be cut"
    }
    found, left = of("Olmo2")
    assert [p.kind for p in found] == ["vo", "glu"] and left == {
        "qk of layers.0.self_attn": "q_norm and k_norm mix the dimensions of a head"
    }
    found, left = of("RoFormer", embedding_size=48, rotary_value=True)
    assert [p.kind for p in found] == ["mlp"] and list(left.values()) == [
        "rotary positions turn its values"
    ]


def test_what_is_left_alone_in_timm():
    "Cosine attention, rotary positions, norms of queries and pooling stay, with the reason"
    from spp.models.timm import pairs

    for name, kinds, why in (
        ("swinv2", {"vo", "mlp"}, "cosine"),
        ("eva02", {"vo", "glu"}, "rotary"),
        ("rope_mixed", {"vo", "mlp"}, "rotary"),
        ("vit_qk_norm", {"vo", "mlp"}, "q_norm"),
        ("siglip", {"qk", "vo", "mlp"}, "pools"),
    ):
        if name not in FAMILIES:  # of a newer timm
            continue
        found, skipped = pairs(FAMILIES[name]()[0])
        assert {p.kind for p in found} == kinds
        assert skipped
        for k, text in skipped.items():
            assert why in text
            assert k.startswith("qk of") or k == "attn_pool"
    model = FAMILIES["beit_shared_bias"]()[0]
    found = find_pairs(model)
    mask = torch.ones(sum(p.n for p in found), dtype=torch.bool)
    # a head without values stays, for all layers share a bias that speaks of every head
    split_units(mask, found)[1][0] = False
    assert cut(model, found, mask).spp.widths["blocks.0.attn"] == {"heads": 3, "head_dim": 16}
    own = FAMILIES["beit"]()[0]
    assert cut(own, found, mask).spp.widths["blocks.0.attn"] == {"heads": 2, "head_dim": 16}


@pytest.mark.parametrize(
    "name, pairs, units", [("ViT-L-14", 108, 202_752), ("ViT-H-14-CLIPA", 168, 393_216)]
)
def test_large_clips_by_name(name, pairs, units):
    "Found whole, described, and built again; without values, since they are large"
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta").eval()
    found = find_pairs(model)
    assert (len(found), sum(p.n for p in found)) == (pairs, units)
    again = open_clip_build.build(open_clip_build.describe(model)).eval()
    assert differences(model, again) == {}

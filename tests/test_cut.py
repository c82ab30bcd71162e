"gated ≡ cut: the central law, for families × masks × alignments; and that a cut model is an ordinary one"

import copy

import pytest
import torch
from families import CLIPS, FAMILIES, ROTARY, out, randomised, to

from spp import cut, find_pairs, gated
from spp.cutting.budget import Steps, cost_of, macs_of, params_of
from spp.method.objective import answer
from spp.method.path import SolutionPath
from spp.models.open_clip_heads import HeadAttention
from spp.models.pairs import adapter_of, opened, split_units
from spp.models.timm_heads import Narrow
from spp.models.transformers_heads import NoHeads
from spp.models.transformers_layers import Outputs, Values


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
        parts = split_units(m, pairs)
        next(
            x for p, x in zip(pairs, parts) if p.kind == kind
        ).zero_()  # a pair of the first block has nothing left
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
        for site, w in small.spp.widths.items():
            assert all(
                v % align == 0 or v in (p.size for p in pairs) for k, v in w.items() if k != "heads"
            ), (name, site, w)
    assert torch.equal(out(model, x), dense)  # the dense model was not touched


def test_float32(family):
    model, x = family
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(3)) < 0.5
    with gated(model, pairs, mask.float()):
        want = out(model, x)
    assert (out(cut(model, pairs, mask), x) - want).abs().max() <= 1e-5 * max(1, want.abs().max())


WITH_TIMM = [name for name in FAMILIES if not name.startswith("hf_")]


@pytest.mark.parametrize("name", WITH_TIMM)
def test_fused_or_not(name):
    "With timm's attention written out, or as one fused call, the dense model and the cut one say the same"
    model, x = FAMILIES[name]()
    model, x = randomised(model).double(), to(x, torch.float64)
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(6)) < 0.4
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
    model, _ = family
    pairs = find_pairs(model)
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 2 == 0)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    small = cut(
        model,
        pairs,
        torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(7)) < 0.4,
    )
    assert {n: p.requires_grad for n, p in small.named_parameters()} == wanted


UNUSED = {
    "head_dist.weight",
    "head_dist.bias",
    "post_layernorm.weight",
    "post_layernorm.bias",
}  # the answer does not depend on them


def test_ordinary(family):
    "Original classes, no hooks; survives deepcopy, half precision and export"
    model, x = family
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(4)) < 0.5
    small = cut(model, pairs, mask)
    y = out(small, x)
    inputs = ((), x) if isinstance(x, dict) else ((x,), {})
    assert type(small) is type(model) and {
        type(m) for m in small.modules() if not isinstance(m, Narrow)
    } <= {type(m) for m in model.modules()} | {HeadAttention, NoHeads, Outputs, Values}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert torch.equal(out(copy.deepcopy(small), x), y)
    assert (
        out(copy.deepcopy(small).bfloat16(), to(x, torch.bfloat16)).float() - y
    ).abs().mean() < 0.1 * y.abs().mean()
    assert (
        answer(torch.export.export(small, *inputs).module(), x).out - y
    ).abs().max() <= 1e-5 * max(1, y.abs().max())
    names = set(model.state_dict())
    assert set(small.state_dict()) == names
    small.train()
    out(small, x).sum().backward()
    assert all(p.grad.isfinite().all() for n, p in small.named_parameters() if p.grad is not None)
    assert {n for n, p in small.named_parameters() if p.grad is None} <= UNUSED


def test_budgets_are_true(family):
    "What is asked is counted on the model itself"
    model, x = family
    pairs = find_pairs(model)
    g = torch.Generator().manual_seed(5)
    path = SolutionPath(pairs, torch.rand(sum(p.n for p in pairs), generator=g)).attach(model)
    steps = Steps(path.score, pairs, path.costs).cost
    finest = {
        k: c.max() / path.costs.dense[k] for k, c in steps.items()
    }  # no budget is met closer than by the largest step
    alone = {p.site for p in pairs if p.kind == "vo"} - {p.site for p in pairs if p.kind == "qk"}
    one = adapter_of(model).example(model)
    rest = max(path.costs.rest(pairs)[k] / path.costs.dense[k] for k in ("params", "flops"))
    for b in (0.9, 0.6, 0.4):
        if b < rest:
            continue  # rotary attention keeps its queries and keys

        def told(k):
            return cost_of(path.mask(**{k: b}), pairs, path.costs)[k] / path.costs.dense[k]

        def free():
            return any(
                w.get("head_dim") == 0 and site in alone for site, w in small.spp.widths.items()
            )  # a layer without values takes along queries and keys that no budget counts

        small = path.cut(params=b)
        got = params_of(small) / params_of(model)
        assert (
            b - finest["params"] < told("params") <= b
            and got == small.spp.got["params"]
            and (got <= told("params") if free() else abs(got - told("params")) < 1e-9)
        )
        small = path.cut(flops=b)
        got = macs_of(small, one) / macs_of(model, one)
        assert b - finest["flops"] < told("flops") <= b and (
            got <= told("flops") if free() else abs(got - told("flops")) < 1e-9
        )
        small = path.cut(units=b)
        assert b - finest["units"] < small.spp.units[0] / path.n <= b
    assert path.cut(params=int(0.7 * params_of(model))).spp.params[0] <= 0.7 * params_of(model)


@pytest.mark.parametrize("name", CLIPS)
def test_both_towers_of_a_clip(name):
    "Each tower alone says what the gated one says, and one mask cuts both; frozen towers stay frozen"
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
    assert inside == macs_of(
        model, adapter_of(model).example(model)
    )  # nothing is hidden in a fast path


def test_what_is_left_alone_is_said():
    "Rotary queries and keys stay, with the reason; grouped values lose a dimension in all heads that share them"
    from spp.models.transformers import pairs

    for name in ROTARY:
        found, skipped = pairs(FAMILIES[name]()[0])
        assert {p.kind for p in found} == {"vo", "glu"} and {
            p.groups for p in found if p.kind == "vo"
        } == {2}
        assert (
            all(
                ("norm" if name == "hf_qwen3" else "rotary") in why
                for k, why in skipped.items()
                if k.startswith("qk of")
            )
            and len(skipped) == 2
        )


@pytest.mark.parametrize(
    "name", ["hf_gpt2", "hf_opt", "hf_llama", "hf_llama_tied", "hf_mistral", "hf_qwen2", "hf_qwen3"]
)
def test_generating(name):
    "With the cache a cut model writes what it would write without, also where a layer has lost all its heads"
    model, x = FAMILIES[name]()
    ids, pairs = x["input_ids"], find_pairs(randomised(model))
    for what, mask in masks(pairs):
        small = cut(model, pairs, mask)
        want = ids
        for _ in range(4):
            want = torch.cat(
                [want, small(input_ids=want, use_cache=False).logits[:, -1:].argmax(-1)], 1
            )
        assert torch.equal(
            small.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=4,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            ),
            want,
        ), what


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

    model = randomised(
        hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=61,
                n_embd=48,
                n_layer=2,
                n_head=3,
                n_positions=32,
                attn_implementation="eager",
                **settings,
            )
        )
    )
    found, left = look(model)
    x = {"input_ids": torch.arange(9)[None], "use_cache": False}
    assert sorted(p.kind for p in found) == ["mlp", "mlp", "qk", "qk", "vo", "vo"]
    if "add_cross_attention" in settings:
        assert set(left) == {
            "transformer.h.0.crossattention",
            "transformer.h.1.crossattention",
        } and all("attends to another model" in why for why in left.values())
        x["encoder_hidden_states"] = torch.randn(
            1, 5, 48, generator=torch.Generator().manual_seed(0)
        )
        y = {**x, "use_cache": True}
        none = cut(model, found, torch.zeros(sum(p.n for p in found)))
        assert torch.allclose(
            none(**y).logits, none(**x).logits, atol=1e-6
        )  # no heads, and a cache of two
    else:
        assert left == {}
    for name, mask in masks(found):
        with gated(model, found, mask.float()):
            want = out(model, x)
        assert (out(cut(model, found, mask), x) - want).abs().max() <= 1e-5 * max(
            1, want.abs().max()
        ), name


def test_what_a_class_computes_itself_is_left_alone():
    "Classes without a scale of their own keep queries and keys; a norm over all heads keeps the heads; turned values stay"
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
        "qk of encoder.layer.0.attention.self": "its softmax scale follows the width of its heads"
    }
    found, left = of("Olmo2")
    assert [p.kind for p in found] == ["glu"] and left == {
        "layers.0.self_attn": "q_norm and k_norm mix all heads"
    }
    found, left = of("RoFormer", embedding_size=48, rotary_value=True)
    assert [p.kind for p in found] == ["mlp"] and list(left.values()) == [
        "rotary positions turn its values"
    ]


def test_what_is_left_alone_in_timm():
    from spp.models.timm import pairs

    for name, kinds, why in (
        ("swinv2", {"vo", "mlp"}, "cosine"),
        ("eva02", {"vo", "glu"}, "rotary"),
        ("rope_mixed", {"vo", "mlp"}, "rotary"),
        ("vit_qk_norm", {"vo", "mlp"}, "q_norm"),
        ("siglip", {"qk", "vo", "mlp"}, "pools"),
    ):
        found, skipped = pairs(FAMILIES[name]()[0])
        assert (
            {p.kind for p in found} == kinds
            and skipped
            and all(
                why in text and (k.startswith("qk of") or k == "attn_pool")
                for k, text in skipped.items()
            )
        )
    model = FAMILIES["beit_shared_bias"]()[0]
    found = find_pairs(model)
    mask = torch.ones(sum(p.n for p in found), dtype=torch.bool)
    split_units(mask, found)[1][0] = (
        False  # a head without values stays, for all layers share a bias that speaks of every head
    )
    assert cut(model, found, mask).spp.widths["blocks.0.attn"] == {"heads": 3, "head_dim": 16}
    own = FAMILIES["beit"]()[0]
    assert cut(own, found, mask).spp.widths["blocks.0.attn"] == {"heads": 2, "head_dim": 16}

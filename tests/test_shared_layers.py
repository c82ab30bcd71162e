"A layer that stands at several places of a model is gated, cut and resized at all of them"

import copy

import open_clip
import pytest
import timm
import torch
import transformers as hf
from families import randomised
from torch import nn

import spp
from spp.models.pairs import sites

IMAGE = dict(img_size=32, embed_dim=32, depth=3, num_heads=4, num_classes=5)


def of_timm(part):
    "A ViT whose last block uses a layer of its first"
    model = timm.create_model("vit_tiny_patch16_224", **IMAGE)
    setattr(model.blocks[2], part, getattr(model.blocks[0], part))
    return model, torch.randn(3, 3, 32, 32)


def of_transformers(part):
    "A Llama whose last layer uses a part of its first"
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=50)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, intermediate_size=64, use_cache=False))
    layers = model.model.layers
    setattr(layers[2], part, getattr(layers[0], part))
    return model, torch.randint(50, (3, 7))


def of_open_clip(part):
    "A text tower whose last block uses a layer of its first"
    vision = dict(layers=1, width=32, head_width=8, patch_size=16, image_size=32)
    text = dict(context_length=6, vocab_size=40, width=32, heads=4, layers=3)
    model = open_clip.CLIP(16, vision, text)
    blocks = model.transformer.resblocks
    setattr(blocks[2], part, getattr(blocks[0], part))
    return model, (torch.randn(3, 3, 32, 32), torch.randint(40, (3, 6)))


def of_torch(part):
    "An encoder of PyTorch whose last layer uses a part of its first"
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    setattr(model.layers[2], part, getattr(model.layers[0], part))
    return nn.Sequential(model), torch.randn(3, 7, 32)


MODELS = {
    "timm, attention": (of_timm, "attn"),
    "timm, MLP": (of_timm, "mlp"),
    "transformers, attention": (of_transformers, "self_attn"),
    "transformers, MLP": (of_transformers, "mlp"),
    "open_clip, attention": (of_open_clip, "attn"),
    "open_clip, MLP": (of_open_clip, "mlp"),
    "torch, attention": (of_torch, "self_attn"),
}


def run(model, x):
    "What a model puts out, as one tensor"
    y = model(*x) if isinstance(x, tuple) else model(x)
    y = getattr(y, "logits", y)
    return torch.cat([part.flatten() for part in y[:2]]) if isinstance(y, tuple) else y


@pytest.mark.parametrize("how", ["uneven", "empty", "whole layers"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_gated_is_cut(name, how):
    torch.manual_seed(0)
    make, part = MODELS[name]
    model, x = make(part)
    model = randomised(model).double()
    x = tuple(map(doubled, x)) if isinstance(x, tuple) else doubled(x)
    pairs = spp.find_pairs(model)
    n = sum(p.n for p in pairs)
    first = next(iter(sites(pairs)))
    mask = {
        "uneven": torch.rand(n, generator=torch.Generator().manual_seed(1)) < 0.6,
        "empty": torch.zeros(n, dtype=torch.bool),
        "whole layers": torch.cat([torch.full((p.n,), p.site != first) for p in pairs]),
    }[how]
    dense = run(model, x)
    with spp.gated(model, pairs, mask.double()):
        want = run(model, x)
    torch.testing.assert_close(run(model, x), dense, rtol=0, atol=0)  # all is put back
    small = spp.cut(model, pairs, mask)
    got = run(small, x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert (want - dense).abs().max() > 1e-3
    shape = spp.cutting.cut.fit(copy.deepcopy(model), small.spp.widths, pairs)
    shape.load_state_dict(small.state_dict())
    torch.testing.assert_close(run(shape, x), got, rtol=0, atol=0)


def doubled(x):
    "`x` in float64, unless it holds whole numbers"
    return x.double() if x.is_floating_point() else x


def test_a_map_in_common():
    "Two layers that write through the same map are left alone: one gate cannot speak for both"
    model, _ = of_timm("norm1")
    model.blocks[2].attn.proj = model.blocks[0].attn.proj
    alone = spp.models.pairs.skipped(model)
    assert set(alone) == {"blocks.0.attn", "blocks.2.attn"}
    assert set(alone.values()) == {"has a map in common with another layer"}
    found = {p.site for p in spp.find_pairs(model)}
    assert found == {"blocks.1.attn", *(f"blocks.{i}.mlp" for i in range(3))}


def test_saved_and_loaded(tmp_path):
    "CoaT's branches share MLPs and positions: loaded, they do again"
    model = randomised(timm.create_model("coat_tiny", num_classes=5, img_size=64))
    pairs = spp.find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(1)) < 0.6
    x = torch.randn(1, 3, 64, 64)
    small = spp.cut(model, pairs, mask, batch=x)
    loaded = spp.load(spp.save(small, tmp_path / "small"))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), small(x), rtol=0, atol=0)
    block = loaded.parallel_blocks[0]
    assert block.mlp2 is block.mlp3
    count = sum(p.numel() for p in small.parameters())
    assert sum(p.numel() for p in loaded.parameters()) == count


def test_a_parameter_in_common(tmp_path):
    "A parameter that two layers have in common is one parameter after loading, too"
    model = randomised(timm.create_model("vit_tiny_patch16_224", **IMAGE))
    model.blocks[2].norm1.weight = model.blocks[0].norm1.weight
    x = torch.randn(3, 3, 32, 32)
    loaded = spp.load(spp.save(model, tmp_path / "dense"))
    assert loaded.blocks[2].norm1.weight is loaded.blocks[0].norm1.weight
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


def test_a_layer_that_no_build_knows(tmp_path):
    "A model that shares a layer by hand is not saved, since it would be loaded with two"
    model, _ = of_timm("mlp")
    with pytest.raises(TypeError, match="`blocks.2.mlp` is the same module as `blocks.0.mlp`"):
        spp.save(model, tmp_path / "dense")

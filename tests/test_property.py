"gated ≡ cut for architectures and masks that nobody thought of"

import pytest
import torch
import transformers as hf
from families import out, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer

from spp import cut, find_pairs, gated, load, save
from spp.cutting.budget import params_of


def small(most):
    "A number from 1 to `most`"
    return st.integers(1, most)


def _seeded():
    return torch.Generator().manual_seed(1)


@st.composite
def vits(draw):
    "A `VisionTransformer` and images"
    heads, size = draw(small(4)), draw(st.sampled_from((8, 12)))
    token = draw(st.booleans())
    model = VisionTransformer(
        img_size=size,
        patch_size=4,
        embed_dim=heads * draw(small(9)),
        depth=draw(small(3)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((0.5, 1.0, 2.7, 4.0))),
        num_classes=draw(st.integers(0, 3)),
        qkv_bias=draw(st.booleans()),
        proj_bias=draw(st.booleans()),
        class_token=token,
        global_pool="token" if token else "avg",
        reg_tokens=draw(st.integers(0, 2)) if token else 0,
        init_values=draw(st.sampled_from((None, 0.1))),
        pre_norm=draw(st.booleans()),
    )
    return model, torch.randn(2, 3, size, size, dtype=torch.float64, generator=_seeded())


@st.composite
def llamas(draw):
    "A Llama, its queries in groups of any size, and token ids"
    groups, readers = draw(small(3)), draw(small(3))
    config = hf.LlamaConfig(
        vocab_size=31,
        hidden_size=groups * readers * draw(small(6)),
        num_hidden_layers=draw(small(2)),
        num_attention_heads=groups * readers,
        num_key_value_heads=groups,
        head_dim=2 * draw(small(4)),
        intermediate_size=draw(small(24)),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        max_position_embeddings=16,
    )
    ids = torch.randint(31, (2, 5), generator=_seeded())
    return hf.LlamaForCausalLM(config), {"input_ids": ids, "use_cache": False}


@st.composite
def berts(draw):
    "A BERT and token ids"
    heads = draw(small(4))
    config = hf.BertConfig(
        vocab_size=31,
        hidden_size=heads * draw(small(8)),
        num_hidden_layers=draw(small(2)),
        num_attention_heads=heads,
        intermediate_size=draw(small(24)),
        max_position_embeddings=16,
    )
    ids = torch.randint(31, (2, 5), generator=_seeded())
    return hf.BertModel(config, add_pooling_layer=False), {"input_ids": ids}


MODELS = st.one_of(vits(), llamas(), berts())
SEEDS = st.integers(0, 10**6)
ALIGNS = st.sampled_from((1, 2, 8))


def random_mask(n, seed, density):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < density


def check_law(made, seed, density, align):
    "The cut model computes what the gated one does, in float64"
    model, x = randomised(made[0], seed).double(), made[1]
    pairs = find_pairs(model)
    mask = random_mask(sum(p.n for p in pairs), seed, density)
    with gated(model, pairs, mask.double()):
        want = out(model, x)
    got = out(cut(model, pairs, mask, align=align), x)
    assert (got - want).abs().max() <= 1e-10 * max(1, want.abs().max())


def check_round_trip(folder, made, seed, density):
    "The loaded model is the saved one, bit for bit"
    model, x = randomised(made[0], seed).double(), made[1]
    pairs = find_pairs(model)
    narrow = cut(model, pairs, random_mask(sum(p.n for p in pairs), seed, density))
    back = load(save(narrow, folder / "m"))
    assert torch.equal(out(back, x), out(narrow, x))
    assert params_of(back) == params_of(narrow)


def examples(n):
    "Settings for `n` examples, always the same ones"
    return settings(max_examples=n, deadline=None, derandomize=True)


@examples(8)
@given(MODELS, SEEDS, st.floats(0, 1), ALIGNS)
def test_gated_equals_cut_first(made, seed, density, align):
    check_law(made, seed, density, align)


@pytest.mark.slow
@examples(60)
@given(MODELS, SEEDS, st.floats(0, 1), ALIGNS)
def test_gated_equals_cut(made, seed, density, align):
    check_law(made, seed, density, align)


@examples(4)
@given(MODELS, SEEDS, st.floats(0, 1))
def test_saved_and_loaded_first(tmp_path_factory, made, seed, density):
    check_round_trip(tmp_path_factory.mktemp("m"), made, seed, density)


@pytest.mark.slow
@examples(15)
@given(MODELS, SEEDS, st.floats(0, 1))
def test_saved_and_loaded(tmp_path_factory, made, seed, density):
    check_round_trip(tmp_path_factory.mktemp("m"), made, seed, density)

"gated ≡ cut for architectures and masks that nobody thought of"

import torch
import transformers as hf
from families import out, randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models import VisionTransformer

from spp import cut, find_pairs, gated, load, save
from spp.cutting.budget import params_of


def small(most):
    return st.integers(1, most)


@st.composite
def vits(draw):
    heads, size, patch = draw(small(4)), draw(st.sampled_from((8, 12))), 4
    model = VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=heads * draw(small(9)),
        depth=draw(small(3)),
        num_heads=heads,
        mlp_ratio=draw(st.sampled_from((0.5, 1.0, 2.7, 4.0))),
        num_classes=draw(st.integers(0, 3)),
        qkv_bias=draw(st.booleans()),
        proj_bias=draw(st.booleans()),
        class_token=(token := draw(st.booleans())),
        global_pool="token" if token else "avg",
        reg_tokens=draw(st.integers(0, 2)) if token else 0,
        init_values=draw(st.sampled_from((None, 0.1))),
        pre_norm=draw(st.booleans()),
    )
    return model, torch.randn(
        2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@st.composite
def llamas(draw):
    groups, rep, head = draw(small(3)), draw(small(3)), 2 * draw(small(4))
    c = hf.LlamaConfig(
        vocab_size=31,
        hidden_size=groups * rep * draw(small(6)),
        num_hidden_layers=draw(small(2)),
        num_attention_heads=groups * rep,
        num_key_value_heads=groups,
        head_dim=head,
        intermediate_size=draw(small(24)),
        attention_bias=draw(st.booleans()),
        mlp_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        max_position_embeddings=16,
    )
    return hf.LlamaForCausalLM(c), {
        "input_ids": torch.randint(31, (2, 5), generator=torch.Generator().manual_seed(1)),
        "use_cache": False,
    }


@st.composite
def berts(draw):
    heads = draw(small(4))
    c = hf.BertConfig(
        vocab_size=31,
        hidden_size=heads * draw(small(8)),
        num_hidden_layers=draw(small(2)),
        num_attention_heads=heads,
        intermediate_size=draw(small(24)),
        max_position_embeddings=16,
    )
    return hf.BertModel(c, add_pooling_layer=False), {
        "input_ids": torch.randint(31, (2, 5), generator=torch.Generator().manual_seed(1))
    }


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.one_of(vits(), llamas(), berts()),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from((1, 2, 8)),
)
def test_gated_equals_cut(made, seed, density, align):
    model, x = randomised(made[0], seed).double(), made[1]
    pairs = find_pairs(model)
    n = sum(p.n for p in pairs)
    mask = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < density
    with gated(model, pairs, mask.double()):
        want = out(model, x)
    got = cut(model, pairs, mask, align)
    assert (out(got, x) - want).abs().max() <= 1e-10 * max(1, want.abs().max())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.one_of(vits(), llamas(), berts()), st.integers(0, 10**6), st.floats(0, 1))
def test_saved_and_loaded(tmp_path_factory, made, seed, density):
    model, x = randomised(made[0], seed).double(), made[1]
    pairs = find_pairs(model)
    small = cut(
        model,
        pairs,
        torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(seed))
        < density,
    )
    back = load(save(small, tmp_path_factory.mktemp("m") / "m"))
    assert torch.equal(out(back, x), out(small, x)) and params_of(back) == params_of(small)

"Small random models, one for each supported kind, with an input for each"

import open_clip
import timm
import torch
import transformers as hf
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from packaging.version import Version
from timm.models import VisionTransformer

from spp.method.objective import answer


def randomised(model, seed=0):
    "`model` with random parameters, so large that every unit, bias and norm shows in the output"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = 1.5 / p.shape[-1] ** 0.5 if p.dim() > 1 else 0.3
            is_scale = "norm" in name.lower() and name.endswith("weight")
            p.copy_(torch.randn(p.shape, generator=g) * size + (1.0 if is_scale else 0.0))
    return model.eval()


def out(model, x):
    "The outputs of `model` for `x`, as one tensor"
    return answer(model, x).out


def to(x, dtype):
    "`x` with its images in `dtype`; token ids stay what they are"
    if isinstance(x, dict):
        return {k: to(v, dtype) for k, v in x.items()}
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


# --- inputs ---------------------------------------------------------------------------------


def _images(n, *size):
    "`n` random images, always the same"
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(1))


def _tokens():
    "Two texts of nine tokens, the second one padded"
    return {
        "input_ids": torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(1)),
        "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3]),
    }


def _timm(make):
    "A model of timm and images of the size that it takes"

    def both():
        model = make()
        return model, _images(2, *model.patch_embed.img_size)

    return both


def _picture(make):
    "A model of transformers and images"
    return lambda: (make(), _images(2, 32, 32))


def _text(make):
    "A model of transformers and texts; no cache where it would return one"

    def both():
        model = make()
        return model, _tokens() | ({"use_cache": False} if model.can_generate() else {})

    return both


def _clip(make):
    "A CLIP of open_clip, with images and texts"

    def both():
        g = torch.Generator().manual_seed(1)
        images = torch.randn(3, 3, 32, 32, generator=g)
        kept = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 9])
        return make(), {
            "image": images,
            "text": torch.randint(2, 61, (3, 9), generator=g) * kept,
        }

    return both


# --- models of timm -------------------------------------------------------------------------


def _vit(name, **kw):
    small = dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=7)
    return _timm(lambda: timm.create_model(name, **{**small, **kw}))


def _plain_vit(**kw):
    "A vision transformer by its class, which has no name"
    small = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3)
    return _timm(lambda: VisionTransformer(**{**small, **kw}))


def _swin(name, img_size):
    small = dict(window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=7)
    return _timm(lambda: timm.create_model(name, img_size=img_size, **small))


FAMILIES = {
    "deit_tiny": _vit("deit_tiny_patch16_224", img_size=64, num_classes=11),
    "deit_tiny_distilled": _vit("deit_tiny_distilled_patch16_224", img_size=64, num_classes=11),
    "vit_no_qkv_bias": _plain_vit(embed_dim=60, qkv_bias=False, num_classes=11),
    "vit_registers_avg": _vit(
        "vit_tiny_patch16_224", num_classes=11, reg_tokens=4, global_pool="avg", init_values=1e-5
    ),
    "vit_features": _vit("vit_tiny_patch16_224", num_classes=0),
    "vit_qk_norm": _plain_vit(qk_norm=True, num_classes=7),
    "vit_norm_behind": _vit("vit_base_patch16_rpn_224"),
    "deit3": _vit("deit3_small_patch16_224"),
    "dinov2_giant": _vit("vit_giant_patch14_reg4_dinov2", img_size=28, mlp_ratio=8),
    "siglip": _vit("vit_base_patch16_siglip_224"),
    # 10 × 10 tokens in shifted windows of 4 × 4, filled up
    "swin": _swin("swin_tiny_patch4_window7_224", 40),
    "swinv2": _swin("swinv2_tiny_window8_256", 64),
    "beit": _vit("beit_base_patch16_224"),
    "beit_shared_bias": _vit(
        "beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    "eva": _vit("eva_giant_patch14_224", img_size=28),
    "eva02": _vit("eva02_tiny_patch14_224", img_size=28),
    "eva02_split": _vit("eva02_base_patch14_224", img_size=28, scale_mlp=False, swiglu_align_to=8),
}
# Older versions of timm run their mixed rotary models in float32 only, dense or cut
if Version(timm.__version__) >= Version("1.0.31"):
    FAMILIES["rope_mixed"] = _vit("vit_small_patch16_rope_mixed_224")


# --- models of transformers -----------------------------------------------------------------

_SMALL = dict(
    vocab_size=61,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=32,
)
_BERT = dict(_SMALL, intermediate_size=64)
_LLAMA = dict(
    _SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=64
)
_QWEN2 = {k: v for k, v in _LLAMA.items() if k != "head_dim"}
_BIASED = dict(_LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
_GPT2 = dict(vocab_size=61, n_embd=48, n_layer=2, n_head=3, n_positions=32)
_VISION = dict(
    image_size=32,
    patch_size=8,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=64,
)


def _hf_clip():
    config = hf.CLIPConfig(text_config=_BERT, vision_config=_VISION, projection_dim=24)
    model = hf.CLIPModel(config)
    return model, _tokens() | {"pixel_values": _images(2, 32, 32)}


def _gpt2(**kw):
    return _text(lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**_GPT2, **kw)))


FAMILIES |= {
    "hf_bert": _text(lambda: hf.BertModel(hf.BertConfig(**_BERT), add_pooling_layer=False)),
    "hf_roberta": _text(
        lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**_BERT, num_labels=5))
    ),
    "hf_vit": _picture(lambda: hf.ViTForImageClassification(hf.ViTConfig(**_VISION, num_labels=7))),
    "hf_clip_vision": _picture(lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_VISION))),
    "hf_deit": _picture(
        lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**_VISION, num_labels=7))
    ),
    "hf_deit_distilled": _picture(
        lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**_VISION, num_labels=7))
    ),
    "hf_clip_text": _text(lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_BERT))),
    "hf_clip": _hf_clip,
    "hf_gpt2": _gpt2(n_inner=64),
    "hf_gpt2_scaled": _gpt2(scale_attn_by_inverse_layer_idx=True),
    "hf_opt": _text(
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**_SMALL, ffn_dim=64, word_embed_proj_dim=48))
    ),
    "hf_llama": _text(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA))),
    "hf_llama_tied": _text(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_BIASED))),
    "hf_mistral": _text(
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**_LLAMA, sliding_window=None))
    ),
    "hf_qwen2": _text(lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_QWEN2))),
    # one map for q, k and v, and one for both halves of a gated MLP
    "hf_phi3": _text(
        lambda: hf.Phi3ForCausalLM(
            hf.Phi3Config(**_LLAMA, pad_token_id=0, tie_word_embeddings=True)
        )
    ),
    # values between the queries of one head and the next
    "hf_gpt_neox": _text(
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**_BERT, tie_word_embeddings=False))
    ),
    "hf_distilbert": _text(
        lambda: hf.DistilBertModel(
            hf.DistilBertConfig(vocab_size=61, dim=48, n_layers=2, n_heads=3, hidden_dim=64)
        )
    ),
    "hf_qwen3": _text(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_LLAMA))),
}
ROTARY = {
    "hf_phi3",
    "hf_gpt_neox",
    "hf_llama",
    "hf_llama_tied",
    "hf_mistral",
    "hf_qwen2",
    "hf_qwen3",
}


# --- models of open_clip --------------------------------------------------------------------

VISION = dict(layers=2, width=48, head_width=16, patch_size=8, image_size=32)
TEXT = dict(layers=2, width=32, heads=2, context_length=9, vocab_size=61)


def _own_attention():
    "A CLIP with open_clip's own attention in the image tower"
    vision = VISION | dict(block_type="custom", mlp_ratio=2.7)
    text = TEXT | dict(scale_attn=True, ls_init_value=0.1)
    return open_clip.CLIP(24, vision, text, quick_gelu=True, output_dict=True)


def _custom_text():
    "A CLIP whose text tower has a mask for each sample"
    vision = VISION | dict(ls_init_value=0.1, pool_type="avg")
    text = TEXT | dict(embed_cls=True, proj_bias=True, norm_kwargs={"eps": 1e-4})
    return open_clip.CustomTextCLIP(24, vision, text, init_logit_bias=-1.0)


def clip_of_others():
    "A CLIP whose towers are timm's and transformers'"
    model = open_clip.CustomTextCLIP(24, VISION, TEXT)
    visual = model.visual = TimmModel("test_vit", 24, image_size=32, pool="token")
    visual.trunk = timm.create_model("test_vit", img_size=32, depth=2, num_classes=0)
    config = hf.RobertaConfig(**_BERT, pad_token_id=0)
    text = model.text = HFTextEncoder("", 24, config, "mean_pooler", "mlp")
    text.transformer = hf.RobertaModel(text.config, add_pooling_layer=False)
    model.context_length, model.vocab_size = text.context_length, text.vocab_size
    return model


FAMILIES |= {
    # ViT-B/32, B/16, L/14 and all that are built like them
    "open_clip_mha": _clip(lambda: open_clip.CLIP(24, VISION, TEXT)),
    "open_clip_attn": _clip(_own_attention),
    "open_clip_custom_text": _clip(_custom_text),
    "open_clip_others": _clip(clip_of_others),
}
CLIPS = [name for name in FAMILIES if name.startswith("open_clip")]


def small_vit():
    "A ViT of 384 units, and four batches of 8 images and labels"
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=5,
    )
    model = randomised(model)
    return model, [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(4)]

"Small random models, one for each supported kind, with an input for each"

import open_clip
import timm
import torch
import transformers as hf
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from timm.models import VisionTransformer

from spp.method.objective import answer


def randomised(model, seed=0):
    "All parameters random and large enough that every unit, bias and norm is seen in the output"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.randn(p.shape, generator=g)
                * (1.5 / p.shape[-1] ** 0.5 if p.dim() > 1 else 0.3)
                + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            )
    return model.eval()


def out(model, x):
    return answer(model, x).out


def to(x, dtype):
    "Pictures in `dtype`; token ids stay what they are"
    if isinstance(x, dict):
        return {k: to(v, dtype) for k, v in x.items()}
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _timm(make):
    return lambda: (
        m := make(),
        torch.randn(2, 3, *m.patch_embed.img_size, generator=torch.Generator().manual_seed(1)),
    )


def _text(make):
    ids = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(1))

    def both():
        model = make()
        x = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3])}
        return model, x | ({"use_cache": False} if model.can_generate() else {})

    return both


def _vit(name, **kw):
    return _timm(
        lambda: timm.create_model(
            name, **{**dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=7), **kw}
        )
    )


def _swin(name, img_size):
    return _timm(
        lambda: timm.create_model(
            name,
            img_size=img_size,
            window_size=4,
            embed_dim=24,
            depths=(2, 2),
            num_heads=(2, 4),
            num_classes=7,
        )
    )


_SMALL = dict(
    vocab_size=61,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=32,
)
_PICTURE = dict(
    image_size=32,
    patch_size=8,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=64,
)
_LLAMA = dict(
    _SMALL,
    hidden_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    intermediate_size=64,
)
FAMILIES = {
    "deit_tiny": _timm(
        lambda: timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=11)
    ),
    "deit_tiny_distilled": _timm(
        lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=11)
    ),
    "vit_no_qkv_bias": _timm(
        lambda: VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=60,
            depth=3,
            num_heads=3,
            qkv_bias=False,
            num_classes=11,
        )
    ),
    "vit_registers_avg": _timm(
        lambda: timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            depth=2,
            num_classes=11,
            reg_tokens=4,
            global_pool="avg",
            init_values=1e-5,
        )
    ),
    "vit_features": _timm(
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    ),
    "vit_qk_norm": _timm(
        lambda: VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=48,
            depth=2,
            num_heads=3,
            qk_norm=True,
            num_classes=7,
        )
    ),
    "vit_norm_behind": _vit("vit_base_patch16_rpn_224"),
    "deit3": _vit("deit3_small_patch16_224"),
    "dinov2_giant": _vit("vit_giant_patch14_reg4_dinov2", img_size=28, mlp_ratio=8),
    "siglip": _vit("vit_base_patch16_siglip_224"),
    "swin": _swin(
        "swin_tiny_patch4_window7_224", 40
    ),  # 10 × 10 tokens in shifted windows of 4 × 4, filled up
    "swinv2": _swin("swinv2_tiny_window8_256", 64),
    "beit": _vit("beit_base_patch16_224"),
    "beit_shared_bias": _vit(
        "beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    "eva": _vit("eva_giant_patch14_224", img_size=28),
    "eva02": _vit("eva02_tiny_patch14_224", img_size=28),
    "eva02_split": _vit("eva02_base_patch14_224", img_size=28, scale_mlp=False, swiglu_align_to=8),
    "rope_mixed": _vit("vit_small_patch16_rope_mixed_224"),
    "hf_bert": _text(
        lambda: hf.BertModel(hf.BertConfig(**_SMALL, intermediate_size=64), add_pooling_layer=False)
    ),
    "hf_roberta": _text(
        lambda: hf.RobertaForSequenceClassification(
            hf.RobertaConfig(**_SMALL, intermediate_size=64, num_labels=5)
        )
    ),
    "hf_vit": lambda: (
        hf.ViTForImageClassification(
            hf.ViTConfig(
                image_size=32,
                patch_size=8,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=64,
                num_labels=7,
            )
        ),
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    ),
    "hf_clip_vision": lambda: (
        hf.CLIPVisionModel(
            hf.CLIPVisionConfig(
                image_size=32,
                patch_size=8,
                hidden_size=48,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=64,
            )
        ),
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    ),
    "hf_deit": lambda: (
        hf.DeiTForImageClassification(hf.DeiTConfig(**_PICTURE, num_labels=7)),
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    ),
    "hf_deit_distilled": lambda: (
        hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**_PICTURE, num_labels=7)),
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)),
    ),
    "hf_clip_text": _text(
        lambda: hf.CLIPTextModel(hf.CLIPTextConfig(**_SMALL, intermediate_size=64))
    ),
    "hf_clip": lambda: (
        m := hf.CLIPModel(
            hf.CLIPConfig(
                text_config=dict(_SMALL, intermediate_size=64),
                vision_config=_PICTURE,
                projection_dim=24,
            )
        ),
        _text(lambda: m)()[1]
        | {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))},
    ),
    "hf_gpt2": _text(
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=61, n_embd=48, n_layer=2, n_head=3, n_positions=32, n_inner=64)
        )
    ),
    "hf_gpt2_scaled": _text(
        lambda: hf.GPT2LMHeadModel(
            hf.GPT2Config(
                vocab_size=61,
                n_embd=48,
                n_layer=2,
                n_head=3,
                n_positions=32,
                scale_attn_by_inverse_layer_idx=True,
            )
        )
    ),
    "hf_opt": _text(
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**_SMALL, ffn_dim=64, word_embed_proj_dim=48))
    ),
    "hf_llama": _text(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA))),
    "hf_llama_tied": _text(
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**_LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True)
        )
    ),
    "hf_mistral": _text(
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**_LLAMA, sliding_window=None))
    ),
    "hf_qwen2": _text(
        lambda: hf.Qwen2ForCausalLM(
            hf.Qwen2Config(**{k: v for k, v in _LLAMA.items() if k != "head_dim"})
        )
    ),
    "hf_qwen3": _text(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_LLAMA))),
}
VISION, TEXT = (
    dict(layers=2, width=48, head_width=16, patch_size=8, image_size=32),
    dict(layers=2, width=32, heads=2, context_length=9, vocab_size=61),
)


def _clip(make):
    g = torch.Generator().manual_seed(1)
    return lambda: (
        make(),
        {
            "image": torch.randn(3, 3, 32, 32, generator=g.manual_seed(1)),
            "text": torch.randint(2, 61, (3, 9), generator=g)
            * torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 9]),
        },
    )


def clip_of_others():
    "A CLIP whose towers are timm's and transformers'"
    model = open_clip.CustomTextCLIP(24, VISION, TEXT)
    v = model.visual = TimmModel("vit_tiny_patch16_224", 24, image_size=32, pool="token")
    v.trunk = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
    t = model.text = HFTextEncoder(
        "",
        24,
        hf.RobertaConfig(**_SMALL, intermediate_size=64, pad_token_id=0),
        "mean_pooler",
        "mlp",
    )
    t.transformer = hf.RobertaModel(t.config, add_pooling_layer=False)
    model.context_length, model.vocab_size = t.context_length, t.vocab_size
    return model


FAMILIES |= {
    "open_clip_mha": _clip(
        lambda: open_clip.CLIP(24, VISION, TEXT)
    ),  # ViT-B/32, B/16, L/14 and all that are built like them
    "open_clip_attn": _clip(
        lambda: open_clip.CLIP(
            24,
            VISION | dict(block_type="custom", mlp_ratio=2.7),
            TEXT | dict(scale_attn=True, ls_init_value=0.1),
            quick_gelu=True,
            output_dict=True,
        )
    ),
    "open_clip_custom_text": _clip(
        lambda: open_clip.CustomTextCLIP(
            24,
            VISION | dict(ls_init_value=0.1, pool_type="avg"),
            TEXT | dict(embed_cls=True, proj_bias=True, norm_kwargs={"eps": 1e-4}),
            init_logit_bias=-1.0,
        )
    ),  # a mask for each sample
    "open_clip_others": _clip(clip_of_others),
}
CLIPS = [name for name in FAMILIES if name.startswith("open_clip")]
ROTARY = {"hf_llama", "hf_llama_tied", "hf_mistral", "hf_qwen2", "hf_qwen3"}


def small_vit():
    "A ViT of 384 units, and four batches of 8 images and labels"
    torch.manual_seed(0)
    model = randomised(
        timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=4,
            depth=2,
            embed_dim=32,
            num_heads=2,
            num_classes=5,
        )
    )
    return model, [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(4)]

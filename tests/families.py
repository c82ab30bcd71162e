"Small random models, one for each supported kind, with an input for each"
import timm
import torch
import transformers as hf
from timm.models import VisionTransformer
from spp.objective import answer

def randomised(model, seed=0):
    "All parameters random and large enough that every unit, bias and norm is seen in the output"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (1.5 / p.shape[-1] ** .5 if p.dim() > 1 else .3) + (1. if "norm" in name.lower() and name.endswith("weight") else 0.))
    return model.eval()

def out(model, x): return answer(model, x).out

def _timm(make): return lambda: (m := make(), torch.randn(2, 3, *m.patch_embed.img_size, generator=torch.Generator().manual_seed(1)))
def _text(make):
    ids = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    def both():
        model = make(); x = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3])}
        return model, x | ({"use_cache": False} if model.can_generate() else {})
    return both

def _vit(name, **kw): return _timm(lambda: timm.create_model(name, **{**dict(img_size=32, embed_dim=48, depth=2, num_heads=3, num_classes=7), **kw}))
def _swin(name, img_size): return _timm(lambda: timm.create_model(name, img_size=img_size, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=7))

_SMALL = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=32)
_LLAMA = dict(_SMALL, hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=12, intermediate_size=64)
FAMILIES = {
    "deit_tiny": _timm(lambda: timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=11)),
    "deit_tiny_distilled": _timm(lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=11)),
    "vit_no_qkv_bias": _timm(lambda: VisionTransformer(img_size=32, patch_size=8, embed_dim=60, depth=3, num_heads=3, qkv_bias=False, num_classes=11)),
    "vit_registers_avg": _timm(lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=11, reg_tokens=4, global_pool="avg", init_values=1e-5)),
    "vit_features": _timm(lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)),
    "vit_qk_norm": _timm(lambda: VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, qk_norm=True, num_classes=7)),
    "vit_norm_behind": _vit("vit_base_patch16_rpn_224"),
    "deit3": _vit("deit3_small_patch16_224"),
    "dinov2_giant": _vit("vit_giant_patch14_reg4_dinov2", img_size=28, mlp_ratio=8),
    "siglip": _vit("vit_base_patch16_siglip_224"),
    "swin": _swin("swin_tiny_patch4_window7_224", 40),       # 10 × 10 tokens in shifted windows of 4 × 4, filled up
    "swinv2": _swin("swinv2_tiny_window8_256", 64),
    "beit": _vit("beit_base_patch16_224"),
    "beit_shared_bias": _vit("beit_base_patch16_224", use_rel_pos_bias=False, use_shared_rel_pos_bias=True),
    "eva": _vit("eva_giant_patch14_224", img_size=28),
    "eva02": _vit("eva02_tiny_patch14_224", img_size=28),
    "eva02_split": _vit("eva02_base_patch14_224", img_size=28, scale_mlp=False, swiglu_align_to=8),
    "rope_mixed": _vit("vit_small_patch16_rope_mixed_224"),
    "hf_bert": _text(lambda: hf.BertModel(hf.BertConfig(**_SMALL, intermediate_size=64), add_pooling_layer=False)),
    "hf_roberta": _text(lambda: hf.RobertaForSequenceClassification(hf.RobertaConfig(**_SMALL, intermediate_size=64, num_labels=5))),
    "hf_vit": lambda: (hf.ViTForImageClassification(hf.ViTConfig(image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64, num_labels=7)),
                       torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))),
    "hf_clip_vision": lambda: (hf.CLIPVisionModel(hf.CLIPVisionConfig(image_size=32, patch_size=8, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=64)),
                               torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))),
    "hf_opt": _text(lambda: hf.OPTForCausalLM(hf.OPTConfig(**_SMALL, ffn_dim=64, word_embed_proj_dim=48))),
    "hf_llama": _text(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA))),
    "hf_llama_tied": _text(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True))),
    "hf_mistral": _text(lambda: hf.MistralForCausalLM(hf.MistralConfig(**_LLAMA, sliding_window=None))),
    "hf_qwen2": _text(lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**{k: v for k, v in _LLAMA.items() if k != "head_dim"}))),
    "hf_qwen3": _text(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_LLAMA))),
}
ROTARY = {"hf_llama", "hf_llama_tied", "hf_mistral", "hf_qwen2", "hf_qwen3"}

def small_vit():
    "A ViT of 384 units, and four batches of 8 images and labels"
    torch.manual_seed(0)
    model = randomised(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=32, num_heads=2, num_classes=5))
    return model, [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(4)]

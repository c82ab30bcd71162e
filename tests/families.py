"Small random models, one for each supported kind"
import timm
import torch
from timm.models import VisionTransformer

def randomised(model, seed=0):
    "All parameters random and large enough that every unit, bias and norm is seen in the output"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (1.5 / p.shape[-1] ** .5 if p.dim() > 1 else .3) + (1. if "norm" in name and name.endswith("weight") else 0.))
    return model.eval()

FAMILIES = {
    "deit_tiny": lambda: timm.create_model("deit_tiny_patch16_224", img_size=64, num_classes=11),
    "deit_tiny_distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", img_size=64, num_classes=11),
    "vit_no_qkv_bias": lambda: VisionTransformer(img_size=32, patch_size=8, embed_dim=60, depth=3, num_heads=3, qkv_bias=False, num_classes=11),
    "vit_registers_avg": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=11, reg_tokens=4, global_pool="avg", init_values=1e-5),
    "vit_features": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0),
}

def small_vit():
    "A ViT of 384 units, and four batches of 8 images and labels"
    torch.manual_seed(0)
    model = randomised(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=32, num_heads=2, num_classes=5))
    return model, [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(4)]

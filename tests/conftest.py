"Models and batches that the tests share"
import pytest
import timm
import torch
from families import FAMILIES, randomised

@pytest.fixture(params=FAMILIES)
def family(request):
    "(model, an input) for each supported kind of model, small and random"
    model = randomised(FAMILIES[request.param]())
    torch.manual_seed(1)
    return model, torch.randn(2, 3, *model.patch_embed.img_size)

@pytest.fixture
def small():
    "A ViT that searches in a second, and batches for it"
    torch.manual_seed(0)
    model = randomised(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=32, num_heads=2, num_classes=5))
    return model, [(torch.randn(8, 3, 16, 16), torch.arange(8) % 5) for _ in range(4)]

"Models and batches that the tests share"
import pytest
import torch
from families import FAMILIES, randomised, small_vit

@pytest.fixture(params=FAMILIES)
def family(request):
    "(model, an input) for each supported kind of model, small and random"
    model = randomised(FAMILIES[request.param]())
    torch.manual_seed(1)
    return model, torch.randn(2, 3, *model.patch_embed.img_size)

@pytest.fixture
def small():
    "A ViT that searches in a second, and batches for it"
    return small_vit()

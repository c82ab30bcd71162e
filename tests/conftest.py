"Models and batches that the tests share"

import pytest
from families import FAMILIES, randomised, small_vit


@pytest.fixture(params=FAMILIES)
def family(request):
    "(model, an input) for each supported kind of model, small and random"
    model, x = FAMILIES[request.param]()
    return randomised(model), x


@pytest.fixture
def small():
    "A ViT that searches in a second, and batches for it"
    return small_vit()


def pytest_configure(config):
    config.addinivalue_line("markers", "slurm: needs a Slurm cluster, see tests/slurm")

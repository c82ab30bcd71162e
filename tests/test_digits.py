"The small ViT that comes with the package can be made again"

import pytest
import torch

from spp.judging.data import digits, digits_vit, train_digits_vit
from spp.judging.evaluate import accuracy


@pytest.mark.slow
def test_training_begins_as_it_did():
    "Four epochs of the recipe give what they gave when the shipped weights were made."
    model = train_digits_vit(epochs=4, progress=False)
    weights = torch.cat([p.double().flatten() for p in model.parameters()])
    assert accuracy(model, digits(shift=1)[1]) == pytest.approx(0.348, abs=0.002)
    assert weights.norm().item() == pytest.approx(48.469917, rel=1e-6)
    assert model.head.weight.abs().mean().item() == pytest.approx(0.1425339, rel=1e-5)


@pytest.mark.long
def test_trained_again():
    "From new weights, in 200 epochs: half a per cent of accuracy, and nearly the same weights."
    model, shipped = train_digits_vit(progress=False), digits_vit()
    _, test = digits(shift=1)
    assert accuracy(shipped, test) >= 0.98
    assert abs(accuracy(model, test) - accuracy(shipped, test)) <= 0.005
    want = shipped.state_dict()
    assert max((w - want[k]).abs().max().item() for k, w in model.state_dict().items()) < 1e-3

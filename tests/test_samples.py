"The samples of the lab are what they are called; skipped where the registries are away"

import pytest
import torch
from torch.nn import functional as F

from spp.lab.samples import _new_vit as new_vit
from spp.lab.samples import dinov2, emoji, fashion_mnist, minilm, smollm2, wikipedia
from spp.method.objective import mean_token, next_token

pytestmark = pytest.mark.slow


def fetched(sample, *args, **kwargs):
    "What `sample` returns; the test is skipped where a registry cannot be reached"
    try:
        return sample(*args, **kwargs)
    except ConnectionError as e:
        pytest.skip(str(e))


@torch.no_grad()
def finds_its_mirror(model, x):
    "Share of the pictures `x` whose nearest neighbour among all mirrored pictures is their own"
    own = F.normalize(model(x)[:, 0], dim=1)
    mirrored = F.normalize(model(x.flip(3))[:, 0], dim=1)
    return ((own @ mirrored.T).argmax(1) == torch.arange(len(x))).float().mean().item()


def test_dinov2_has_learned_to_see():
    "A picture and its mirror image are neighbours, and less often so with new weights"
    model = fetched(dinov2)
    x, _ = fetched(fashion_mnist, train=False, n=64)
    torch.manual_seed(0)
    assert finds_its_mirror(model, x) > 0.8 > finds_its_mirror(new_vit(84), x) + 0.1


def test_minilm_knows_neighbours_in_meaning():
    encoder, tokenizer = fetched(minilm)
    texts = ["a cat on a mat", "a kitten on a rug", "the law of large numbers"]
    x = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    with torch.no_grad():
        cat, kitten, law = F.normalize(mean_token(encoder(**x), x), dim=1)
    assert cat @ kitten > 0.5 > cat @ law


def test_smollm2_predicts_articles():
    "The perplexity of an article is below 40, that of its shuffled tokens above"
    model, tokenizer = fetched(smollm2)
    text = fetched(wikipedia)[0][:4000]
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
    mixed = ids[:, torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        plain, shuffled = (next_token(model(x).logits, x).exp().item() for x in (ids, mixed))
    assert plain < 40 < shuffled


def test_emoji_in_two_styles():
    things = fetched(emoji)
    assert [list(x.shape) for x in things.styles.values()] == [[849, 3, 48, 48]] * 2
    assert len(things.names) == len(things.tags) == 849
    with pytest.raises(ValueError, match=r"no emoji in groups=\(2,\)"):
        emoji(groups=(2,))

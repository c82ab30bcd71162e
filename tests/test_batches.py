"""Batches of every kind × models of every kind: the right objective, its value checked, or what to
yield instead"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import open_clip
import pytest
import timm
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import spp
from spp.judging.baselines import taylor
from spp.judging.evaluate import accuracy, evaluate
from spp.method.labels import fitted
from spp.method.objective import answer
from spp.models.batches import parts, stream
from spp.models.pairs import find_pairs
from spp.training.losses import Lesson

N, T, WORDS = 6, 7, 41
SMALL = dict(
    vocab_size=WORDS,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
)
IMAGE = dict(image_size=16, patch_size=8, hidden_size=32, intermediate_size=48)


class Two(nn.Module):
    "A model with two inputs, of one's own"

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 8)
        self.b = nn.Linear(8, 3)

    def forward(self, left, right):
        return self.b(torch.tanh(self.a(left + right)))


class Tagger(nn.Module):
    "Classes of tokens, of a module that says nothing about itself"

    def __init__(self, classes=3):
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        return self.head(self.words(x))


def bert(kind: str, **how) -> nn.Module:
    return getattr(hf, f"Bert{kind}")(hf.BertConfig(**SMALL, **how))


def clip() -> nn.Module:
    vision = dict(layers=1, width=32, head_width=16, patch_size=8, image_size=16)
    text = dict(layers=1, width=32, heads=2, context_length=T, vocab_size=WORDS)
    return open_clip.CLIP(24, vision, text)


def hf_clip() -> nn.Module:
    text = {**SMALL, "max_position_embeddings": T, "eos_token_id": 1}
    vision = {**IMAGE, "num_hidden_layers": 1, "num_attention_heads": 4}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))


def bart(kind: str) -> nn.Module:
    layers = dict(encoder_layers=1, decoder_layers=1, max_position_embeddings=32)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    widths = dict(d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=WORDS)
    config = hf.BartConfig(**layers, **heads, **widths, num_labels=3, eos_token_id=1)
    return getattr(hf, f"Bart{kind}")(config)


VIT = dict(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: timm.create_model("vit_tiny_patch16_224", **VIT, num_classes=3),
    "headless": lambda: timm.create_model("vit_tiny_patch16_224", **VIT, num_classes=0),
    "two inputs": Two,
    "tagger": Tagger,
    "square tagger": lambda: Tagger(T),
    "bert": lambda: bert("ForSequenceClassification", num_labels=3),
    "multi-label": lambda: bert(
        "ForSequenceClassification", num_labels=3, problem_type="multi_label_classification"
    ),
    "regression": lambda: bert("ForSequenceClassification", num_labels=1),
    "token classes": lambda: bert("ForTokenClassification", num_labels=T),
    "masked": lambda: bert("ForMaskedLM"),
    "questions": lambda: bert("ForQuestionAnswering"),
    "bert body": lambda: bert("Model"),
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(**IMAGE, num_hidden_layers=1, num_attention_heads=4, num_labels=3)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "bart": lambda: bart("ForConditionalGeneration"),
    "bart classes": lambda: bart("ForSequenceClassification"),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=WORDS,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
        )
    ),
    "clip": clip,
    "hf clip": hf_clip,
}


@cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def tensors() -> dict[str, Tensor]:
    "Everything that batches are made of"
    torch.manual_seed(1)
    ids = torch.randint(2, WORDS - 1, (N, T))
    ids[:, -1] = 1  # the end of a text
    mask = torch.ones(N, T).long()
    mask[1, 4:] = 0
    target = torch.randint(2, WORDS, (N, 5))
    target[1, 3:] = -100
    tags = torch.randint(0, 3, (N, T))
    tags[1, 4:] = -100
    return dict(
        ids=ids,
        mask=mask,
        target=target,
        tags=tags,
        types=torch.zeros(N, T).long(),
        images=torch.randn(N, 3, 16, 16),
        left=torch.randn(N, 4),
        right=torch.randn(N, 4),
        y=torch.randint(0, 3, (N,)),
        several=torch.tensor([[1.0, 1.0, 0.0]] * N),
        shares=torch.tensor([[0.8, 0.1, 0.1]] * N),
        value=torch.rand(N),
    )


W = tensors()


@dataclass
class Row:
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class Named(NamedTuple):
    pixel_values: Tensor
    labels: Tensor


class Unnamed(NamedTuple):
    picture: Tensor
    target: Tensor


def text(**more: Any) -> dict:
    return dict(input_ids=W["ids"], attention_mask=W["mask"], **more)


def encoded(**more: Any) -> hf.BatchEncoding:
    return hf.BatchEncoding(text(**more))


# What a batch must mean: the model's own call, and the loss of its output and the labels -------


def logits(model: nn.Module, *args: Any, **kw: Any) -> Tensor:
    out = model(*args, **kw)
    return out if isinstance(out, Tensor) else out.logits


def classes(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y)


def tokens(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, 1), y.flatten())


def own_loss(model: nn.Module, *args: Any, **kw: Any) -> Tensor:
    "What transformers itself computes from the labels"
    return model(*args, **kw).loss


def clip_loss(model: nn.Module) -> Tensor:
    image, words, scale = model(W["images"], W["ids"])[:3]
    return open_clip.ClipLoss()(image, words, scale)


IDS, MASK, Y = W["ids"], W["mask"], W["y"]
# model, batch, the value of its loss
RIGHT: dict[str, tuple[str, Any, Callable[[nn.Module], Tensor]]] = {}


def right(name: str, model: str, batch: Any, value: Callable[[nn.Module], Tensor]) -> None:
    RIGHT[f"{model}, {name}"] = model, batch, value


X = W["images"]
right("tuple", "timm", (X, Y), lambda m: classes(m(X), Y))
right("list", "timm", [X, Y], lambda m: classes(m(X), Y))
right("dict of one", "timm", {"image": X, "label": Y}, lambda m: classes(m(X), Y))
right("dict by name", "timm", {"x": X, "labels": Y}, lambda m: classes(m(X), Y))
right("NamedTuple", "timm", Unnamed(X, Y), lambda m: classes(m(X), Y))
right("shares", "timm", (X, W["shares"]), lambda m: classes(m(X), W["shares"]))
for made in (lambda x, y: (x, y), lambda x, y: {"pixel_values": x, "labels": y}, Named):
    batch = made(X, Y)
    right(type(batch).__name__, "vit", batch, lambda m: own_loss(m, X, labels=Y))
right("(dict, y)", "vit", ({"pixel_values": X}, Y), lambda m: own_loss(m, X, labels=Y))
A, B = W["left"], W["right"]
right("(a, b, y)", "two inputs", (A, B, Y), lambda m: classes(m(A, B), Y))
right("((a, b), y)", "two inputs", ((A, B), Y), lambda m: classes(m(A, B), Y))
right("dict", "two inputs", dict(left=A, right=B, labels=Y), lambda m: classes(m(A, B), Y))
right("(ids, tags)", "tagger", (IDS, W["tags"]), lambda m: tokens(m(IDS), W["tags"]))

for name, made in {
    "dict": lambda y: text(labels=y),
    "BatchEncoding": lambda y: encoded(labels=y),
    "dataclass": lambda y: Row(IDS, MASK, y),
    "label": lambda y: text(label=y),
    "label_ids": lambda y: text(label_ids=y),
    "(dict, y)": lambda y: (text(), y),
}.items():
    for kind, y in {
        "bert": Y,
        "multi-label": W["several"],
        "regression": W["value"],
        "token classes": W["tags"],
        "masked": torch.where(IDS % 2 == 0, IDS, -100),
        "llama": torch.where(MASK.bool(), IDS, -100),
        "bart classes": Y,
        "bart": W["target"],
        "t5": W["target"],
    }.items():
        right(
            name,
            kind,
            made(y),
            lambda m, y=y: own_loss(m, **text(labels=y)),
        )
right("(ids, mask, y)", "bert", (IDS, MASK, Y), lambda m: own_loss(m, **text(labels=Y)))
right("[ids, mask, y]", "bert", [IDS, MASK, Y], lambda m: own_loss(m, **text(labels=Y)))
right(
    "(ids, mask, several)",
    "multi-label",
    (IDS, MASK, W["several"]),
    lambda m: own_loss(m, **text(labels=W["several"])),
)
right("(ids, y)", "bert", (IDS, Y), lambda m: own_loss(m, IDS, labels=Y))
right("(ids, ids)", "llama", (IDS, IDS), lambda m: own_loss(m, IDS, labels=IDS))
right(
    "with types",
    "bert",
    text(token_type_ids=W["types"] + 1, labels=Y),
    lambda m: own_loss(m, **text(token_type_ids=W["types"] + 1, labels=Y)),
)
right("(images, texts)", "clip", (X, IDS), clip_loss)
right("dict", "clip", {"image": X, "text": IDS}, clip_loss)
right(
    "(images, texts)",
    "hf clip",
    (X, IDS),
    lambda m: m(input_ids=IDS, pixel_values=X, return_loss=True).loss,
)
right(
    "(texts, images)",
    "hf clip",
    (IDS, X),
    lambda m: m(input_ids=IDS, pixel_values=X, return_loss=True).loss,
)


@pytest.mark.parametrize("name", RIGHT)
def test_objective_that_fits(name):
    "The loss without a `loss=` is the one that the model's own library computes"
    kind, batch, value = RIGHT[name]
    model = model_of(kind)
    x, y = parts(batch, model)
    with torch.no_grad():
        a = answer(model, x)
        got = Lesson(None, None, 0.5, 1.0, 0.0).cost(model, x, y)
        torch.testing.assert_close(got, value(model), rtol=1e-5, atol=1e-6)
    assert fitted(a, y) is not None


# model, batch, words of the refusal
REFUSED: dict[str, tuple[str, Any, str]] = {
    "a mask or labels": ("bert", (IDS, MASK), r"could be an attention mask or a label"),
    "a mask or labels of tokens": ("token classes", (IDS, MASK), r"could be an attention mask"),
    "types or labels": ("bert", (IDS, MASK, W["types"]), r"Yield a dict with the names"),
    "four in a row": ("bert", (IDS, MASK, W["types"], Y), r"4 in all, .* is not clear"),
    "three images": ("timm", (X, X, Y), r"Yield \(inputs, labels\)|Yield a dict"),
    "a column too many": ("bert", text(idx=Y, labels=Y), r"has `idx`, which BertFor.* not take"),
    "a wrong name": ("timm", {"image": X, "meta": Y, "label": Y}, r"`image`, `meta`"),
    "labels twice": ("bert", text(label=Y, labels=Y), r"has labels twice, labels and label"),
    "labels inside and after": ("bert", (text(labels=Y), Y), r"labels twice, in its dict"),
    "labels alone": ("bert", {"labels": Y}, r"has labels and no inputs"),
    "lists of ids": ("bert", {"input_ids": IDS.tolist()}, r"return_tensors='pt'"),
    "texts": ("bert", {"input_ids": ["a dog"] * N}, r"texts go through a tokenizer"),
    "a column of texts": ("bert", text(sentence=["a dog"] * N), r"leave other columns out"),
    "NumPy by name": ("bert", {"input_ids": IDS.numpy()}, r"write torch.from_numpy\(x\)"),
    "NumPy images": ("timm", (X.numpy(), Y), r"write torch.from_numpy\(x\)"),
    "NumPy labels": ("timm", (X, Y.numpy()), r"write torch.from_numpy\(labels\)"),
    "a list of labels": ("timm", (X, Y.tolist()), r"write torch.tensor\(labels\)"),
    "samples of dicts": ("bert", [text(), text()], r"list of 2 samples that are not put together"),
    "samples of pairs": ("timm", [(X[0], 1), (X[1], 0)], r"pass a\s+collate function"),
    "a single sample": ("timm", (X[0], 3), r"yields single samples.*DataLoader"),
    "a single sample, a tensor": ("timm", (X[0], Y[0]), r"yields single samples"),
    "no target": ("bart", text(), r"writes a text for each input.*`labels`, the target tokens"),
    "no target, t5": ("t5", text(), r"writes a text for each input"),
    "strings for a CLIP": ("clip", (X, ["a dog"] * N), r"texts of a batch are strings: tokenize"),
    "images and labels for a CLIP": ("clip", (X, Y), r"has no `text`"),
    "two for three": ("two inputs", (A,), r"which of them Two takes is not clear"),
    "an object": ("timm", object(), r"a batch is an object. Yield \(inputs, labels\)"),
    "several classes for a softmax": ("timm", (X, W["several"]), r"whose sum is not 1"),
    "several classes, unsaid": ("bert", text(labels=W["several"]), r"problem_type"),
    "classes for a sigmoid": ("multi-label", text(labels=Y), r"a 0 or 1 for each: shape \[6, 3\]"),
    "classes for values": ("regression", text(labels=W["tags"]), r"answers with 1 values"),
    "a class for tokens": ("token classes", text(labels=Y), r"answers for each token: labels"),
    "a class for a next token": ("llama", text(labels=Y), r"labels are the tokens themselves"),
    "two axes": ("square tagger", (IDS, W["tags"]), r"compared along two axes"),
    "values for classes": ("two inputs", (A, B, W["value"]), r"classes, or values\?"),
    "labels without a head": ("headless", (X, Y), r"has no head"),
    "labels of a body": ("bert body", (text(), Y), r"has no head"),
    "questions": ("questions", text(), r"neither a tensor `logits`.*read="),
    "out of range": ("timm", (X, Y + 2), r"outputs have 3 classes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_what_to_yield(name):
    "A batch of two meanings, or none, is an error of spp's own that says what to write"
    kind, batch, words = REFUSED[name]
    model = model_of(kind)
    with pytest.raises((TypeError, ValueError), match=f"(?s){words}"):
        x, y = parts(batch, model)
        Lesson(None, None, 0.5, 1.0, 0.0).cost(model, x, y)


def test_enough_cells():
    assert len(RIGHT) + len(REFUSED) >= 60


# One door: search, repair, fine-tune and evaluate take the same batches ------------------------


def test_every_function_sees_the_mask():
    "A triple (ids, mask, labels) is the dict with a mask, for each function that takes data"
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = bert("ForSequenceClassification", num_labels=3, **still).eval()
    triple = DataLoader(TensorDataset(IDS, MASK, Y), batch_size=3)
    named = [dict(input_ids=a, attention_mask=b, labels=c) for a, b, c in triple]
    blind = [dict(input_ids=a, labels=c) for a, _, c in triple]

    def everything(data):
        path = spp.search(model, data, steps=3, progress=False)
        small = path.cut(units=0.6, repair=data)
        repaired = torch.cat([p.detach().flatten() for p in small.parameters()])
        found = [path.v, repaired, taylor(model, find_pairs(model), stream(data, 2, model))]
        log = spp.finetune(small, data, teacher=model, epochs=1, progress=False)
        found.append(torch.tensor(log.loss.tolist()))
        found.append(
            torch.tensor([accuracy(small, data), evaluate(model, data)["scores"]["top-1"]])
        )
        return found

    with pytest.warns(UserWarning, match="few tokens"):
        one, other, without = map(everything, (triple, named, blind))
    for a, b in zip(one, other):
        assert torch.equal(a, b)
    assert not torch.equal(one[0], without[0])


def test_seq2seq_counts_the_tokens_of_the_target():
    "Of a decoder's output the target's tokens count, not those of the source's mask"
    model = model_of("bart")
    target = W["target"].new_full((N, T), 5)
    target[0, 2:] = -100  # as long as the source, and padded elsewhere
    x, _ = parts(text(labels=target), model)
    assert answer(model, x).seen.tolist() == (target != -100).long().tolist()
    given = text(decoder_input_ids=target.clamp(min=0), decoder_attention_mask=1 - MASK)
    x, _ = parts(given, model)
    assert torch.equal(answer(model, x).seen, 1 - MASK)


def test_multiple_choice():
    "Ids of shape [batch, choices, tokens]: labels count, and what is written in padding does not"
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = bert("ForMultipleChoice", **still).eval()
    n = 72
    ids = torch.randint(1, WORDS, (n, 3, T), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[:, 1, 3:] = 0
    labels = torch.arange(n) % 3
    whole = dict(input_ids=ids, attention_mask=mask, labels=labels)
    other = whole | dict(input_ids=torch.where(mask.bool(), ids, (7 * ids + 1) % WORDS))
    x, y = parts(whole, model)
    a = answer(model, x)
    assert (a.fits, a.seen, a.out.shape) == ("classes", None, (n, 3))
    torch.testing.assert_close(fitted(a, y)(a.out, y), model(**whole).loss)

    def small(batch):
        data = [{k: v[i : i + 24] for k, v in batch.items()} for i in range(0, n, 24)]
        path = spp.search(spp.balance(model, data, progress=False), data, steps=3, progress=False)
        return path.cut(units=0.6, repair=data), data

    (ours, data), (theirs, _) = small(whole), small(other)
    assert ours.spp.path["repair"]["samples"] == n
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    hits = model(**{k: v for k, v in whole.items() if k != "labels"}).logits.argmax(1) == labels
    assert accuracy(model, data) == hits.float().mean()
    assert spp.finetune(ours, data, model, epochs=1, progress=False).loss.notna().all()


def test_several_classes_and_values_are_measured(tmp_path):
    "evaluate takes what fits the head; accuracy says what to write; a size is picked by f1"
    from spp.judging.answers import f1, squared_error

    model = model_of("multi-label").eval()
    sets = [text(labels=(model(**text()).logits > 0).float())]
    found = evaluate(model, sets)
    assert (found["task"], found["n"], found["scores"]["F1"]) == ("multilabel", N, 1.0)
    path = spp.search(model, sets, steps=3, progress=False)
    for call in (lambda: accuracy(model, sets), lambda: path.pick(sets, progress=False)):
        with pytest.raises(ValueError, match=r"several classes at once.*answers.f1\(model, data\)"):
            call()
    how = dict(drop=0.5, level=None, cuts=2, progress=False)
    small = path.pick(lambda m: f1(m, sets), **how)
    back = spp.load(spp.save(small, tmp_path / "picked"))
    assert back.spp.path["pick"]["score"] == pytest.approx(f1(small, sets).mean().item())
    model = model_of("regression").eval()
    values = [text(labels=model(**text()).logits.squeeze(1) + 2)]
    found = evaluate(model, values)
    assert found["task"] == "regression"
    assert found["scores"] == pytest.approx({"squared error": 4, "absolute error": 2}, rel=1e-5)
    with pytest.raises(ValueError, match=r"answers.squared_error\(model, data\)"):
        accuracy(model, values)
    told = spp.compare(model, model, lambda m: -squared_error(m, values))
    assert (told.drop, told.n) == (0, N)


def test_as_many_classes_as_tokens_and_samples():
    "Logits [batch, classes] have no tokens, whatever their shape"
    model = bert("ForSequenceClassification", num_labels=T).eval()
    x = dict(input_ids=torch.ones(T, T).long(), attention_mask=torch.ones(T, T).long())
    a = answer(model, x)
    assert a.seen is None
    assert a.fits == "classes"


def test_headless_backbone_ignores_labels_with_a_teacher():
    "The ten lines of the README on (images, labels): what is learned is the teacher's features"
    model = model_of("headless")
    data = [(X, Y + 40 * (Y % 2)), (X.flip(0), Y)]
    small = spp.search(model, data, steps=3, progress=False).cut(units=0.6)
    with_labels = spp.finetune(small, data, teacher=model, epochs=1, progress=False)
    again = spp.search(model, data, steps=3, progress=False).cut(units=0.6)
    without = spp.finetune(again, [x for x, _ in data], teacher=model, epochs=1, progress=False)
    assert with_labels.loss.tolist() == without.loss.tolist()
    with pytest.raises(ValueError, match="has no head, it answers with features"):
        accuracy(model, data)


class Endless(IterableDataset):
    def __iter__(self):
        for i in range(N):
            yield X[i], Y[i]


def test_data_without_a_length():
    "Search, evaluation and repair take it; fine-tuning says what it needs"
    model = model_of("timm")
    loader = DataLoader(Endless(), batch_size=2)
    with pytest.raises(TypeError):
        len(loader)
    small = spp.search(model, loader, steps=5, progress=False).cut(units=0.6)
    whole = [(X[:2], Y[:2]), (X[2:4], Y[2:4]), (X[4:], Y[4:])]
    assert accuracy(small, loader) == accuracy(small, whole)
    assert evaluate(small, loader)["n"] == N
    with pytest.raises(TypeError, match="IterableDataset|DataLoader does not say how many"):
        spp.finetune(small, loader, teacher=model, epochs=1, progress=False)


def test_multi_label_search_measures_sigmoids():
    "Of a sigmoid per class the distance and its curvature are those of yes and no"
    model = model_of("multi-label")
    from spp.method.objective import Problem, distill, fisher
    from spp.models.gates import gated

    x, _ = parts(text(), model)
    with torch.no_grad():
        a = answer(model, x)
        b = a._replace(out=a.out + torch.tensor([0.5, 0.0, 0.0]))
    p, q = a.out.sigmoid()[:, 0], b.out.sigmoid()[:, 0]
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(distill(b, a), kl.mean())
    pairs = find_pairs(model)
    with gated(model, pairs) as gates:
        problem = Problem(model, gates)
        drawn = fisher(problem, [(x, None)] * 300, torch.Generator().manual_seed(0))
        gates.set(torch.ones(N, gates.n))
        a = problem.answer(x)
        exact = 0.0
        for k in range(3):
            left = gates.grad(a.out[:, k].sum(), again=True)
            s = a.out[:, k].sigmoid().detach()
            exact = exact + ((s * (1 - s))[:, None] * left.square()).mean(0)
    torch.testing.assert_close(drawn.sum(), exact.sum(), rtol=0.1, atol=0.0)

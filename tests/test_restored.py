"""The user's model after every public function: as it was, after errors and Ctrl-C, too.

A fault is set into the middle of a function by `nn.Linear.forward`, of the class, which raises at
one of its calls; or by the data, at its second batch.
"""

import copy
import functools

import pytest
import timm
import torch
from causal import CAUSAL, IDS
from torch import nn
from torch.nn import functional as F

import spp
from spp.core.restored import restored
from spp.cutting.budget import macs_of, unit_costs
from spp.cutting.latency import kernels, relative_latency
from spp.cutting.latency import measure as measure_latency
from spp.judging.baselines import baseline
from spp.judging.evaluate import accuracy, evaluate
from spp.judging.retrieval import embed
from spp.llm.calibration import _check_places, walk_blocks
from spp.llm.text import perplexity
from spp.llm.units import batches
from spp.llm.weight_paths import one_shot, weight_path
from spp.method.balance import moments


class Fault(Exception):
    "What goes wrong in the middle"


FAULTS = (Fault, KeyboardInterrupt)
QUIET = dict(progress=False)


def see(*_):
    "A hook that the user has hung on the model"


def vit():
    "In training mode, except for a batch norm and a block; partly frozen, with half of a gradient"
    torch.manual_seed(0)
    size = dict(img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=4)
    model = timm.create_model("vit_tiny_patch16_224", **size, drop_rate=0.1)
    model.fc_norm = nn.BatchNorm1d(32)
    model.train()
    model.blocks[0].eval()
    model.fc_norm.eval()
    model.patch_embed.requires_grad_(False)
    model.head(torch.ones(2, 32)).sum().backward()
    model.head.register_forward_hook(see)
    return model


def llama():
    "A language model whose blocks have a `forward` of their own, as accelerate gives them"
    torch.manual_seed(0)
    model = CAUSAL["llama_gqa"]().train()
    model.model.layers[0].eval()
    for block in model.model.layers:
        block.forward = functools.partial(type(block).forward, block)
    model.lm_head(torch.ones(1, 48)).sum().backward()
    return model


def samples(n=3):
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(4)
    return [(torch.randn(4, 3, 16, 16, generator=draw), labels) for _ in range(n)]


def state_of(model):
    "All that a function must leave alone, by name"
    found = {}
    for name, module in model.named_modules():
        own = vars(module)
        hooks = {k: list(x.items()) for k, x in own.items() if "_hooks" in k and x}
        found[f"module {name}"] = (module.training, hooks, own.get("forward"))
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        grad = None if x.grad is None else (id(x.grad), x.grad.clone())
        found[f"tensor {name}"] = (id(x), x.data_ptr(), x.device, x.requires_grad)
        found[f"gradient {name}"] = grad
        found[f"values {name}"] = x.detach().clone()
    return found


def alike(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


def differing(before, after):
    return [name for name in before | after if not alike(before.get(name), after.get(name))]


def searched(model, data=None):
    return spp.search(model, data or samples(), steps=2, **QUIET)


def cut_of(model):
    return searched(model).cut(params=0.7)


# name → (what is called with the model and the data, whether it reads the data)
CALLS = {
    "search": (lambda m, d: spp.search(m, d, steps=3, **QUIET), True),
    "search with labels": (lambda m, d: spp.search(m, d, F.cross_entropy, 3, **QUIET), True),
    "plain": (lambda m, d: spp.search(m, d, steps=3, method="plain", **QUIET), True),
    "balance": (lambda m, d: spp.balance(m, d, batches=3, **QUIET), True),
    "moments": (
        lambda m, d: moments(m, [p for p in spp.find_pairs(m) if p.kind == "vo"], d, 3),
        True,
    ),
    "teacher": (lambda m, d: spp.finetune(cut_of(m), d, m, 1, features=1.0, **QUIET), True),
    "walk": (lambda m, d: spp.walk(searched(m), d, (0.8,), 1, align=1, **QUIET), True),
    "joint": (lambda m, d: spp.joint(searched(m), d, (1.0, 0.8), 1, align=1, **QUIET), True),
    "accuracy": (accuracy, True),
    "classification": (evaluate, True),
    "fidelity": (lambda m, d: evaluate(m, d, "fidelity", dense=copy.deepcopy(m)), True),
    "knn": (lambda m, d: evaluate(m, d, "knn", train=d), True),
    "fisher": (lambda m, d: baseline("fisher", m, d, 3), True),
    "taylor": (lambda m, d: baseline("taylor", m, d, 3), True),
    "magnitude": (lambda m, d: baseline("magnitude", m), False),
    "macs_of": (lambda m, d: macs_of(m, d[0][0][:1]), False),
    "unit_costs": (lambda m, d: unit_costs(m, spp.find_pairs(m), d[0][0][:1]), False),
    "relative_latency": (lambda m, d: relative_latency([m], m, d[0][0], 2), False),
    "measure": (lambda m, d: time_layers(m, d), False),
    "kernels": (lambda m, d: kernels(m, d[0][0]), False),
    "summary": (lambda m, d: spp.summary(m, d[0][0], latency=True), False),
    "cut": (
        lambda m, d: spp.cut(m, spp.find_pairs(m), torch.ones(sum(p.n for p in spp.find_pairs(m)))),
        False,
    ),
    "a path": (lambda m, d: searched(m).attach(m).cut(params=0.7), False),
    "family": (lambda m, d: use_family(m, d), False),
}
TRAINS = ("teacher", "walk", "joint")  # with dropout, which draws from the global generator


def time_layers(model, data):
    pairs = spp.find_pairs(model)
    x = data[0][0][:1]
    return measure_latency(model, pairs, unit_costs(model, pairs, x), x, (0.5,), 1, False)


def use_family(model, data):
    family = spp.Family(model, searched(model))
    assert not family.at(params=0.7).training
    family.score(lambda member: accuracy(member, data), (0.8,))


class Broken(list):
    "Batches of which the second cannot be read"

    def __init__(self, batches, error):
        super().__init__(batches)
        self.error = error

    def __iter__(self):
        for i, batch in enumerate(super().__iter__()):
            if i == 1:
                raise self.error
            yield batch


class Tripwire:
    "Counts the calls of linear layers; at number `at` it raises"

    def __init__(self, monkeypatch, error=None, at=-1):
        self.calls = 0
        forward = nn.Linear.forward

        def trip(layer, x):
            self.calls += 1
            if self.calls == at:
                raise error
            return forward(layer, x)

        monkeypatch.setattr(nn.Linear, "forward", trip)


def after_faults(make, call, reads, monkeypatch):
    "Run `call` to its end, and into faults; what had changed, by what happened"
    found = {}
    with monkeypatch.context() as patch:
        model = make()
        before = state_of(model)
        wire = Tripwire(patch)
        random = torch.get_rng_state()
        call(model, samples())
        found["the end"] = differing(before, state_of(model))
        drew = not torch.equal(random, torch.get_rng_state())
    for error in FAULTS:
        for share in (0.1, 0.5, 0.95) if wire.calls else ():
            with monkeypatch.context() as patch:
                Tripwire(patch, error, at=max(1, int(share * wire.calls)))
                with pytest.raises(error):
                    call(model, samples())
            found[f"{error.__name__} at {share}"] = differing(before, state_of(model))
        if reads:
            with pytest.raises(error):
                call(model, Broken(samples(), error))
            found[f"{error.__name__} of the data"] = differing(before, state_of(model))
    return {name: changed for name, changed in found.items() if changed}, drew


@pytest.mark.parametrize("name", CALLS)
def test_a_model_is_left_as_it_was(name, monkeypatch):
    call, reads = CALLS[name]
    changed, drew = after_faults(vit, call, reads, monkeypatch)
    assert not changed
    assert not drew or name in TRAINS  # functions that do not train draw nothing


def refined(model, _):
    path = spp.search(model, batches(IDS), steps=2, **QUIET)
    return path.cut(params=0.9, repair=IDS, repair_options=QUIET)


def first_layer(model, _):
    for _ in walk_blocks(model, IDS, **QUIET):
        break


LANGUAGE = {
    "perplexity": lambda m, _: perplexity(m, IDS),
    "perplexity of a stream": lambda m, _: perplexity(m, IDS.flatten(), 16),
    "weight_path": lambda m, _: weight_path(m, IDS, **QUIET),
    "prune": lambda m, _: weight_path(m, IDS, **QUIET).prune(0.5, repair=IDS, **QUIET),
    "one_shot": lambda m, _: one_shot(m, IDS, "wanda", 0.5, **QUIET),
    "search": lambda m, _: spp.search(m, batches(IDS), steps=2, **QUIET),
    "cut, repaired": refined,
    "walk_blocks": first_layer,
}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_is_left_as_it_was(name, monkeypatch):
    changed, drew = after_faults(llama, LANGUAGE[name], False, monkeypatch)
    assert not changed
    assert not drew


def test_an_error_in_the_loop_over_blocks_puts_the_model_back_at_once(monkeypatch):
    "The error is still being handled: nothing was collected yet"
    model = llama()
    before = state_of(model)

    def fail(*_):
        raise ArithmeticError("in the middle")

    monkeypatch.setattr("spp.llm.weight_paths.levels", fail)
    try:
        weight_path(model, IDS, **QUIET)
    except ArithmeticError:
        assert not differing(before, state_of(model))
    else:
        pytest.fail("no error")


def test_blocks_with_a_forward_of_their_own_stay_where_they_are():
    "They may send their inputs elsewhere, so another place is refused; their own is not"
    layers = llama().model.layers
    with pytest.raises(ValueError, match=r"block 0 is on cpu, and it has a `forward` of its own"):
        _check_places(layers, "cuda")
    _check_places(layers, None)
    _check_places(layers, "cpu")
    _check_places(CAUSAL["llama_gqa"]().model.layers, "cuda")


def test_embedding_leaves_a_clip_as_it_was():
    open_clip = pytest.importorskip("open_clip")
    tower = dict(layers=1, width=32, head_width=16, patch_size=8, image_size=16)
    text = dict(context_length=8, vocab_size=8, width=32, heads=2, layers=1)
    model = open_clip.CLIP(16, tower, text).train()
    model.visual.eval()
    before = state_of(model)
    pair = dict(image=torch.randn(2, 3, 16, 16), text=torch.ones(2, 8, dtype=torch.long))
    embed(model, [pair])
    assert not differing(before, state_of(model))
    with pytest.raises(KeyboardInterrupt):
        embed(model, Broken([pair, pair], KeyboardInterrupt))
    assert not differing(before, state_of(model))


@pytest.mark.parametrize("error", [None, *FAULTS])
def test_a_trained_model_changes_in_its_values_alone(error):
    model = vit()
    before = state_of(model)
    if error is None:
        spp.finetune(model, samples(), epochs=2, **QUIET)
    else:
        with pytest.raises(error):
            spp.finetune(model, Broken(samples(), error), epochs=2, **QUIET)
    changed = differing(before, state_of(model))
    assert changed
    assert all(name.startswith("values ") for name in changed)
    # the batch norm was held in evaluation mode, and the patches were frozen
    assert not any("running" in name or "patch_embed" in name for name in changed)


def test_a_model_in_evaluation_mode_is_trained_with_dropout():
    "All modules are in training mode on the way, and in evaluation mode afterwards"
    model = vit().eval()
    seen = []
    model.fc_norm.register_forward_hook(lambda m, *_: seen.append(m.training))
    spp.finetune(model, samples(), epochs=1, **QUIET)
    assert seen == [True] * 3
    assert not any(m.training for m in model.modules())


def test_an_interrupt_while_the_model_is_put_back():
    "The model is put back nevertheless, and the interrupt arrives"
    model = vit()
    before = state_of(model)

    class Slow(dict):
        left = 1

        def keys(self):
            if Slow.left:
                Slow.left -= 1
                raise KeyboardInterrupt
            return super().keys()

    model.norm._forward_hooks = Slow()
    with pytest.raises(KeyboardInterrupt), restored(model):
        model.eval()
    model.norm._forward_hooks = type(model.head._forward_hooks)()
    assert Slow.left == 0
    assert not differing(before, state_of(model))

"Language models: calibration, masks, repair and units on OPT, GPT-2, Llama, Mistral and Qwen."

import copy
from functools import cache

import pytest
import torch
from causal import CAUSAL, IDS, TEXT, distance, inner, words
from families import randomised
from torch import nn
from torch.testing import assert_close

import spp
from spp.llm.calibration import blocks, linears, walk_back, walk_blocks
from spp.llm.prices import prices
from spp.llm.scores import METRICS
from spp.llm.text import tokens, windows
from spp.llm.units import batches
from spp.llm.weight_paths import LLMPath, one_shot, weight_path
from spp.method.search import search
from spp.models.transformers import weight


@pytest.fixture(params=CAUSAL)
def kind(request):
    "The name of a model"
    return request.param


@pytest.fixture
def model(kind):
    "A model that the test may change"
    return randomised(CAUSAL[kind]())


@cache
def calibrated(kind):
    "A model and its path, which no test changes"
    model = randomised(CAUSAL[kind]())
    return model, weight_path(model, IDS, progress=False)


@pytest.fixture
def path(kind):
    "The path of a model; both are shared"
    return calibrated(kind)[1]


def bias_of(layer):
    return getattr(layer, "bias", None)


# --- calibration ----------------------------------------------------------------------------


def inputs_of(model, layers):
    "What each layer reads when the model runs on IDS, shape [tokens, in]"
    found = {name: [] for name in layers}

    def note(name):
        return lambda layer, args: found[name].append(args[0].flatten(0, -2))

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    with torch.no_grad():
        model(IDS)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_walk_sees_what_each_layer_reads(model):
    "The moments are those of the whole model's forward pass, and the model is as it was"
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    got = {name: stats for name, _, stats in walk_blocks(model, IDS, progress=False)}
    assert model.training
    want = inputs_of(model.eval(), inner(model))
    assert got.keys() == want.keys() == inner(model).keys()
    for name, x in want.items():
        second = x.T @ x / len(x)
        scale = second.abs().max().item()
        assert_close(got[name].second, second, rtol=1e-3, atol=1e-4 * scale)
        assert_close(got[name].mean, x.mean(0), rtol=1e-3, atol=1e-4)
        assert got[name].tokens == IDS.numel()
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in model.modules())


def test_a_refreshed_walk_is_calibrated_on_the_pruned_model(model):
    "With the first block zeroed on the way, the second reads what it reads in the changed model"
    name, stack = blocks(model)
    first = f"{name}.1.{next(iter(linears(stack[1])))}"
    for name, layer, stats in walk_blocks(model, IDS, refresh=True, progress=False):
        if ".0." in name:
            layer.weight.data.zero_()
        elif name == first:
            got = stats
    again = {name: stats for name, _, stats in walk_blocks(model, IDS, progress=False)}
    assert_close(got.second, again[first].second, rtol=1e-4, atol=1e-5)


def test_a_walk_back_takes_the_gradients_of_the_whole_model(model):
    "Gains and moments are those of one backward pass with the same tokens drawn"
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    got = {name: rest for name, _, *rest in walk_back(model, IDS, progress=False)}
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    layers = inner(model.eval())
    assert list(got) != list(layers) and got.keys() == layers.keys()  # the last block comes first
    squares = {}

    def note(name):
        def hook(layer, _, gradient):
            squares[name] = squares.get(name, 0) + gradient[0].square().flatten(0, -2).sum(0)

        return hook

    hooks = [layer.register_full_backward_hook(note(name)) for name, layer in layers.items()]
    generator = torch.Generator().manual_seed(0)
    for window in IDS:
        log_p = model(window[None]).logits[0].log_softmax(-1)
        drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
        (-log_p.gather(1, drawn).sum()).backward()
    for hook in hooks:
        hook.remove()
    reads = inputs_of(model, layers)
    for name, (stats, gains) in got.items():
        wanted = squares[name] / IDS.numel()
        assert_close(gains, wanted, rtol=1e-3, atol=1e-5 * wanted.max().item())
        second = reads[name].T @ reads[name] / IDS.numel()
        assert_close(stats.second, second, rtol=1e-3, atol=1e-4 * second.abs().max().item())


def test_the_dense_model_beside_the_changed_one(model):
    "Cross moments are those of what a layer reads in both models"
    changed = copy.deepcopy(model)
    got = {}
    for name, layer, stats in walk_blocks(changed, IDS, refresh=True, beside=True, progress=False):
        got[name] = stats
        with torch.no_grad():
            weight(layer).mul_(0.8)
    # a block is calibrated while it is dense, behind changed ones
    first = blocks(model)[0]
    for child in linears(blocks(model)[1][0]):
        stats = got[f"{first}.0.{child}"]
        assert_close(stats.crossed, stats.second, rtol=1e-4, atol=1e-5)
        assert_close(stats.dense_mean, stats.mean, rtol=1e-4, atol=1e-5)
    name = f"{first}.1.{next(iter(linears(blocks(model)[1][1])))}"
    dense = inputs_of(model.eval(), {name: model.get_submodule(name)})[name]
    x = inputs_of(changed.eval(), {name: changed.get_submodule(name)})[name]
    crossed = dense.T @ x / len(x)
    assert_close(got[name].crossed, crossed, rtol=1e-3, atol=1e-4 * crossed.abs().max().item())
    assert_close(got[name].dense_mean, dense.mean(0), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(got[name].crossed, got[name].second, rtol=1e-2)


def test_windows():
    tokenizer = words()
    assert tokenizer.pad_token is None
    assert windows(TEXT, tokenizer, 5, 100).shape == (5, 100)
    assert tokens(TEXT[:1], tokenizer).shape == (400,)
    with pytest.raises(ValueError, match="has 1600 tokens and one window takes 2000"):
        windows(TEXT, tokenizer, length=2000)
    with pytest.raises(ValueError, match="has 0 tokens"):
        windows([], tokenizer)
    with pytest.raises(ValueError, match="2000 tokens, but OPTForCausalLM has 64 positions"):
        weight_path(CAUSAL["opt"](), torch.zeros(1, 2000, dtype=torch.long))


# --- masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_masks_are_nested_and_as_large_as_asked(kind, metric):
    model, path = calibrated(kind)
    if metric != "inclusion":
        path = weight_path(model, IDS, metric, progress=False)
    layers = inner(model)
    assert path.levels.keys() == layers.keys()
    before = None
    for sparsity in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95):
        masks = path.mask(sparsity)
        for name, mask in masks.items():
            assert mask.shape == weight(layers[name]).shape
            if path.info["by"] == "row":
                assert ((~mask).sum(1) == int(sparsity * mask.shape[1] + 1e-9)).all()
            elif path.info["by"] == "layer":
                assert (~mask).sum() == int(sparsity * mask.numel() + 1e-9)
            if before is not None:
                assert not (mask & ~before[name]).any()
        if metric == "inclusion":
            assert path.info["by"] == "model"
            total = sum(mask.numel() for mask in masks.values())
            removed = sum(int((~mask).sum()) for mask in masks.values())
            rows = sum(len(mask) for mask in masks.values())
            assert abs(removed - sparsity * total) < rows / 20 or (sparsity, removed) == (0, 0)
        before = masks
    for pattern, (n, m) in {"2:4": (2, 4), "4:8": (4, 8), "1:16": (1, 16)}.items():
        masks = path.mask(pattern=pattern).values()
        assert all((mask.view(-1, m).sum(1) == n).all() for mask in masks)


def test_five_sparsities_of_one_run_are_five_runs(kind, path):
    for sparsity in (0.3, 0.4, 0.5, 0.6, 0.7):
        one = path.prune(sparsity)
        own = weight_path(path.model, IDS, progress=False).prune(sparsity)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), own.parameters()))
        masks = path.mask(sparsity)
        assert all(((weight(m) != 0) <= masks[name]).all() for name, m in inner(one).items())


def test_embeddings_and_head_stay(path):
    model = path.model
    small = path.prune(0.6, repair=IDS, progress=False)
    pruned = {id(p) for layer in inner(model).values() for p in layer.parameters()}
    for (name, old), new in zip(model.named_parameters(), small.parameters()):
        if id(old) not in pruned:
            assert torch.equal(old, new), name

    def tied(net):
        return net.get_output_embeddings().weight is net.get_input_embeddings().weight

    assert tied(small) == tied(model)


def test_one_shot_is_sequential(kind):
    "The first block is that of the path at each metric; later ones have seen the pruned one"
    model, path = calibrated(kind)
    for metric in METRICS:
        shot = inner(one_shot(model, IDS, metric, 0.5, progress=False))
        if metric != "inclusion":
            path = weight_path(model, IDS, metric, progress=False)
        else:  # each row loses the same share in a sequential run
            path = weight_path(model, IDS, by="row", progress=False)
        for name, layer in inner(path.prune(0.5)).items():
            if ".0." in name:
                assert torch.equal(shot[name].weight, layer.weight)


def test_files(path, tmp_path):
    file = tmp_path / "p"
    path.save(file)
    back = LLMPath.load(file, path.model)
    assert list(back.levels) == list(path.levels)
    assert all(torch.equal(back.levels[name], path.levels[name]) for name in path.levels)
    assert back.info == path.info
    assert all(torch.equal(back.prices[name], path.prices[name]) for name in path.levels)
    weights = sum(level.numel() for level in path.levels.values())
    costs = sum(4 * cost.numel() for cost in path.prices.values())
    assert file.stat().st_size < weights + costs + 20_000
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated"):
        LLMPath.load(file)


def test_half_precision():
    model = randomised(CAUSAL["llama_gqa"]()).bfloat16()
    small = weight_path(model, IDS, progress=False).prune(0.5, repair=IDS, progress=False)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small(IDS).logits.isfinite().all()


def divergence(small, model):
    "Kullback-Leibler divergence of what is predicted, nats per token"
    with torch.no_grad():
        ours, dense = (m(IDS).logits.log_softmax(-1) for m in (small, model))
    return (dense.exp() * (dense - ours)).sum(-1).mean().item()


def test_prices_ask_less_of_rows_that_matter(path):
    "One price for all rows is closer to the dense model than one sparsity, up to the middle"
    by_row = weight_path(path.model, IDS, by="row", progress=False)
    assert not by_row.prices
    assert all(torch.equal(by_row.levels[name], path.levels[name]) for name in path.levels)
    for how in (dict(sparsity=0.3), dict(sparsity=0.5)):
        one_price, one_share = (divergence(p.prune(**how), path.model) for p in (path, by_row))
        assert one_price < one_share, how
    pattern = [p.mask(pattern="2:4") for p in (path, by_row)]
    assert all(torch.equal(pattern[0][name], pattern[1][name]) for name in path.levels)


def test_a_row_that_nobody_reads_goes_first():
    "Whatever the size of its weights, as far as the bound lets it"
    model = randomised(CAUSAL["llama_gqa"]())
    mlp = model.model.layers[0].mlp
    with torch.no_grad():
        mlp.up_proj.weight[:16] *= 100
        mlp.down_proj.weight[:, :16] = 0
    masks = weight_path(model, IDS, progress=False).mask(0.2)
    for layer in ("gate_proj", "up_proj"):
        kept = masks[f"model.layers.0.mlp.{layer}"].float().mean(1)
        assert (kept[:16] < 0.43).all() and kept[16:].mean() > 0.8  # (1 - 0.2) / 2, and a weight


@pytest.mark.parametrize("count", [1, 2])
def test_prices_rest_on_the_first_tokens(monkeypatch, count):
    "On as many as memory is given for, and on one window at least"
    monkeypatch.setattr("spp.llm.weight_paths.PRICED", {1: 1, 2: 2 * IDS.shape[1]}[count])
    model = randomised(CAUSAL["llama_gqa"]())
    path = weight_path(model, IDS, progress=False)
    assert len(IDS) > count
    for name, layer, stats, gains in walk_back(model, IDS[:count], progress=False):
        wanted = prices(weight(layer), path.levels[name], stats.second, gains)
        assert torch.equal(path.prices[name], wanted), name


class Selecting(nn.Module):
    "An MLP with a layer behind which there is no gradient"

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp
        self.select = nn.Linear(48, 2)

    def forward(self, x):
        with torch.no_grad():
            first = self.select(x).argmax(-1, keepdim=True) == 0
        return torch.where(first, self.mlp(x), 0.5 * self.mlp(x))


def test_layers_without_prices_lose_the_same_share(tmp_path):
    "Where no gradient is; and where only later windows lead, as to an expert"
    model = randomised(CAUSAL["llama_gqa"]())
    block = model.model.layers[0]
    block.mlp = Selecting(block.mlp)
    path = weight_path(model, IDS, progress=False)
    assert "model.layers.0.mlp.select" not in path.prices
    assert "model.layers.0.mlp.select" in path.levels
    path.save(tmp_path / "p")
    for one in (path, LLMPath.load(tmp_path / "p", model)):
        masks = one.mask(0.5)
        assert ((~masks["model.layers.0.mlp.select"]).sum(1) == 24).all()
        removed = sum(int((~mask).sum()) for mask in masks.values())
        assert abs(removed / sum(mask.numel() for mask in masks.values()) - 0.5) < 0.005
    some = weight_path(model, IDS, progress=False)
    del some.prices["model.layers.1.mlp.up_proj"]
    masks = some.mask(0.5)
    assert ((~masks["model.layers.1.mlp.up_proj"]).sum(1) == 24).all()


class Experts(nn.Module):
    "Two MLPs, each for the tokens that a router sends there"

    def __init__(self, mlp):
        super().__init__()
        self.experts = nn.ModuleList([mlp, copy.deepcopy(mlp)])
        self.router = nn.Linear(48, 2)

    def forward(self, x):
        flat = x.flatten(0, -2)
        chosen = self.router(flat).argmax(-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            if (chosen == i).any():
                out[chosen == i] = expert(flat[chosen == i])
        return out.view(x.shape)


def test_experts_do_not_catch_up():
    "Other tokens lead to an expert behind pruned blocks; it is repaired on what it reads"
    torch.manual_seed(0)
    model = randomised(CAUSAL["llama_gqa"]())
    for block in model.model.layers:
        block.mlp = Experts(block.mlp)
    path = weight_path(model, IDS, progress=False)
    changed = copy.deepcopy(model)
    found = set()
    for name, layer, stats in walk_blocks(changed, IDS, refresh=True, beside=True, progress=False):
        with torch.no_grad():
            weight(layer).mul_(0.5)
        if stats.crossed is None:
            found.add(name)
        assert (stats.crossed is None) == ("experts" in name)
    assert len(found) == 12
    plain, fixed = path.prune(0.5), path.prune(0.5, repair=IDS, progress=False)
    assert all(p.isfinite().all() for p in fixed.parameters())
    assert divergence(fixed, model) < divergence(plain, model)


# --- repair ---------------------------------------------------------------------------------


def test_a_repair_catches_up(path):
    "A share of what was lost before a layer is made up for; `catch_up` 0 leaves that out"
    how = dict(sparsity=0.5, repair=IDS, progress=False)
    without = path.prune(**how, catch_up=0.0)
    assert distance(path.prune(**how), path.model) < distance(without, path.model)
    for wrong in (-0.1, 1.1, "x"):
        with pytest.raises((TypeError, ValueError), match="catch_up"):
            path.prune(**how, catch_up=wrong)


@pytest.mark.parametrize("how", [dict(sparsity=0.5), dict(pattern="2:4")], ids=["half", "2:4"])
def test_repair_comes_closer(path, how):
    plain = path.prune(**how)
    fixed = path.prune(**how, repair=IDS, progress=False)
    assert distance(fixed, path.model) < distance(plain, path.model)
    masks = path.mask(**how)
    assert all(((weight(m) != 0) <= masks[name]).all() for name, m in inner(fixed).items())


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama_gqa"])
def test_first_layer_is_repaired_by_least_squares(kind):
    "Against torch.linalg.lstsq on the activations; with a bias, on the activations and a one"
    model = randomised(CAUSAL[kind]()).double()
    path = weight_path(model, IDS, progress=False)
    name, layer = next(iter(inner(model).items()))
    x = inputs_of(model, {name: layer})[name]
    fixed = inner(path.prune(0.5, repair=IDS, damping=1e-9, progress=False))[name]
    keep = path.mask(0.5)[name]
    biased = bias_of(layer) is not None
    y = x @ weight(layer).T + (layer.bias if biased else 0)
    got_y = x @ weight(fixed).T + (fixed.bias if biased else 0)
    for row in range(0, len(keep), 7):
        kept = x[:, keep[row]]
        if biased:
            kept = torch.cat([kept, torch.ones(len(kept), 1, dtype=kept.dtype)], 1)
        want = torch.linalg.lstsq(kept, y[:, row : row + 1]).solution[:, 0]
        best = (kept @ want - y[:, row]).square().mean()
        got = (got_y[:, row] - y[:, row]).square().mean()
        assert best <= got * (1 + 1e-6) + 1e-20, row  # of a row that lost nothing, rounding
        assert got - best < 1e-3 * y[:, row].var(), row


def test_singular_moments_name_the_layer():
    model = randomised(CAUSAL["llama_gqa"]())
    few = IDS[:1, :8]
    path = weight_path(model, few, progress=False)
    layer = "model.layers.0.self_attn.q_proj"
    singular = rf"what {layer} reads are singular \(8 tokens, 48 inputs\)"
    with pytest.raises(ArithmeticError, match=singular):
        path.prune(0.5, repair=few, damping=0.0, progress=False)
    damped = path.prune(0.5, repair=few, progress=False)
    assert all(p.isfinite().all() for p in damped.parameters())


def test_an_input_that_is_always_zero():
    model = randomised(CAUSAL["llama_gqa"]())
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[:5] = 0
    for metric in METRICS:
        path = weight_path(model, IDS, metric, progress=False)
        small = path.prune(0.5, repair=IDS, progress=False)
        assert all(p.isfinite().all() for p in small.parameters())
    masks = weight_path(model, IDS, by="row", progress=False).mask(5 / 48)
    gone = ~masks["model.layers.0.self_attn.q_proj"]
    assert gone[:, :5].float().mean() > 0.9  # nothing is lost with these


# --- units ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:few tokens")
def test_units_are_folded(kind):
    model = calibrated(kind)[0]
    path = search(model, batches(IDS), steps=4, progress=False)
    plain = path.cut(params=0.75, align=1)
    how = dict(align=1, repair=IDS, repair_options=dict(progress=False))
    fixed = path.cut(params=0.75, **how)
    assert fixed.spp.got == plain.spp.got
    assert fixed.spp.fingerprint == plain.spp.fingerprint
    assert [p.shape for p in fixed.parameters()] == [p.shape for p in plain.parameters()]
    assert distance(fixed, model) < distance(plain, model)


@pytest.mark.filterwarnings("ignore:few tokens")
def test_a_cut_is_repaired_like_any_other():
    "`path.cut` on windows is `spp.repair` of its mask on batches; nothing removed, nothing changed"
    model = calibrated("opt")[0]
    path = search(model, batches(IDS), steps=4, progress=False)
    how = dict(align=1, repair=IDS, repair_options=dict(progress=False))
    fixed = path.cut(params=0.75, **how)
    mask = path.mask(align=1, params=0.75)
    direct = spp.repair(model, path.pairs, mask, batches(IDS), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), fixed.parameters()))
    assert distance(path.cut(params=1.0, **how), model) <= 1e-12


@pytest.mark.filterwarnings("ignore:few tokens")
@pytest.mark.parametrize("kind", ["opt", "llama_gqa"])
def test_padding_does_not_count(kind):
    "A repair on padded windows does not depend on the tokens that pad"
    model = calibrated(kind)[0]
    path = search(model, batches(IDS), steps=4, progress=False)
    seen = torch.ones_like(IDS)
    seen[:, 20:] = 0

    def repaired(fill):
        ids = torch.where(seen > 0, IDS, fill)
        data = [dict(input_ids=x, attention_mask=m) for x, m in zip(ids.split(2), seen.split(2))]
        return path.cut(params=0.75, align=1, repair=data, repair_options=dict(progress=False))

    for a, b in zip(repaired(0).parameters(), repaired(7).parameters()):
        assert_close(a, b, rtol=1e-3, atol=1e-5)
    layers = repaired(0).spp.path["repair"]["layers"].values()
    assert {row["tokens"] for row in layers} == {6 * 20}


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how, text",
    [
        (dict(sparsity=1.0), r"in \[0, 1\), .*, got 1.0"),
        (dict(sparsity=-0.1), r"in \[0, 1\)"),
        (dict(pattern="5:4"), "expected 0 < N ≤ M"),
        (dict(pattern="2:7"), "does not divide the rows of"),
        (dict(), "either `sparsity` or `pattern`"),
        (dict(sparsity=0.5, pattern="2:4"), "either"),
    ],
)
def test_what_cannot_be_pruned(path, how, text):
    with pytest.raises(ValueError, match=text):
        path.prune(**how)


def test_wrong_models_and_tokens(path):
    with pytest.raises(ValueError, match="take its own tokenizer"):
        weight_path(path.model, IDS + 40)
    with pytest.raises(TypeError, match="no list of decoder layers in Linear"):
        weight_path(nn.Linear(3, 3), IDS)
    with pytest.raises(TypeError, match="takes no `stps`: it takes steps"):
        weight_path(path.model, IDS, stps=3)


def test_activations_that_overflow_name_the_layer(model):
    first = next(iter(inner(model).values()))
    with torch.no_grad():
        first.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match=r"what \S+\.0\.\S+ reads is not finite"):
        weight_path(model, IDS, progress=False)

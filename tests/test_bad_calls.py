"""Wrong calls of every public function: each is an error that says what was found and what to write

A row is a name, a call, the type of the error and patterns that its text must match. What is
accepted on purpose stands at the end, with the reason.
"""

import re
from functools import cache
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

import spp
from spp.cutting.budget import macs_of, params_of
from spp.judging.baselines import baseline, magnitude, taylor
from spp.judging.evaluate import accuracy, evaluate
from spp.judging.retrieval import embed, recall
from spp.llm.running import run_llm
from spp.llm.text import perplexity, texts, windows
from spp.llm.units import batches
from spp.llm.weight_paths import one_shot, weight_path
from spp.running import runs
from spp.running.cli import app
from spp.running.report import report
from spp.running.slurm import Resources, launch

nan, inf = float("nan"), float("inf")


# --- what is called ---------------------------------------------------------------------------


def vit(**kw):
    torch.manual_seed(0)
    how = dict(img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=16, depth=1)
    return timm.create_model("vit_tiny_patch16_224", **(how | dict(num_heads=2) | kw)).eval()


def llama():
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


def tokenizer(text):
    return {"input_ids": [ord(c) % 64 for c in text]}


@cache
def world():
    "Small models and data that all calls share, and that none of them changes"
    g = torch.Generator().manual_seed(0)
    model = vit()
    x, y = torch.randn(8, 1, 8, 8, generator=g), torch.randint(10, (8,), generator=g)
    path = spp.search(model, [x], steps=2, progress=False)
    causal, ids = llama(), torch.randint(0, 64, (4, 16), generator=g)
    return SimpleNamespace(
        model=model,
        other=vit(num_heads=4),
        x=x,
        y=y,
        data=[(x, y)] * 2,
        path=path,
        pairs=path.pairs,
        n=path.n,
        family=spp.Family(model, path, trained=(1.0, 0.4)),
        llm=causal,
        ids=ids,
        lpath=weight_path(causal, ids, progress=False),
        mlp=nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 4)),
    )


# --- the table --------------------------------------------------------------------------------

ROWS = {}


def add(name, call, kind, *texts):
    "A row: `call` of the world and a temporary folder is to raise `kind` with all `texts`"
    assert name not in ROWS, name
    ROWS[name] = (call, kind, texts)


def shown(value):
    "What an error has to show of a value"
    return re.escape(repr(value)) if not callable(value) else "a function"


def numbers(what, call, name, words, *values):
    "Rows for values of a number: no number is a `TypeError`, one out of range a `ValueError`"
    for v in values:
        no_number = isinstance(v, (bool, str, type(None), list))
        kind = TypeError if no_number else ValueError
        found = "got" if isinstance(v, list) else f"got {shown(v)}"

        def run(w, tmp, v=v):
            return call(w, tmp, **{name: v})

        add(f"{what} {name}={v!r}", run, kind, f"`{name}` must be", words, found)


def search(w, tmp, *args, **kw):
    return spp.search(*(args or (w.model, w.data)), **({"steps": 2, "progress": False} | kw))


def plain(w, tmp, **kw):
    return search(w, tmp, method="plain", **kw)


def cut(w, tmp, *args, **kw):
    return w.path.cut(*args, **kw)


def finetune(w, tmp, *args, **kw):
    args = args or (vit(), w.data, w.model)
    return spp.finetune(*args, **({"epochs": 1, "progress": False} | kw))


def walk(w, tmp, *args, **kw):
    args = args or (w.path, w.data)
    return spp.walk(*args, **({"epochs": 1, "progress": False} | kw))


def joint(w, tmp, *args, **kw):
    args = args or (w.path, w.data)
    return spp.joint(*args, **({"epochs": 1, "progress": False} | kw))


def balance(w, tmp, *args, **kw):
    return spp.balance(*(args or (w.model, w.data)), **({"progress": False} | kw))


def judge(w, tmp, *args, **kw):
    return evaluate(*(args or (w.model, w.data)), **kw)


# --- models -----------------------------------------------------------------------------------

MODELS = {
    "None": (None, "got None"),
    "a name": ("vit", r"got 'vit'\. Load it first"),
    "a class": (nn.Linear, "is the class Linear, not a model"),
    "a list": ([1], "got a list of 1"),
    "a state dict": ({"a.weight": 1}, r"load_state_dict"),
    "a number": (3, "got 3"),
    "a function": (len, "got a builtin"),
}
TAKES_A_MODEL = {
    "search": lambda w, tmp, m: search(w, tmp, m, w.data),
    "find_pairs": lambda w, tmp, m: spp.find_pairs(m),
    "mlp_pair": lambda w, tmp, m: spp.mlp_pair(m, "", "0", "2"),
    "cut": lambda w, tmp, m: spp.cut(m, w.pairs, torch.ones(w.n)),
    "gated": lambda w, tmp, m: spp.gated(m, w.pairs).__enter__(),
    "balance": lambda w, tmp, m: balance(w, tmp, m, w.data),
    "finetune": lambda w, tmp, m: finetune(w, tmp, m, w.data),
    "Family": lambda w, tmp, m: spp.Family(m, w.path),
    "attach": lambda w, tmp, m: spp.SolutionPath(w.pairs, w.path.v).attach(m),
    "save": lambda w, tmp, m: spp.save(m, tmp / "s"),
    "summary": lambda w, tmp, m: spp.summary(m),
    "accuracy": lambda w, tmp, m: accuracy(m, w.data),
    "evaluate": lambda w, tmp, m: evaluate(m, w.data),
    "embed": lambda w, tmp, m: embed(m, w.data),
    "baseline": lambda w, tmp, m: baseline("magnitude", m),
    "params_of": lambda w, tmp, m: params_of(m),
    "weight_path": lambda w, tmp, m: weight_path(m, w.ids),
    "perplexity": lambda w, tmp, m: perplexity(m, w.ids),
    "LLMPath.attach": lambda w, tmp, m: w.lpath.attach(m),
}
for where, function in TAKES_A_MODEL.items():
    for what, (wrong, text) in MODELS.items():
        if what in ("None", "a name") or where in ("search", "find_pairs", "balance", "save"):

            def run(w, tmp, function=function, wrong=wrong):
                return function(w, tmp, wrong)

            add(f"{where} of {what}", run, TypeError, "`model`", text)
for where in ("search", "find_pairs", "balance"):

    def run(w, tmp, function=TAKES_A_MODEL[where]):
        return function(w, tmp, nn.Linear(3, 3))

    def empty(w, tmp, function=TAKES_A_MODEL[where]):
        return function(w, tmp, nn.Sequential())

    add(f"{where} of a model without pairs", run, TypeError, "no pairs in Linear", "mlp_pair")
    add(f"{where} of an empty model", empty, TypeError, "no pairs in Sequential", "mlp_pair")
add(
    "save of a model that no library knows",
    lambda w, tmp: spp.save(nn.Linear(3, 3), tmp / "s"),
    TypeError,
    "cannot describe how a Linear is made",
    r"state_dict\(\) with safetensors",
)
add(
    "save_pretrained of a model that no library knows",
    lambda w, tmp: spp.save_pretrained(nn.Linear(3, 3), tmp / "s"),
    TypeError,
    "writes models of transformers, timm and open_clip",
    r"Save its state_dict\(\) with safetensors",
)
add(
    "save_pretrained of timm with a tokenizer",
    lambda w, tmp: spp.save_pretrained(w.model, tmp / "s", tokenizer=w.model),
    TypeError,
    "must be a tokenizer or processor of transformers",
)
add(
    "find_pairs of a wrapper",
    lambda w, tmp: spp.find_pairs(nn.DataParallel(w.model)),
    TypeError,
    "not the model itself",
    "pass model.module",
)
add(
    "search of a model without values",
    lambda w, tmp: search(w, tmp, vit().to("meta"), w.data),
    ValueError,
    "has no values",
    "Load the weights first",
)
add(
    "weight_path of a classifier",
    lambda w, tmp: weight_path(w.model, w.ids, progress=False),
    TypeError,
    "no list of decoder layers",
    "expected a causal language model",
)
add(
    "perplexity of a classifier",
    lambda w, tmp: perplexity(w.model, w.ids),
    TypeError,
    "VisionTransformer reads no tokens",
    "expected a causal language model",
)
add(
    "embed of a classifier",
    lambda w, tmp: embed(w.model, w.data),
    TypeError,
    "has no encode_image and encode_text",
    "pass features to `recall`",
)


def half(w):
    "A mask of every other unit"
    return torch.arange(w.n) % 2


# --- data -------------------------------------------------------------------------------------

NO_DATA = {
    "None": (lambda w: None, "got None"),
    "a number": (lambda w: 3, "got 3"),
    "a name": (lambda w: "abc", "got 'abc'"),
    "one tensor": (lambda w: w.x, r"got a tensor of shape \[8, 1, 8, 8\].*Write \[x\]"),
    "one array": (lambda w: w.x.numpy(), r"got a NumPy array of shape.*Write \[x\]"),
    "one dict": (lambda w: {"x": w.x}, r"got a dict with the keys x.*Write \[x\]"),
    "a function": (lambda w: lambda: 1, "got a function"),
    "a model": (lambda w: w.model, "got the model VisionTransformer. Models stand before data"),
}
TAKES_DATA = {
    "search": lambda w, tmp, d: search(w, tmp, w.model, d),
    "balance": lambda w, tmp, d: balance(w, tmp, w.model, d),
    "finetune": lambda w, tmp, d: finetune(w, tmp, vit(), d, w.model),
    "repair": lambda w, tmp, d: spp.repair(w.model, w.pairs, half(w), d, progress=False),
    "path.cut": lambda w, tmp, d: w.path.cut(params=0.5, repair=d),
    "accuracy": lambda w, tmp, d: accuracy(w.model, d),
    "evaluate": lambda w, tmp, d: evaluate(w.model, d),
    "baseline": lambda w, tmp, d: baseline("fisher", w.model, d),
    "taylor": lambda w, tmp, d: taylor(w.model, w.pairs, d),
    "walk": lambda w, tmp, d: walk(w, tmp, w.path, d),
    "joint": lambda w, tmp, d: joint(w, tmp, w.path, d),
}
for where, function in TAKES_DATA.items():
    for what, (wrong, text) in NO_DATA.items():
        if (what, where) == ("None", "path.cut"):
            continue  # no repair
        if what in ("None", "one tensor") or where in ("search", "finetune", "evaluate"):

            def run(w, tmp, function=function, wrong=wrong):
                return function(w, tmp, wrong(w))

            add(f"{where} of data {what}", run, TypeError, "`data` must be batches", text)

    def empty(w, tmp, function=function):
        return function(w, tmp, [])

    if where not in ("taylor", "walk", "joint", "repair", "path.cut"):
        add(f"{where} of no batches", empty, ValueError, "the data has no batches", "")

BATCHES = {
    "None": (lambda w: None, TypeError, r"a batch must be a tensor.*got None"),
    "a number": (lambda w: 1, TypeError, r"a batch must be a tensor.*got 1"),
    "a text": (lambda w: "abc", TypeError, "a batch must be a tensor.*got 'abc'"),
    "an array": (lambda w: w.x.numpy(), TypeError, r"write torch.from_numpy\(x\)"),
    "an empty tuple": (lambda w: (), ValueError, "a batch is an empty tuple: expected inputs"),
    "no samples": (lambda w: w.x[:0], ValueError, r"no samples.*\[0, 1, 8, 8\].*Leave empty"),
    "a scalar": (lambda w: torch.tensor(1.0), ValueError, "a batch has no samples"),
    "three channels": (
        lambda w: w.x.expand(8, 3, 8, 8),
        ValueError,
        r"VisionTransformer cannot run a batch whose inputs are a tensor of shape \[8, 3, 8, 8\]",
    ),
    "another size": (lambda w: torch.zeros(2, 1, 16, 16), ValueError, r"shape \[2, 1, 16, 16\]"),
    "no batch dimension": (lambda w: w.x[0], ValueError, r"shape \[1, 8, 8\]"),
    "bytes": (lambda w: w.x.byte(), ValueError, r"\(uint8\).*write x.to\(torch.float32\)"),
    "doubles": (lambda w: w.x.double(), ValueError, r"\(float64\).*write x.to\(torch.float32\)"),
    "wrong names": (
        lambda w: {"image": w.x, "size": w.y},
        TypeError,
        "has `image`, `size`, which VisionTransformer does not take",
    ),
    "not finite": (lambda w: w.x * nan, ArithmeticError, "not finite"),
    "infinite": (lambda w: w.x * inf, ArithmeticError, "not finite"),
}
for where in ("search", "balance", "finetune", "evaluate", "accuracy"):
    for what, (wrong, kind, text) in BATCHES.items():

        def run(w, tmp, function=TAKES_DATA[where], wrong=wrong):
            batch = wrong(w)
            if isinstance(batch, dict):
                batch |= {"labels": w.y}
            whole = isinstance(batch, torch.Tensor) and batch.dim()
            return function(w, tmp, [(batch, w.y[: len(batch)])] if whole else [batch])

        if where == "finetune" and kind is ArithmeticError:
            text = "loss was nan.*Lower lr"
        add(f"{where} of a batch {what}", run, kind, text)
add(
    "search of a spent generator",
    lambda w, tmp: search(w, tmp, w.model, (x for x in [w.x])),
    ValueError,
    "ended after 1 of 3 batches",
    "Pass a DataLoader",
)
add(
    "finetune of a generator",
    lambda w, tmp: TAKES_DATA["finetune"](w, tmp, iter(w.data)),
    TypeError,
    "DataLoader or a list",
    "list_iterator",
)


# --- search -----------------------------------------------------------------------------------

for v in (None, "x", "AUTO", "10", 0, -1, 1.5, 2.0, nan, inf, True, [5]):
    text = r'`steps` must be a positive whole number or "auto", got '
    text += "a list of 5" if v == [5] else shown(v)
    add(f"search steps={v!r}", lambda w, tmp, v=v: search(w, tmp, steps=v), ValueError, text)
for v in ("x", None, 3):

    def run(w, tmp, v=v):
        return search(w, tmp, method=v)

    add(f"search method={v!r}", run, ValueError, f"unknown method {v!r}: known are clock, plain")
for name, words, values in (
    ("seed", "a whole number from 0", (-1, 1.5, None, "x", 2**70, True)),
    ("end", r"in \(0, 1\)", (0, 1, -1, nan, "x", None)),
    ("momentum", r"in \[0, 1\)", (1, -0.1, nan, None)),
    ("safety", r"in \(0, 3.9\)", (0, nan, inf, 4, "x")),
    ("every", "whole number of at least 1", (0, -1, 1.5, "x")),
    ("iters", "whole number of at least 1", (0, 1.5, nan)),
    ("fall", r"in \[0, 1\]", (nan, 2)),
    ("warm", r"in \[0, 1\]", (nan, 2)),
    ("by_budget", r"in \[0, 1\]", (nan,)),
):
    numbers("search", search, name, words, *values)
for v in ("x", None, 1):

    def run(w, tmp, v=v):
        return search(w, tmp, metric=v)

    add(f"search metric={v!r}", run, TypeError, f"`metric` must be True or False, got {v!r}")
for name, words, values in (
    ("kappa", "positive and finite", (0, -1, nan, inf, "x", None)),
    ("nu", "positive and finite", (0, nan)),
    ("alpha", "positive and finite", (-1, nan, inf)),
    ("lam", "nonnegative and finite", (-1, nan, inf)),
):
    numbers("search plain", plain, name, words, *values)
for v in ("x", "bf16", "float16", 3, torch.int8, torch.float64, torch.float32):

    def run(w, tmp, v=v):
        return search(w, tmp, amp=v)

    add(f"search amp={v}", run, ValueError, "`amp` must be torch.bfloat16", f"got {shown(v)}")
add(
    "search of an unknown setting",
    lambda w, tmp: search(w, tmp, step=1),
    TypeError,
    "takes no `step`: it takes end, momentum",
)
add(
    "search plain with a setting of the clock",
    lambda w, tmp: plain(w, tmp, end=0.1),
    TypeError,
    "method='plain' takes no `end`: it takes kappa, nu",
)
add(
    "search with steps in the place of the loss",
    lambda w, tmp: search(w, tmp, w.model, w.data, 100),
    TypeError,
    "`loss` must be a function",
    "write steps=100",
)
for name, v in (("loss", "x"), ("read", 3), ("read", "x")):

    def run(w, tmp, name=name, v=v):
        return search(w, tmp, **{name: v})

    text = f"`{name}` must be a function of .*, got {v!r}"
    add(f"search {name}={v!r}", run, TypeError, text)
for what, read in dict(nothing=lambda y, x: None, number=lambda y, x: y.sum()).items():

    def run(w, tmp, read=read):
        return search(w, tmp, read=read)

    text = r"read= must return features of shape \[batch, …\], here \[8, …\]"
    add(f"search read= that returns {what}", run, TypeError, text)
for what, loss, kind, text in (
    ("no scalar", lambda out, y: out, TypeError, r"`loss` must return a scalar tensor"),
    ("a number", lambda out, y: 1.0, TypeError, "`loss` must return a scalar tensor.*got 1.0"),
    (
        "a failure",
        lambda out, y: (out @ y.float()).sum(),
        ValueError,
        r"shape \[8, 10\] with labels",
    ),
):

    def run(w, tmp, loss=loss):
        return search(w, tmp, loss=loss)

    add(f"search loss= that returns {what}", run, kind, text)
add(
    "search with a loss and no labels",
    lambda w, tmp: search(w, tmp, w.model, [w.x], F.cross_entropy),
    ValueError,
    "needs labels, and the batch has none",
    "pass loss=None",
)
for v, kind in ((3, TypeError), (True, TypeError), ("", ValueError), (b"x", TypeError)):

    def run(w, tmp, v=v):
        return search(w, tmp, checkpoint=v)

    text = "the name of a file or folder, got|is no name of a file"
    add(f"search checkpoint={v!r}", run, kind, text)


class Mlp(nn.Module):
    "A residual MLP of one's own"

    def __init__(self, between):
        super().__init__()
        self.up, self.between, self.down = nn.Linear(4, 10), between, nn.Linear(10, 4)

    def forward(self, x):
        return x + self.down(self.between(self.up(x)))


for what, between, names, text in (
    (
        "reversed",
        nn.ReLU(),
        ("down", "up"),
        "`up` does not read what `down` puts out.*'up', 'down'",
    ),
    ("with a norm between", nn.LayerNorm(10), ("up", "down"), "that is not elementwise"),
):

    def run(w, tmp, between=between, names=names):
        m = Mlp(between)
        return search(w, tmp, m, [torch.randn(3, 4)], pairs=[spp.mlp_pair(m, "", *names)])

    add(f"search of a pair {what}", run, ValueError, text)


class SomeOf(nn.Module):
    "Two layers in a row; the second is run for batches of several samples alone"

    def __init__(self):
        super().__init__()
        self.first, self.second = Mlp(nn.ReLU()), Mlp(nn.ReLU())

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if len(x) > 1 else x


for sizes, text in (
    ((1, 4, 4, 4), "`second.down` is not run for the first batch.*a batch of more samples"),
    ((4, 1, 1, 1), "this batch had nothing to do with `second.down`.*leave these pairs out"),
):

    def run(w, tmp, sizes=sizes):
        m = SomeOf()
        pairs = [spp.mlp_pair(m, name, "up", "down") for name in ("first", "second")]
        return search(w, tmp, m, [torch.randn(n, 4) for n in sizes], pairs=pairs)

    add(f"search where {sizes[0]} of {sizes[1]} samples run a pair", run, ValueError, text)


# --- pairs, and what hangs on a model ---------------------------------------------------------

PAIRS = {
    "one pair": (lambda w: w.pairs[0], TypeError, r"got one: qk .*Write pairs=\[pair\]"),
    "a name": (lambda w: "x", TypeError, "must be a list of pairs.*got 'x'"),
    "numbers": (lambda w: [1], TypeError, "must hold pairs.*it holds 1"),
    "none": (lambda w: [], ValueError, r"`pairs` is empty.*write find_pairs\(model\)"),
    "twice": (lambda w: [*w.pairs, w.pairs[0]], ValueError, "the same units twice"),
    "of another model": (
        lambda w: spp.find_pairs(w.other),
        ValueError,
        r"these pairs are of another model: qk .* 4 heads .*has qk .* 2 .*find_pairs\(model\)",
    ),
    "of a deeper model": (
        lambda w: spp.find_pairs(vit(depth=2))[3:],
        ValueError,
        "these pairs are of another model: qk blocks.1.*no qk pair in `blocks.1.attn`",
    ),
    "of an MLP": (
        lambda w: [spp.mlp_pair(w.mlp, "", "0", "2")],
        ValueError,
        "these pairs are of another model: mlp",
    ),
}
TAKES_PAIRS = {
    "search": lambda w, tmp, p: search(w, tmp, pairs=p),
    "cut": lambda w, tmp, p: spp.cut(w.model, p, torch.ones(1)),
    "gated": lambda w, tmp, p: spp.gated(w.model, p).__enter__(),
    "balance": lambda w, tmp, p: balance(w, tmp, pairs=p),
    "magnitude": lambda w, tmp, p: magnitude(w.model, p),
    "repair": lambda w, tmp, p: spp.repair(w.model, p, torch.ones(1), w.data),
    "taylor": lambda w, tmp, p: taylor(w.model, p, w.data),
}
for where, function in TAKES_PAIRS.items():
    for what, (wrong, kind, text) in PAIRS.items():

        def run(w, tmp, function=function, wrong=wrong):
            return function(w, tmp, wrong(w))

        add(f"{where} of pairs {what}", run, kind, text)


def hooked(m):
    m.blocks[0].mlp.fc2.register_forward_hook(lambda module, args, y: 2 * y)


def hooked_before(m):
    m.blocks[0].attn.register_forward_pre_hook(lambda module, args: None)


def own_forward(m):
    layer = m.blocks[0].mlp
    layer.forward = MethodType(lambda self, x: type(self).forward(self, x) * 2, layer)


def parametrized(m):
    parametrizations.weight_norm(m.blocks[0].attn.proj)


class LoraLinear(nn.Linear):
    "As an adapter that was injected in place"


LoraLinear.__module__ = "peft.tuners.lora.layer"


def adapted(m):
    m.blocks[0].mlp.fc1 = LoraLinear(16, 64)


HUNG = {
    "a hook": (hooked, ValueError, "`blocks.0.mlp.fc2` has a forward hook.*remove"),
    "a hook before": (hooked_before, ValueError, "`blocks.0.attn` has a forward hook"),
    "a forward": (own_forward, ValueError, "`blocks.0.mlp` has a `forward` of its own.*del model"),
    "a parametrization": (
        parametrized,
        ValueError,
        "`blocks.0.attn.proj` has a parametrization of `weight`.*remove_parametrizations",
    ),
    "an adapter": (
        adapted,
        TypeError,
        "`blocks.0.mlp.fc1` is an adapter of peft.*merge_and_unload",
    ),
}
for where in ("search", "cut", "gated", "balance"):
    for what, (hang, kind, text) in HUNG.items():

        def run(w, tmp, where=where, hang=hang):
            m = vit()
            hang(m)
            if where == "search":
                return search(w, tmp, m, w.data)
            if where == "cut":
                return spp.cut(m, w.pairs, torch.ones(w.n))
            if where == "gated":
                return spp.gated(m, w.pairs).__enter__()
            return balance(w, tmp, m, w.data)

        add(f"{where} with {what} on a layer", run, kind, text)


def with_function(w, function):
    "`function` of a model that has a plain function for a `forward`, outside of the pairs"
    m = vit()
    old = m.norm.forward
    m.norm.forward = lambda x: old(x)
    return function(m)


for where, function in (
    ("cut", lambda w, m: spp.cut(m, w.pairs, torch.ones(w.n))),
    ("balance", lambda w, m: balance(w, None, m, w.data)),
    ("walk", lambda w, m: walk(w, None, search(w, None, m, w.data), w.data)),
    ("joint", lambda w, m: joint(w, None, search(w, None, m, w.data), w.data)),
):

    def run(w, tmp, function=function):
        return with_function(w, lambda m: function(w, m))

    text = "`norm` has a `forward` that is a function.*types.MethodType"
    add(f"{where} with a function for a forward", run, ValueError, text)


def inside_gates(w, tmp):
    m = vit()
    with spp.gated(m, w.pairs):
        return spp.cut(m, w.pairs, torch.ones(w.n))


add("cut inside of gated", inside_gates, ValueError, "carries gates", "outside of the `with` block")


# --- budgets and masks ------------------------------------------------------------------------

for measure in ("params", "macs", "units", "latency"):
    for v in (0, -1, nan, inf, "x", None, True, [], torch.tensor(0.5)):
        found = "" if isinstance(v, (list, torch.Tensor)) else shown(v)

        def run(w, tmp, measure=measure, v=v):
            return cut(w, tmp, **{measure: v})

        text = f"{measure}={found}.*is not a budget: write the fraction"
        add(f"path.cut {measure}={v!r}", run, ValueError, text)
for measure, v, text in (
    ("params", 1.0001, "neither a fraction.*Reachable"),
    ("params", 1e12, "more than the dense model's"),
    ("params", 1e-7, "cannot be met.*Reachable"),
    ("params", 2000.5, "neither a fraction"),
    ("units", 1.5, "units=1.5 is neither a fraction in .* nor a possible number of units"),
    ("units", 10**6, "more than the dense model's"),
    ("macs", 7, "neither a fraction"),
    ("foo", 0.5, "unknown budget 'foo': known are units, params, macs, latency"),
    ("params", {}, "names no part: write e.g. params={'blocks.0': 0.5}"),
    ("params", {"x": 0.5}, "no units in 'x': they are in blocks"),
    ("params", {"blocks": 2}, r"must be the fraction to keep, in \(0, 1\], got 2"),
    ("params", {"blocks": "x"}, r"must be the fraction to keep, in \(0, 1\], got 'x'"),
    ("params", {"blocks": None}, r"must be the fraction to keep, in \(0, 1\], got None"),
    ("params", {"blocks": nan}, r"must be the fraction to keep, in \(0, 1\], got nan"),
    ("params", {"blocks.0": 0.5, "blocks": 0.5}, "blocks.0 lies in blocks"),
    ("macs", {"blocks": 0.5}, "budgets of parts are dicts for params= and units="),
):

    def run(w, tmp, measure=measure, v=v):
        return cut(w, tmp, **{measure: v})

    add(f"path.cut {measure}={v!r} that cannot be", run, ValueError, text)
numbers(
    "path.cut",
    lambda w, tmp, **kw: cut(w, tmp, params=0.5, **kw),
    "align",
    "whole number of at least 1",
    *(0, -8, 1.5, nan, "x", None, True),
)
for v in ("x", None, 2):

    def run(w, tmp, v=v):
        return cut(w, tmp, params=0.5, uniform=v)

    add(f"path.cut uniform={v!r}", run, TypeError, f"`uniform` must be True or False, got {v!r}")
add("path.cut without a budget", cut, ValueError, "no budget given: write params=0.5")
for where, function in (
    ("path.cut", lambda w: w.path.cut),
    ("path.mask", lambda w: w.path.mask),
    ("Family.cut", lambda w: w.family.cut),
    ("Family.mask", lambda w: w.family.mask),
    ("Family.at", lambda w: w.family.at),
):

    def run(w, tmp, function=function):
        return function(w)(0.5)

    add(f"{where} of a number", run, TypeError, r"which budget is 0.5\? Write params=0.5")
add(
    "path.cut of a path without a model",
    lambda w, tmp: spp.SolutionPath(w.pairs, w.path.v).cut(params=0.5),
    ValueError,
    "has no model yet",
    r"write path.attach\(model\)",
)
MASKS = {
    "short": (lambda w: torch.ones(3), ValueError, r"shape \[\d+\]; got \[3\]"),
    "two-dimensional": (lambda w: torch.ones(2, w.n), ValueError, "expected one value for each"),
    "None": (lambda w: None, TypeError, "`mask` must be a tensor of shape .*; got None"),
    "a list": (lambda w: [1] * w.n, TypeError, "`mask` must be a tensor .*; got a list of 1, 1"),
    "NaN": (lambda w: torch.full((w.n,), nan), ValueError, "`mask` must be 1 or True.*holds nan"),
    "a half": (lambda w: torch.full((w.n,), 0.5), ValueError, "it holds 0.5.*scores > threshold"),
    "negative": (lambda w: -torch.ones(w.n), ValueError, "it holds -1"),
    "seven": (lambda w: torch.ones(w.n).long() * 7, ValueError, "it holds 7"),
}
for what, (wrong, kind, text) in MASKS.items():

    def run(w, tmp, wrong=wrong):
        return spp.cut(w.model, w.pairs, wrong(w))

    def repaired(w, tmp, wrong=wrong):
        return spp.repair(w.model, w.pairs, wrong(w), w.data)

    add(f"cut of a mask {what}", run, kind, text)
    add(f"repair of a mask {what}", repaired, kind, text)
numbers(
    "cut",
    lambda w, tmp, align: spp.cut(w.model, w.pairs, torch.ones(w.n), align=align),
    "align",
    "whole number of at least 1",
    *(0, -1, nan, "x"),
)
add(
    "attach of another model",
    lambda w, tmp: spp.SolutionPath(w.pairs, w.path.v, info=w.path.info).attach(w.other),
    ValueError,
    "path was searched on",
    "Use the model that was searched|Load the weights",
)
add(
    "path.measure of a name",
    lambda w, tmp: w.path.measure("x"),
    (TypeError, ValueError),
    "cannot run a batch whose inputs are 'x'",
)
add(
    "macs_of images of another size",
    lambda w, tmp: macs_of(w.model, torch.zeros(1, 1, 9, 9)),
    ValueError,
    r"cannot run a batch whose inputs are a tensor of shape \[1, 1, 9, 9\]",
)
for block, first, second, text in (
    ("blocks.9.mlp", "fc1", "fc2", "no module `blocks.9.mlp`: `blocks` holds 0"),
    ("blocks.0.mlp", "fc7", "fc2", "no module `blocks.0.mlp.fc7`: `blocks.0.mlp` holds fc1"),
    ("blocks.0", "norm1", "norm2", "must be two nn.Linear"),
    (3, "fc1", "fc2", "modules have names, e.g. 'encoder.3'; got 3"),
):

    def run(w, tmp, block=block, first=first, second=second):
        return spp.mlp_pair(w.model, block, first, second)

    add(f"mlp_pair of {block} {first}", run, TypeError, text)


# --- fine-tuning ------------------------------------------------------------------------------

for name, words, values in (
    ("epochs", "whole number of at least 1", (0, -1, 1.5, None, "x", True, nan)),
    ("lr", "positive and finite", (0, -1, nan, inf, None, "x")),
    ("weight_decay", "nonnegative and finite", (-1, nan, None, "x")),
    ("warmup", r"in \[0, 1\]", (-1, 2, nan, None)),
    ("share", r"in \[0, 1\]", (-1, 2, nan, None)),
    ("temperature", "positive and finite", (0, -1, nan, None)),
    ("features", "nonnegative and finite", (-1, nan, None, "x")),
    ("layer_decay", r"in \(0, 1\]", (0, -1, nan, 2)),
    ("ema", r"in \(0, 1\)", (0, 1, nan, "x")),
    ("accumulate", "whole number of at least 1", (0, 1.5, nan)),
    ("clip", "positive and finite", (0, -1, nan, "x")),
    ("chunk", "whole number of at least 1", (0, "x", 1.5)),
    ("every", "whole number of at least 1", (0, -1, nan, "x")),
):
    numbers("finetune", finetune, name, words, *values)
for name, v in (
    ("loss", "x"),
    ("mixup", 3),
    ("evaluate", 3),
    ("before", 3),
):

    def run(w, tmp, name=name, v=v):
        return finetune(w, tmp, **{name: v})

    text = f"`{name}` must be a function of .*, got {v!r}"
    add(f"finetune {name}={v!r}", run, TypeError, text)
for name, v, kind in (
    ("log", 3, TypeError),
    ("log", "", ValueError),
    ("checkpoint", 3, TypeError),
    ("checkpoint", "", ValueError),
):

    def run(w, tmp, name=name, v=v):
        return finetune(w, tmp, **{name: v})

    text = "the name of a file or folder, got|is no name of a file"
    add(f"finetune {name}={v!r}", run, kind, text)
add(
    "finetune amp",
    lambda w, tmp: finetune(w, tmp, amp="x"),
    ValueError,
    "`amp` must be torch.bfloat16.*got 'x'",
)
add(
    "finetune shard in one process",
    lambda w, tmp: finetune(w, tmp, shard=True),
    ValueError,
    "start several with torchrun",
)
add(
    "finetune shard",
    lambda w, tmp: finetune(w, tmp, shard=2),
    TypeError,
    "`shard` must be True or False, got 2",
)
add(
    "finetune of an unknown argument",
    lambda w, tmp: finetune(w, tmp, epoch=1),
    TypeError,
    "unexpected keyword argument 'epoch'",
)
add(
    "finetune of a path",
    lambda w, tmp: finetune(w, tmp, w.path, w.data, w.model),
    TypeError,
    "`model` must be a model, an nn.Module, got a SolutionPath",
)
for v, text in (("x", "`teacher` must be a model.*got 'x'"), (3, "`teacher` must be a model")):

    def run(w, tmp, v=v):
        return finetune(w, tmp, vit(), w.data, v)

    add(f"finetune teacher={v!r}", run, TypeError, text)
add(
    "finetune with a teacher of other inputs",
    lambda w, tmp: finetune(w, tmp, vit(), w.data, nn.Linear(2, 2)),
    ValueError,
    "Linear cannot run a batch",
)
add(
    "finetune with a teacher of other classes",
    lambda w, tmp: finetune(w, tmp, vit(), w.data, vit(num_classes=3)),
    ValueError,
    "they need the same classes",
)


def own_teacher(w, tmp):
    m = vit()
    return finetune(w, tmp, m, w.data, m)


add("finetune with itself as a teacher", own_teacher, ValueError, "is the model itself")
add(
    "finetune features without a teacher",
    lambda w, tmp: finetune(w, tmp, vit(), w.data, features=1.0),
    ValueError,
    "pass teacher=",
)
add(
    "finetune without labels and teacher",
    lambda w, tmp: finetune(w, tmp, vit(), [w.x]),
    ValueError,
    "nothing to learn from",
    "or pass teacher=",
)
LABELS = {
    "out of range": (lambda w: w.y + 100, ValueError, "labels from .* 10 classes, 0 to 9"),
    "negative": (lambda w: w.y - 20, ValueError, "labels from -"),
    "floats": (lambda w: w.y.float(), TypeError, r"\(float32\): write labels.long\(\)"),
    "booleans": (lambda w: w.y > 3, TypeError, r"\(bool\): write labels.long\(\)"),
    "too few": (lambda w: w.y[:3], ValueError, r"need labels of shape \[8\]"),
    "a column": (lambda w: w.y[:, None], ValueError, r"Write labels\[:, 0\]"),
    "one-hot": (lambda w: F.one_hot(w.y, 10), ValueError, r"write labels.argmax\(1\)"),
    "a list": (lambda w: w.y.tolist(), TypeError, r"write torch.tensor\(labels\)"),
}
for where in ("finetune", "finetune alone", "accuracy", "evaluate", "search with a loss"):
    for what, (wrong, kind, text) in LABELS.items():

        def run(w, tmp, where=where, wrong=wrong):
            data = [(w.x, wrong(w))]
            if where == "finetune":
                return finetune(w, tmp, vit(), data, w.model)
            if where == "finetune alone":
                return finetune(w, tmp, vit(), data)
            if where == "search with a loss":
                return search(w, tmp, w.model, data, F.cross_entropy)
            return accuracy(w.model, data) if where == "accuracy" else evaluate(w.model, data)

        add(f"{where}, labels {what}", run, kind, text)


# --- members and families ---------------------------------------------------------------------

SHARES = {
    (): (ValueError, "`params` is empty: write the shares"),
    (0,): (ValueError, r"`params` must be in \(0, 1\], shares of the parameters, got 0"),
    (-1,): (ValueError, "got -1"),
    (nan,): (ValueError, "got nan"),
    (2,): (ValueError, "got 2"),
    (True,): (TypeError, "`params` must be a number"),
    ("x",): (TypeError, "got 'x'"),
    "x": (TypeError, "`params` must be several shares.*got 'x'"),
    None: (TypeError, "`params` must be several shares.*got None"),
    0.5: (TypeError, r"`params` must be several shares, e.g. \(0.75, 0.5\); got 0.5"),
    (0.5, 0.5): (ValueError, "must be different shares"),
}
for v, (kind, text) in SHARES.items():
    for where, function in (
        ("walk", lambda w, v: walk(w, None, params=v)),
        ("joint", lambda w, v: joint(w, None, params=v)),
        ("Family.score", lambda w, v: w.family.score(lambda m: 1.0, v)),
    ):

        def run(w, tmp, function=function, v=v):
            return function(w, v)

        add(f"{where} params={v!r}", run, kind, text)
for v in ((0.5,), (0.2, 0.5, 1)):

    def run(w, tmp, v=v):
        return joint(w, tmp, params=v)

    text = "are the largest and the smallest member"
    add(f"joint params={v!r}", run, ValueError, text)
add(
    "walk params that cannot be met", lambda w, tmp: walk(w, tmp, params=(1e-6,)), ValueError, "met"
)
numbers("walk", walk, "hold", r"in \[0, 1\)", 1, -1, 2, nan, "x")
numbers("walk", walk, "epochs", "whole number", 0, nan, 1.5)
numbers("walk", walk, "align", "whole number of at least 1", 0, "x")
numbers("joint", joint, "sizes", "whole number of at least 2", 0, 1, -1, 1.5)
numbers("joint", joint, "ends", r"in \[0, 1\]", -1, 2, nan)
numbers("joint", joint, "seed", "whole number from 0", None, -1)
numbers("joint", joint, "align", "whole number of at least 1", 0)
for where, function in (("walk", walk), ("joint", joint)):

    def unknown(w, tmp, function=function):
        return function(w, tmp, epoch=1)

    def teacher(w, tmp, function=function):
        return function(w, tmp, teacher="x")

    def model(w, tmp, function=function):
        return function(w, tmp, w.model, w.data)

    def loose(w, tmp, function=function):
        return function(w, tmp, spp.SolutionPath(w.pairs, w.path.v), w.data)

    add(f"{where} of an unknown argument", unknown, TypeError, "takes no `epoch`: it takes data")
    add(f"{where} teacher='x'", teacher, TypeError, "`teacher` must be a model")
    text = "`path` must be a SolutionPath, e.g. of spp.search; got a VisionTransformer"
    add(f"{where} of a model", model, TypeError, text)
    add(f"{where} of a path without a model", loose, ValueError, r"write path.attach\(model\)")
for v, kind in ((3, TypeError), ("", ValueError)):

    def run(w, tmp, v=v):
        return walk(w, tmp, keep=v)

    text = "the name of a file or folder, got|is no name of a file"
    add(f"walk keep={v!r}", run, kind, text)
for name, function in (("cut", lambda w: w.family.cut), ("at", lambda w: w.family.at)):
    for budget, text in (
        (dict(params=0), "is not a budget"),
        (dict(params=nan), "is not a budget"),
        (dict(params="x"), "is not a budget"),
        (dict(params=2), "neither a fraction"),
        (dict(params=0.32), "this family was trained from 1 down to 0.4"),
        (dict(foo=1), "unknown budget 'foo'"),
        ({}, "no budget given"),
    ):

        def run(w, tmp, function=function, budget=budget):
            return function(w)(**budget)

        add(f"Family.{name} {budget}", run, ValueError, text)
add(
    "Family without a path",
    lambda w, tmp: spp.Family(w.model, None),
    TypeError,
    "`path` must be a SolutionPath.*got None",
)
add(
    "Family.score of swapped arguments",
    lambda w, tmp: w.family.score((0.5,), accuracy),
    TypeError,
    "`evaluate` must be a function",
)
add(
    "Family.load of nothing",
    lambda w, tmp: spp.Family.load(tmp / "no"),
    FileNotFoundError,
    "no",
)


# --- balance, judging -------------------------------------------------------------------------

numbers("balance", balance, "batches", "whole number of at least 1", 0, -1, 1.5, None)
add(
    "balance of a model without heads",
    lambda w, tmp: balance(w, tmp, pairs=[p for p in w.pairs if p.kind == "mlp"]),
    ValueError,
    "there is nothing to balance: search it as it is",
)
add(
    "evaluate task='x'",
    lambda w, tmp: judge(w, tmp, task="x"),
    ValueError,
    "unknown task 'x': known are classification",
)
for task, kind, text in (
    ("retrieval", TypeError, "has no encode_image and encode_text"),
    ("fidelity", ValueError, "pass dense="),
    ("knn", ValueError, "pass train="),
    ("probe", ValueError, "pass train="),
):

    def run(w, tmp, task=task):
        return judge(w, tmp, task=task)

    add(f"evaluate task={task} alone", run, kind, text)
numbers("evaluate", judge, "level", r"in \(0, 1\)", 0, 1, 2, nan, "x")
numbers(
    "evaluate knn",
    lambda w, tmp, k: judge(w, tmp, task="knn", train=w.data, k=k),
    "k",
    "whole number of at least 1",
    *(0, -1, 1.5, "x"),
)
add(
    "evaluate without labels",
    lambda w, tmp: judge(w, tmp, w.model, [w.x]),
    ValueError,
    r"needs labels: let the data yield \(inputs, labels\)",
)
add(
    "accuracy without labels",
    lambda w, tmp: accuracy(w.model, [w.x]),
    ValueError,
    r"needs labels: let the data yield \(inputs, labels\)",
)
add(
    "evaluate of a model without classes",
    lambda w, tmp: judge(w, tmp, nn.Conv2d(1, 3, 3), w.data),
    ValueError,
    r"needs logits of shape \[batch, classes\]",
)
add(
    "evaluate dense='x'",
    lambda w, tmp: judge(w, tmp, task="fidelity", dense="x"),
    TypeError,
    "`dense` must be a model",
)
add(
    "evaluate train=3",
    lambda w, tmp: judge(w, tmp, task="knn", train=3),
    TypeError,
    "`train` must be batches",
)
add(
    "evaluate fidelity of features that are not finite",
    lambda w, tmp: judge(w, tmp, w.model, [w.x * nan], task="fidelity", dense=w.model),
    ArithmeticError,
    "features of VisionTransformer are not finite",
)
add(
    "evaluate knn of labels of a wrong shape",
    lambda w, tmp: judge(w, tmp, w.model, [(w.x, w.y[:3])], task="knn", train=w.data),
    ValueError,
    r"8 samples need labels of shape \[8\], got \[3\]",
)
for v in ("x", None):

    def run(w, tmp, v=v):
        return baseline(v, w.model)

    add(f"baseline {v!r}", run, ValueError, f"unknown method {v!r}: known are random, magnitude")
add(
    "recall of nothing",
    lambda w, tmp: recall(torch.zeros(0, 4), torch.zeros(0, 4)),
    ValueError,
    "every image needs a caption",
)
add(
    "recall of features that are not finite",
    lambda w, tmp: recall(torch.full((4, 4), nan), torch.ones(4, 4)),
    ValueError,
    "features must be finite",
)
add(
    "recall of a list",
    lambda w, tmp: recall([1], torch.ones(4, 4)),
    TypeError,
    r"`image_features` must be a tensor of shape \[n, d\], got a list",
)
numbers(
    "recall",
    lambda w, tmp, **kw: recall(torch.ones(4, 4), torch.ones(4, 4), **kw),
    "level",
    r"in \(0, 1\)",
    *(0, 2, nan),
)


# --- files ------------------------------------------------------------------------------------

for v in (None, 3, b"x"):
    for where, function in (
        ("save", lambda w, v: spp.save(w.model, v)),
        ("load", lambda w, v: spp.load(v)),
        ("path.save", lambda w, v: w.path.save(v)),
        ("SolutionPath.load", lambda w, v: spp.SolutionPath.load(v)),
    ):

        def run(w, tmp, function=function, v=v):
            return function(w, v)

        add(f"{where} to {v!r}", run, TypeError, "name of a file or folder, got", shown(v))
for v in ("float16", torch.float64, torch.float32, 8, True):

    def run(w, tmp, v=v):
        return spp.save(w.model, tmp / "s", dtype=v)

    text = "weights can be stored as torch.float16, torch.bfloat16, torch.int8, got dtype="
    add(f"save dtype={v!r}", run, ValueError, text)


def loaded(w, tmp, device):
    return spp.load(spp.save(w.model, tmp / "ok"), device)


for v, kind, text in (
    ("x", ValueError, "`device` must be the name of a device.*got 'x'"),
    ("cuda:99", ValueError, "this machine has .* GPUs.*Write 'cpu'"),
    (3, TypeError, "`device` must be the name of a device.*got 3"),
    (None, TypeError, "`device` must be the name of a device.*got None"),
):

    def run(w, tmp, v=v):
        return loaded(w, tmp, v)

    add(f"load device={v!r}", run, kind, text)
add(
    "load of a file",
    lambda w, tmp: spp.load(spp.save(w.model, tmp / "ok") / "spp.json"),
    (FileNotFoundError, NotADirectoryError, ValueError),
    "spp.json",
)
add(
    "SolutionPath.load of a folder",
    lambda w, tmp: spp.SolutionPath.load(tmp),
    IsADirectoryError,
    "is a folder: expected a solution path, which is one file",
)


# --- language models --------------------------------------------------------------------------

WINDOWS = {
    "None": (lambda w: None, TypeError, "token ids must be a tensor of shape .*got None"),
    "a list": (lambda w: w.ids.tolist(), TypeError, "token ids must be a tensor .*got a list"),
    "floats": (lambda w: w.ids.float(), TypeError, r"whole numbers.*write ids.long\(\)"),
    "empty": (lambda w: w.ids[:0], ValueError, r"there are no tokens.*\[0, 16\]"),
    "three-dimensional": (lambda w: w.ids[None], ValueError, r"token ids must have shape \[n, len"),
    "too long": (lambda w: w.ids.repeat(1, 3), ValueError, "windows of 48 tokens.*32 positions"),
    "out of range": (lambda w: w.ids + 64, ValueError, "knows 64: take its own tokenizer"),
    "negative": (lambda w: w.ids - 100, ValueError, "token ids from -"),
}
TAKES_WINDOWS = {
    "weight_path": lambda w, ids: weight_path(w.llm, ids, progress=False),
    "one_shot": lambda w, ids: one_shot(w.llm, ids, "wanda", sparsity=0.5, progress=False),
    "perplexity": lambda w, ids: perplexity(w.llm, ids),
    "prune": lambda w, ids: w.lpath.prune(0.5, repair=ids, progress=False),
}
for where, function in TAKES_WINDOWS.items():
    for what, (wrong, kind, text) in WINDOWS.items():
        if where == "prune" and what == "None":
            continue  # no repair

        def run(w, tmp, function=function, wrong=wrong):
            return function(w, wrong(w))

        add(f"{where} of windows {what}", run, kind, text)
for where in ("weight_path", "one_shot"):

    def run(w, tmp, function=TAKES_WINDOWS[where]):
        return function(w, w.ids[0])

    add(f"{where} of a stream", run, ValueError, r"got \[16\]. Write ids\[None\]")
add(
    "batches of floats",
    lambda w, tmp: batches(w.ids.float()),
    TypeError,
    "whole numbers",
)
add(
    "perplexity of one token",
    lambda w, tmp: perplexity(w.llm, w.ids[:, :1]),
    ValueError,
    "at least two tokens",
)
add(
    "perplexity of a stream in windows that are too long",
    lambda w, tmp: perplexity(w.llm, w.ids.flatten(), length=64),
    ValueError,
    "windows of 64 tokens, but LlamaForCausalLM has 32 positions",
)
add(
    "perplexity of weights that are not finite",
    lambda w, tmp: perplexity(broken(), w.ids),
    ArithmeticError,
    "there is no perplexity",
)


def broken():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[3] = nan
    return model


def judged(w, tmp, **kw):
    return perplexity(w.llm, w.ids.flatten(), **({"length": 16} | kw))


numbers("perplexity", judged, "length", "whole number of at least 2", 0, -1, 1.5, None)
numbers("perplexity", judged, "stride", "whole number of at least 1", 0, -1, 1.5)
add(
    "perplexity stride over length",
    lambda w, tmp: judged(w, tmp, stride=17),
    ValueError,
    r"`stride` must be in \[1, 16\]",
)
numbers(
    "prune",
    lambda w, tmp, sparsity: w.lpath.prune(sparsity),
    "sparsity",
    r"in \[0, 1\)",
    *(1, -0.1, nan, 1.5, "x", True),
)
for v, text in (
    ("2:3", "does not divide"),
    ("0:4", "expected 0 < N ≤ M"),
    ("5:4", "expected 0 < N ≤ M"),
    ("-2:4", "expected 0 < N ≤ M"),
    ("2:0", "expected 0 < N ≤ M"),
    ("x", "`pattern` must be like \"2:4\", got 'x'"),
    ("2:4:8", '`pattern` must be like "2:4"'),
    ("", '`pattern` must be like "2:4"'),
    (24, '`pattern` must be like "2:4", got 24'),
):

    def run(w, tmp, v=v):
        return w.lpath.prune(pattern=v)

    add(f"prune pattern={v!r}", run, ValueError, text)
add("prune of nothing", lambda w, tmp: w.lpath.prune(), ValueError, "give either `sparsity`")
numbers(
    "prune",
    lambda w, tmp, damping: w.lpath.prune(0.5, repair=w.ids, damping=damping),
    "damping",
    "nonnegative and finite",
    *(-1, nan, "x"),
)
add(
    "prune of an unknown argument",
    lambda w, tmp: w.lpath.prune(0.5, devices="cpu"),
    TypeError,
    "prune takes no `devices`: it takes device, amp, progress",
)


def scored(w, tmp, **kw):
    return weight_path(w.llm, w.ids, progress=False, **kw)


for name, v, kind, text in (
    ("metric", "x", ValueError, "unknown metric 'x': known are magnitude, wanda"),
    ("metric", None, ValueError, "unknown metric None"),
    ("by", "x", ValueError, '`by` must be "row" or "layer" or "model", got \'x\''),
    ("by", "", ValueError, '`by` must be "row" or "layer" or "model", got \'\''),
    ("device", "x", ValueError, "`device` must be the name of a device"),
    ("device", "cuda:99", ValueError, "this machine has .* GPUs"),
    ("amp", "x", ValueError, "`amp` must be torch.bfloat16, torch.float16 or None"),
    ("foo", 1, TypeError, "the metric 'inclusion' takes no `foo`: it takes steps"),
):

    def run(w, tmp, name=name, v=v):
        return scored(w, tmp, **{name: v})

    add(f"weight_path {name}={v!r}", run, kind, text)
for name, words, values in (
    ("steps", "whole number of at least 1", (0, 1.5, nan)),
    ("end", r"in \(0, 1\)", (0, nan)),
    ("momentum", r"in \[0, 1\)", (nan, 1)),
    ("rows", "whole number of at least 1", (0, -1, nan)),
    ("fade", "nonnegative and finite", (-1, nan)),
):
    numbers("weight_path", scored, name, words, *values)


def weights_of_others(function):
    "`function` of a language model of which a layer's weights are computed"

    def run(w, tmp):
        model = llama()
        parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
        return function(w, model)

    return run


for where, function in (
    ("weight_path", lambda w, m: weight_path(m, w.ids, progress=False)),
    ("one_shot", lambda w, m: one_shot(m, w.ids, "wanda", sparsity=0.5, progress=False)),
):
    text = "up_proj` has a parametrization of `weight`.*cannot be set"
    add(f"{where} of a parametrization", weights_of_others(function), ValueError, text)
add(
    "repair on a window",
    lambda w, tmp: spp.repair(w.model, w.pairs, half(w), w.ids[0]),
    ValueError,
    r"token ids must have shape \[n, length\].*Write ids\[None\]",
)


def window(w, tmp, source=("abc" * 99,), tokenizer=tokenizer, n=2, length=8, seed=0):
    return windows(
        list(source) if isinstance(source, tuple) else source, tokenizer, n, length, seed
    )


numbers("windows", window, "n", "whole number of at least 1", 0, -1, 1.5, None)
numbers("windows", window, "length", "whole number of at least 1", 0, -3, "x")
numbers("windows", window, "seed", "whole number from 0", None, -1)
for what, v, kind, text in (
    ("None", None, TypeError, "a text must be a file, a list of texts.*got None"),
    ("a number", 3, TypeError, "a text must be a file.*got 3"),
    ("nothing", [], ValueError, "the text has 0 tokens and one window takes 8: give more text"),
    ("a list of numbers", [1], TypeError, "a text must be a str, got int"),
    ("a file that is not there", "nofile.txt", FileNotFoundError, "no text nofile.txt: expected"),
):

    def run(w, tmp, v=v):
        return window(w, tmp, source=v)

    add(f"windows of {what}", run, kind, text)
add(
    "windows of a folder",
    lambda w, tmp: window(w, tmp, source=tmp),
    FileNotFoundError,
    "expected a file, a list of texts",
)
add(
    "windows that are longer than the text",
    lambda w, tmp: window(w, tmp, source=("abc",), length=10**9),
    ValueError,
    "the text has 3 tokens",
    "smaller `length`",
)
add(
    "windows without a tokenizer",
    lambda w, tmp: window(w, tmp, tokenizer=None),
    TypeError,
    "`tokenizer` must be a function",
)
add("texts of None", lambda w, tmp: texts(None), TypeError, "a text must be a file")


def llm(w, tmp, model="x", calibration="t", **kw):
    return run_llm(model, tmp / "out", calibration, **kw)


for what, kw, kind, text in (
    ("no budget", {}, ValueError, "give one of sparsity, pattern and params"),
    ("two budgets", dict(sparsity=0.5, params=0.5), ValueError, "give one of sparsity"),
    ("no model", dict(model=None, sparsity=0.5), TypeError, "`model` must be a name on the hub"),
    ("no text", dict(calibration=None, sparsity=0.5), ValueError, "which calibration text"),
    ("sparsity=nan", dict(sparsity=nan), ValueError, r"`sparsity` must be in \[0, 1\)"),
    ("params='x'", dict(params="x"), TypeError, "`params` must be a number"),
    ("params=-1", dict(params=-1), ValueError, "`params` must be positive"),
    ("n=0", dict(sparsity=0.5, n=0), ValueError, "`n` must be a whole number of at least 1"),
    ("length=-1", dict(sparsity=0.5, length=-1), ValueError, "`length` must be a whole number"),
    ("steps=0", dict(params=0.5, steps=0), ValueError, "`steps` must be a whole number"),
    ("seed=-1", dict(sparsity=0.5, seed=-1), ValueError, "`seed` must be a whole number"),
    ("dtype='x'", dict(sparsity=0.5, dtype="x"), ValueError, "unknown dtype 'x': known are auto"),
    ("metric='x'", dict(sparsity=0.5, metric="x"), ValueError, "unknown metric 'x'"),
    ("device='x'", dict(sparsity=0.5, device="x"), ValueError, "`device` must be the name"),
    ("repair=2", dict(sparsity=0.5, repair=2), TypeError, "`repair` must be True or False, got 2"),
):

    def run(w, tmp, kw=kw):
        return llm(w, tmp, **kw)

    add(f"run_llm with {what}", run, kind, text)
add(
    "run_llm of a folder without a model",
    lambda w, tmp: llm(w, tmp, model=str(tmp), sparsity=0.5),
    FileNotFoundError,
    "no language model .*expected a folder with a model and its tokenizer",
)


# --- recipes, reports, jobs -------------------------------------------------------------------


def smoke(w, tmp, recipe="deit_tiny", **kw):
    return runs.run(recipe, out=tmp / "r", smoke=True, progress=False, **kw)


for name, words, values in (
    ("batch", "whole number of at least 1", (0, -4, 1.5)),
    ("update", "whole number of at least 1", (0,)),
    ("repair", "whole number of at least 0", (-1, 0.5)),
    ("dense", "whole number of at least 0", (-1,)),
    ("num_classes", "whole number of at least 1", (0,)),
    ("image_size", "whole number of at least 1", (-32,)),
    ("finetune", "whole number of at least 0", (-1, nan)),
    ("balance", "whole number of at least 0", (-1,)),
    ("seed", "whole number from 0", (-1,)),
    ("workers", "whole number of at least 0", (-1,)),
    ("lr", "positive and finite", (0, nan)),
    ("smoothing", r"in \[0, 1\)", (1, nan)),
    ("ema", r"in \(0, 1\)", (1.5,)),
    ("clip", "positive and finite", (-1,)),
    ("share", r"in \[0, 1\]", (2,)),
    ("mixup", "nonnegative and finite", (-1,)),
):
    numbers("runs.run", smoke, name, words, *values)
for what, kw, kind, text in (
    ("params=()", dict(params=()), ValueError, "`params` is empty"),
    ("params=(2.0,)", dict(params=(2.0,)), ValueError, r"`params` must be in \(0, 1\]"),
    ("params='x'", dict(params="x"), TypeError, "`params` must be several shares"),
    ("prune=-1", dict(prune=-1, repair=0), ValueError, "whole number of at least 0"),
    ("prune=3 and a repair", dict(prune=3), ValueError, r"write repair=0 \(--no-repair\)"),
    ("weights=False", dict(weights=False), ValueError, "unknown value of `weights` False"),
    ("a checkpoint that is not there", dict(checkpoint="no"), FileNotFoundError, "no checkpoint"),
    ("an unknown field", dict(foo=1), ValueError, "a recipe has no foo: it has model, update"),
    ("an unknown recipe", dict(recipe="x"), ValueError, "unknown recipe 'x': known are deit_base"),
    ("an unknown model", dict(model="nosuch"), ValueError, "timm has no model 'nosuch'"),
    ("device='x'", dict(device="x"), ValueError, "`device` must be the name of a device"),
    (
        "missing='x'",
        dict(missing="x"),
        ValueError,
        "unknown value of `missing` 'x': known are stop",
    ),
    ("name=3", dict(name=3), TypeError, "`name` must be the name of a data set, got 3"),
):

    def run(w, tmp, kw=kw):
        return smoke(w, tmp, **kw)

    add(f"runs.run with {what}", run, kind, text)
add(
    "runs.run without data",
    lambda w, tmp: runs.run("deit_tiny", out=tmp / "r"),
    ValueError,
    "no data: pass the folder of the images, or smoke=True",
)
add(
    "runs.run of a folder that is not there",
    lambda w, tmp: runs.run("deit_tiny", tmp / "no", tmp / "r", weights="none"),
    FileNotFoundError,
    "no folder .*: expected one with train/ and val/",
)
add("report of nothing", lambda w, tmp: report([]), ValueError, "no runs: name at least one folder")
add(
    "report of a folder that is not there",
    lambda w, tmp: report([tmp / "no"], tmp / "x.html"),
    FileNotFoundError,
    "expected a folder that `spp run`",
)
add(
    "report to a text file",
    lambda w, tmp: report([tmp], tmp / "x.txt"),
    ValueError,
    "name a file that ends in .html",
)
numbers("Resources", lambda w, tmp, **kw: Resources(**kw), "nodes", "of at least 1", 0, 1.5, "x")
numbers("Resources", lambda w, tmp, **kw: Resources(**kw), "gpus", "of at least 0", -1)
numbers("Resources", lambda w, tmp, **kw: Resources(**kw), "hours", "positive", 0, nan, inf)
add(
    "launch on an unknown cluster",
    lambda w, tmp: launch([], "x"),
    (ValueError, ImportError),
    "unknown cluster 'x': known are slurm|submitit",
)


@pytest.mark.parametrize("name", ROWS)
def test_bad_call(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, kind, texts = ROWS[name]
    with pytest.raises(kind) as caught:
        call(world(), tmp_path)
    text = " ".join(str(caught.value).split())
    for pattern in texts:
        assert re.search(pattern, text), text
    assert not list(tmp_path.rglob("spp.json")) or "load" in name


def test_there_are_many():
    assert len(ROWS) >= 400


# --- accepted ---------------------------------------------------------------------------------

ACCEPTED = {
    "whole numbers of NumPy": (
        lambda w, tmp: search(w, tmp, steps=np.int64(2)),
        "they count as Python's do",
    ),
    "batches of one sample": (
        lambda w, tmp: search(w, tmp, w.model, [w.x[:1]]),
        "few samples make a poor order, not a wrong one",
    ),
    "a dict of one tensor": (
        lambda w, tmp: search(w, tmp, w.model, [{"image": w.x}]),
        "a model of one input takes it, whatever a data set calls it",
    ),
    "no loss of one's own": (
        lambda w, tmp: finetune(w, tmp, loss=None),
        "the loss that fits what the model answers and the labels",
    ),
    "no task": (
        lambda w, tmp: judge(w, tmp, task=None),
        "the measure that fits the model's head",
    ),
    "a batch of zeros": (
        lambda w, tmp: search(w, tmp, w.model, [torch.zeros(4, 1, 8, 8)]),
        "a constant input is an input",
    ),
    "params=1": (lambda w, tmp: cut(w, tmp, params=1), "1 is the whole model, whole or not"),
    "a huge align": (
        lambda w, tmp: cut(w, tmp, params=0.5, align=10**9),
        "a width never exceeds the layer's: layers stay whole or leave",
    ),
    "an empty mask": (
        lambda w, tmp: spp.cut(w.model, w.pairs, torch.zeros(w.n)),
        "the smallest model that can be cut: each pair becomes its bias; latency measures it",
    ),
    "a mask of whole numbers": (
        lambda w, tmp: spp.cut(w.model, w.pairs, torch.ones(w.n).long()),
        "0 and 1 in any type",
    ),
    "loading to meta": (
        lambda w, tmp: loaded(w, tmp, "meta"),
        "PyTorch's name for a model of shapes alone",
    ),
    "save_pretrained of a timm model": (
        lambda w, tmp: spp.save_pretrained(w.model, tmp / "native"),
        "timm has folders of its own, which `local-dir:` reads",
    ),
    "more batches in a step than in an epoch": (
        lambda w, tmp: finetune(w, tmp, accumulate=100),
        "then an epoch is one step",
    ),
    "a member of the whole size": (
        lambda w, tmp: walk(w, tmp, params=(1.0,)),
        "the dense model, trained as its members are",
    ),
    "sizes in any order": (
        lambda w, tmp: joint(w, tmp, params=(0.5, 1)),
        "of two sizes one is the larger",
    ),
    "more neighbours than samples": (
        lambda w, tmp: judge(w, tmp, task="knn", train=w.data, k=10**9),
        "then all of them vote; the default of 20 must work on small data, too",
    ),
    "a class that is ruled out": (
        lambda w, tmp: judge(w, tmp, ruled_out(), w.data),
        "a logit of −∞ says that a class cannot be",
    ),
    "shares of classes": (
        lambda w, tmp: finetune(w, tmp, vit(), [(w.x, F.one_hot(w.y, 10).float())], w.model),
        "what Mixup makes of labels",
    ),
    "labels that are ignored": (
        lambda w, tmp: search(w, tmp, w.model, [(w.x, ignored(w))], F.cross_entropy),
        "−100 is what the cross-entropy leaves out",
    ),
    "perplexity of a stream": (
        lambda w, tmp: perplexity(w.llm, w.ids.flatten(), length=16),
        "one of the two shapes that it takes",
    ),
    "a short stream": (
        lambda w, tmp: perplexity(w.llm, w.ids[0]),
        "no window is longer than the stream, whatever `length` is",
    ),
    "windows of one token": (
        lambda w, tmp: weight_path(w.llm, w.ids[:, :1], progress=False),
        "moments of what a layer reads need no second token",
    ),
    "sparsity=0": (lambda w, tmp: w.lpath.prune(0), "nothing is removed"),
    "a repair without damping": (
        lambda w, tmp: w.lpath.prune(0.5, repair=w.ids, damping=0, progress=False),
        "where the moments are regular; else an ArithmeticError says so",
    ),
    "reversed maps": (
        lambda w, tmp: spp.mlp_pair(w.model, "blocks.0.mlp", "fc2", "fc1"),
        "names and shapes fit, so only data can tell: search proves it on the first batch",
    ),
    "a hook outside of the pairs": (
        lambda w, tmp: spp.cut(with_hook(), w.pairs, torch.ones(w.n)),
        "a copy carries it",
    ),
    "a method for a forward": (
        lambda w, tmp: spp.cut(with_method(), w.pairs, torch.ones(w.n)),
        "a copy binds it to its own module",
    ),
}


def ignored(w):
    y = w.y.clone()
    y[0] = -100
    return y


def ruled_out():
    m = vit()
    m.head.bias.data[3] = -inf
    return m


def with_hook():
    m = vit()
    m.norm.register_forward_hook(lambda module, args, y: 2 * y)
    return m


def with_method():
    m = vit()
    m.norm.forward = MethodType(lambda self, x: 2 * type(self).forward(self, x), m.norm)
    return m


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, reason = ACCEPTED[name]
    assert reason
    try:
        call(world(), tmp_path)
    except ArithmeticError as error:
        assert name == "a repair without damping", error


@pytest.mark.parametrize("make", [with_hook, with_method])
def test_what_hangs_outside_is_honoured(make):
    "The cut network computes what the gated one does, with what hangs on it"
    w = world()
    mask = torch.rand(w.n, generator=torch.Generator().manual_seed(1)) > 0.4
    model = make()
    with torch.no_grad(), spp.gated(model, w.pairs, mask.float()):
        gated = model(w.x)
    small = spp.cut(model, w.pairs, mask)
    with torch.no_grad():
        assert torch.allclose(small(w.x), gated, atol=1e-5)


def test_compiled_in_place():
    "Gates reach a module that was compiled in place, and it is compiled again afterwards"
    w, model = world(), vit()
    model.blocks[0].compile(backend="eager")
    compiled = model.blocks[0]._compiled_call_impl
    with torch.no_grad():
        dense = model(w.x)
        with spp.gated(model, w.pairs, torch.zeros(w.n)):
            assert not torch.allclose(model(w.x), dense, atol=1e-3)
    assert model.blocks[0]._compiled_call_impl is compiled


# --- the command line -------------------------------------------------------------------------

COMMANDS = {
    "run x --smoke": "unknown recipe 'x': known are",
    "run deit_tiny": "no data: pass the folder",
    "run deit_tiny --smoke --params 1.5": r"`params` must be in \(0, 1\]",
    "run deit_tiny --smoke --params 0": r"`params` must be in \(0, 1\]",
    "run deit_tiny --smoke --batch 0": "`batch` must be a whole number",
    "run deit_tiny --smoke --lr nan": "`lr` must be positive",
    "run deit_tiny --smoke --update 0": "`update` must be a whole number",
    "run deit_tiny --smoke --seed=-1": "`seed` must be a whole number",
    "run deit_tiny --smoke --workers=-1": "`workers` must be a whole number",
    "run deit_tiny --data nofolder": "no folder nofolder: expected one with",
    "run deit_tiny --smoke --cluster debug --nodes 0": "`nodes` must be a whole number",
    "run deit_tiny --smoke --cluster debug --hours nan": "`hours` must be positive",
    "show nofile": "no file",
    "demo --steps 0": "`steps` must be a whole number",
    "demo --epochs 0": "`epochs` must be a whole number",
    "demo --seed=-1": "`seed` must be a whole number",
    "llm x --out o": "give one of sparsity, pattern and params",
    "llm x --out o --sparsity 0.5": "which calibration text",
    "llm x --out o --sparsity 1.5 --calibration t": r"`sparsity` must be in \[0, 1\)",
    "llm x --out o --pattern 5:4 --calibration t": "expected 0 < N ≤ M",
    "llm x --out o --sparsity 0.5 --params 0.5 --calibration t": "give one of",
    "llm x --out o --sparsity 0.5 --windows 0 --calibration t": "`n` must be a whole number",
    "llm x --out o --sparsity 0.5 --dtype x --calibration t": "unknown dtype 'x'",
    "llm x --out o --sparsity 0.5 --metric x --calibration t": "unknown metric 'x'",
    "llm x --out o --sparsity 0.5 --device x --calibration t": "`device` must be",
    "jobs nofolder": "no jobs in nofolder",
    "report nofolder": "is not there: expected a folder",
    "report . --out x.txt": "ends in .html",
    "bench x": "unknown benchmark 'x': known are",
    "run": "Missing argument",
    "nosuch": "No such command",
    "demo --steps x": "valid integer",
}


@pytest.mark.parametrize("line", COMMANDS)
def test_bad_command(line, tmp_path, monkeypatch):
    "One line that says what is wrong, status 2, no traceback"
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2, (done.output, done.exception)
    assert re.search(COMMANDS[line], " ".join(done.output.split())), done.output
    assert "Traceback" not in done.output
    told = [row for row in done.output.splitlines() if row.startswith(("spp: ", "Error"))]
    assert len(told) == 1

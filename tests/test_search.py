"Searching: what it needs, what it leaves behind, and what it says when something is wrong"

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from families import FAMILIES, randomised
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from spp import SearchStopped, SolutionPath, cut, find_pairs, finetune, mlp_pair, save, search
from spp.judging.baselines import baseline
from spp.judging.data import digits, digits_vit
from spp.judging.evaluate import accuracy
from spp.method.objective import answer, contrastive, mean_token
from spp.method.search import agreement
from spp.models.pairs import fingerprint


def test_every_family_without_labels(family):
    model, x = family
    before = (
        fingerprint(model),
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
    )
    path = search(model, [x], steps=6)
    assert (
        path.v.isfinite().all() and path.v.unique().numel() > path.n // 2 and len(path.trace) == 6
    )
    assert before == (
        fingerprint(model),
        [p.requires_grad for p in model.parameters()],
        [m.training for m in model.modules()],
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert path.cut(params=0.6).spp.got["params"] <= 0.6


def test_read():
    "Features that a function reads are what is held on to; what has no other known answer is read for the Fisher information too"
    model, x = FAMILIES["hf_bert"]()
    randomised(model)
    a, b = search(model, [x], steps=8), search(model, [x], steps=8, read=mean_token)
    assert torch.equal(a.fisher, b.fisher) and not torch.equal(a.v, b.v)

    class Odd(torch.nn.Sequential):
        def forward(self, x):
            return {"one": super().forward(x)}

    torch.manual_seed(0)
    net = Odd(torch.nn.Linear(6, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    data, pairs = [torch.randn(16, 6)], [mlp_pair(net, "", "0", "2")]
    with pytest.raises(
        TypeError, match="neither a tensor `logits` nor `last_hidden_state`. Pass read="
    ):
        search(net, data, steps=4, pairs=pairs)
    assert search(net, data, steps=4, pairs=pairs, read=lambda y, x: y["one"]).v.isfinite().all()


def test_contrastive():
    "A CLIP is searched by its similarities, or by which text belongs to which image, or one tower alone; a single pair says nothing"
    model, x = FAMILIES["open_clip_mha"]()
    randomised(model)
    pairs = find_pairs(model)
    a, b = search(model, [x], steps=8), search(model, [x], steps=8, loss=contrastive)
    assert (
        a.info["loss"] == "label-free"
        and b.info["loss"] == "contrastive"
        and torch.equal(a.fisher, b.fisher)
        and not torch.equal(a.v, b.v)
    )
    images = [p for p in pairs if p.block.startswith("visual.")]
    c = search(model, [{"image": x["image"]}], steps=8, pairs=images, read=lambda y, x: y[0])
    small = c.cut(units=0.4)
    assert c.v.isfinite().all() and all(
        p.n == q.n
        for p, q in zip(
            [p for p in pairs if p not in images],
            [p for p in find_pairs(small) if not p.block.startswith("visual.")],
            strict=True,
        )
    )
    for bad, kind, text in (
        ({k: v[:1] for k, v in x.items()}, ValueError, "needs at least two pairs"),
        ({"image": x["image"]}, TypeError, "the batch has no `text`"),
        (x["image"], TypeError, r"let the data yield dicts \{'image'"),
        ({"text": x["text"]}, TypeError, "the batch has no `image`"),
        (x | {"text": x["text"][:2]}, ValueError, "3 images and 2 texts"),
    ):
        with pytest.raises(kind, match=text):
            search(model, [bad], steps=4)
    with pytest.raises(ValueError, match="a loss function needs targets"):
        search(model, [x], steps=4, loss=F.cross_entropy)
    before = contrastive(answer(small := a.cut(units=0.5), x).out)
    table = finetune(small, [x] * 4, epochs=5, lr=1e-3, loss=contrastive)
    assert contrastive(answer(small, x).out) < 0.9 * before and len(table) == 5
    same = [
        finetune(
            s := a.cut(units=0.5), [x] * 4, teacher=model, epochs=1, loss=contrastive, share=share
        ).loss[0]
        for share in (0.0, 0.5, 1.0)
    ]
    assert len(set(same)) == 3


def test_in_sixteen_bits(small):
    "Run in bfloat16, the path is nearly that of float32"
    model, data = small
    a, b = search(model, data, steps=40), search(model, data, steps=40, amp=torch.bfloat16)
    assert (
        b.info["precision"] == "bfloat16"
        and a.info["precision"] == "float32"
        and agreement(a.v, b.v) > 0.9
    )


def test_the_loss_and_the_seed_matter(small):
    model, data = small
    a = search(model, data, steps=8)
    assert torch.equal(a.v, search(model, data, steps=8).v)
    assert not torch.equal(a.v, search(model, data, steps=8, seed=1).v) and not torch.equal(
        a.v, search(model, data, loss=F.cross_entropy, steps=8).v
    )


def test_a_sample_at_a_time(small):
    model, data = small
    path = search(model, [data[0][0][:1]], steps=4)
    assert path.fisher.shape == path.v.shape and path.v.isfinite().all()


def test_the_clock_is_kept(small):
    "The mean gate is the budget at each step, whatever the model"
    model, data = small
    path = search(model, data, steps=30)
    n = torch.tensor([float(p.n) for p in path.pairs])
    assert torch.allclose(path.trace @ n / n.sum(), torch.tensor(path.history["budget"]), atol=2e-3)


def test_a_search_orders_better_than_the_dense_model_does():
    "The point of it all, on real data: one seed of results/digits.json, with a shorter run"
    model, (train, test) = digits_vit(), digits()
    path, fisher = search(model, train, steps=200), baseline("fisher", model, train)
    for kept, least in ((0.25, 0.7), (0.15, 0.5)):
        ours, theirs = (accuracy(p.cut(units=kept, align=1), test) for p in (path, fisher))
        assert ours >= least and ours > theirs + 0.1, (kept, ours, theirs)


def test_two_layers_of_ones_own(small):
    "Declared MLP pairs are searched and cut without an adapter"
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    net.num_classes = 3
    x = torch.randn(64, 6)
    path = search(net, [x], steps=20, pairs=[mlp_pair(net, "", "0", "2")])
    assert path.cut(units=0.5)[0].out_features == 16  # 20, rounded down to a multiple of 8
    assert path.cut(units=0.5, align=1)[0].out_features == 20


# ---- across processes

RUN = """
import os, signal, sys, timm, torch
from torch.utils.data import DataLoader, TensorDataset
from spp import search
sys.path.insert(0, TESTS)
from families import small_vit

class Mortal:                                   # a loader that kills its process, as a cluster does, when it is asked for batch `dies`
    def __init__(self, loader, dies): self.loader, self.left, self.generator = loader, dies, loader.generator
    def __iter__(self):
        for batch in self.loader:
            if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1; yield batch

out, checkpoint, dies = sys.argv[1], sys.argv[2] or None, int(sys.argv[3])
model, batches = small_vit()
images = torch.cat([x for x, _ in batches])
loader = DataLoader(TensorDataset(images), 8, shuffle=True, generator=torch.Generator().manual_seed(3))
method = sys.argv[4]
search(model, Mortal(loader, dies), steps="auto" if method == "auto" else 70, method="clock" if method == "auto" else method, checkpoint=checkpoint).save(out)
"""
TESTS = f"TESTS = {str(Path(__file__).parent)!r}\n"


def python(code, *args, launch=()):
    return subprocess.run(
        [sys.executable, *launch, code, *map(str, args)], capture_output=True, text=True
    )


@pytest.mark.parametrize("method", ["clock", "plain"])
def test_resume_after_kill(tmp_path, method):
    "Killed with SIGKILL before the first checkpoint, between two, and right after one, the run ends at the same bits"
    script = tmp_path / "run.py"
    script.write_text(TESTS + RUN)
    want, got, kept = tmp_path / "want.path", tmp_path / "got.path", tmp_path / "run"
    assert python(script, want, "", -1, method).returncode == 0
    for dies in (20, 32 + 40, 32 + 50):
        assert (
            python(script, got, kept, dies, method).returncode == -signal.SIGKILL
            and not got.exists()
        )
    assert kept.exists() and python(script, got, kept, -1, method).returncode == 0
    a, b = SolutionPath.load(want), SolutionPath.load(got)
    assert (
        torch.equal(a.v, b.v)
        and torch.equal(a.trace, b.trace)
        and a.history == b.history
        and torch.equal(a.score, b.score)
    )
    assert [
        p.name for p in tmp_path.iterdir() if p.name.startswith(".")
    ] == []  # no half-written file is left behind by the runs that ended


def test_resume_auto(tmp_path):
    "The same for steps=auto: killed in its first run and in its second"
    script = tmp_path / "run.py"
    script.write_text(TESTS + RUN)
    want, got, kept = tmp_path / "want.path", tmp_path / "got.path", tmp_path / "run"
    assert python(script, want, "", -1, "auto").returncode == 0
    for dies in (32 + 60, 32 + 100 + 32 + 110):
        assert (
            python(script, got, kept, dies, "auto").returncode == -signal.SIGKILL
            and not got.exists()
        )
    assert (
        (tmp_path / "run.100").exists()
        and (tmp_path / "run.200").exists()
        and python(script, got, kept, -1, "auto").returncode == 0
    )
    a, b = SolutionPath.load(want), SolutionPath.load(got)
    assert (
        torch.equal(a.v, b.v)
        and torch.equal(a.trace, b.trace)
        and a.info["auto"] == b.info["auto"]
        and a.info["steps"] >= 200
    )


PARALLEL = """
import sys, torch, torch.distributed as dist
from spp import search
sys.path.insert(0, TESTS)
from families import small_vit
out, method = sys.argv[1:]
if dist.is_torchelastic_launched(): dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
model, batches = small_vit(); model.double()
pairs = [(torch.cat([a[0], b[0]]).double(), torch.cat([a[1], b[1]])) for a, b in zip(batches, batches[1:] + batches[:1])]   # double batches …
mine = [tuple(x.chunk(world)[rank] for x in batch) for batch in pairs]                                                        # … and this process' part
path = search(model, mine, steps=40, method=method, loss=torch.nn.functional.cross_entropy if method == "plain" else None)
if rank == 0: path.save(out)
if dist.is_initialized(): dist.destroy_process_group()
"""


@pytest.mark.parametrize("method", ["clock", "plain"])
def test_distributed_is_the_doubled_batch(tmp_path, method):
    "Two processes on halves of each batch find the path of one process on the whole; weights in float64, gates in float32"
    script = tmp_path / "run.py"
    script.write_text(TESTS + PARALLEL)
    one, two = tmp_path / "one.path", tmp_path / "two.path"
    assert (r := python(script, one, method)).returncode == 0, r.stderr
    assert (
        r := python(
            script,
            two,
            method,
            launch=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        )
    ).returncode == 0, r.stderr
    a, b = SolutionPath.load(one), SolutionPath.load(two)
    assert (a.fisher - b.fisher).abs().max() <= 1e-6 * a.fisher.max() and (
        a.v - b.v
    ).abs().max() <= 1e-4 * a.v.abs().max()
    assert b.info["processes"] == 2


TOWERS = """
import sys, open_clip, torch, torch.distributed as dist
from spp import search
from spp.method.objective import contrastive
out, loss = sys.argv[1:]
if dist.is_torchelastic_launched(): dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(0); clip = open_clip.CLIP(16, dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32), dict(layers=2, width=32, heads=2, context_length=8, vocab_size=50), output_dict=True).double().eval()
batches = [dict(image=torch.randn(8, 3, 32, 32).double(), text=torch.randint(1, 50, (8, 8))) for _ in range(4)]
path = search(clip, [{k: v.chunk(world)[rank] for k, v in b.items()} for b in batches], contrastive if loss == "contrastive" else None, steps=20)
if rank == 0: path.save(out)
if dist.is_initialized(): dist.destroy_process_group()
"""


@pytest.mark.parametrize("loss", ["similarities", "contrastive"])
def test_distributed_towers_see_all_pairs(tmp_path, loss):
    "Two processes on halves of each contrastive batch: every image is compared with the texts of both, as in one process on the whole"
    script = tmp_path / "run.py"
    script.write_text(TOWERS)
    one, two = tmp_path / "one.path", tmp_path / "two.path"
    assert (r := python(script, one, loss)).returncode == 0, r.stderr
    assert (
        r := python(
            script,
            two,
            loss,
            launch=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        )
    ).returncode == 0, r.stderr
    a, b = SolutionPath.load(one), SolutionPath.load(two)
    assert (a.fisher - b.fisher).abs().max() <= 1e-6 * a.fisher.max() and (
        a.v - b.v
    ).abs().max() <= 1e-4 * a.v.abs().max()


# ---- bad input, each with its text


def test_not_a_transformer():
    with pytest.raises(TypeError, match="no pairs in ResNet: looked for attention and MLP blocks"):
        search(timm.create_model("resnet18"), [torch.randn(1, 3, 32, 32)])


def test_a_model_in_its_wrapping(small):
    "What wraps a model is named, with the way to what is inside"
    model, data = small
    compiled = torch.compile(model)
    with pytest.raises(
        TypeError,
        match="OptimizedModule is not the model itself. Unwrap first: pass model._orig_mod",
    ):
        find_pairs(compiled)
    assert find_pairs(compiled._orig_mod) == find_pairs(model)
    Peft = type("PeftModelForCausalLM", (torch.nn.Module,), {"__module__": "peft.peft_model"})
    with pytest.raises(
        TypeError,
        match=r"PeftModelForCausalLM is not the model itself. Merge the adapters first: model.merge_and_unload\(\)",
    ):
        search(Peft(), data)


WRAPPED = """
import torch, torch.distributed as dist, timm
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from spp import find_pairs
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
make = lambda: timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, depth=1, embed_dim=32, num_heads=2, num_classes=5)
for model in (DDP(make()), fully_shard(make(), mesh=init_device_mesh("cpu", (1,)))):
    try: find_pairs(model); print("no error")
    except TypeError as e: print(e)
assert len(find_pairs(DDP(model := make()).module)) == 3
dist.destroy_process_group()
"""


def test_a_distributed_model(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(WRAPPED)
    r = python(script)
    assert r.returncode == 0, r.stderr
    assert r.stdout.splitlines() == [
        "DistributedDataParallel is not the model itself. Unwrap first: pass model.module.",
        "FSDPVisionTransformer is not the model itself. Its weights lie in pieces: load them into a model that was not handed to fully_shard.",
    ]


def test_a_model_without_values(small, tmp_path):
    "Its cuts can be counted, but neither is it searched nor are they saved"
    model, data = small
    pairs = find_pairs(model)
    with torch.device("meta"):
        empty = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=16,
            patch_size=4,
            depth=2,
            embed_dim=32,
            num_heads=2,
            num_classes=5,
        )
    for f in (
        lambda: search(empty, data, steps=3),
        lambda: save(cut(empty, pairs, torch.ones(384)), tmp_path / "m"),
    ):
        with pytest.raises(
            ValueError,
            match="`cls_token` has no values: it is on the device meta. Load the weights first",
        ):
            f()


def test_empty_and_short_loaders(small):
    model, data = small
    set_ = TensorDataset(*data[0])
    with pytest.raises(ValueError, match="the data has no batches.*drop_last"):
        search(model, DataLoader(set_, batch_size=64, drop_last=True), steps=3)
    with pytest.raises(ValueError, match="ended after 4 of 60 batches and cannot be started again"):
        search(model, (b for b in data), steps=40, method="plain", alpha=1.0, nu=1.0)


def test_nan(small):
    model, data = small
    bad = [*data * 3, (data[0][0] * float("nan"), data[0][1])]
    with pytest.raises(
        SearchStopped, match=r"the loss was nan at step 3 of 20: the search stopped there"
    ) as e:
        search(model, bad, steps=20)
    assert (
        isinstance(e.value.path, SolutionPath)
        and e.value.path.info["steps"] == 2
        and e.value.path.v.isfinite().all()
        and len(e.value.path.trace) == 2
    )
    assert e.value.path.cut(params=0.5) is not None
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(SearchStopped, match="not finite before the first step"):
        search(model, data, steps=20)


def test_nan_in_finetuning(small):
    model, data = small
    want = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        ArithmeticError,
        match="the loss was nan at step 2 of 8: training stopped, and the model is as it was after epoch 0",
    ):
        finetune(model, [data[0], (data[1][0] * float("nan"), data[1][1])], epochs=4)
    assert all(torch.equal(v, want[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "kw,text",
    [
        (dict(steps=0), '`steps` must be a positive whole number or "auto"'),
        (dict(method="adam"), "known are clock, plain"),
        (dict(end=1.5), "`end` must be in"),
        (dict(safety=9.0), "`safety` must be in"),
        (dict(method="plain", nu=-1.0), "`nu` must be positive, got -1.0"),
    ],
)
def test_bad_settings(small, kw, text):
    with pytest.raises(ValueError, match=text):
        search(*small, **{"steps": 3, **kw})


def test_a_setting_of_the_other_method(small):
    with pytest.raises(TypeError, match="kappa"):
        search(*small, steps=3, kappa=2.0)


@pytest.mark.parametrize(
    "budget,text",
    [
        (
            dict(params=0),
            r"params=0 is no budget: write the fraction .* in \(0, 1\].* Reachable: 0\.\d+ to 1",
        ),
        (dict(params=-0.5), "params=-0.5 is no budget"),
        (dict(units=float("nan")), "units=nan is no budget"),
        (dict(params=True), "params=True is no budget"),
        (
            dict(params=1.2),
            r"params=1.2 is neither a fraction in \(0, 1\] nor a possible number of parameters",
        ),
        (dict(params=10**9), "more than the dense model's"),
        (
            dict(params=0.01),
            r"params=0.01 cannot be met: what is not cut .* is 0\.\d+ of this model. Reachable: 0\.\d+ to 1",
        ),
        (dict(speed=0.5), "unknown budget 'speed': known are units, params, flops"),
        ({}, "no budget given: write params=0.5"),
    ],
)
def test_budgets_that_cannot_be(small, budget, text):
    model, _ = small
    path = SolutionPath(find_pairs(model), torch.rand(sum(p.n for p in find_pairs(model)))).attach(
        model
    )
    with pytest.raises(ValueError, match=text):
        path.cut(**budget)


def test_a_path_of_another_model(small):
    model, data = small
    path = search(model, data, steps=3)

    def make(name="vit_tiny_patch16_224", **kw):
        return randomised(
            timm.create_model(
                name,
                **{
                    **dict(
                        img_size=16, patch_size=4, depth=2, embed_dim=32, num_heads=2, num_classes=5
                    ),
                    **kw,
                },
            ),
            seed=9,
        )

    with pytest.raises(
        ValueError,
        match=r"searched on vit_tiny_patch16_224 \(384 units\); this model, vit_tiny_patch16_224, has 576. Use the model that was searched",
    ):
        path.attach(make(depth=3))
    with pytest.raises(
        ValueError, match="this model is deit_tiny_patch16_224, with other pairs or another name"
    ):
        path.attach(make("deit_tiny_patch16_224"))
    with pytest.raises(
        ValueError,
        match="other weights .fingerprint .* Load the weights that were searched .of a balanced model those that spp.balance returned., or search again",
    ):
        path.attach(make())

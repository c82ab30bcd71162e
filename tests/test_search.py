"Searching: what it needs, what it leaves behind, and what it says when something is wrong"

import os
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from families import FAMILIES, randomised, small_vit
from processes import alone, together
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from spp import SearchStopped, SolutionPath, cut, find_pairs, finetune, mlp_pair, save, search
from spp.judging.baselines import baseline
from spp.judging.data import digits, digits_vit
from spp.judging.evaluate import accuracy
from spp.method.objective import answer, contrastive, mean_token, ranks
from spp.method.search import agreement
from spp.models.pairs import fingerprint


def tiny(name="vit_tiny_patch16_224", depth=2):
    "The small ViT's architecture, with timm's own weights."
    return timm.create_model(
        name, img_size=16, patch_size=4, depth=depth, embed_dim=32, num_heads=2, num_classes=5
    )


def condition(model):
    "What a search must not change."
    gradients = [p.requires_grad for p in model.parameters()]
    return fingerprint(model), gradients, [m.training for m in model.modules()]


def test_every_family_without_labels(family):
    model, x = family
    before = condition(model)
    path = search(model, [x], steps=6)
    assert path.v.isfinite().all()
    assert path.v.unique().numel() > path.n // 2
    assert len(path.trace) == 6
    assert condition(model) == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert path.cut(params=0.6).spp.got["params"] <= 0.6


def test_read():
    """`read=` picks the features that matter.

    Fisher information is that of all that the model returns, or of what is read where nothing
    else is known.
    """
    model, x = FAMILIES["hf_bert"]()
    randomised(model)
    a = search(model, [x], steps=8)
    b = search(model, [x], steps=8, read=mean_token)
    assert torch.equal(a.fisher, b.fisher)
    assert not torch.equal(a.v, b.v)

    class Odd(torch.nn.Sequential):
        def forward(self, x):
            return {"one": super().forward(x)}

    torch.manual_seed(0)
    net = Odd(torch.nn.Linear(6, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    data, pairs = [torch.randn(16, 6)], [mlp_pair(net, "", "0", "2")]
    with pytest.raises(TypeError, match="`logits` nor `last_hidden_state`. Pass read="):
        search(net, data, steps=4, pairs=pairs)
    assert search(net, data, steps=4, pairs=pairs, read=lambda y, x: y["one"]).v.isfinite().all()


@pytest.fixture
def clip():
    "A small CLIP, and a batch of three images with their texts."
    model, x = FAMILIES["open_clip_mha"]()
    return randomised(model), x


def test_clip(clip):
    "A CLIP is searched by its similarities, or by which text belongs to which image."
    model, x = clip
    a = search(model, [x], steps=8)
    b = search(model, [x], steps=8, loss=contrastive)
    assert a.info["loss"] == "label-free"
    assert b.info["loss"] == "contrastive"
    assert torch.equal(a.fisher, b.fisher)
    assert not torch.equal(a.v, b.v)


def test_one_tower_of_a_clip(clip):
    "With its pairs and `read=`, one tower is searched alone; the other stays as it is."
    model, x = clip
    pairs = find_pairs(model)
    images = [p for p in pairs if p.block.startswith("visual.")]
    path = search(model, [{"image": x["image"]}], steps=8, pairs=images, read=lambda y, x: y[0])
    assert path.v.isfinite().all()
    small = path.cut(units=0.4)
    texts = [p for p in pairs if p not in images]
    left = [p for p in find_pairs(small) if not p.block.startswith("visual.")]
    assert [p.n for p in left] == [p.n for p in texts]


def test_batches_a_clip_cannot_use(clip):
    model, x = clip
    one = {k: v[:1] for k, v in x.items()}
    for bad, kind, text in (
        (one, ValueError, "needs at least two pairs"),
        ({"image": x["image"]}, TypeError, "the batch has no `text`"),
        (x["image"], TypeError, r"let the data yield dicts \{'image'"),
        ({"text": x["text"]}, TypeError, "the batch has no `image`"),
        (x | {"text": x["text"][:2]}, ValueError, "3 images and 2 texts"),
    ):
        with pytest.raises(kind, match=text):
            search(model, [bad], steps=4)
    with pytest.raises(ValueError, match="loss= needs labels, and the batch has none"):
        search(model, [x], steps=4, loss=F.cross_entropy)


def test_finetuning_a_clip(clip):
    "The contrastive loss falls, and each share of the teacher is another training."
    model, x = clip
    path = search(model, [x], steps=8)
    small = path.cut(units=0.5)
    before = contrastive(answer(small, x).out)
    table = finetune(small, [x] * 4, epochs=5, lr=1e-3, loss=contrastive)
    assert contrastive(answer(small, x).out) < 0.9 * before
    assert len(table) == 5
    how = dict(teacher=model, epochs=1, loss=contrastive)
    losses = [
        finetune(path.cut(units=0.5), [x] * 4, share=share, **how).loss[0]
        for share in (0.0, 0.5, 1.0)
    ]
    assert len(set(losses)) == 3


def test_in_sixteen_bits(small):
    "Run in bfloat16, the path is nearly that of float32."
    model, data = small
    a = search(model, data, steps=40)
    b = search(model, data, steps=40, amp=torch.bfloat16)
    assert a.info["precision"] == "float32"
    assert b.info["precision"] == "bfloat16"
    assert agreement(a.v, b.v) > 0.9


def test_the_loss_and_the_seed_matter(small):
    model, data = small
    a = search(model, data, steps=8)
    assert torch.equal(a.v, search(model, data, steps=8).v)
    assert not torch.equal(a.v, search(model, data, steps=8, seed=1).v)
    assert not torch.equal(a.v, search(model, data, steps=8, loss=F.cross_entropy).v)


def test_a_sample_at_a_time(small):
    model, data = small
    path = search(model, [data[0][0][:1]], steps=4)
    assert path.fisher.shape == path.v.shape
    assert path.v.isfinite().all()


def test_the_clock_is_kept(small):
    "The mean gate is what the clock asks for at each step, whatever the model."
    model, data = small
    path = search(model, data, steps=30)
    n = torch.tensor([float(p.n) for p in path.pairs])
    asked = torch.tensor(path.history["budget"])
    assert torch.allclose(path.trace @ n / n.sum(), asked, atol=2e-3)


@pytest.mark.slow
def test_a_search_orders_better_than_the_dense_model_does():
    "The point of it all, on real data: one seed of results/digits.json, with a shorter run."
    model, (train, test) = digits_vit(), digits()
    path, fisher = search(model, train, steps=200), baseline("fisher", model, train)
    for kept, least in ((0.25, 0.7), (0.15, 0.5)):
        ours, theirs = (accuracy(p.cut(units=kept, align=1), test) for p in (path, fisher))
        assert ours >= least, kept
        assert ours > theirs + 0.1, kept


def test_two_layers_of_ones_own():
    "Declared MLP pairs are searched and cut without an adapter."
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.ReLU(), torch.nn.Linear(40, 3))
    net.num_classes = 3
    x = torch.randn(64, 6)
    path = search(net, [x], steps=20, pairs=[mlp_pair(net, "", "0", "2")])
    assert path.cut(units=0.5)[0].out_features == 16  # 20, rounded down to a multiple of 8
    assert path.cut(units=0.5, align=1)[0].out_features == 20


# --- resuming -------------------------------------------------------------------------------


class Mortal:
    "A loader that kills its process when batch `dies` is asked for, as a cluster does."

    def __init__(self, loader, dies):
        self.loader, self.left, self.generator = loader, dies, loader.generator

    def __iter__(self):
        for batch in self.loader:
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1
            yield batch


def search_and_save(out, checkpoint, dies, method):
    "A search in shuffled order, killed at batch `dies` unless that is negative."
    model, batches = small_vit()
    images = torch.cat([x for x, _ in batches])
    order = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(images), 8, shuffle=True, generator=order)
    steps, method = ("auto", "clock") if method == "auto" else (70, method)
    search(model, Mortal(loader, dies), steps=steps, method=method, checkpoint=checkpoint).save(out)


def killed_and_resumed(folder, deaths, method, kept):
    "Paths of a run that nothing stops, and of one killed at each of `deaths`; `kept` files exist."
    want, got, checkpoint = folder / "want.path", folder / "got.path", folder / "run"
    assert alone(search_and_save, want, None, -1, method) == 0
    for dies in deaths:
        assert alone(search_and_save, got, checkpoint, dies, method) == -signal.SIGKILL
        assert not got.exists()
    assert all((folder / name).exists() for name in kept)
    assert alone(search_and_save, got, checkpoint, -1, method) == 0
    return SolutionPath.load(want), SolutionPath.load(got)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clock", "plain"])
def test_resume_after_kill(tmp_path, method):
    """Killed with SIGKILL, a resumed run ends with the same bits.

    It is killed before the first checkpoint, between two, and right after one.
    """
    a, b = killed_and_resumed(tmp_path, (20, 32 + 40, 32 + 50), method, ["run"])
    assert torch.equal(a.v, b.v)
    assert torch.equal(a.trace, b.trace)
    assert a.history == b.history
    assert torch.equal(a.score, b.score)
    # the runs that ended leave no half-written file behind
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.slow
def test_resume_auto(tmp_path):
    "The same for steps=auto: killed in its first run and in its second."
    deaths = (32 + 60, 32 + 100 + 32 + 110)
    a, b = killed_and_resumed(tmp_path, deaths, "auto", ["run.100", "run.200"])
    assert torch.equal(a.v, b.v)
    assert torch.equal(a.trace, b.trace)
    assert a.info["auto"] == b.info["auto"]
    assert a.info["steps"] >= 200


# --- several processes ----------------------------------------------------------------------


def search_part(out, method):
    "Search the small ViT in float64 on this process's part of each of four batches of 16."
    rank, world = ranks()
    model, batches = small_vit()
    data = []
    for (x, y), (other_x, other_y) in zip(batches, batches[1:] + batches[:1]):
        whole = torch.cat([x, other_x]).double(), torch.cat([y, other_y])
        data.append(tuple(part.chunk(world)[rank] for part in whole))
    loss = F.cross_entropy if method == "plain" else None
    path = search(model.double(), data, steps=40, method=method, loss=loss)
    if rank == 0:
        path.save(out)


def assert_same_path(one, two):
    "Up to the roundings of gates in float32."
    a, b = SolutionPath.load(one), SolutionPath.load(two)
    assert (a.fisher - b.fisher).abs().max() <= 1e-6 * a.fisher.max()
    assert (a.v - b.v).abs().max() <= 1e-4 * a.v.abs().max()
    assert b.info["processes"] == 2


@pytest.mark.parametrize("method", ["clock", "plain"])
def test_two_processes_are_the_doubled_batch(tmp_path, method):
    "Two processes on halves of each batch find the path of one process on the whole."
    search_part(tmp_path / "one.path", method)
    together(search_part, tmp_path / "two.path", method)
    assert_same_path(tmp_path / "one.path", tmp_path / "two.path")


TORCHRUN = """
import sys

from torch import distributed as dist

sys.path.insert(0, {tests!r})
from test_search import search_part

assert dist.is_torchelastic_launched()
dist.init_process_group("gloo")
search_part(sys.argv[1], "clock")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    "The same, when `torchrun` starts the processes."
    script = tmp_path / "run.py"
    script.write_text(TORCHRUN.format(tests=str(Path(__file__).parent)))
    search_part(tmp_path / "one.path", "clock")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, script, tmp_path / "two.path"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same_path(tmp_path / "one.path", tmp_path / "two.path")


def search_towers(out, loss):
    "Search a CLIP in float64 on this process's part of each of four batches of eight pairs."
    rank, world = ranks()
    torch.manual_seed(0)
    model = open_clip.CLIP(
        16,
        dict(layers=2, width=32, head_width=16, patch_size=8, image_size=32),
        dict(layers=2, width=32, heads=2, context_length=8, vocab_size=50),
        output_dict=True,
    )
    data = []
    for _ in range(4):
        image = torch.randn(8, 3, 32, 32).double()
        text = torch.randint(1, 50, (8, 8))
        data.append(dict(image=image.chunk(world)[rank], text=text.chunk(world)[rank]))
    path = search(model.double().eval(), data, loss, steps=20)
    if rank == 0:
        path.save(out)


@pytest.mark.parametrize("loss", [None, contrastive], ids=["similarities", "contrastive"])
def test_towers_see_the_pairs_of_all_processes(tmp_path, loss):
    "Every image is compared with the texts of both processes, as in one process on the whole."
    search_towers(tmp_path / "one.path", loss)
    together(search_towers, tmp_path / "two.path", loss)
    assert_same_path(tmp_path / "one.path", tmp_path / "two.path")


# --- bad input, each with its text ----------------------------------------------------------


def test_not_a_transformer():
    with pytest.raises(TypeError, match="no pairs in ResNet: looked for attention and MLP blocks"):
        search(timm.create_model("resnet18"), [torch.randn(1, 3, 32, 32)])


def test_a_model_in_its_wrapping(small):
    "What wraps a model is named, with the way to what is inside."
    model, data = small
    compiled = torch.compile(model)
    text = "OptimizedModule is not the model itself. Unwrap first: pass model._orig_mod"
    with pytest.raises(TypeError, match=text):
        find_pairs(compiled)
    assert find_pairs(compiled._orig_mod) == find_pairs(model)
    Peft = type("PeftModelForCausalLM", (torch.nn.Module,), {"__module__": "peft.peft_model"})
    text = r"PeftModelForCausalLM is not the model itself. .*: model.merge_and_unload\(\)"
    with pytest.raises(TypeError, match=text):
        search(Peft(), data)


def refusal(model):
    "What `find_pairs` says to a model that it does not take."
    with pytest.raises(TypeError) as e:
        find_pairs(model)
    return str(e.value)


def wrap_and_ask(out):
    "Write down what `find_pairs` says to a model in DDP and to one in FSDP."
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    sharded = fully_shard(tiny(depth=1), mesh=init_device_mesh("cpu", (1,)))
    said = [refusal(DistributedDataParallel(tiny(depth=1))), refusal(sharded)]
    assert len(find_pairs(DistributedDataParallel(tiny(depth=1)).module)) == 3
    out.write_text("\n".join(said))
    dist.destroy_process_group()


def test_a_distributed_model(tmp_path):
    assert alone(wrap_and_ask, tmp_path / "said") == 0
    assert (tmp_path / "said").read_text().splitlines() == [
        "DistributedDataParallel is not the model itself. Unwrap first: pass model.module.",
        "FSDPVisionTransformer is not the model itself. Its weights lie in pieces:"
        " load them into a model that was not handed to fully_shard.",
    ]


def test_a_model_without_values(small, tmp_path):
    "Its cuts can be counted, but it is not searched, and its cuts are not saved."
    model, data = small
    with torch.device("meta"):
        empty = tiny()
    text = "`cls_token` has no values: it is on the device meta. Load the weights first"
    with pytest.raises(ValueError, match=text):
        search(empty, data, steps=3)
    small = cut(empty, find_pairs(model), torch.ones(384))
    with pytest.raises(ValueError, match=text):
        save(small, tmp_path / "m")


def test_empty_and_short_loaders(small):
    model, data = small
    few = TensorDataset(*data[0])
    with pytest.raises(ValueError, match="the data has no batches.*drop_last"):
        search(model, DataLoader(few, batch_size=64, drop_last=True), steps=3)
    with pytest.raises(ValueError, match="ended after 4 of 60 batches and cannot be started again"):
        search(model, (b for b in data), steps=40, method="plain", alpha=1.0, nu=1.0)


def test_nan(small):
    "A nan stops the search; the path of the steps before is in the error, and can be cut."
    model, data = small
    bad = [*data * 3, (data[0][0] * float("nan"), data[0][1])]
    text = "the loss was nan at step 3 of 20: the search stopped there"
    with pytest.raises(SearchStopped, match=text) as e:
        search(model, bad, steps=20)
    path = e.value.path
    assert isinstance(path, SolutionPath)
    assert path.info["steps"] == 2
    assert path.v.isfinite().all()
    assert len(path.trace) == 2
    assert path.cut(params=0.5) is not None
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(SearchStopped, match="not finite before the first step"):
        search(model, data, steps=20)


def test_nan_in_finetuning(small):
    model, data = small
    want = {k: v.clone() for k, v in model.state_dict().items()}
    bad = [data[0], (data[1][0] * float("nan"), data[1][1])]
    text = "the loss was nan at step 2 of 8: training stopped, and the model is as it was after"
    with pytest.raises(ArithmeticError, match=text + " epoch 0"):
        finetune(model, bad, epochs=4)
    assert all(torch.equal(v, want[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (dict(steps=0), '`steps` must be a positive whole number or "auto"'),
        (dict(method="adam"), "known are clock, plain"),
        (dict(end=1.5), "`end` must be in"),
        (dict(safety=9.0), "`safety` must be in"),
        (dict(method="plain", nu=-1.0), "`nu` must be positive and finite, got -1.0"),
    ],
)
def test_bad_settings(small, settings, text):
    with pytest.raises(ValueError, match=text):
        search(*small, **{"steps": 3, **settings})


def test_a_setting_of_the_other_method(small):
    with pytest.raises(TypeError, match="kappa"):
        search(*small, steps=3, kappa=2.0)


REACHABLE = r"Reachable: 0\.\d+ to 1"


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (
            dict(params=0),
            r"params=0 is not a budget: write the fraction .* in \(0, 1\].* " + REACHABLE,
        ),
        (dict(params=-0.5), "params=-0.5 is not a budget"),
        (dict(units=float("nan")), "units=nan is not a budget"),
        (dict(params=True), "params=True is not a budget"),
        (
            dict(params=1.2),
            r"params=1.2 is neither a fraction in \(0, 1\] nor a possible number of parameters",
        ),
        (dict(params=10**9), "more than the dense model's"),
        (
            dict(params=0.01),
            r"params=0.01 cannot be met: what is not cut .* is 0\.\d+ of this model. " + REACHABLE,
        ),
        (dict(speed=0.5), "unknown budget 'speed': known are units, params, macs"),
        ({}, "no budget given: write params=0.5"),
    ],
)
def test_budgets_that_cannot_be(small, budget, text):
    model, _ = small
    pairs = find_pairs(model)
    path = SolutionPath(pairs, torch.rand(sum(p.n for p in pairs))).attach(model)
    with pytest.raises(ValueError, match=text):
        path.cut(**budget)


def test_a_path_of_another_model(small):
    model, data = small
    path = search(model, data, steps=3)
    for other, text in (
        (
            tiny(depth=3),
            r"searched on vit_tiny_patch16_224 \(384 units\); this model, vit_tiny_patch16_224,"
            " has 576. Use the model that was searched",
        ),
        (
            tiny("deit_tiny_patch16_224"),
            "this model is deit_tiny_patch16_224, with other pairs or another name",
        ),
        (
            tiny(),
            "other weights .fingerprint .* Load the weights that were searched .of a balanced"
            " model those that spp.balance returned., or search again",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            path.attach(randomised(other, seed=9))

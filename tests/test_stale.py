"What is kept to continue later is refused where it belongs to something else; the error says why"

import copy
import functools
import itertools
import os
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import spp
from spp.core.identity import first_batch, of_model, random_states
from spp.method import search as searching
from spp.training.family import folder_of

QUIET = dict(progress=False)


class Stop(Exception):
    "Ends a run in the middle"


class Loader(list):
    "Batches; after `left` of them it stops"

    left = -1

    def __iter__(self):
        for batch in super().__iter__():
            if self.left == 0:
                raise Stop
            self.left -= 1
            yield batch


def vit(seed=0):
    torch.manual_seed(seed)
    size = dict(img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=4)
    return timm.create_model("vit_tiny_patch16_224", **size).eval()


def samples(seed=1, n=4):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(4)
    return Loader((torch.randn(4, 3, 16, 16, generator=draw), labels) for _ in range(n))


def stopped(call, batches, *args, **kw):
    "Run `call` until its data has given so many batches"
    data = samples()
    data.left = batches
    with pytest.raises(Stop):
        call(data, *args, **kw)


def one_weight_changed():
    "A change that a sample of the weights does not see"
    model = vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[1, 1] += 1e-3
    return model


def other_heads():
    model = vit()
    model.blocks[0].attn.num_heads = 4
    return model


def squares(out, y):
    return out.square().mean()


# --- search -----------------------------------------------------------------------------------


@pytest.fixture
def search_file(tmp_path, monkeypatch):
    "The checkpoint of a search that was stopped"
    monkeypatch.setattr(searching, "KEEP_EVERY", 2)
    file = tmp_path / "search.run"
    stopped(lambda data: spp.search(vit(), data, steps=12, checkpoint=file, **QUIET), 14)
    assert file.exists()
    return file


def resume_search(file, model=None, data=None, **kw):
    how = dict(steps=12, checkpoint=file, **QUIET) | kw
    return spp.search(model or vit(), data or samples(), **how)


SEARCHES = {
    "other weights": (lambda: dict(model=vit(1)), "weights was '"),
    "one weight": (lambda: dict(model=one_weight_changed()), "weights was '"),
    "other structure": (lambda: dict(model=other_heads()), "structure was '"),
    "other data": (lambda: dict(data=samples(2)), "data.first was '"),
    "more data": (lambda: dict(data=samples(n=5)), "data.batches was 4, now 5"),
    "named data": (lambda: dict(data_id="May"), "data.named was not given, now 'May'"),
    "other pairs": (lambda: dict(pairs=spp.find_pairs(vit())[::-1]), "pairs was '"),
    "fewer pairs": (lambda: dict(pairs=spp.find_pairs(vit())[:3]), "units was"),
    "a loss": (lambda: dict(loss=F.cross_entropy), "loss was None, now 'torch.nn.functional"),
    "other steps": (lambda: dict(steps=13), "steps was 12, now 13"),
    "other seed": (lambda: dict(seed=1), "seed was 0, now 1"),
    "other settings": (lambda: dict(end=0.05), "settings.end was 0.04, now 0.05"),
    "other reader": (lambda: dict(read=lambda y, x: y), "read was None, now 'SEARCHES.<lambda>"),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_is_not_continued_as_another_one(name, search_file):
    change, text = SEARCHES[name]
    if name == "other reader":
        text = "read was None, now '"
    held = search_file.read_bytes()
    with pytest.raises(ValueError, match="belongs to another search: ") as error:
        resume_search(search_file, **change())
    assert text in str(error.value)
    assert "to begin anew, delete it or name another place" in str(error.value)
    assert search_file.read_bytes() == held


def test_a_search_is_continued_as_the_same_one(search_file):
    "Also with an iterator, which is read only once"
    want = spp.search(vit(), samples(), steps=12, **QUIET)
    copied = search_file.with_name("copy.run")
    shutil.copy(search_file, copied)
    got = resume_search(search_file, data=samples())
    assert torch.equal(got.v, want.v)
    assert not set(got.info) ^ set(want.info)  # the path itself says no more than before


def test_an_iterator_gives_its_first_batch_to_the_search(tmp_path):
    "It was looked at, not taken away"
    want = spp.search(vit(), itertools.cycle(samples()), steps=4, **QUIET)
    file = tmp_path / "run"
    got = spp.search(vit(), itertools.cycle(samples()), steps=4, checkpoint=file, **QUIET)
    assert torch.equal(got.v, want.v)


def test_named_data_may_be_other_batches(tmp_path):
    "The user says that it is the same"
    file = tmp_path / "run"
    how = dict(steps=3, checkpoint=file, data_id="a stream", **QUIET)
    first = spp.search(vit(), samples(), **how)
    assert torch.equal(spp.search(vit(), samples(2), **how).v, first.v)
    with pytest.raises(ValueError, match="data.named was 'a stream', now 'another'"):
        spp.search(vit(), samples(), **how | dict(data_id="another"))


# --- fine-tuning ------------------------------------------------------------------------------

FINE = dict(epochs=3, lr=1e-3, every=2, **QUIET)


@pytest.fixture
def tuning_file(tmp_path):
    "The checkpoint of a fine-tuning that was stopped in its second epoch"
    file = tmp_path / "tune.run"
    stopped(lambda data: spp.finetune(vit(), data, vit(1), checkpoint=file, **FINE), 8)
    assert file.exists()
    return file


def frozen():
    model = vit()
    model.head.requires_grad_(False)
    return model


TUNINGS = {
    "other weights": (lambda: dict(model=one_weight_changed()), "weights was '"),
    "frozen weights": (lambda: dict(model=frozen()), "trained was '"),
    "training mode": (lambda: dict(model=vit().train()), "modes was 'evaluation', now '"),
    "other teacher": (lambda: dict(teacher=vit(2)), "teacher.weights was '"),
    "no teacher": (lambda: dict(teacher=None), "teacher was not given, now None"),
    "other data": (lambda: dict(data=samples(2)), "data.first was '"),
    "more data": (lambda: dict(data=samples(n=5)), "data.batches was 4, now 5"),
    "other rate": (lambda: dict(lr=5e-4), "lr was 0.001, now 0.0005"),
    "other loss": (lambda: dict(loss=squares), "loss was None"),
    "smoothing": (
        lambda: dict(loss=functools.partial(F.cross_entropy, label_smoothing=0.1)),
        "loss.keywords",
    ),
    "mixup": (lambda: dict(mixup=timm.data.Mixup(num_classes=4)), "mixup.mixup_alpha was not"),
}


@pytest.mark.parametrize("name", TUNINGS)
def test_a_fine_tuning_is_not_continued_as_another_one(name, tuning_file):
    change, text = TUNINGS[name]
    asked = dict(model=vit(), data=samples(), teacher=vit(1)) | FINE | change()
    before = of_model(asked["model"])
    with pytest.raises(ValueError, match="belongs to another fine-tuning: ") as error:
        spp.finetune(**asked, checkpoint=tuning_file)
    assert text in str(error.value)
    assert of_model(asked["model"]) == before


def test_the_same_call_again_in_the_same_process(tmp_path):
    "The model has moved on when it was interrupted; the same call is resumed nevertheless"
    want, got = vit(), vit()
    spp.finetune(want, samples(), vit(1), **FINE)
    file = tmp_path / "run"
    data = samples()
    data.left = 8
    with pytest.raises(Stop):
        spp.finetune(got, data, vit(1), checkpoint=file, **FINE)
    assert of_model(got) != of_model(vit())
    spp.finetune(got, samples(), vit(1), checkpoint=file, **FINE)
    assert of_model(got) == of_model(want)


def test_a_model_that_was_changed_after_an_interrupt_is_another_one(tmp_path):
    file = tmp_path / "run"
    model, data = vit(), samples()
    data.left = 8
    with pytest.raises(Stop):
        spp.finetune(model, data, checkpoint=file, **FINE)
    with torch.no_grad():
        model.head.bias[0] += 1
    with pytest.raises(ValueError, match="weights was '"):
        spp.finetune(model, samples(), checkpoint=file, **FINE)


# --- walk and joint ---------------------------------------------------------------------------

PARAMS = (0.9, 0.8, 0.7)
WALK = dict(epochs=3, align=1, lr=1e-3, every=1, **QUIET)


@pytest.fixture(scope="module")
def path():
    return spp.search(vit(), samples(), steps=3, **QUIET)


def walked(path, data=None, params=PARAMS, **kw):
    members = spp.walk(path, data or samples(), params, **WALK | kw)
    return {budget: of_model(member) for budget, member in members.items()}


@pytest.mark.parametrize("batches", [2, 6, 9, 13])
def test_a_walk_resumes_to_the_same_members(batches, path, tmp_path):
    "It is stopped before a member has left, and after one and two of them; the look is a batch"
    want = walked(path)
    kept = dict(keep=tmp_path / "members", checkpoint=tmp_path / "walk.run")
    stopped(lambda data: walked(path, data, **kept), batches)
    assert walked(path, **kept) == want
    assert list(want) == sorted(PARAMS, reverse=True)
    # all are there now: nothing is trained
    data = samples()
    data.left = 1
    assert walked(path, data, **kept) == want


WALKS = {
    "other path": (
        lambda p: dict(path=spp.search(vit(), samples(2), steps=3, **QUIET)),
        "path was",
    ),
    "other model": (lambda p: dict(path=p_of(vit(1))), "weights was '"),
    "other rate": (lambda p: dict(lr=1e-2), "lr was 0.001, now 0.01"),
    "other epochs": (lambda p: dict(epochs=2), "epochs was 3, now 2"),
    "other data": (lambda p: dict(data=samples(2)), "data.first was '"),
    "other budgets": (lambda p: dict(params=(0.9, 0.7)), "budgets was [0.9, 0.8, 0.7], now"),
    "other hold": (lambda p: dict(hold=0.3), "hold was 0.2, now 0.3"),
    "other teacher": (lambda p: dict(teacher=vit(3)), "teacher was 'the dense model'"),
    "other loss": (lambda p: dict(loss=squares), "loss was None"),
}


def p_of(model):
    return spp.search(model, samples(), steps=3, **QUIET)


@pytest.mark.parametrize("name", WALKS)
def test_members_of_another_walk_are_not_taken(name, path, tmp_path):
    change, text = WALKS[name]
    walked(path, keep=tmp_path, epochs=3)
    with pytest.raises(ValueError, match="belongs to another walk: ") as error:
        walked(**dict(path=path, keep=tmp_path) | change(path))
    assert text in str(error.value)


def test_members_without_a_list_or_exchanged_or_missing(path, tmp_path):
    keep, run = tmp_path / "members", tmp_path / "walk.run"
    how = dict(keep=keep, checkpoint=run)
    with pytest.raises(ValueError, match="pass keep=, a folder for them"):
        walked(path, checkpoint=run)
    stopped(lambda data: walked(path, data, **how), 9)
    one, two = keep / folder_of(0.9), keep / folder_of(0.8)
    assert one.exists() and not two.exists()
    shutil.move(one, tmp_path / "away")
    with pytest.raises(FileNotFoundError, match=r"params=0.9 left before the checkpoint"):
        walked(path, **how)
    spp.save(spp.cut(vit(), path.pairs, torch.ones(path.n)), one)
    with pytest.raises(ValueError, match="is not the member that was kept there"):
        walked(path, **how)
    (keep / "walk.json").unlink()
    with pytest.raises(ValueError, match="says which walk it belongs to"):
        walked(path, **how)


def test_budgets_have_names_of_their_own(path, tmp_path):
    "No two budgets share a folder"
    members = walked(path, params=(0.804, 0.796), keep=tmp_path, epochs=1)
    assert members[0.804] != members[0.796]
    assert {p.name for p in tmp_path.iterdir()} == {"params_0.804", "params_0.796", "walk.json"}
    assert walked(path, params=(0.804, 0.796), keep=tmp_path, epochs=1) == members
    names = [folder_of(b) for b in (1, 0.5, 0.25, 0.504, 0.496, 1 / 3)]
    assert names[:3] == ["params_1.00", "params_0.50", "params_0.25"]
    assert len(set(names)) == len(names)


def test_a_joint_training_of_other_sizes_is_refused(path, tmp_path):
    how = dict(epochs=2, align=1, checkpoint=tmp_path / "joint.run", every=1, **QUIET)
    stopped(lambda data: spp.joint(path, data, (1.0, 0.8), **how), 4)
    with pytest.raises(ValueError, match="before.masks was '"):
        spp.joint(path, samples(), (1.0, 0.7), **how)
    with pytest.raises(ValueError, match=r"before.ends was 0.4, now 0.5"):
        spp.joint(path, samples(), (1.0, 0.8), ends=0.5, **how)
    spp.joint(path, samples(), (1.0, 0.8), **how)


# --- looking at data --------------------------------------------------------------------------


def loaders():
    data = TensorDataset(torch.arange(40.0).view(20, 2), torch.arange(20))
    yield DataLoader(data, 4)
    yield DataLoader(data, 4, shuffle=True)
    yield DataLoader(data, 4, shuffle=True, generator=torch.Generator().manual_seed(5))
    yield DataLoader(data, 4, shuffle=True, num_workers=2, persistent_workers=True)
    yield DataLoader(data, 4, sampler=torch.utils.data.DistributedSampler(data, 2, 0))


@pytest.mark.parametrize("loader", list(loaders()), ids=range(5))
def test_a_look_at_data_disturbs_nothing(loader):
    before = random_states(loader)
    digest, same = first_batch(loader)
    assert same is loader
    after = random_states(loader)
    assert all(torch.equal(before[k], after[k]) for k in before)
    torch.manual_seed(3)
    assert first_batch(copy.copy(loader))[0] == digest
    if loader.num_workers:
        assert loader._iterator is None  # no worker was started


@pytest.mark.slow
def test_identities_are_equal_in_another_process(tmp_path):
    "Of functions, models and what they refer to; sets of words have another order there"
    code = (
        "import functools, json, torch\nfrom torch import nn\nfrom spp.core.identity import *\n"
        "WEIGHT = {1, 2, 'three', 'four'}\nSCALE = 2.0\n"
        "def loss(x, y, power=2):\n"
        "    return SCALE * (x - y).pow(power).sum() if y in {'a', 'b', 'c'} else helper(x)\n"
        "def helper(x):\n    return [z for z in x]\n"
        "torch.manual_seed(0)\n"
        "made = [loss, helper, nn.Linear(2, 2), functools.partial(loss, power=3), lambda x: x]\n"
        "if __name__ == '__main__':\n    print(json.dumps([identity(x) for x in made]))\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(code)
    said = {
        subprocess.run(
            [sys.executable, str(file)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1

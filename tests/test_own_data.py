"Recipes on folders of images as people have them, and checkpoints as people have them."

import json

import pandas as pd
import pytest
import timm
import torch
from command import MAIN, inside, python, refused
from test_folders import drawn, vit

from spp import load, save
from spp.judging.caption_files import made_up
from spp.judging.data import images
from spp.judging.evaluate import accuracy
from spp.judging.folders import classes_of, pictures
from spp.running import dense
from spp.running.dense import dense_model
from spp.running.recipes import RECIPES, Recipe
from spp.running.runs import run

SHORT = dict(update=1, dense=1, finetune=1, repair=16, params=(0.75,), workers=0, progress=False)


def small_swin():
    how = dict(img_size=32, patch_size=2, window_size=4, embed_dim=24, depths=(1, 1))
    return timm.create_model("swin_tiny_patch4_window7_224", num_heads=(2, 4), **how)


def small_model(recipe):
    "A model of a recipe's family that trains in a moment"
    if recipe.startswith("clip"):
        return dense._small_clip(RECIPES[recipe].model)
    return small_swin() if recipe == "swin_tiny" else vit()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_on_sixty_images(tmp_path, recipe):
    "Without `smoke`, with the recipe's own augmentation, in one process"
    if recipe.startswith("clip"):
        data, classes = made_up(tmp_path / "data", 60), None
    else:
        data, classes = drawn(tmp_path / "data", train=20), 3
    save(small_model(recipe), tmp_path / "checkpoint")
    how = dict(checkpoint=tmp_path / "checkpoint", num_classes=classes)
    table = run(recipe, data, tmp_path / "run", **how, **SHORT)
    assert table.asked.tolist() == [1.0, 0.75]
    assert table[["one_shot", "repaired", "score"]].notna().all(axis=None)
    member = load(tmp_path / "run/params_0.75")
    assert classes is None or member.num_classes == 3


@pytest.fixture
def tiny(monkeypatch):
    "A recipe whose model trains in a moment, with the paper's augmentation"
    monkeypatch.setitem(RECIPES, "tiny", Recipe("test_vit", 1, 1, 1, 256, 1e-3))


def command(*args, cwd):
    return inside("run", "tiny", "--data", "pictures", "--workers", 0, *args, cwd=cwd)


@pytest.mark.slow
def test_three_classes_one_search_and_other_sizes(tiny, tmp_path):
    "From random weights; then a further size by `spp cut`, and one by the same run"
    drawn(tmp_path / "pictures", train=40)
    how = ("--weights", "none", "--epochs", 2, "--image-size", 64, "--params", 0.6, "-q")
    how += ("--calibration", 16)
    done = command(*how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs/tiny"
    assert load(out / "params_0.60").num_classes == 3
    assert json.loads((out / "run.json").read_text())["classes"] == ["cat", "dog", "owl"]
    searched = (out / "order.path").read_bytes()
    done = inside(
        "cut", out, "--params", 0.5, "--repair", "pictures", "--calibration", 16, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert f"{out}/cuts/params_0.50: " in done.stdout
    done = command(*how, "--params", 0.45, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(out / "results.csv").asked.tolist() == [1.0, 0.6, 0.45]
    assert (out / "order.path").read_bytes() == searched


@pytest.mark.slow
def test_a_run_in_two_processes(tmp_path):
    "`torchrun … spp run`: three classes, better than chance; then a new size without a new search"
    drawn(tmp_path / "pictures", train=80, test=20)
    (tmp_path / "command_line.py").write_text(MAIN)
    two = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "command_line.py",
        "run",
    )
    how = ("deit_tiny", "--data", "pictures", "--weights", "none", "--epochs", 1)
    how += ("--image-size", 32, "--params", 0.5, "--calibration", 32, "--workers", 0, "--quiet")
    done = python(*two, *how, cwd=tmp_path, env=dict(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "runs/deit_tiny"
    member = load(out / "params_0.50")
    assert (member.num_classes, member.spp.got["params"] <= 0.5) == (3, True)
    table = pd.read_csv(out / "results.csv")
    assert table.asked.tolist() == [1.0, 0.5]
    assert table.samples.tolist() == [60, 60]  # of both processes
    held_out = images(tmp_path / "pictures", member, False, 20, workers=0)
    assert accuracy(member, held_out) == pytest.approx(table.score[1])
    assert table.score[1] > 0.4  # chance is a third
    searched = (out / "order.path").read_bytes()
    how = ("--params", 0.3, "--repair", "pictures", "--calibration", 16, "--workers", 0)
    done = inside("cut", out, *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load(out / "cuts/params_0.30").num_classes == 3
    assert (out / "order.path").read_bytes() == searched


@pytest.mark.slow
def test_a_plan(tiny, tmp_path):
    "`--plan` says the hours of each stage, refuses what a run would refuse, and leaves nothing"
    drawn(tmp_path / "pictures", train=8, test=4)
    how = ("--weights", "none", "--image-size", 32, "--gpus", 2, "--hours", 1e-6, "--plan")
    done = command(*how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "search", "repair", "fine-tuning", "2 processes, one of them", "jobs"):
        assert word in done.stdout, word
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"]
    done = command(*how, "--params", 0.001, cwd=tmp_path)
    refused(done, "0.001")
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"]


def test_class_folders_that_nobody_divided(tmp_path, monkeypatch):
    "Refused with the line that divides them, which does"
    drawn(tmp_path)
    (tmp_path / "train").rename(tmp_path / "pictures")
    done = inside("run", "deit_tiny", "--data", "pictures", "--weights", "none", cwd=tmp_path)
    line = "from spp.judging.folders import divide; divide('pictures', 'pictures_divided')"
    refused(done, "3 classes (cat, dog, owl) that are not divided", line)
    monkeypatch.chdir(tmp_path)
    exec(line, {})
    assert classes_of(tmp_path / "pictures_divided") == ["cat", "dog", "owl"]
    held = pictures(tmp_path / "pictures_divided", False)
    assert [y for _, y in held.samples] == [0, 0, 1, 1, 2, 2]


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    "Said at once, with the two ways out; nothing is begun"
    from huggingface_hub import constants

    monkeypatch.setattr("spp.core.hub.hub_answers", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    drawn(tmp_path / "pictures")
    done = inside("run", "deit_tiny", "--data", "pictures", cwd=tmp_path)
    refused(done, "--checkpoint with a folder", "--weights none", status=1)
    assert not (tmp_path / "runs/deit_tiny/run.json").exists()


def test_a_head_of_other_classes(tiny, tmp_path):
    "A checkpoint of one's own is not given another head unasked"
    drawn(tmp_path / "pictures")
    save(vit(classes=5), tmp_path / "five")
    done = command("--checkpoint", "five", cwd=tmp_path)
    refused(done, "head has 5 classes, pictures has 3: write --num-classes 3")


def test_classes_in_the_order_of_a_transformers_checkpoint(tmp_path):
    "Its names fix what the outputs mean"
    transformers = pytest.importorskip("transformers")
    names = ["owl", "cat", "dog"]
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "vit")
    start = dense_model(RECIPES["deit_tiny"], sorted(names), checkpoint=tmp_path / "vit")
    assert (start.new, start.classes) == (False, names)
    x = torch.zeros(1, 3, 32, 32)
    assert torch.equal(start.model.eval()(x).logits, model(x).logits)
    new = dense_model(RECIPES["deit_tiny"], ["a", "b"], checkpoint=tmp_path / "vit", num_classes=2)
    assert new.new
    assert new.model(x).logits.shape == (1, 2)


@pytest.mark.slow
def test_a_run_of_a_transformers_checkpoint(tiny, tmp_path):
    "Search, repair, fine-tune, save and load"
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    data = drawn(tmp_path / "pictures", train=20)
    table = run("tiny", data, tmp_path / "run", checkpoint=tmp_path / "vit", **SHORT)
    assert table.score.notna().all()
    assert load(tmp_path / "run/params_0.75").config.num_labels == 3


def test_a_small_folder_gets_a_batch_that_fits():
    "Sixteen steps or so, even for Mixup, in every process alike; a batch of one's own is checked"
    from spp.running.runs import _check_run, _fitted

    tiny = RECIPES["deit_tiny"]
    fitted = {n: _fitted(tiny, (n, 1), 1).batch for n in (9, 60, 250, 480, 10_000)}
    assert fitted == {9: 4, 60: 8, 250: 14, 480: 30, 10_000: 256}
    assert [_fitted(tiny, (480, 1), world).batch for world in (2, 4)] == [28, 24]
    odd = Recipe("test_vit", 1, 1, 1, 30, 1e-3)
    with pytest.raises(ValueError, match="Mixup takes pairs: choose a multiple of 4"):
        _check_run(odd, None, "", True, 2)

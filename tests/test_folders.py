"Images as people keep them: classes in every split, parquet, several processes."

import shutil
from itertools import product

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from processes import together
from test_core_files import run_child

from spp.core.files import recover
from spp.judging.data import images
from spp.judging.folders import classes_of, divide, pictures


def drawn(root, classes=("cat", "dog", "owl"), train=8, test=5, lacking=()):
    "A folder of small JPEGs: a colour for each class; classes that held-out images lack"
    for split, (k, name) in product(("train", "val"), enumerate(classes)):
        if split == "val" and name in lacking:
            continue
        folder = root / split / name
        folder.mkdir(parents=True)
        noise = np.random.default_rng(k)
        for i in range(train if split == "train" else test):
            pixels = noise.integers(0, 60, (40, 40, 3)) + 60 * k
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.jpg")
    return root


def vit(classes=3):
    "A ViT for images of 32 pixels"
    how = dict(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=classes)
    return timm.create_model("vit_tiny_patch16_224", **how)


def test_a_class_without_held_out_images_keeps_its_number(tmp_path):
    "Labels of held-out images are positions in the list of the training classes"
    drawn(tmp_path, lacking=("cat",))
    assert classes_of(tmp_path) == ["cat", "dog", "owl"]
    labels = torch.cat([y for _, y in images(tmp_path, vit(), False, 4, workers=0)])
    assert labels.tolist() == [1] * 5 + [2] * 5


def test_parquet(tmp_path):
    "CIFAR-10 as the hub keeps it: a column of PNGs and one of named labels"
    datasets = pytest.importorskip("datasets")
    names = ["airplane", "bird", "cat"]
    kinds = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=names))
    (tmp_path / "plain_text").mkdir()
    for split, n in (("train", 6), ("test", 3)):
        shown = [Image.new("RGB", (32, 32), (80 * (i % 3),) * 3) for i in range(n)]
        table = datasets.Dataset.from_dict(
            dict(img=shown, label=[i % 3 for i in range(n)]), features=kinds
        )
        table.to_parquet(tmp_path / f"plain_text/{split}-00000-of-00001.parquet")
    assert classes_of(tmp_path) == names
    image, label = pictures(tmp_path, train=False)[2]
    assert (np.array(image).mean(), label) == (160, 2)
    x, y = next(iter(images(tmp_path, vit(), True, 6, plain=True, workers=0)))
    assert x.shape == (6, 3, 32, 32)
    assert sorted(y.tolist()) == [0, 0, 1, 1, 2, 2]


def _share(root, out):
    from torch import distributed as dist

    rank = dist.get_rank()
    held_out = torch.cat([y for _, y in images(root, vit(), False, 4, workers=0)])
    repeated = images(root, vit(), True, 4, workers=0, num_aug_repeats=3)
    torch.save([held_out, torch.cat([y for _, y in repeated])], out / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_divide_the_images(tmp_path):
    "Held-out images come once in all; repeated augmentation works in two processes and in one"
    drawn(tmp_path / "data")
    together(_share, tmp_path / "data", tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert sorted(torch.cat([part[0] for part in parts]).tolist()) == [0] * 5 + [1] * 5 + [2] * 5
    assert [len(part[1]) for part in parts] == [12, 12]
    (alone,) = {
        len(y) for _, y in images(tmp_path / "data", vit(), True, 4, workers=0, num_aug_repeats=3)
    }
    assert alone == 4


def test_augmentation_never_leaves_no_bits(tmp_path):
    "The strongest RandAugment that the paper's recipe can draw works with every Pillow"
    loader = images(drawn(tmp_path), vit(), True, 4, workers=0, auto_augment="rand-m9-mstd0.5-inc1")
    (step,) = [t for t in loader.dataset.transform.transforms if hasattr(t, "ops")]
    (op,) = [op for op in step.ops if op.name.startswith("Posterize")]
    op.prob, op.magnitude = 1.0, 10.0
    shown = np.array(op(Image.new("RGB", (4, 4), (200, 100, 0))))
    assert shown.tolist() == [[[128, 0, 0]] * 4] * 4


@pytest.mark.slow
def test_a_division_that_is_killed_leaves_all_or_nothing(tmp_path):
    "Before each of its file operations; the next start takes away what it had begun"
    drawn(tmp_path / "drawn", ("cat", "dog"), train=2, test=1)
    images_, out = tmp_path / "drawn/train", tmp_path / "new" / "divided"
    whole = {f"{s}/{c}" for s in ("train", "val") for c in ("cat", "dog")}
    kills = 0
    while run_child(lambda: divide(images_, out), kills + 1):
        kills += 1
        recover(out)
        if out.exists():
            assert {str(f.parent.relative_to(out)) for f in out.rglob("*.jpg")} == whole, kills
            shutil.rmtree(out)
        assert not out.parent.exists() or not list(out.parent.iterdir()), kills
    assert kills > 10 and len(list(out.rglob("*.jpg"))) == 4
    assert all(link.is_symlink() for link in out.rglob("*.jpg"))

"Weights in another precision, where they came from, equal paths, and whose revision is told"

import copy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import spp
from spp.judging import evaluate
from spp.judging.baselines import baseline
from spp.judging.data import digits_vit


@pytest.fixture(scope="module")
def model():
    return digits_vit()


@pytest.fixture(scope="module")
def path(model):
    return baseline("magnitude", model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_weights_in_another_precision(model, path, dtype, tmp_path):
    "Attached both ways; other weights are refused in every precision"
    path.save(tmp_path / "a.path")
    other = copy.deepcopy(model).to(dtype)
    loaded = spp.SolutionPath.load(tmp_path / "a.path", other)
    assert loaded.cut(params=0.5).head.weight.dtype == dtype
    assert baseline("magnitude", other).attach(model).model is model
    with torch.no_grad():
        other.head.weight.mul_(1.01)
    with pytest.raises(ValueError, match="has other weights"):
        loaded.attach(other)


def test_paths_are_compared(model, path, tmp_path):
    path.save(tmp_path / "a.path")
    again = spp.SolutionPath.load(tmp_path / "a.path")
    assert path == again
    again.v[3] += 1
    assert path != again
    assert path != baseline("random", model)
    assert path != "a path"
    assert path in [again, path]


def test_the_source_of_weights_is_recorded(model, path, tmp_path):
    named = model.pretrained_cfg["hf_hub_id"]
    assert path.info["source"] == named
    small = path.cut(params=0.5)
    assert small.spp.source == named
    spp.save(small, tmp_path / "small")
    assert spp.load(tmp_path / "small").spp.source == named


def test_operations_are_called_macs(path):
    assert path.cut(macs=0.5).spp.got["macs"] <= 0.5
    with pytest.raises(ValueError, match="spp counts multiply-accumulates: write macs="):
        path.cut(flops=0.5)


def test_align_has_a_name(path):
    with pytest.raises(TypeError, match="positional"):
        spp.cut(path.model, path.pairs, path.mask(params=0.5), 8)


def git(folder, *command):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", *who, "-C", folder, *command], check=True, capture_output=True)


@pytest.mark.parametrize("where", ["venv/lib/spp", "spp"])
def test_the_revision_of_a_user_is_not_ours(where, tmp_path, monkeypatch):
    "spp inside of somebody's repository, untracked and tracked"
    folder = tmp_path / where
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "theirs")
    monkeypatch.setattr(spp, "__path__", [str(folder)])
    assert evaluate.provenance(0, 1, {})["revision"] == "installed"


def test_the_revision_of_a_checkout_is_told():
    root = Path(spp.__path__[0]).parent
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("not in a checkout")
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    assert evaluate.provenance(0, 1, {})["revision"].removesuffix("+") == head

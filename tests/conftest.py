"Models and batches that the tests share."

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES, randomised, small_vit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))  # tools that tests look at


@pytest.fixture(params=FAMILIES)
def family(request):
    "(model, an input) for each supported kind of model, small and random"
    model, x = FAMILIES[request.param]()
    return randomised(model), x


@pytest.fixture
def small():
    "A ViT that searches in a second, and batches for it"
    return small_vit()


@pytest.fixture
def small_disk(tmp_path):
    "A file system of 256 kB, where one can be mounted"
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=40", "tmpfs", str(place)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the documentation site, built once from the stored notebooks"
    from pages import build

    out = tmp_path_factory.mktemp("site") / "_docs"
    build(ROOT, out)
    return out

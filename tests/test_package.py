"The package as people install it: built, installed elsewhere, and used without its extras."

import os
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path

import pytest

import spp

ROOT = Path(__file__).resolve().parents[1]

# What a person does on the first day, where only the base requirements are installed.
FIRST_DAY = """
import sys

class Missing:
    "Nothing of the extras can be imported"
    names = {"transformers", "open_clip", "submitit", "datasets", "lm_eval", "nbdev", "execnb"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())

import spp
from spp.judging.data import digits, digits_vit

assert spp.__file__.startswith(sys.argv[1]), spp.__file__
model, (train, test) = digits_vit(), digits()
path = spp.search(model, train, steps=4, progress=False)
small = path.cut(params=0.5)
spp.finetune(small, list(train)[:2], teacher=model, epochs=1, progress=False)
spp.save(small, "small")
path.save("digits.path")
again = spp.load("small")
assert all((a == b).all() for a, b in zip(small.parameters(), again.parameters()))
assert not Missing.names & sys.modules.keys()
print(spp.__version__)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "The folder with the source archive and the wheel that `python -m build` makes"
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def place(dist, tmp_path_factory):
    "An empty folder into which the wheel was installed"
    (wheel,) = dist.glob("*.whl")
    place = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
    subprocess.run([*pip, str(wheel)], check=True)
    return place


def test_the_installed_version_is_found_under_its_name():
    "The registry has another package called spp: ours is solution-path-pruning"
    assert version("solution-path-pruning") == spp.__version__


def test_importing_it_is_light():
    "`import spp` imports no model library and no notebook tools"
    heavy = ("transformers", "open_clip", "timm", "nbdev", "submitit", "datasets", "matplotlib")
    code = f"import sys, spp; print(*[m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "", f"import spp imports {done.stdout}"


def test_all_is_the_union_of_the_extras():
    "`[all]` is what a user may want; each extra is declared in settings.ini"
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    for name in ("transformers", "clip", "llm", "slurm"):
        assert ini["DEFAULT"][f"{name}_requirements"].split()


@pytest.mark.slow
def test_archives_hold_what_is_needed(dist):
    "The wheel: all modules, the type marker, the embedded model. The source: what setup.py reads"
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(f.relative_to(ROOT)) for f in (ROOT / "spp").rglob("*.py")}
    assert modules <= names
    assert {"spp/py.typed", "spp/assets/digits_vit/model.safetensors"} <= names
    assert not [n for n in names if n.startswith(("nbs/", "tests/"))]
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {n.partition("/")[2] for n in archive.getnames()}
    assert {"settings.ini", "setup.py", "README.md", "LICENSE", "spp/py.typed"} <= inside


@pytest.mark.slow
def test_the_wheel_works_outside_the_repository(place, tmp_path):
    "Installed into an empty folder: search, cut, fine-tune, save, load, without any extra"
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FIRST_DAY, str(place)],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == spp.__version__


@pytest.mark.slow
def test_the_command_of_the_wheel(place, tmp_path):
    "`spp --version` and `spp --help` of the installed package"
    for option, text in (("--version", f"spp {spp.__version__}"), ("--help", "Usage")):
        done = subprocess.run(
            [sys.executable, str(place / "bin/spp"), option],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
        )
        assert text in done.stdout, done.stderr[-2000:]

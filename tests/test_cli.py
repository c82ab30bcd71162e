"The command line as a user types it, in processes of their own"

import json
import subprocess
import sys

import pytest


def spp(*args, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", "from spp.running.cli import main; main()", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


def test_help_shows_examples():
    r = spp("--help")
    assert (
        r.returncode == 0
        and "Examples:" in r.stdout
        and "spp show runs/demo/params_0.50" in r.stdout
    )
    assert "--steps" in spp("demo", "--help").stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    at = tmp_path_factory.mktemp("demo")
    r = spp("demo", "--steps", 30, "--epochs", 1, cwd=at)
    assert r.returncode == 0, r.stderr
    return at, r.stdout


def test_demo(demo):
    at, said = demo
    out = at / "runs/demo"
    for word in ("asked", "latency", "one-shot", "fine-tuned", "magnitude", "0.15"):
        assert word in said
    assert {p.name for p in out.iterdir()} >= {
        "table.csv",
        "demo.json",
        "accuracy.png",
        "widths.png",
        "path.png",
        "digits.path",
        "params_1.00",
        "params_0.15",
    }
    rows = json.loads((out / "demo.json").read_text())["rows"]
    assert len(rows) == 40 and all(r["asked"] - 0.02 < r["got"] <= r["asked"] for r in rows)


def test_second_run_gives_the_same_table(demo):
    at, said = demo
    assert spp("demo", "--steps", 30, "--epochs", 1, cwd=at).stdout == said


def test_load_in_a_new_process(demo):
    r = subprocess.run(
        [
            sys.executable,
            "-c",
            "import spp, torch; m = spp.load('runs/demo/params_0.50'); print(m(torch.zeros(1,1,8,8)).shape)",
        ],
        capture_output=True,
        text=True,
        cwd=demo[0],
    )
    assert r.stdout.strip() == "torch.Size([1, 10])", r.stderr


def test_show(demo):
    assert (
        "SolutionPath of vit_tiny_patch16_224: 1,536 units in 12 pairs"
        in spp("show", "runs/demo/digits.path", cwd=demo[0]).stdout
    )
    assert "asked params=0.5; got units" in spp("show", "runs/demo/params_0.50", cwd=demo[0]).stdout


def test_errors_are_one_paragraph(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").touch()
    for args, text in (
        (("demo", "--out", "x"), "x exists and holds thesis.tex, not a demo of spp"),
        (("show", "no.path"), "no file no.path"),
        (("bench", "imagenet"), "unknown benchmark 'imagenet'"),
    ):
        r = spp(*args, cwd=tmp_path)
        assert r.returncode == 1 and text in r.stderr and "Traceback" not in r.stderr


def test_import_is_light():
    "`import spp` pulls in no model library"
    r = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, spp; print([m for m in ('timm', 'open_clip', 'transformers', 'nbdev', 'matplotlib', 'sklearn') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
    )
    assert r.stdout.strip() == "[]", r.stdout + r.stderr

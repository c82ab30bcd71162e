"The command line as a user types it, in processes of their own."

import json

import pytest
from command import MAIN, inside, new_python, python, refused, spp

from spp import save
from spp.judging.baselines import baseline
from spp.judging.data import digits_vit

HEAVY = ("timm", "open_clip", "transformers", "nbdev", "matplotlib", "sklearn")


def test_help_shows_examples():
    "In a process of its own, as it is installed"
    done = new_python("-c", MAIN, "--help")
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout
    assert "spp show runs/demo/params_0.50" in done.stdout


def test_help_does_not_wait():
    "`spp --help`, `-h` and completion import no library that takes long"
    heavy = (*HEAVY, "torch", "pandas", "numpy")
    code = (
        "import sys; from spp.running.cli import main\n"
        "try: main()\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    for args in (["--help"], ["run", "-h"], ["jobs", "."]):
        done = new_python("-c", code, *args)
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip().endswith("[]"), done.stderr
    words = dict(_SPP_COMPLETE="complete_bash", COMP_WORDS="spp re", COMP_CWORD="1")
    done = new_python("-c", MAIN, env=words)
    assert done.stdout.split() == ["recipes", "report"]


def test_completion_knows_the_recipes():
    from spp.running.cli import _NAMES
    from spp.running.recipes import RECIPES

    assert list(_NAMES) == list(RECIPES)


def test_no_jobs_is_no_error(tmp_path):
    done = inside("jobs", tmp_path)
    assert done.returncode == 0
    assert f"no jobs in {tmp_path}" in done.stdout


def test_help_fits_a_terminal():
    "Every help page has at most 80 columns"
    assert "--steps" in inside("demo", "--help").stdout
    for command in (
        "demo",
        "show",
        "recipes",
        "run",
        "search",
        "cut",
        "pick",
        "llm",
        "jobs",
        "report",
        "bench",
    ):
        page = inside(command, "--help").stdout
        assert max(map(len, page.splitlines())) <= 80, command


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "A folder in which a short `spp demo` ran, and what it printed"
    at = tmp_path_factory.mktemp("demo")
    done = spp("demo", "--steps", 30, "--epochs", 1, cwd=at)
    assert done.returncode == 0, done.stderr
    return at, done.stdout


@pytest.mark.slow
def test_demo(demo):
    "The table on the screen, the files, and the sizes that were asked for"
    at, said = demo
    for word in ("asked", "latency", "as cut", "repaired", "fine-tuned", "magnitude", "0.15"):
        assert word in said
    files = {"table.csv", "demo.json", "accuracy.png", "widths.png", "path.png", "digits.path"}
    there = {p.name for p in (at / "runs/demo").iterdir()}
    assert files | {"params_1.00", "params_0.15"} <= there
    rows = json.loads((at / "runs/demo/demo.json").read_text())["rows"]
    assert len(rows) == 40
    assert all(r["asked"] - 0.02 < r["got"] <= r["asked"] for r in rows)


@pytest.mark.slow
def test_second_run_gives_the_same_table(tmp_path):
    "In another process, into the same folder: the latency too, which the first one measured"
    code = (
        "from spp.lab.demo import demo\n"
        "small = dict(steps=8, epochs=1, budgets=(0.5, 0.25), orders=('spp', 'random'))\n"
        "print(demo('runs/demo', **small, progress=False).to_csv())"
    )
    first, second = (python("-c", code, cwd=tmp_path) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert len(first.stdout.splitlines()) == 6  # a heading, four rows, an empty line
    assert first.stdout == second.stdout


@pytest.mark.slow
def test_load_in_a_new_process(demo):
    code = (
        "import spp, torch; m = spp.load('runs/demo/params_0.50');"
        " print(m(torch.zeros(1,1,8,8)).shape)"
    )
    done = python("-c", code, cwd=demo[0])
    assert done.stdout.strip() == "torch.Size([1, 10])", done.stderr


@pytest.mark.slow
def test_show_of_a_demo(demo):
    path = spp("show", "runs/demo/digits.path", cwd=demo[0]).stdout
    assert "SolutionPath of vit_tiny_patch16_224: 1,536 units in 12 pairs" in path
    assert "asked params=0.5; got units" in spp("show", "runs/demo/params_0.50", cwd=demo[0]).stdout


def test_show(tmp_path):
    "A path, a cut model and a dense one"
    model = digits_vit()
    path = baseline("random", model)
    path.save(tmp_path / "digits.path")
    save(path.cut(params=0.5), tmp_path / "half")
    save(model, tmp_path / "dense")
    shown = {name: inside("show", tmp_path / name).stdout for name in ("half", "dense")}
    path = inside("show", tmp_path / "digits.path").stdout
    assert "SolutionPath of vit_tiny_patch16_224: 1,536 units in 12 pairs" in path
    assert "asked params=0.5; got units" in shown["half"]
    assert "not cut" in shown["dense"]


@pytest.mark.parametrize("run", [inside, pytest.param(spp, marks=pytest.mark.slow)])
def test_errors_are_one_paragraph(tmp_path, run):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").touch()
    for args, text in (
        (("demo", "--out", "x"), "x holds thesis.tex, which spp did not write there"),
        (("show", "no.path"), "no file no.path"),
        (("bench", "imagenet"), "unknown benchmark 'imagenet'"),
    ):
        refused(run(*args, cwd=tmp_path), text)


def test_import_is_light():
    "`import spp` imports no model library"
    done = new_python("-c", f"import sys, spp; print([m for m in {HEAVY} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

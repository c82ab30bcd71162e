"Ctrl-C: one line that says what is kept, status 130, no traceback; and the same call resumes"

import os
import signal
import time

import pytest
import timm
import torch
from command import MAIN, inside, python
from processes import Interpreter

import spp
from spp.running import runs
from spp.running.recipes import RECIPES, Recipe

QUIET = dict(progress=False)


class Stopping(list):
    "Batches; after `left` of them somebody presses Ctrl-C"

    left = -1

    def __iter__(self):
        for batch in super().__iter__():
            if Stopping.left == 0:
                signal.raise_signal(signal.SIGINT)
            Stopping.left -= 1
            yield batch


@pytest.fixture(autouse=True)
def ctrl_c():
    "Ctrl-C reaches the test; workers of pytest-xdist ignore it"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def vit():
    torch.manual_seed(0)
    size = dict(img_size=16, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=4)
    return timm.create_model("vit_tiny_patch16_224", **size).eval()


def samples():
    draw = torch.Generator().manual_seed(1)
    return Stopping((torch.randn(4, 3, 16, 16, generator=draw), torch.arange(4)) for _ in range(4))


def said(call, batches):
    "What the interrupt says after so many batches"
    Stopping.left = batches
    with pytest.raises(KeyboardInterrupt) as error:
        call()
    Stopping.left = -1
    assert "\n" not in str(error.value)
    return str(error.value)


def test_search(tmp_path):
    file = tmp_path / "a.run"

    def call(**kw):
        return spp.search(vit(), samples(), steps=60, **QUIET, **kw)

    assert said(call, 40).startswith("the search stopped after step ")
    assert "; nothing is kept. With checkpoint=, the same call would resume." in said(call, 40)
    kept = dict(checkpoint=file)
    assert f"before it was first written to {file}" in said(lambda: call(**kept), 3)
    assert f"; {file} is kept: the same call resumes there." in said(lambda: call(**kept), 60)
    assert torch.equal(call(**kept).v, call().v)


def test_fine_tuning(tmp_path):
    file = tmp_path / "a.run"
    model = vit()

    def call(model=model, **kw):
        spp.finetune(model, samples(), epochs=3, every=2, **QUIET, **kw)
        return model.head.weight

    kept = dict(checkpoint=file)
    text = said(lambda: call(**kept), 9)
    assert text.startswith("the fine-tuning stopped after batch 8 of 12; ")
    assert text.endswith(f"{file} is kept: the same call resumes there.")
    assert torch.equal(call(**kept), call(vit()))


def test_walk(tmp_path):
    path = spp.search(vit(), samples(), steps=3, **QUIET)

    def call(**kw):
        return spp.walk(path, samples(), (0.9, 0.7), epochs=3, align=1, every=1, **QUIET, **kw)

    assert said(call, 9).startswith("the walk stopped after 1 of 2 members; nothing is kept")
    kept = dict(keep=tmp_path / "members", checkpoint=tmp_path / "a.run")
    text = said(lambda: call(**kept), 11)
    assert text.startswith("the walk stopped after 1 of 2 members; ")
    assert text.endswith(
        "members and " + str(tmp_path / "a.run is kept: the same call resumes there.")
    )
    for got, want in zip(call(**kept).values(), call().values()):
        assert torch.equal(got.head.weight, want.head.weight)


@pytest.fixture
def tiny(monkeypatch):
    "A recipe on noise whose loaders may press Ctrl-C"
    generated = runs.generated
    monkeypatch.setattr(runs, "generated", lambda *args: Stopping(generated(*args)))
    monkeypatch.setitem(RECIPES, "tiny", Recipe("test_vit", 2, 1, 1, 4, 1e-3))


@pytest.mark.parametrize("batches, stage", [(3, "starting"), (9, "pruning"), (16, "fine-tuning")])
def test_a_command(batches, stage, tiny, tmp_path):
    args = ("run", "tiny", "--smoke", "--out", tmp_path / "out")
    Stopping.left = batches
    done = inside(*args)
    Stopping.left = -1
    assert done.returncode == 130
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("spp: the run stopped (")
    assert last.endswith(f"{tmp_path / 'out'} keeps what is done: the same command resumes it")
    assert "Traceback" not in done.stderr
    again = inside(*args)
    assert again.returncode == 0, again.stderr


def test_a_command_that_keeps_nothing(monkeypatch, tmp_path):
    "The demo says so, and leaves nothing"

    def stop(*_, **__):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("spp.lab.demo.search", stop)
    done = inside("demo", "--out", tmp_path / "out")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == (
        f"spp: the demo stopped; nothing was written to {tmp_path / 'out'}"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_from_outside(tmp_path):
    "SIGINT to the program while it searches, as a terminal sends it; the same command goes on"
    small = (
        "from spp.running.recipes import RECIPES, Recipe\n"
        "RECIPES['tiny'] = Recipe('test_vit', 400, 0, 0, 4, 1e-3)\n"
    )
    args = ["-c", small + MAIN, "run", "tiny", "--smoke", "--out", "out"]
    args += ["--update", "400", "--prune", "0", "--finetune", "0"]
    child = Interpreter(args, str(tmp_path), {**os.environ})
    file = tmp_path / "out" / "search.run"
    since = time.time()
    while not file.exists() and time.time() - since < 300:
        assert child.poll() is None, child.wait().stderr
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    stopped = child.wait()
    errors = stopped.stderr
    assert stopped.returncode == 130, errors
    assert "Traceback" not in errors
    assert (
        errors.strip()
        .splitlines()[-1]
        .endswith(
            "spp: the run stopped (searching); "
            f"{tmp_path / 'out'} keeps what is done: the same command resumes it"
        )
    )
    done = python(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

"""What people do who choose a size, look at a path, or share one, as they would write it.

Each persona has a script of at most fifteen lines; what comes after it is checked here.
"""

import inspect
import re
import textwrap

import matplotlib

matplotlib.use("agg")

import pytest
import torch

import spp
from spp.judging.data import digits, digits_vit


def curve_and_pick():
    model = digits_vit()
    train, held_out = digits()
    path = spp.search(model, train, steps=40, progress=False)
    sizes = path.curve(held_out, params=(0.8, 0.5), repair=train, progress=False)
    print(sizes)
    sizes.plot().figure.savefig("sizes.png")
    small = path.pick(held_out, drop=0.02, repair=train, cuts=4, progress=False)
    print(spp.compare(small, model, held_out))
    spp.save(small, "picked")
    return locals()


def looking():
    model = digits_vit()
    train, _ = digits()
    path = spp.search(model, train, steps=20, progress=False)
    print(path)
    path.plot()[0].figure.savefig("path.png")
    path.plot_widths(macs=(0.75, 0.5)).figure.savefig("widths.png")
    path.plot_heads(share=0.5)[0].figure.savefig("heads.png")
    path.sensitivity().plot().figure.savefig("layers.png")
    small = path.cut(params=0.5)
    cards = [x._repr_html_() for x in (path, small.spp, spp.summary(small), path.sensitivity())]
    return locals()


def resuming_and_sharing():
    model = digits_vit()
    train, _ = digits(seed=3)
    run = dict(steps=20, seed=3, checkpoint="search.run", progress=False)
    path = spp.search(model, train, **run)
    again = spp.search(model, digits(seed=3)[0], **run)  # the run is read, nothing is searched
    path.save("shared.path")
    theirs = spp.SolutionPath.load("shared.path", digits_vit().bfloat16())  # another person
    small = theirs.cut(params=0.4)
    spp.save(small, "theirs")
    return locals()


PERSONAS = (curve_and_pick, looking, resuming_and_sharing)


@pytest.fixture
def done(request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = request.param()
    return made, capsys.readouterr().out, tmp_path


def the(persona):
    return pytest.mark.parametrize("done", [persona], indirect=True, ids=[persona.__name__])


@pytest.mark.parametrize("persona", PERSONAS, ids=lambda f: f.__name__)
def test_their_scripts_are_short(persona):
    lines = textwrap.dedent(inspect.getsource(persona)).splitlines()[1:]
    lines = [x for x in lines if x.strip() and "return locals()" not in x]
    assert len(lines) <= 15, len(lines)


@pytest.mark.slow
@the(curve_and_pick)
def test_curve_and_pick(done):
    made, printed, folder = done
    assert re.search(r"drop -?0\.\d{4} \(-?0\.\d{4} to 0\.\d{4} at 95%\) on 500 samples", printed)
    assert (folder / "sizes.png").stat().st_size > 5000
    table = made["sizes"].table
    assert table[["score", "low", "high", "macs", "latency"]].notna().all(axis=None)
    picked = made["small"].spp.path["pick"]
    assert picked["tried"] and picked["drop"] == 0.02
    share = made["small"].spp.got["params"]
    assert share == min(t["share"] for t in picked["tried"] if t["stays"])
    assert spp.load(folder / "picked").spp.path["pick"] == picked
    hits = spp.accuracy(made["small"], made["held_out"])
    assert hits == pytest.approx(picked["score"])


@pytest.mark.slow
@the(looking)
def test_looking(done):
    made, printed, folder = done
    for name in ("path", "widths", "heads", "layers"):
        assert (folder / f"{name}.png").stat().st_size > 5000, name
    assert "units kept" in printed
    for card, word in zip(made["cards"], ("Solution path", "A cut of", "MACs a sample", "layer")):
        assert word in card and card.count("<div") == card.count("</div>")


@the(resuming_and_sharing)
def test_resuming_and_sharing(done):
    made, _, folder = done
    assert made["path"] == made["again"] == spp.SolutionPath.load(folder / "shared.path")
    assert made["theirs"] == made["path"]
    loaded = spp.load(folder / "theirs")
    assert next(loaded.parameters()).dtype == torch.bfloat16
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        assert torch.equal(loaded(x), made["small"](x))


@pytest.mark.parametrize("info", [{}, dict(steps=4), dict(method="search", source="mine")])
def test_a_path_that_is_described_in_part_is_shown(info):
    searched = spp.search(digits_vit(), digits()[0], steps=2, progress=False)
    bare = spp.SolutionPath(searched.pairs, searched.fisher, searched.v, info=info)
    page = bare._repr_html_()
    assert f"{bare.n:,} in" in page and "None" not in page
    assert all(str(value) in page for value in info.values())
    assert str(bare.n) in repr(bare).replace(",", "")

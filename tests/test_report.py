"A run and a demo as one page"

import re
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest


def spp(*args, cwd):
    return subprocess.run(
        [sys.executable, "-c", "from spp.running.cli import main; main()", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A demo and a recipe's trial"
    from spp.lab.demo import demo
    from spp.running.recipes import RECIPES, Recipe, run

    at = tmp_path_factory.mktemp("report")
    RECIPES["tiny"] = Recipe("test_vit", 1, 1, 2, 4, 1e-3)
    try:
        demo(
            at / "demo",
            steps=20,
            epochs=1,
            budgets=(1.0, 0.5),
            orders=("spp", "random"),
            progress=False,
        )
        run("tiny", out=at / "<tiny>", smoke=True, progress=False)
    finally:
        del RECIPES["tiny"]
    return at


class Page(HTMLParser):
    "Tags that stay open, and what asks for something elsewhere"

    def __init__(self):
        super().__init__()
        self.open, self.asks, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "path", "use", "rect", "br"):
            self.open.append(tag)
        self.asks += [
            v
            for k, v in attributes
            if k in ("src", "href", "xlink:href", "data", "action")
            and not v.startswith(("#", "data:"))
        ] + [tag] * (tag in ("script", "link", "iframe", "img", "object"))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open[-1:] = [] if self.open and self.open[-1] == tag else self.open[-1:]

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag, tag

    def handle_data(self, text):
        self.texts.append(text)


def test_page_and_table(runs):
    r = spp("report", "demo", "<tiny>", "--out", "both.html", cwd=runs)
    assert r.returncode == 0 and "wrote both.html and both.csv" in r.stdout, r.stderr
    html, page = (runs / "both.html").read_text(), Page()
    page.feed(html)
    text = " ".join(page.texts)
    assert not page.open and not page.asks and not re.search(r"@import|url\((?!#)", html)
    for word in (
        "demo",
        "<tiny>",
        "random",
        "blocks.0.mlp",
        "Search cost",
        "Settings",
        "Versions",
        "torch",
        "share of the parameters",
        "multiply-accumulates",
        "time, relative to the dense model",
        "mean gate of a pair",
        "share of all units kept",
        "fine-tuning",
        "is a trial run on noise",
    ):
        assert word in text, word
    assert "<tiny>" not in html  # names are text, not tags
    t = pd.read_csv(runs / "both.csv")
    assert t.run.tolist() == ["demo"] * 4 + ["<tiny>"] * 3
    mine = t[t.run == "<tiny>"]
    assert (
        mine.asked.tolist() == [1.0, 0.75, 0.5]
        and mine[["params", "macs", "latency", "score"]].notna().all(axis=None)
        and mine.macs.is_monotonic_decreasing
        and mine.latency.iloc[0] == 1
    )


def test_the_same_page_twice(runs):
    from spp.running.report import page, read

    assert page([read(runs / "demo")]) == page([read(runs / "demo")])


def test_no_run(runs, tmp_path):
    from spp.running.report import report

    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{}")
    r = spp("report", "x", cwd=tmp_path)
    assert (
        r.returncode == 1
        and "x holds thesis.tex: expected a folder that `spp run` or `spp demo` wrote" in r.stderr
        and "Traceback" not in r.stderr
    ), r.stderr
    for folder, text in (
        ("none", "none is not there"),
        (runs, re.escape(f"Runs are in it: write {runs / '<tiny>'}")),
        ("broken", "broken is no whole run"),
    ):
        with pytest.raises((OSError, ValueError), match=text):
            report([tmp_path / folder], tmp_path / "x.html")
    with pytest.raises(ValueError, match="ends in .html"):
        report([runs / "demo"], tmp_path / "x.pdf")
    assert not list(tmp_path.glob("*.html"))

"A run and a demo as one page."

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from command import refused, spp

from spp.running.recipes import RECIPES, Recipe, run
from spp.running.report import page, read, report

# what must be on the page: headings, labels of the figures, names
WORDS = (
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
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A folder with a short demo and a recipe's trial, whose name must be escaped in HTML"
    from spp.lab.demo import demo

    at = tmp_path_factory.mktemp("report")
    few = dict(budgets=(1.0, 0.5), orders=("spp", "random"))
    demo(at / "demo", steps=20, epochs=1, progress=False, **few)
    RECIPES["tiny"] = Recipe("test_vit", 1, 1, 2, 4, 1e-3)
    try:
        run("tiny", out=at / "<tiny>", smoke=True, progress=False)
    finally:
        del RECIPES["tiny"]
    return at


class Page(HTMLParser):
    "Tags that stay open, addresses that the page asks for, and its texts"

    EMPTY = ("meta", "path", "use", "rect", "br")
    LINKS = ("src", "href", "xlink:href", "data", "action")
    LOADING = ("script", "link", "iframe", "img", "object")

    def __init__(self):
        super().__init__()
        self.open, self.asks, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag in self.LOADING:
            self.asks.append(tag)
        links = [value for name, value in attributes if name in self.LINKS]
        self.asks += [value for value in links if not value.startswith(("#", "data:"))]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag, tag

    def handle_data(self, text):
        self.texts.append(text)


def test_page(runs):
    "All numbers of a demo and a run on one page that asks for nothing outside of it"
    done = spp("report", "demo", "<tiny>", "--out", "both.html", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert "wrote both.html and both.csv" in done.stdout
    html, parsed = (runs / "both.html").read_text(), Page()
    parsed.feed(html)
    text = " ".join(parsed.texts)
    assert not parsed.open
    assert not parsed.asks
    assert not re.search(r"@import|url\((?!#)", html)
    for word in WORDS:
        assert word in text, word
    assert "<tiny>" not in html  # names are text, not tags
    table = pd.read_csv(runs / "both.csv")
    assert table.run.tolist() == ["demo"] * 4 + ["<tiny>"] * 3
    mine = table[table.run == "<tiny>"]
    assert mine.asked.tolist() == [1.0, 0.75, 0.5]
    assert mine[["params", "macs", "latency", "score"]].notna().all(axis=None)
    assert mine.macs.is_monotonic_decreasing
    assert mine.latency.iloc[0] == 1


def test_the_same_page_twice(runs):
    assert page([read(runs / "demo")]) == page([read(runs / "demo")])


def test_no_run(runs, tmp_path):
    "What is no run is refused, and nothing is written"
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{}")
    expected = "x holds thesis.tex: expected a folder that `spp run` or `spp demo` wrote"
    refused(spp("report", "x", cwd=tmp_path), expected)
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

"A run and a demo as one page."

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from command import inside, refused, spp

from spp.running.folder import read_json
from spp.running.recipes import RECIPES, Recipe
from spp.running.report import page, read, report
from spp.running.runs import run

# what must be on the page of a trial: headings, labels of the figures, names
WORDS = (
    "<tiny>",
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
    "A folder with a recipe's trial, whose name must be escaped in HTML"
    at = tmp_path_factory.mktemp("report")
    RECIPES["tiny"] = Recipe("test_vit", 1, 1, 2, 4, 1e-3)
    try:
        run("tiny", out=at / "<tiny>", smoke=True, progress=False)
    finally:
        del RECIPES["tiny"]
    return at


@pytest.fixture(scope="module")
def demo_too(runs):
    "The same folder with a short demo"
    from spp.lab.demo import demo

    few = dict(budgets=(1.0, 0.5), orders=("spp", "random"))
    demo(runs / "demo", steps=20, epochs=1, progress=False, **few)
    return runs


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


def check_page(file, words):
    "The page is whole, asks for nothing outside of it, and says `words`"
    html, parsed = file.read_text(), Page()
    parsed.feed(html)
    text = " ".join(parsed.texts)
    assert not parsed.open
    assert not parsed.asks
    assert not re.search(r"@import|url\((?!#)", html)
    for word in words:
        assert word in text, word
    assert "<tiny>" not in html  # names are text, not tags


def check_trial(rows):
    "The numbers of the trial are all there"
    assert rows.asked.tolist() == [1.0, 0.75, 0.5]
    assert rows[["params", "macs", "latency", "score"]].notna().all(axis=None)
    assert rows.macs.is_monotonic_decreasing
    assert rows.latency.iloc[0] == 1


def test_page_of_a_trial(runs):
    done = inside("report", "<tiny>", "--out", "one.html", cwd=runs)
    assert "wrote one.html and one.csv" in done.stdout
    samples = {row["samples"] for row in read_json(runs / "<tiny>/results.json")["rows"]}
    assert len(samples) == 1
    bands = f"the 95 % interval of each score by itself, on {samples.pop()} samples"
    check_page(runs / "one.html", (*WORDS, bands))
    check_trial(pd.read_csv(runs / "one.csv"))


@pytest.mark.slow
def test_page_of_a_demo_and_a_trial(demo_too):
    "All numbers of both, by the command in a process of its own"
    done = spp("report", "demo", "<tiny>", "--out", "both.html", cwd=demo_too)
    assert done.returncode == 0, done.stderr
    assert "wrote both.html and both.csv" in done.stdout
    check_page(demo_too / "both.html", (*WORDS, "demo", "random"))
    table = pd.read_csv(demo_too / "both.csv")
    assert table.run.tolist() == ["demo"] * 4 + ["<tiny>"] * 3
    check_trial(table[table.run == "<tiny>"])


@pytest.mark.slow
def test_the_same_demo_page_twice(demo_too):
    assert page([read(demo_too / "demo")]) == page([read(demo_too / "demo")])


def test_the_same_page_twice(runs):
    assert page([read(runs / "<tiny>")]) == page([read(runs / "<tiny>")])


def test_no_run(runs, tmp_path):
    "What is no run is refused, and nothing is written"
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.tex").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{}")
    expected = "x holds thesis.tex: expected a folder that `spp run` or `spp demo` wrote"
    refused(inside("report", "x", cwd=tmp_path), expected)
    for folder, text in (
        ("none", "none is not there"),
        (runs, re.escape(f"Runs are in it: write {runs / '<tiny>'}")),
        ("broken", "run.json holds something else, expected the settings of a run"),
    ):
        with pytest.raises((OSError, ValueError), match=text):
            report([tmp_path / folder], tmp_path / "x.html")
    with pytest.raises(ValueError, match="ends in .html"):
        report([runs / "<tiny>"], tmp_path / "x.pdf")
    assert not list(tmp_path.glob("*.html"))

"The site: built from the stored notebooks, whole by itself, and looked at in a browser where there is one"

import functools
import html
import importlib.util
import re
import shutil
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("build_site", ROOT / ".ci/pages.py")
build_site = sys.modules["build_site"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_site)
BOOKS = [b for _, books in build_site.contents(ROOT) for b in books]
URLS = [build_site.address(b) for b in BOOKS]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "_docs"
    build_site.build(ROOT, out)
    return out


def words(page: str) -> str:
    "What a page says outside of code and formulas"
    return html.unescape(
        re.sub(r"<[^>]*>", "", re.sub(r"(?s)<(script|style|pre|code|math)\b.*?</\1>", " ", page))
    )


def test_every_notebook_is_in_the_sidebar():
    assert len(set(BOOKS)) == len(BOOKS) and set(BOOKS) == {
        str(p.relative_to(ROOT / "nbs"))
        for p in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }


@pytest.mark.parametrize("url", URLS)
def test_page(site, url):
    "No formula left as text, every link and anchor leads somewhere, every page is in the sidebar, each picture has words, the Markdown copy is there"
    page = (site / url).read_text(encoding="utf-8")

    def ids(s):
        return set(re.findall(r'\bid="([^"]+)"', s))

    left = re.findall(r".{0,30}(?:\$|\\\(|\\begin|\\frac|\\[a-zA-Z]+\{).{0,30}", words(page))
    assert not left, left
    assert (
        "\\"
        not in "".join(re.sub(r"<[^>]*>", "", m) for m in re.findall(r"(?s)<math.*?</math>", page))
        and "merror" not in page
    )
    assert len(ids(page)) == len(re.findall(r'\bid="', page)), "an id stands twice"
    for link in re.findall(r'(?:href|src)="([^"]*)"', page):
        if re.match(r"https?:|data:", link):
            continue
        file, _, anchor = html.unescape(link).partition("#")
        target = ((site / url).parent / file).resolve() if file else site / url
        assert target.is_file(), f"{url} → {link}"
        assert not anchor or unquote(anchor) in ids(target.read_text(encoding="utf-8")), (
            f"{url} → {link}"
        )
    bar = re.search(r'(?s)<nav id="ui-sidebar".*?</nav>', page)[0]
    assert {((site / url).parent / h).resolve() for h in re.findall(r'href="([^"]+)"', bar)} == {
        (site / u).resolve() for u in URLS
    }
    pictures = re.findall(r"<img[^>]*>", page)
    assert all(re.search(r'alt="[^"]{20,}"', i) for i in pictures), (
        f"a figure of {url} has no words: write `#| fig-alt: …` into its cell"
    )
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', page)
    copy = (site / url).with_suffix(".md").read_text(encoding="utf-8")
    assert copy.startswith("# ")
    for link in re.findall(
        r"(?<!`)\]\(([^)#:\s]+)(?:#[^)]*)?\)", re.sub(r"(?s)```.*?```", "", copy)
    ):
        assert ((site / url).parent / link).is_file(), f"the copy of {url} → {link}"


def test_llms_txt_lists_all(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# spp\n\n> ")
    assert re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S", text, re.M) == [
        str(Path(u).with_suffix(".md")) for u in URLS
    ]


def test_api_is_described(site):
    "A signature, what a parameter means, where it is returned, the methods of a class, `@patch` included"
    page = (site / "inclusion.html").read_text(encoding="utf-8")
    card = re.search(r'(?s)<section class="api" id="shrink">.*?</section>', page)[0]
    for what in ("shrink(v, lam=1.) → Tensor", "threshold λ ≥ 0", "= 1.", "proximal map"):
        assert what in card
    assert all(
        f'id="solutionpath{m}"' in (site / "path.html").read_text(encoding="utf-8")
        for m in ("", ".cut", ".load", ".to_pandas")
    )
    api = build_site.exported(
        'class A(B):\n    "Doc"\n    def __init__(self, x:int=1, # one\n                 *, y="a"): # two\n        pass\n    def f(self): # three\n        pass\n@patch\ndef g(self:A,\n      *z): # four\n    "G"\n'
    )
    assert [(a.name, a.sig, a.params, a.returns) for a in api] == [
        ("A", 'A(x=1, *, y="a")', [("x", "int", "1", "one"), ("y", "", '"a"', "two")], ("", "")),
        ("A.f", "A.f()", [], ("", "three")),
        ("A.g", "A.g(*z)", [("*z", "", "", "four")], ("", "")),
    ]


def test_replaces_nothing_but_a_site(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="holds something that is not a site"):
        build_site.build(ROOT, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_formula_it_does_not_know():
    with pytest.raises(ValueError, match=r"not understood in the formula.*\\nosuch"):
        build_site.mathml(r"a \nosuch b")


@pytest.mark.parametrize("book", BOOKS)
def test_nbdev_docs_can_read_it(book):
    "nbdev reads a title cell as front matter, and executes cells that import something in notebooks that export"
    import ast
    import json

    cells = json.loads((ROOT / "nbs" / book).read_text(encoding="utf-8"))["cells"]

    def source(c):
        return "".join(c["source"])

    assert re.fullmatch(r"# .+(\n\n> .+)?", source(cells[0])), (
        "the first cell holds the title and one line of promise, nothing else"
    )
    if not any("#| export" in source(c) for c in cells):
        return
    for c in cells:
        if c["cell_type"] != "code" or re.search(r"^#\|\s*(export|eval: false)", source(c), re.M):
            continue
        imports = [
            isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(ast.parse(source(c)))
        ]
        uses = [
            n
            for n in ast.parse(source(c)).body
            if not isinstance(n, (ast.Import, ast.ImportFrom))
            and not (
                isinstance(n, ast.Expr) and re.match(r"(logging|warnings|pd)\.", ast.unparse(n))
            )
        ]
        assert not (any(imports) and uses), (
            f"imports belong into a cell of their own: {source(c)[:200]}"
        )


# --- in a browser -------------------------------------------------------------------------------------------------------


def chromium():
    "The path of a Chromium, or None for the one that playwright has of its own"
    return next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))),
        None,
    )


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as p:
        try:
            b = p.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except api.Error as e:
            pytest.skip(f"no Chromium: {str(e).splitlines()[0]}")
        yield b
        b.close()


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *a):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def tab(browser, address):
    "A page that lets no request leave the machine, and remembers what went wrong"
    t = browser.new_context().new_page()
    t.wrong = []

    def local(route):
        if route.request.url.startswith((address, "file://", "data:")):
            route.continue_()
        else:
            t.wrong.append(f"asked for {route.request.url}")
            route.abort()

    t.route("**/*", local)
    t.on("console", lambda m: m.type in ("error", "warning") and t.wrong.append(m.text))
    t.on("pageerror", lambda e: t.wrong.append(str(e)))
    t.on("response", lambda r: r.status >= 400 and t.wrong.append(f"{r.status} {r.url}"))
    yield t
    t.context.close()


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_every_page_opens(tab, address, width, scheme):
    "Nothing complains, nothing is fetched from elsewhere, nothing sticks out, pictures load, formulas have a size"
    tab.set_viewport_size({"width": width, "height": 900})
    tab.emulate_media(color_scheme=scheme)
    wide = []
    for url in URLS:
        tab.goto(address + url)
        tab.evaluate(
            "Promise.all([...document.images].map(i => (i.loading = 'eager', i.decode())))"
        )
        if (
            w := tab.evaluate(
                "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
            )
        ) > width:
            wide.append((url, w))
        assert tab.evaluate(
            "[...document.querySelectorAll('math')].every(m => m.getBoundingClientRect().height > 4)"
        ), url
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(21, 24, 28)"
        )
    assert not wide and not tab.wrong


def test_the_watch_sees(tab, address):
    "What these tests would catch: a request that leaves, an error on the console, a file that is not there"
    tab.goto(address)
    tab.evaluate("fetch('http://192.0.2.1/x').catch(() => 0)")
    assert "asked for http://192.0.2.1/x" in tab.wrong
    tab.evaluate("console.error('broken')")
    assert "broken" in tab.wrong
    tab.evaluate("fetch('none.png')")
    assert f"404 {address}none.png" in tab.wrong


@pytest.mark.parametrize("where", ["server", "file"])
def test_search_finds_the_page(tab, address, site, where):
    "Full text; from any page; also where the site is opened as files"
    root = address if where == "server" else site.as_uri() + "/"
    tab.goto(root + "theory/pairs.html")
    tab.fill("#ui-search", "shrink")
    tab.wait_for_selector("#ui-hits a")
    hits = tab.eval_on_selector_all("#ui-hits a", "l => l.map(a => a.href)")
    assert hits[0] == root + "inclusion.html#shrink"
    tab.press("#ui-search", "Enter")
    tab.wait_for_url("**/inclusion.html#shrink")
    assert tab.locator("#shrink").is_visible()
    tab.fill("#ui-search", "gro\u00dfe zebras")
    tab.wait_for_selector("#ui-hits p")
    assert tab.inner_text("#ui-hits") == "Nothing found."
    tab.fill("#ui-search", "irrepresentable")
    tab.wait_for_selector("#ui-hits a")
    assert any(
        "inverse_scale_space.html" in h
        for h in tab.eval_on_selector_all("#ui-hits a", "l => l.map(a => a.href)")
    )
    assert not tab.wrong


def test_light_dark_and_the_menu(tab, address):
    "The choice is kept from page to page; on a phone the sidebar opens and leads on"
    tab.set_viewport_size({"width": 390, "height": 800})
    tab.emulate_media(color_scheme="light")
    tab.goto(address)
    tab.click("#ui-theme")
    dark = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(dark) == "rgb(21, 24, 28)"
    assert not tab.is_visible("#ui-sidebar")
    tab.click("#ui-menu")
    tab.click("#ui-sidebar >> text=Search")
    tab.wait_for_url("**/search.html")
    assert tab.evaluate(dark) == "rgb(21, 24, 28)" and not tab.wrong

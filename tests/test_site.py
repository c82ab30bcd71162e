"The site: built from the stored notebooks, whole by itself; cards and looks are tested beside"

import ast
import base64
import html
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image, ImageDraw
from site_builder.building import build, check_links, search_index
from site_builder.cells import is_plot, render
from site_builder.formulas import mathml
from site_builder.prose import Writer
from site_builder.sources import Page, address, contents, directives

ROOT = Path(__file__).resolve().parents[1]
BOOKS = [book for _, books in contents(ROOT) for book in books]
URLS = [address(book) for book in BOOKS]


def cells(book: str) -> list[dict]:
    return json.loads((ROOT / "nbs" / book).read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def words(page: str) -> str:
    "What a page says outside of code and formulas"
    text = re.sub(r"(?s)<(script|style|pre|code|math)\b.*?</\1>", " ", page)
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def ids(page: str) -> list[str]:
    return re.findall(r'\bid="([^"]+)"', page)


# --- every page -------------------------------------------------------------------------------


def test_every_notebook_is_in_the_sidebar():
    there = {
        str(path.relative_to(ROOT / "nbs"))
        for path in (ROOT / "nbs").rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    assert len(set(BOOKS)) == len(BOOKS)
    assert set(BOOKS) == there


@pytest.fixture(params=URLS)
def page(request, site):
    "(address, HTML) of each page"
    return request.param, (site / request.param).read_text(encoding="utf-8")


def test_formulas_are_drawn(page):
    "No TeX is left as text, in a formula or outside of one; no HTML was shown as it is written"
    said = words(page[1])
    left = re.findall(r".{0,30}(?:\$|\\\(|\\begin|\\frac|\\[a-zA-Z]+\{).{0,30}", said)
    assert not left, left
    formulas = re.findall(r"(?s)<math.*?</math>", page[1])
    assert "\\" not in "".join(re.sub(r"<[^>]*>", "", formula) for formula in formulas)
    assert "merror" not in page[1]
    assert not re.findall(r"</?(?:details|summary|br|p|b|i)\s*/?>", said)


def test_links_lead_somewhere(site, page):
    "Every link and anchor of a page, and every link of its Markdown copy"
    url, text = page
    here = site / url
    assert len(set(ids(text))) == len(ids(text)), "an id stands twice"
    for link in re.findall(r'(?:href|src)="([^"]*)"', text):
        if re.match(r"https?:|data:", link):
            continue
        file, _, anchor = html.unescape(link).partition("#")
        target = (here.parent / file).resolve() if file else here
        assert target.is_file(), f"{url} → {link}"
        there = not anchor or unquote(anchor) in ids(target.read_text(encoding="utf-8"))
        assert there, f"{url} → {link}"
    copy = here.with_suffix(".md").read_text(encoding="utf-8")
    assert copy.startswith("# ")
    prose = re.sub(r"(?s)```.*?```", "", copy)
    for link in re.findall(r"(?<!`)\]\(([^)#:\s]+)(?:#[^)]*)?\)", prose):
        assert (here.parent / link).is_file(), f"the copy of {url} → {link}"


def test_page_is_whole(site, page):
    "Every page is in the sidebar, each picture has words, nothing comes from another host"
    url, text = page
    bar = re.search(r'(?s)<nav id="ui-sidebar".*?</nav>', text)[0]
    led = {((site / url).parent / link).resolve() for link in re.findall(r'href="([^"]+)"', bar)}
    assert led == {(site / other).resolve() for other in URLS}
    for picture in re.findall(r"<img[^>]*>", text):
        assert re.search(r'alt="[^"]{20,}"', picture), (
            f"a figure of {url} has no words: write `#| fig-alt: …` into its cell"
        )
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="(https?:)?//', text)
    assert not re.search(r"&lt;(Axes|Figure|function)\b|object at 0x", text), "a stray output"


def test_contents_list_every_heading(page):
    "Beside the text and, folded, above it: the same headings and cards in both"
    beside = re.search(r'(?s)<nav class="toc".*?</nav>', page[1])
    folded = re.search(r'(?s)<details class="contents">.*?</details>', page[1])
    assert bool(beside) == bool(folded)
    if beside:
        links = [re.findall(r'href="#([^"]+)"', found[0]) for found in (beside, folded)]
        assert links[0] == links[1]
        headings = re.findall(r'<h[234] id="([^"]+)"', page[1])
        assert set(headings) <= set(links[0])


def test_llms_txt_lists_all(site):
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# spp\n\n> ")
    copies = re.findall(r"^- \[[^\]]+\]\(([^)]+)\): \S", text, re.M)
    assert copies == [str(Path(url).with_suffix(".md")) for url in URLS]


@pytest.mark.parametrize("book", BOOKS)
def test_nbdev_docs_can_read_it(book):
    """nbdev reads a title cell as front matter.

    It also executes cells that import something, in notebooks that export.
    """
    all_cells = cells(book)
    assert re.fullmatch(r"# .+(\n\n> .+)?", source(all_cells[0])), (
        "the first cell holds the title and one line of promise, nothing else"
    )
    if not any("#| export" in source(cell) for cell in all_cells):
        return
    for cell in all_cells:
        if cell["cell_type"] == "code" and not re.search(r"^#\|\s*export", source(cell), re.M):
            check_imports_are_alone(source(cell))


def check_imports_are_alone(code: str) -> None:
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return  # `%pip install …`
    imports = (ast.Import, ast.ImportFrom)
    quiet = r"(logging|warnings|pd)\."  # settings of what was imported may follow
    uses = [
        node
        for node in tree.body
        if not isinstance(node, imports)
        and not (isinstance(node, ast.Expr) and re.match(quiet, ast.unparse(node)))
    ]
    if any(isinstance(node, imports) for node in ast.walk(tree)):
        assert not uses, f"imports belong into a cell of their own: {code[:200]}"


def test_replaces_nothing_but_a_site(tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match="holds something that is not a site"):
        build(ROOT, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


# --- prose ------------------------------------------------------------------------------------


def made(*sources: str, book: str = "a.ipynb") -> tuple[Page, str]:
    "A page of Markdown cells, and its HTML"
    cells = [{"cell_type": "markdown", "id": str(i), "source": s} for i, s in enumerate(sources)]
    page = Page(book, "Part", cells, title="A")
    render(Writer([page]), page)
    return page, "\n".join(page.body)


ANSWER = """1. How many?

<details><summary>Answer</summary>

Exactly **forty-two**, $x\\in\\mathbb R^n$:

```python
print(42)  # </details>
```

</details>

2. And <b>this</b>?

<details>
<summary>Why `f`</summary>

Because.

</details>
"""


def test_answers_fold():
    "`<details>` with a `<summary>` is the one piece of HTML; the search knows what is inside"
    page, body = made("# A\n\n> B", ANSWER)
    assert len(re.findall(r'<details class="answer">\s*<summary>Answer</summary>', body)) == 1
    assert """<summary>Why <code class="whole">f</code></summary>""" in body
    assert body.count("</details>") == 2
    assert "<strong>forty-two</strong>" in body
    assert "&lt;b&gt;this&lt;/b&gt;" in body
    assert "forty-two" in search_index([page], Writer([page]))


@pytest.mark.parametrize(
    "text",
    [
        "<details><summary>Open</summary>\n\nnever closed",
        "<details open><summary>Other</summary>\n\nx\n\n</details>",
        "<script>alert(1)</script>",
        '<img src="https://example.org/x.png">',
    ],
)
def test_other_html_is_text(text):
    assert not re.search(r"<(details|script|img)", made("# A", text)[1])


def test_badges_are_local():
    "A badge becomes a link with its words: the site asks no other host for a picture"
    badge = "[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/x.ipynb)"
    body = made("# A", badge)[1]
    assert '<a href="https://colab.example/x.ipynb" class="badge">Open in Colab</a>' in body
    assert "<img" not in body
    with pytest.raises(ValueError, match="a picture of another host"):
        made("# A", "![x](https://colab.example/badge.svg)")


def test_words_belong_to_their_heading():
    "Of a cell with several headings each part is found under its own"
    page, _ = made("# A\n\n> B", "more\n\n## One\n\napples\n\n## Two\n\npears", "figs")
    found = {part.heading: part.words.split() for part in page.found}
    assert found == {"A": ["B", "more"], "One": ["apples"], "Two": ["pears", "figs"]}


def test_directives_of_several_lines():
    code = "#| fig-alt: A line,\n#|   and a dot.\n#| echo: false\n#| hide\nplot()"
    assert directives(code) == {"fig-alt": "A line, and a dot.", "echo": "false", "hide": ""}
    assert directives("#| fig-alt: >\n#|   A line.\n")["fig-alt"] == "A line."


def test_addresses_drop_numbers():
    assert address("method/02_search.ipynb") == "method/search.html"
    assert address("16a_llm.ipynb", ".md") == "llm.md"


def test_links_between_folders():
    there = Page("method/02_search.ipynb", "", [], title="Search")
    here = Page("theory/pairs.ipynb", "", [], title="Pairs")
    writer = Writer([there, here])
    assert writer.link(here, "../method/02_search.ipynb#run") == "../method/search.html#run"
    assert writer.dead == []
    writer.link(here, "x.ipynb")
    there.body = ['<h2 id="run">Run</h2> <a href="#run">x</a> <a href="../theory/pairs.html">y</a>']
    here.body = [
        '<a href="../method/search.html#run">x</a> <a href="../method/search.html#no">y</a>'
    ]
    with pytest.raises(ValueError, match="2 links lead nowhere") as raised:
        check_links([there, here], writer)
    assert str(raised.value).splitlines()[1:] == [
        "theory/pairs.ipynb links to x.ipynb, which is not in the sidebar",
        "theory/pairs.ipynb links to ../method/search.html#no, where nothing is called so",
    ]


# --- formulas and pictures --------------------------------------------------------------------


def test_formula_it_does_not_know():
    with pytest.raises(ValueError, match=r"not understood in the formula.*\\nosuch"):
        mathml(r"a \nosuch b")


@pytest.mark.parametrize("letter, drawn", [("R", "&#x0211D;"), ("E", "&#x1D53C;")])
def test_double_struck_letters_stand_upright(letter, drawn):
    "With or without braces: the character itself, which no browser slants"
    for tex in (rf"\mathbb {letter}", rf"\mathbb{{{letter}}}", rf"\hat{{\mathbb {letter}}}_x"):
        assert f'<mi mathvariant="normal">{drawn}</mi>' in mathml(tex)
        assert "double-struck" not in mathml(tex)


def png(fill: str, box: tuple[int, int, int, int]) -> bytes:
    "A white picture with a rectangle"
    picture = Image.new("RGB", (40, 40), "white")
    ImageDraw.Draw(picture).rectangle(box, fill=fill)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_plots_are_told_from_pictures():
    "A plot is mostly paper and may be turned light on dark; a picture of something may not"
    assert is_plot(png("black", (0, 20, 40, 21)))
    assert not is_plot(png("green", (0, 0, 30, 30)))


def test_every_figure_is_one_of_both(site):
    for url in URLS:
        for image in re.findall(r"<img[^>]*>", (site / url).read_text(encoding="utf-8")):
            assert re.search(r'class="(plot|picture)"', image)


def test_pictures_are_stored(tmp_path):
    "A figure is a file beside its page, with its words"
    picture = base64.b64encode(png("black", (0, 0, 1, 1))).decode()
    output = {"output_type": "display_data", "data": {"image/png": picture}}
    cell = {
        "cell_type": "code",
        "id": "1",
        "source": "#| fig-alt: A dot in a corner.\nplot()",
        "outputs": [output],
    }
    page = Page("room/00_a.ipynb", "", [cell], title="A")
    render(Writer([page]), page)
    assert list(page.files) == ["room/a_files/figure-1.png"]
    assert 'src="a_files/figure-1.png" alt="A dot in a corner."' in "".join(page.body)

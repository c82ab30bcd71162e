"Notebooks on their way to pages: what there is, in which order, at which address"

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .signatures import Api, exported


@dataclass
class Found:
    "A part of a page as the search knows it"

    anchor: str  # "" for the top of the page
    heading: str
    words: str = ""  # its prose and outputs
    code: str = ""
    is_api: bool = False  # the card of a function, class or method


@dataclass
class Page:
    "A notebook on its way to a page"

    book: str  # its path below nbs/
    section: str  # of the sidebar
    cells: list[dict]
    title: str = ""
    promise: str = ""
    module: str = ""  # what it exports, e.g. `spp.method.search`
    api: dict[str, list[Api]] = field(default_factory=dict)  # id of a cell → what it defines
    toc: list[tuple[int, str, str]] = field(default_factory=list)  # level, anchor, HTML
    found: list[Found] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)  # pictures: path below the site → bytes
    body: list[str] = field(default_factory=list)  # HTML, a fragment or more for each cell
    copy: list[str] = field(default_factory=list)  # the same as Markdown

    @property
    def url(self) -> str:
        return address(self.book)

    @property
    def up(self) -> str:
        "The way to the top of the site, `../` or nothing"
        return "../" * self.url.count("/")

    @property
    def cards(self) -> list[Api]:
        return [api for defined in self.api.values() for api in defined]


def text(lines: list[str] | str | None) -> str:
    "The source or output of a cell, which is stored whole or as lines"
    return "".join(lines) if isinstance(lines, list) else (lines or "")


def address(book: str, ending: str = ".html") -> str:
    "`method/02_search.ipynb` → `method/search.html`: numbers in front of a name only sort it"
    folder, slash, name = book.rpartition("/")
    return folder + slash + re.sub(r"^\d+[a-z]?_", "", name).removesuffix(".ipynb") + ending


def contents(root: Path) -> list[tuple[str, list[str]]]:
    "The sidebar of `_quarto.yml`: sections, and the notebooks in them"
    site = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    found = []
    for entry in site["sidebar"]["contents"]:
        if "section" in entry:
            found.append((entry["section"], list(entry["contents"])))
        else:
            found.append(("", [entry["href"]]))
    return found


def directives(source: str) -> dict[str, str]:
    """`#| fig-alt: A line.` → {'fig-alt': 'A line.'}

    A value goes on in the next lines if these are set in: `#| fig-alt: A line,`, `#|   and a dot.`
    """
    found: dict[str, str] = {}
    last = ""
    for line in re.findall(r"^#\|(.*)$", source, re.M):
        if last and line.startswith("   "):
            found[last] = f"{found[last]} {line.strip()}".strip()
        elif name := re.match(r"\s*([\w-]+):?(.*)", line):
            last = name[1]
            found[last] = name[2].strip().removeprefix(">").removeprefix("|").strip()
    return found


def code_of(cell: dict) -> str:
    "The code of a cell without its directives"
    return re.sub(r"^#\|.*\n?", "", text(cell["source"]), flags=re.M).strip("\n")


def page_of(root: Path, book: str, section: str) -> Page:
    "The page of a notebook, with its title and what it exports"
    cells = json.loads((root / "nbs" / book).read_text(encoding="utf-8"))["cells"]
    page = Page(book, section, cells)
    first = text(cells[0]["source"])
    title = re.search(r"^# (.+)$", first, re.M)
    promise = re.search(r"^> (.+)$", first, re.M)
    if not title:
        raise ValueError(
            f"the first cell of {book} has no title: write `# Title` as its first line"
        )
    page.title = title[1].strip()
    page.promise = promise[1].strip() if promise else ""
    for cell in cells:
        told = directives(text(cell["source"])) if cell["cell_type"] == "code" else {}
        if "default_exp" in told:
            page.module = "spp." + told["default_exp"]
        if "export" in told:
            page.api[cell["id"]] = exported(code_of(cell))
    name_anchors(page.cards)
    return page


def name_anchors(cards: list[Api]) -> None:
    "Give every card the anchor that nbdev's links have, once"
    taken: set[str] = set()
    for api in cards:
        name = api.name.lower()
        number = 2
        while name in taken:
            name = f"{api.name.lower()}-{number}"
            number += 1
        taken.add(name)
        api.anchor = name


def load(root: Path) -> list[Page]:
    "All pages in the order of the sidebar"
    return [page_of(root, book, section) for section, books in contents(root) for book in books]


def sections(pages: list[Page]) -> Iterator[tuple[str, list[Page]]]:
    "(section, its pages), in order"
    for name in dict.fromkeys(page.section for page in pages):
        yield name, [page for page in pages if page.section == name]

"All pages, written to a folder"

import html
import json
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import yaml

from .cells import render
from .frame import THEME, colours, framed, llms
from .prose import Writer, plain
from .sources import Page, address, load

ASSETS = ("site.js", "search.js", "math.woff2", "math.LICENSE")


def refuse_other(out: Path) -> None:
    "`ValueError` if `out` holds something that this command did not write"
    if out.exists() and any(out.iterdir()) and not (out / "llms.txt").exists():
        raise ValueError(
            f"{out} holds something that is not a site: name a new folder, or one that this"
            " command wrote"
        )


def repository(root: Path) -> str:
    "The address of the repository, from settings.ini"
    ini = (root / "settings.ini").read_text(encoding="utf-8")
    user, repo = (re.search(rf"^{key} = (.+)$", ini, re.M)[1] for key in ("user", "repo"))
    return f"https://github.com/{user}/{repo}"


def search_index(pages: list[Page], writer: Writer) -> str:
    "What the search reads: pages, and the parts of each with their words"
    index = []
    for page in pages:
        parts = [
            [part.anchor, part.heading, part.words.strip(), part.code.strip(), int(part.is_api)]
            for part in merged(page)
        ]
        title = plain(writer.inline(page, page.title))
        promise = plain(writer.inline(page, page.promise))
        index.append({"url": page.url, "title": title, "about": promise, "parts": parts})
        index[-1]["section"] = page.section
    text = json.dumps(index, ensure_ascii=False, separators=(",", ":"))
    return "window.INDEX=" + text.replace("</", "<\\/")


def merged(page: Page) -> list:
    "The parts of a page; what follows a card joins the part before it"
    parts: dict = {}
    for part in page.found:
        key = (part.anchor, part.is_api)
        if key in parts:
            parts[key].words += " " + part.words
            parts[key].code += " " + part.code
        else:
            parts[key] = part
    return list(parts.values())


def dead_anchors(pages: list[Page]) -> Iterator[str]:
    "Links to headings and cards that no page has"
    known = {page.url: set(re.findall(r' id="([^"]+)"', "".join(page.body))) for page in pages}
    for page in pages:
        for href in re.findall(r'<a [^>]*href="([^"]*)"', "".join(page.body)):
            file, _, anchor = html.unescape(href).partition("#")
            folder = posixpath.dirname(page.url)
            target = posixpath.normpath(posixpath.join(folder, file)) if file else page.url
            if anchor and target in known and unquote(anchor) not in known[target]:
                yield f"{page.book} links to {href}, where nothing is called so"


def check_links(pages: list[Page], writer: Writer) -> None:
    "`ValueError` with every link that leads nowhere"
    dead = [*dict.fromkeys(writer.dead), *dict.fromkeys(dead_anchors(pages))]
    if dead:
        lines = "\n".join(dead)
        raise ValueError(
            f"{len(dead)} links lead nowhere; notebooks have their place in _quarto.yml, headings"
            f" and cards are anchors:\n{lines}"
        )


def write_pages(pages: list[Page], writer: Writer, site: dict, repo: str, folder: Path) -> None:
    "Write pages, their Markdown copies and their pictures"

    def put(file: str, content: str | bytes) -> None:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())

    for page in pages:
        put(page.url, framed(page, pages, writer, site, repo))
        put(address(page.book, ".md"), "\n".join(page.copy))
        for file, content in page.files.items():
            put(file, content)
    put("assets/index.js", search_index(pages, writer))
    for file in ASSETS:
        put(f"assets/{file}", (THEME / file).read_bytes())
    put("assets/style.css", (THEME / "style.css").read_text(encoding="utf-8") + colours())
    put("llms.txt", llms(pages, site))
    put(".nojekyll", "")


def build(root: Path, out: Path) -> list[Page]:
    """Write the site into `out`.

    Raises `ValueError` if `out` holds something else, or if a link leads nowhere.
    """
    refuse_other(out)
    site = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    pages = load(root)
    writer = Writer(pages)
    for page in pages:
        render(writer, page)
    check_links(pages, writer)
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    write_pages(pages, writer, site, repository(root), new)
    shutil.rmtree(out, ignore_errors=True)
    new.rename(out)
    return pages

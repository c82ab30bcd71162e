"What stands around a page: sidebar, contents, neighbours, and the colours of code"

import html
from pathlib import Path
from string import Template

from pygments.styles import get_style_by_name
from pygments.token import STANDARD_TYPES

from .prose import Writer, plain
from .sources import Page, address, sections

THEME = Path(__file__).resolve().parents[1] / "theme"


def sidebar(page: Page, pages: list[Page], writer: Writer) -> str:
    "All pages in their sections; the present one is marked"
    parts = []
    for name, inside in sections(pages):
        if name:
            parts.append(f"<h2>{html.escape(name)}</h2>")
        items = []
        for other in inside:
            here = ' aria-current="page"' if other is page else ""
            title = "Home" if other.book == "index.ipynb" else writer.inline(page, other.title)
            items.append(f'<li><a href="{page.up}{other.url}"{here}>{title}</a></li>')
        parts.append(f"<ul>{''.join(items)}</ul>")
    return "".join(parts)


def toc_list(page: Page) -> str:
    "The headings and cards of a page"
    items = [
        f'<li class="l{level}"><a href="#{anchor}">{heading}</a></li>'
        for level, anchor, heading in page.toc
        if level > 1
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def neighbours(page: Page, pages: list[Page], writer: Writer) -> str:
    "Links to the page before and the page after"
    at = pages.index(page)
    links = [
        f'<a class="prev" rel="prev" href="{page.up}{other.url}">'
        f"← {writer.inline(page, other.title)}</a>"
        for other in pages[max(at - 1, 0) : at]
    ]
    links += [
        f'<a class="next" rel="next" href="{page.up}{other.url}">'
        f"{writer.inline(page, other.title)} →</a>"
        for other in pages[at + 1 : at + 2]
    ]
    return "".join(links)


def framed(page: Page, pages: list[Page], writer: Writer, site: dict, repo: str) -> str:
    "The whole page, after `render`"
    items = toc_list(page)
    beside, folded = "", ""
    if items:
        beside = f'<nav class="toc" aria-label="On this page"><h2>On this page</h2>{items}</nav>'
        folded = f'<details class="contents"><summary>On this page</summary>{items}</details>'
    title = plain(writer.inline(page, page.title))
    template = Template((THEME / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title if page is pages[0] else f"{title} · {site['title']}"),
        about=html.escape(plain(writer.inline(page, page.promise)) or site["description"]),
        up=page.up,
        site=html.escape(site["title"]),
        sidebar=sidebar(page, pages, writer),
        toc=beside,
        body="\n".join([*page.body[:1], folded, *page.body[1:]]),
        near=neighbours(page, pages, writer),
        copy=address(page.book.rpartition("/")[2], ".md"),
        source=f"{repo}/blob/main/nbs/{page.book}",
        repo=repo,
    )


def colours() -> str:
    "CSS: a rule for each kind of token, light and dark"
    light = get_style_by_name("friendly")
    dark = get_style_by_name("github-dark")
    rules = []
    for token, short in STANDARD_TYPES.items():
        by_day = light.style_for_token(token)
        by_night = dark.style_for_token(token)
        if not short or not (by_day["color"] or by_night["color"]):
            continue
        pair = f"#{by_day['color'] or '1f2328'}, #{by_night['color'] or 'd6dae0'}"
        slant = "; font-style: italic" if by_day["italic"] else ""
        rules.append(f".code .{short} {{ color: light-dark({pair}){slant} }}")
    return "\n".join(rules)


def llms(pages: list[Page], site: dict) -> str:
    "llms.txt, what a language model should read: the Markdown copies, with what they promise"
    parts = [f"# {site['title']}\n\n> {site['description']}\n"]
    for name, inside in sections(pages):
        lines = [
            f"- [{page.title}]({address(page.book, '.md')}): {page.promise}\n" for page in inside
        ]
        parts.append(f"## {name or 'Overview'}\n\n{''.join(lines)}")
    return "\n".join(parts)

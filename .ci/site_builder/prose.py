"Markdown to HTML: links between pages, anchors of headings, formulas, folded answers, code"

import html
import re
from collections.abc import Iterator
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from .formulas import displayed_formula, mathml
from .signatures import Api
from .sources import Found, Page, address

KINDS = ("qk", "vo", "mlp", "glu")  # of pairs; functions of these names are not meant
SHORT = 24  # characters of code that are not broken, even on a phone
FILES = re.compile(r"\.(json|py|ipynb|csv|html|md)$")


class Place(NamedTuple):
    "Where something is described"

    page: Page
    api: Api


def coloured(code: str, lang: str = "python") -> str:
    "A block of code with its tokens marked"
    try:
        lexer = get_lexer_by_name(lang or "text")
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    marked = highlight(code, lexer, HtmlFormatter(nowrap=True)).rstrip()
    return f'<pre class="code" tabindex="0"><code>{marked}</code></pre>'


def slug(heading: str) -> str:
    "The anchor of a heading"
    return re.sub(r"\W+", "-", re.sub(r"<[^>]*>", "", heading).lower()).strip("-") or "part"


def plain(fragment: str) -> str:
    "The text of an HTML fragment, without the anchors of headings"
    text = re.sub(r'(?s)<a class="anchor".*?</a>', "", fragment)
    text = re.sub(r"</(p|li|td|th|h\d|tr|div|pre|summary)>", " ", text)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", text))).strip()


# --- folded answers ---------------------------------------------------------------------------


def line_of(state: StateBlock, number: int) -> str:
    start = state.bMarks[number] + state.tShift[number]
    return state.src[start : state.eMarks[number]].strip()


def closing_line(state: StateBlock, start: int, end: int) -> int | None:
    "The line of the `</details>` that belongs to the `<details>` before `start`"
    depth = 1
    for number in range(start, end):
        line = line_of(state, number)
        depth += line.startswith("<details>") - (line == "</details>")
        if depth == 0:
            return number
    return None


def details(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    "The one piece of HTML that Markdown cells may hold: `<details><summary>Answer</summary>`"
    opening = line_of(state, start)
    first = start + 1
    if opening == "<details>" and first < end:
        opening += line_of(state, first)
        first += 1
    found = re.fullmatch(r"<details>\s*<summary>(.+)</summary>", opening)
    close = closing_line(state, first, end) if found else None
    if close is None:
        return False
    if silent:
        return True
    state.push("details_open", "details", 1).attrSet("class", "answer")
    state.push("summary_open", "summary", 1)
    summary = state.push("inline", "", 0)
    summary.content = found[1]
    summary.children = []
    state.push("summary_close", "summary", -1)
    state.md.block.tokenize(state, first, close)
    state.push("details_close", "details", -1)
    state.line = close + 1
    return True


def parser() -> MarkdownIt:
    "Markdown with tables, formulas and folded answers; other HTML is shown as it is written"
    md = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    md.use(dollarmath_plugin, allow_space=True, double_inline=True)
    inside = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    md.block.ruler.before("fence", "details", details, inside)
    md.add_render_rule("code_inline", code_inline)
    md.add_render_rule("math_inline", in_line)
    md.add_render_rule("math_inline_double", displayed)
    md.add_render_rule("math_block", displayed)
    md.add_render_rule("table_open", table_open)
    md.add_render_rule("table_close", table_close)
    md.add_render_rule("fence", fence)
    md.add_render_rule("code_block", code_block)
    return md


def inline_code(code: str) -> str:
    "Code in a line of prose; what is short stays on one line"
    whole = ' class="whole"' if len(code) <= SHORT else ""
    return f"<code{whole}>{html.escape(code)}</code>"


def code_inline(_renderer, tokens, i, _options, _env) -> str:
    return inline_code(tokens[i].content)


def in_line(_renderer, tokens, i, _options, _env) -> str:
    return mathml(tokens[i].content)


def displayed(_renderer, tokens, i, _options, _env) -> str:
    return displayed_formula(tokens[i].content) + "\n"


def table_open(*_) -> str:
    return '<div class="scroll" tabindex="0"><table>'


def table_close(*_) -> str:
    return "</table></div>"


def fence(_renderer, tokens, i, _options, _env) -> str:
    return coloured(tokens[i].content.rstrip("\n"), tokens[i].info.strip())


def code_block(_renderer, tokens, i, _options, _env) -> str:
    return coloured(tokens[i].content.rstrip("\n"), "text")


# --- links and anchors ------------------------------------------------------------------------


class Writer:
    "Markdown to HTML, for pages that know each other; what leads nowhere is noted in `dead`"

    def __init__(self, pages: list[Page]):
        self.books = {page.book: page for page in pages}
        self.names: dict[str, list[Place]] = {}  # of functions, classes and methods
        for page in pages:
            for api in page.cards:
                self.names.setdefault(api.name, []).append(Place(page, api))
        self.dead: list[str] = []  # links to notebooks that have no page
        self.md = parser()

    def markdown(self, page: Page, source: str, taken: set[str]) -> str:
        "A cell as HTML; `taken`: anchors of the page, to which those of its headings are added"
        tokens = self.prepared(page, self.md.parse(source), taken)
        fragment = self.md.renderer.render(tokens, self.md.options, {})
        return re.sub(
            r"(?s)(<math\b(?:(?!<math\b).)*?</math>)([,.;:!?)]+)",
            r'<span class="whole">\1\2</span>',  # no line starts with a comma
            fragment,
        )

    def inline(self, page: Page, source: str) -> str:
        "A line as HTML"
        tokens = self.prepared(page, self.md.parseInline(source), set())
        return self.md.renderer.render(tokens, self.md.options, {})

    def link(self, page: Page, href: str, ending: str = ".html") -> str:
        "`../method/00_inclusion.ipynb#x` as seen from `page` → `../method/inclusion.html#x`"
        file, hash_, anchor = href.partition("#")
        if not file.endswith(".ipynb") or ":" in file:
            return href
        parts: list[str] = []
        for part in [*page.book.split("/")[:-1], *file.split("/")]:
            if part != "..":
                parts.append(part)
            elif parts:
                parts.pop()
        book = "/".join(parts)
        if book not in self.books:
            self.dead.append(f"{page.book} links to {href}, which is not in the sidebar")
        return page.up + address(book, ending) + hash_ + anchor

    def places(self, page: Page, name: str) -> list[Place]:
        "Where `name` may be described: on its own page first, then by its full name, its module"
        own = [Place(page, api) for api in page.cards if api.name.rpartition(".")[2] == name]
        found = self.names.get(name, [])
        module, _, last = name.rpartition(".")
        if not found and module:
            found = [
                place
                for places in self.names.values()
                for place in places
                if place.page.module == f"spp.{module}"
                and place.api.name.rpartition(".")[2] == last
            ]
        return [place for place in own if place.api.name == name] or own or found

    def symbol(self, page: Page, code: str) -> str | None:
        "Where a name in backticks is described, if that is one place"
        if code in KINDS or FILES.search(code):
            return None
        name = re.sub(r"\(.*\)$", "", code).removeprefix("spp.")
        found = self.places(page, name)
        if not found and "." in name:
            return self.symbol(page, name.rpartition(".")[0])  # a field stands with its class
        if len(found) != 1:
            return None
        place = found[0]
        return ("" if place.page is page else page.up + place.page.url) + "#" + place.api.anchor

    def prepared(self, page: Page, tokens: list[Token], taken: set[str]) -> list[Token]:
        "Rewrite links, name headings, and note these for contents and search"
        for before, token in zip([Token("", "", 0), *tokens], tokens):
            if token.type == "inline":
                token.children = badges(page, token.children)
                self.prepare_inline(page, token.children, before.type == "heading_open")
        for token, inside in zip(tokens, tokens[1:]):
            if token.type == "heading_open":
                self.name_heading(page, token, inside, taken)
        return tokens

    def prepare_inline(self, page: Page, children: list[Token], is_heading: bool) -> None:
        "Lead links between notebooks to pages, and names in backticks to their cards"
        inside_link = False
        for child in children:
            if child.type == "link_open":
                inside_link = True
                child.attrSet("href", self.link(page, child.attrGet("href")))
            elif child.type == "link_close":
                inside_link = False
            elif child.type == "code_inline" and not inside_link and not is_heading:
                to = self.symbol(page, child.content)
                if to:
                    child.type = "html_inline"
                    code = inline_code(child.content)
                    child.content = f'<a class="sym" href="{html.escape(to)}">{code}</a>'

    def name_heading(self, page: Page, token: Token, inside: Token, taken: set[str]) -> None:
        "Give a heading its anchor"
        inner = self.md.renderer.renderInline(inside.children, self.md.options, {})
        name = slug(inner)
        number = 2
        while name in taken:
            name = f"{slug(inner)}-{number}"
            number += 1
        taken.add(name)
        token.attrSet("id", name)
        page.toc.append((int(token.tag[1]), name, inner))
        page.found.append(Found(name, plain(inner)))
        mark = f'<a class="anchor" href="#{name}" aria-label="Link to this part">#</a>'
        inside.children.append(Token("html_inline", "", 0, content=mark))


def badges(page: Page, children: list[Token]) -> list[Token]:
    "Pictures of other hosts are replaced by their words: a page asks nobody else for anything"
    return list(without_pictures(page, children))


def without_pictures(page: Page, children: list[Token]) -> Iterator[Token]:
    link = None
    for child in children:
        if child.type == "link_open":
            link = child
        elif child.type == "link_close":
            link = None
        if child.type != "image" or not re.match(r"(https?:)?//", child.attrGet("src")):
            yield child
            continue
        if link is None:
            raise ValueError(
                f"{page.book} shows {child.attrGet('src')}, a picture of another host, which no"
                " page may ask: store it in a cell's output, or make it a link"
            )
        link.attrSet("class", "badge")
        yield Token("text", "", 0, content=child.content)

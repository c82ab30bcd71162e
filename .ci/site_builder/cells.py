"Cells to HTML: prose, cards, code and outputs, and what the search knows of them"

import ast
import base64
import html
import io
import re
import struct

from PIL import Image

from .prose import Writer, coloured, plain
from .signatures import Api, Parameter, is_private
from .sources import Found, Page, address, code_of, directives, text

PAPER = 0.8  # of a plot have one colour, its paper; pictures of things have less of it
WIDE = 850  # pixels; on a phone such a picture is scrolled, not shrunk to a stamp
MARKS = {"class": "class", "property": "property", "classmethod": "classmethod"}


# --- cards ------------------------------------------------------------------------------------


def code_tag(code: str, kind: str = "") -> str:
    if not code:
        return ""
    return f"<code{f' class={kind}' if kind else ''}>{html.escape(code)}</code>"


def parameter_row(writer: Writer, page: Page, row: Parameter) -> str:
    "One line of a card's table"
    default = code_tag(f"= {row.default}", "default") if row.default else ""
    kind = f"{code_tag(row.type)} {default}".strip()
    return table_row(code_tag(row.name), kind, writer.inline(page, row.meaning))


def table_row(name: str, kind: str, meaning: str) -> str:
    return f"<tr><th scope=row>{name}</th><td>{kind}</td><td>{meaning}</td></tr>"


def card(writer: Writer, page: Page, api: Api) -> str:
    "Signature, what it does, parameters, what comes back"
    rows = [parameter_row(writer, page, row) for row in api.params]
    if api.returns.meaning or (api.returns.type not in ("", "None") and not is_property(api)):
        meaning = writer.inline(page, api.returns.meaning)
        name = "<i>value</i>" if is_property(api) else "<i>returns</i>"
        rows.append(table_row(name, code_tag(api.returns.type), meaning))
    table = f'<table class="params"><tbody>{"".join(rows)}</tbody></table>' if rows else ""
    doc = writer.markdown(page, indented_as_code(api.doc), set())
    tag = "h4" if api.in_class else "h3"
    mark = f'<span class="kind">{MARKS[api.kind]} </span>' if api.kind in MARKS else ""
    name = html.escape(api.name)
    anchor = f'<a class="anchor" href="#{api.anchor}" aria-label="Link to {name}">#</a>'
    return (
        f'<section class="api" id="{api.anchor}"><{tag}>{mark}{name}{anchor}</{tag}>'
        f'<p class="sig">{code_tag(api.sig)}</p>{doc}{table}</section>'
    )


def is_property(api: Api) -> bool:
    return api.kind == "property"


def indented_as_code(doc: str) -> str:
    "A docstring as Markdown: lines that are set in are code"

    def block(found: re.Match) -> str:
        return "\n" + found[1].replace("\n ", "\n    ") + "\n"

    return re.sub(r"((?:\n {2,}\S.*)+)", block, doc.replace("\b\n", "\n"))


def source_block(code: str, has_cards: bool) -> str:
    "A cell of code: what defines something folds, and private helpers are folded to begin with"
    block = coloured(code)
    lines = code.count("\n") + 1
    size = f"{lines} line{'s' if lines > 1 else ''}"
    if is_private(code):
        names = ", ".join(f"<code>{html.escape(name)}</code>" for name in defined(code))
        summary = f"Private: {names}, {size}"
        return f'<details class="source"><summary>{summary}</summary>{block}</details>'
    if has_cards:
        return f'<details class="source" open><summary>Source, {size}</summary>{block}</details>'
    return block


def defined(code: str) -> list[str]:
    "The names that a cell defines at its top level"
    names: list[str] = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [ast.unparse(target) for target in targets]
        elif hasattr(node, "name"):
            names.append(node.name)
    return names


# --- outputs ----------------------------------------------------------------------------------


def tabular(table: str) -> str:
    "A data frame's table without its own looks; columns of words to the left, of numbers right"
    table = re.sub(
        r'(?s)<style.*?</style>\s*| border="1"| class="dataframe"| style="[^"]*"', "", table
    )
    table = re.sub(r"<tr>(\s*<th></th>)+\s*</tr>", "", table)
    rows = [
        re.findall(r"(?s)<(t[dh])[^>]*>(.*?)</t[dh]>", row)
        for row in re.findall(r"(?s)<tr.*?</tr>", table)
    ]
    words = {
        column
        for row in rows
        for column, (tag, inside) in enumerate(row)
        if tag == "td" and has_words(html.unescape(inside))
    }

    def marked_row(found: re.Match) -> str:
        columns = iter(range(found[0].count("<t")))

        def marked(cell: re.Match) -> str:
            return f"<{cell[1]}" + (' class="words"' if next(columns) in words else "")

        return re.sub(r"<(t[dh])", marked, found[0])

    return re.sub(r"(?s)<tr.*?</tr>", marked_row, table)


def has_words(text: str) -> bool:
    return text != "NaN" and bool(re.search(r"[^\W\d_]{3}", text))


def is_plot(png: bytes) -> bool:
    "Whether a picture is mostly paper, so that it can be turned light on dark"
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    colours = picture.getcolors(picture.width * picture.height)
    return max(count for count, _ in colours) > PAPER * picture.width * picture.height


def figure(page: Page, png: bytes, alt: str) -> tuple[str, str]:
    "A picture as HTML and as Markdown"
    name = f"{address(page.book, '')}_files/figure-{len(page.files) + 1}.png"
    page.files[name] = png
    wide, high = struct.unpack(">II", png[16:24])
    local = "/".join(name.rsplit("/", 2)[-2:])
    kind = "plot" if is_plot(png) else "picture"
    image = (
        f'<img src="{local}" alt="{html.escape(alt)}" width="{wide}" height="{high}"'
        f' class="{kind}" loading="lazy">'
    )
    shape = f' class="wide" style="--wide: {wide}px"' if wide > WIDE else ""
    return (
        f'<figure{shape}><div class="scroll" tabindex="0"><a href="{local}">{image}</a></div>'
        "</figure>",
        f"![{alt}]({local})\n",
    )


def outputs(page: Page, cell: dict, alt: str) -> tuple[list[str], list[str]]:
    "The stored outputs of a cell as HTML and as Markdown"
    shown: list[str] = []
    copy: list[str] = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        words = text(output.get("text") or data.get("text/plain")).rstrip()
        if "image/png" in data:
            drawn, linked = figure(page, base64.b64decode(text(data["image/png"])), alt)
            shown.append(drawn)
            copy.append(linked)
            continue
        if "text/html" in data:
            table = tabular(text(data["text/html"]))
            shown.append(f'<div class="scroll out" tabindex="0">{table}</div>')
        elif words:
            shown.append(f'<pre class="out" tabindex="0">{html.escape(words)}</pre>')
        else:
            continue
        copy.append(f"```\n{words}\n```\n")
    return shown, copy


# --- pages ------------------------------------------------------------------------------------


def note_words(page: Page, words: str, code: str = "") -> None:
    "Let the search find words and code under the last heading"
    if not page.found:
        page.found.append(Found("", page.title))
    page.found[-1].words += " " + words
    page.found[-1].code += " " + code


def note_prose(page: Page, fragment: str) -> None:
    "Let the search find each part of a Markdown cell under its own heading"
    noted = {found.anchor: found for found in page.found}
    for part in re.split(r"(?=<h[1-6] id=)", fragment):
        heading = re.match(r'<h[1-6] id="([^"]+)">.*?</h[1-6]>', part, re.S)
        if heading:
            noted[heading[1]].words += " " + plain(part[heading.end() :])
        elif plain(part):
            first = next(iter(re.findall(r'<h[1-6] id="([^"]+)"', fragment)), None)
            before = [found for found in page.found if found.anchor == first]
            at = page.found.index(before[0]) if before else len(page.found)
            if at == 0:
                page.found.insert(0, Found("", page.title))
                at = 1
            page.found[at - 1].words += " " + plain(part)


def render_prose(writer: Writer, page: Page, source: str, taken: set[str]) -> None:
    "Add a Markdown cell to a page"

    def led_to_copy(found: re.Match) -> str:
        return f"]({writer.link(page, found[1], '.md')})"

    page.copy.append(re.sub(r"\]\(([^)\s]+\.ipynb[^)\s]*)\)", led_to_copy, source) + "\n")
    fragment = writer.markdown(page, source, taken)
    if not page.body:
        fragment = fragment.replace("<blockquote>", '<blockquote class="promise">', 1)
    page.body.append(fragment)
    note_prose(page, fragment)


def render_cards(writer: Writer, page: Page, cards: list[Api]) -> None:
    "Add cards to a page, its contents and the search; what follows belongs to the heading before"
    for api in cards:
        page.body.append(card(writer, page, api))
        short = api.name.rpartition(".")[2] if api.in_class else api.name
        page.toc.append((4 if api.in_class else 3, api.anchor, code_tag(short)))
        about = " ".join(f"{row.name} {row.meaning}" for row in api.params)
        words = f"{api.sig} {api.doc} {about} {api.returns.meaning}"
        before = page.found[-1] if page.found else Found("", page.title)
        page.found.append(Found(api.anchor, api.name, words, is_api=True))
        page.found.append(Found(before.anchor, before.heading))


def is_import(code: str) -> bool:
    return all(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.parse(code).body)


def render_code(writer: Writer, page: Page, cell: dict, told: dict[str, str]) -> None:
    "Add a code cell to a page: cards, source, outputs"
    code = code_of(cell)
    if "export" in told and is_import(code):
        return
    cards = page.api.get(cell["id"], [])
    render_cards(writer, page, cards)
    if code and "echo" not in told:
        page.body.append(source_block(code, bool(cards)))
        page.copy.append(f"```python\n{code}\n```\n")
        note_words(page, "", code)
    shown, copy = outputs(page, cell, told.get("fig-alt", ""))
    page.body += shown
    page.copy += copy
    note_words(page, " ".join(plain(output) for output in shown))


def render(writer: Writer, page: Page) -> None:
    "Fill `body`, `copy`, `toc`, `found` and `files` of a page"
    taken = {api.anchor for api in page.cards}
    for cell in page.cells:
        source = text(cell["source"])
        if cell["cell_type"] == "markdown":
            render_prose(writer, page, source, taken)
        elif cell["cell_type"] == "code":
            told = directives(source)
            if "hide" not in told and "default_exp" not in told:
                render_code(writer, page, cell, told)

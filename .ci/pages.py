"""The documentation site, from `_quarto.yml` and the stored outputs of the notebooks. Nothing is executed, nothing is fetched.

    python .ci/pages.py [FOLDER]        write FOLDER (default `_docs`): pages, their Markdown copies, llms.txt, a search index

Where Quarto is installed, `nbdev_docs` makes its own pages from the same file. Mathematics becomes MathML here, which browsers draw without a script.
"""

import ast
import base64
import html
import json
import re
import shutil
import struct
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Template

import yaml
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.styles import get_style_by_name
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
THEME = Path(__file__).resolve().parent / "theme"
esc = html.escape

# --- what there is ------------------------------------------------------------------------------------------------------


@dataclass
class Api:
    "A function, class or method as its source says it is"

    name: str
    kind: str  # "function", "class" or "method"
    sig: str  # one line
    doc: str
    params: list  # (name, type, default, meaning)
    returns: tuple  # (type, meaning)
    anchor: str = ""  # as in nbdev's links, where that is not taken


@dataclass
class Page:
    "A notebook on its way to a page"

    book: str  # its path below nbs/
    section: str
    cells: list
    title: str = ""
    promise: str = ""
    module: str = ""
    api: dict = field(default_factory=dict)  # cell id -> list of Api
    toc: list = field(default_factory=list)  # (level, anchor, html)
    found: list = field(default_factory=list)  # for the search: [anchor, heading, words, code]
    files: dict = field(default_factory=dict)  # pictures: path below the site -> bytes
    body: list = field(default_factory=list)
    copy: list = field(default_factory=list)  # Markdown

    @property
    def url(self):
        return address(self.book)

    @property
    def up(self):
        return "../" * self.url.count("/")


def text(x) -> str:
    return "".join(x) if isinstance(x, list) else (x or "")


def address(book: str, to: str = ".html") -> str:
    "`theory/pairs.ipynb` → `theory/pairs.html`; numbers before a name only sort it, as nbdev has it"
    folder, _, name = book.rpartition("/")
    return (
        (folder + "/" if folder else "")
        + re.sub(r"^\d+[a-z]?_", "", name).removesuffix(".ipynb")
        + to
    )


def contents(root: Path) -> list[tuple[str, list[str]]]:
    "The sidebar of `_quarto.yml`: sections and the notebooks in them"
    out = []
    for e in yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"][
        "sidebar"
    ]["contents"]:
        out.append((e["section"], list(e["contents"])) if "section" in e else ("", [e["href"]]))
    return out


def directives(source: str) -> dict[str, str]:
    "`#| fig-alt: A line.` → {'fig-alt': 'A line.'}"
    return {m[1]: m[2].strip() for m in re.finditer(r"^#\|\s*([\w-]+):?(.*)$", source, re.M)}


def code_of(cell) -> str:
    return re.sub(r"^#\|.*\n?", "", text(cell["source"]), flags=re.M).strip("\n")


def load(root: Path) -> list[Page]:
    "All pages in the order of the sidebar, each with its title and what it exports"
    pages = []
    for section, books in contents(root):
        for b in books:
            p = Page(
                b, section, json.loads((root / "nbs" / b).read_text(encoding="utf-8"))["cells"]
            )
            first = text(p.cells[0]["source"])
            p.title, p.promise = (
                re.search(r"^# (.+)$", first, re.M)[1].strip(),
                (re.search(r"^> (.+)$", first, re.M) or ("", ""))[1].strip(),
            )
            for c in p.cells:
                d = directives(text(c["source"])) if c["cell_type"] == "code" else {}
                if "default_exp" in d:
                    p.module = "spp." + d["default_exp"]
                if "export" in d:
                    p.api[c["id"]] = exported(code_of(c))
            anchors = set()
            for a in (a for l in p.api.values() for a in l):
                a.anchor = a.name.lower()
                a.anchor += "-2" * (a.anchor in anchors)
                anchors.add(a.anchor)
            pages.append(p)
    return pages


# --- signatures and docments, read from the source ----------------------------------------------------------------------


def comments(code: str) -> dict[int, str]:
    "Line → the comment that ends it"
    import io
    import tokenize

    return {
        t.start[0]: t.string.lstrip("# ").strip()
        for t in tokenize.generate_tokens(io.StringIO(code).readline)
        if t.type == tokenize.COMMENT
    }


def exported(code: str) -> list[Api]:
    "The public functions, classes and methods of a cell, in order"
    tree, say, out = ast.parse(code), comments(code), []

    def src(n):
        return re.sub(r"\s+", " ", ast.get_source_segment(code, n)).strip() if n is not None else ""

    def typed(x):
        "Type and meaning of a parameter; those of a command are inside of `Annotated`"
        n = x.annotation
        if not (isinstance(n, ast.Subscript) and src(n.value) == "Annotated"):
            return src(n), ""
        return src(n.slice.elts[0]), next(
            (
                k.value.value
                for k in n.slice.elts[1].keywords
                if k.arg == "help" and isinstance(k.value, ast.Constant)
            ),
            "",
        )

    def params(f):
        a = f.args
        plain = a.posonlyargs + a.args
        rows = [
            (x, "", d) for x, d in zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults)
        ]
        if a.vararg:
            rows.append((a.vararg, "*", None))
        elif a.kwonlyargs:
            rows.append((None, "*", None))
        rows += [(x, "", d) for x, d in zip(a.kwonlyargs, a.kw_defaults)]
        if a.kwarg:
            rows.append((a.kwarg, "**", None))
        last = {
            (d or x).end_lineno: x for x, _, d in rows if x
        }  # a comment belongs to the last parameter of its line

        def end(x, d):
            return (d or x).end_lineno

        return [
            (
                s + x.arg,
                typed(x)[0],
                src(d),
                typed(x)[1] or (say.get(end(x, d), "") if last[end(x, d)] is x else ""),
            )
            if x
            else (s, "", "", "")
            for x, s, d in rows
        ]

    def returns(f):
        names = [
            x
            for x in f.args.posonlyargs
            + f.args.args
            + f.args.kwonlyargs
            + [f.args.vararg, f.args.kwarg]
            if x and x.arg not in ("self", "cls")
        ]
        end = max(
            [
                x.end_lineno
                for x in names + (f.args.defaults + [d for d in f.args.kw_defaults if d])
            ],
            default=f.lineno - 1,
        )
        lines = range(
            max(end + 1, f.returns.end_lineno) if f.returns else end + 1, f.body[0].lineno
        )  # `): # the axes` describes it, too
        return src(f.returns).strip("\"'"), next((say[l] for l in lines if l in say), "")

    def one(f, name, kind, rows=None, ret=None):
        rows = params(f) if rows is None else rows
        ret = returns(f) if ret is None else ret
        if kind == "method" and rows and rows[0][0] in ("self", "cls"):
            rows = rows[1:]
        sig = ", ".join(n + (f"={d}" if d else "") for n, _, d, _ in rows)
        out.append(
            Api(
                name,
                kind,
                f"{name}({sig})" + (f" → {ret[0]}" if ret[0] else ""),
                ast.get_docstring(f) or "",
                [r for r in rows if r[0] != "*"],
                ret,
            )
        )

    for n in tree.body:
        if isinstance(n, ast.FunctionDef):
            if not (patch := [d for d in n.decorator_list if "patch" in src(d)]):
                if not n.name.startswith("_"):
                    one(n, n.name, "function")
            elif not n.name.startswith("_"):
                one(n, f"{src(n.args.args[0].annotation)}.{n.name}", "method")
        elif isinstance(n, ast.ClassDef) and not n.name.startswith("_"):
            own = [f for f in n.body if isinstance(f, ast.FunctionDef)]
            init = next((f for f in own if f.name == "__init__"), None)
            fields = [
                (f.target.id, src(f.annotation), src(f.value), say.get(f.end_lineno, ""))
                for f in n.body
                if isinstance(f, ast.AnnAssign)
            ]
            one(n, n.name, "class", params(init)[1:] if init else fields, ("", ""))
            for f in own:
                if not f.name.startswith("_"):
                    one(f, f"{n.name}.{f.name}", "method")
    return out


# --- text ---------------------------------------------------------------------------------------------------------------

TEX = [
    (r"\arg\min", r"\operatorname{argmin}"),
    (r"\!", ""),
    (r"\lVert", "‖"),
    (r"\rVert", "‖"),
    (r"\lvert", "|"),
    (r"\rvert", "|"),
]
FENCE = {r"\|": "‖", r"\langle": "⟨", r"\rangle": "⟩", r"\{": "\ue000", r"\}": "\ue001"}

LOOK = [
    (
        r"(</mo>|<mrow>)?((?:<msub>|<msubsup>)?)<m[io]>([A-Za-z]{2,})</m[io]>(?=(<mo)?)",
        lambda m: (
            f'{m[1] or ""}{m[2]}<mo lspace="{0 if m[1] else ".17em"}" rspace="{0 if m[4] else ".17em"}">{m[3]}</mo>'
        ),
    ),
    (
        r"<mi>(&#x003(?:9[1-9A-F]|A[0-9]);)</mi>",
        r'<mi mathvariant="normal">\1</mi>',
    ),  # capital Greek stands upright
    (
        r"<mo([^>]*)>(&#x0007C;|\||&#x0002F;|/)</mo>",
        r'<mo lspace="0" rspace="0" stretchy="false">\2</mo>',
    ),
    (
        r"((?:=|&#x0003D;|,|&#x0002C;|\(|&#x00028;|&#x02190;|&#x02192;)</mo>(?:<mspace[^>]*/>)?)<mo>(&#x02212;|−)</mo>",
        r'\1<mo form="prefix">\2</mo>',
    ),  # a sign, not a difference
    (r"<mo[^>]*>(&#x02202;|&#x02207;|&#x0221E;)</mo>", r'<mi mathvariant="normal">\1</mi>'),
    (r"<mo minsize", '<mo lspace="0" rspace="0" minsize'),
    (r"<mover>", '<mover accent="true">'),
    (r'<mo stretchy="true">&#x000AF;', '<mo stretchy="false">&#x000AF;'),
    ("<mo>&#x02193;", '<mo stretchy="false">&#x02193;'),
]


@cache
def mathml(tex: str, display: bool = False) -> str:
    "MathML of a formula without its tag; an error where the converter leaves a command behind"
    for a, b in TEX:
        tex = tex.replace(a, b)
    tex = re.sub(
        r"\\(big|Big|bigg|Bigg)([lrm]?)(\\[|{}]|\\[lr]angle)",
        lambda m: f"\\{m[1]}{FENCE[m[3]]}",
        tex,
    )
    m = (
        convert(tex.strip(), display="block" if display else "inline")
        .replace("\ue000", "{")
        .replace("\ue001", "}")
    )
    for a, b in LOOK:
        m = re.sub(a, b, m)
    if "\\" in re.sub(r"<[^>]*>", "", m):
        raise ValueError(
            f"not understood in the formula {tex!r}: {re.search(r'[^<>]*', m[m.index(chr(92)) :])[0]}"
        )
    return m


def formula(tex: str, options: dict) -> str:
    "Inline, or displayed with its number at the right"
    if not options["display_mode"]:
        return mathml(tex)
    tag = re.search(r"\\tag\{([^}]*)\}", tex)
    number = f'<a class="tag" href="#eq-{tag[1]}">({tag[1]})</a>' if tag else ""
    body = mathml(re.sub(r"\\tag\{[^}]*\}", "", tex), True)
    return f'<div class="eq"{f""" id="eq-{tag[1]}" """ if tag else ""}><div class="scroll">{body}</div>{number}</div>'


def coloured(code: str, lang: str = "python") -> str:
    try:
        lexer = get_lexer_by_name(lang or "text")
    except ClassNotFound:
        lexer = get_lexer_by_name("text")
    return f'<pre class="code" tabindex="0"><code>{highlight(code, lexer, HtmlFormatter(nowrap=True)).rstrip()}</code></pre>'


def slug(s: str) -> str:
    return re.sub(r"\W+", "-", re.sub(r"<[^>]*>", "", s).lower()).strip("-") or "part"


class Writer:
    "Markdown → HTML with our links, anchors and formulas"

    def __init__(self, pages: list[Page]):
        self.books = {p.book: p for p in pages}
        self.names: dict[str, list[tuple[Page, Api]]] = {}
        for p in pages:
            for a in (a for l in p.api.values() for a in l):
                self.names.setdefault(a.name, []).append((p, a))
        md = self.md = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
        md.use(dollarmath_plugin, allow_space=True, double_inline=True, renderer=formula)
        md.add_render_rule(
            "math_block", lambda _, t, i, o, e: formula(t[i].content, {"display_mode": True}) + "\n"
        )
        md.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>')
        md.add_render_rule("table_close", lambda *_: "</table></div>")
        md.add_render_rule(
            "fence", lambda _, t, i, o, e: coloured(t[i].content.rstrip("\n"), t[i].info.strip())
        )
        md.add_render_rule(
            "code_block", lambda _, t, i, o, e: coloured(t[i].content.rstrip("\n"), "text")
        )

    def link(self, page: Page, href: str, to: str = ".html") -> str:
        "`../00_inclusion.ipynb#x` as seen from `page` → `../inclusion.html#x`"
        file, hash_, anchor = href.partition("#")
        if not file.endswith(".ipynb") or ":" in file:
            return href
        parts = []
        for x in [*page.book.split("/")[:-1], *file.split("/")]:
            parts.pop() if x == ".." else parts.append(x)
        if (book := "/".join(parts)) not in self.books:
            raise ValueError(
                f"{page.book} links to {href}, which has no place in the sidebar of _quarto.yml"
            )
        return page.up + address(book, to) + hash_ + anchor

    def symbol(self, page: Page, code: str) -> str | None:
        "Where a name in backticks is described, if that is one place"
        if code in ("qk", "vo", "mlp", "glu") or re.search(r"\.(json|py|ipynb|csv|html|md)$", code):
            return None  # kinds of pairs and files are no functions
        name = re.sub(r"\(.*\)$", "", code).removeprefix("spp.")
        module, _, last = name.rpartition(".")
        found = self.names.get(name) or [
            (p, a)
            for l in self.names.values()
            for p, a in l
            if module and p.module == f"spp.{module}" and a.name.rpartition(".")[2] == last
        ]
        if not found and module:
            return self.symbol(page, module)  # a field is described with its class
        own = [
            (page, a) for l in page.api.values() for a in l if a.name.rpartition(".")[2] == name
        ]  # on its own page also a method
        found = [f for f in own if f[1].name == name] or own or found
        if len(found) != 1:
            return None
        p, a = found[0]
        return ("" if p is page else page.up + p.url) + "#" + a.anchor

    def tokens(self, page: Page, tokens: list, taken: set) -> list:
        "Rewrite links, name headings, note them for contents and search"
        for i, t in enumerate(tokens):
            if t.type == "inline":
                inside = False
                for c in t.children:
                    if c.type == "link_open":
                        inside = True
                        c.attrSet("href", self.link(page, c.attrGet("href")))
                    elif c.type == "link_close":
                        inside = False
                    elif (
                        c.type == "code_inline"
                        and not inside
                        and tokens[i - 1].type != "heading_open"
                        and (to := self.symbol(page, c.content))
                    ):
                        c.type, c.content = (
                            "html_inline",
                            f'<a class="sym" href="{esc(to)}"><code>{esc(c.content)}</code></a>',
                        )
            if t.type == "heading_open":
                inner = self.md.renderer.renderInline(tokens[i + 1].children, self.md.options, {})
                name = slug(inner)
                k = 2
                while name in taken:
                    name = f"{slug(inner)}-{k}"
                    k += 1
                taken.add(name)
                t.attrSet("id", name)
                page.toc.append((int(t.tag[1]), name, inner))
                page.found.append([name, plain(inner), "", ""])
                tokens[i + 1].children.append(
                    type(t)(
                        "html_inline",
                        "",
                        0,
                        content=f'<a class="anchor" href="#{name}" aria-label="Link to this part">#</a>',
                    )
                )
        return tokens

    def markdown(self, page: Page, source: str, taken: set) -> str:
        fragment = self.md.renderer.render(
            self.tokens(page, self.md.parse(source), taken), self.md.options, {}
        )
        return re.sub(
            r"(?s)(<math\b(?:(?!<math\b).)*?</math>)([,.;:!?)]+)",
            r'<span class="whole">\1\2</span>',
            fragment,
        )  # no comma at the start of a line

    def inline(self, page: Page, source: str) -> str:
        return self.md.renderer.render(
            self.tokens(page, self.md.parseInline(source), set()), self.md.options, {}
        )


def plain(fragment: str) -> str:
    "Text without tags and without the anchors of headings"
    apart = re.sub(
        r"</(p|li|td|th|h\d|tr|div|pre)>",
        " ",
        re.sub(r'(?s)<a class="anchor".*?</a>', "", fragment),
    )
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", apart))).strip()


# --- pages --------------------------------------------------------------------------------------------------------------


def card(w: Writer, page: Page, a: Api) -> str:
    "Signature, what it does, parameters"
    tag, code = (
        "h4" if a.kind == "method" else "h3",
        lambda x, cls="": f"<code{cls}>{esc(x)}</code>" if x else "",
    )
    rows = [
        (
            code(n),
            code(t) + (" " + code(f"= {d}", " class=default") if d else ""),
            w.inline(page, m),
        )
        for n, t, d, m in a.params
    ]
    if any(a.returns):
        rows.append(("<i>returns</i>", code(a.returns[0]), w.inline(page, a.returns[1])))
    table = (
        '<table class="params"><tbody>'
        + "".join(f"<tr><th scope=row>{n}</th><td>{t}</td><td>{m}</td></tr>" for n, t, m in rows)
        + "</tbody></table>"
        if rows
        else ""
    )
    name = f'<span class="kind">{"class " if a.kind == "class" else ""}</span>{esc(a.name)}<a class="anchor" href="#{a.anchor}" aria-label="Link to {esc(a.name)}">#</a>'
    doc = re.sub(
        r"((?:\n {2,}\S.*)+)",
        lambda m: "\n" + m[1].replace("\n ", "\n    ") + "\n",
        a.doc.replace("\b\n", "\n"),
    )  # what is set in is code
    return f'<section class="api" id="{a.anchor}"><{tag}>{name}</{tag}><p class="sig">{code(a.sig)}</p>{w.markdown(page, doc, set())}{table}</section>'


def tabular(table: str) -> str:
    "A data frame's table without its own looks; columns of words to the left, of numbers to the right"
    table = re.sub(
        r'(?s)<style.*?</style>\s*| border="1"| class="dataframe"| style="[^"]*"', "", table
    )
    table = re.sub(r"<tr>(\s*<th></th>)+\s*</tr>", "", table)
    rows = [
        re.findall(r"(?s)<(t[dh])[^>]*>(.*?)</t[dh]>", r)
        for r in re.findall(r"(?s)<tr.*?</tr>", table)
    ]
    words = {
        i
        for r in rows
        for i, (tag, x) in enumerate(r)
        if tag == "td" and re.search(r"[^\W\d_]{3}", html.unescape(x)) and x != "NaN"
    }

    def row(m):
        k = iter(range(99))
        return re.sub(
            r"<(t[dh])", lambda c: f"<{c[1]}" + (' class="words"' if next(k) in words else ""), m[0]
        )

    return re.sub(r"(?s)<tr.*?</tr>", row, table)


def outputs(page: Page, cell, alt: str) -> tuple[list[str], list[str]]:
    "Stored outputs as HTML and as Markdown"
    out, copy = [], []
    for o in cell.get("outputs", []):
        data = o.get("data", {})
        words = text(o.get("text") or data.get("text/plain")).rstrip()
        if "image/png" in data:
            png = base64.b64decode(text(data["image/png"]))
            name = f"{address(page.book, '')}_files/figure-{len(page.files) + 1}.png"
            page.files[name] = png
            wide, high = struct.unpack(">II", png[16:24])
            local = name.rpartition("/")[0].rpartition("/")[2] + "/" + name.rpartition("/")[2]
            out.append(
                f'<figure><a href="{local}"><img src="{local}" alt="{esc(alt)}" width="{wide}" height="{high}" loading="lazy"></a></figure>'
            )
            copy.append(f"![{alt}]({local})\n")
        elif "text/html" in data:
            table = tabular(text(data["text/html"]))
            out.append(f'<div class="scroll out" tabindex="0">{table}</div>')
            copy.append(f"```\n{words}\n```\n")
        elif words:
            out.append(f'<pre class="out" tabindex="0">{esc(words)}</pre>')
            copy.append(f"```\n{words}\n```\n")
    return out, copy


def render(w: Writer, page: Page) -> None:
    "Fill `body`, `copy`, `toc`, `found` and `files`"
    taken = {a.anchor for l in page.api.values() for a in l}

    def words(fragment, code=""):
        if not page.found:
            page.found.append(["", page.title, "", ""])
        page.found[-1][2] += " " + plain(fragment)
        page.found[-1][3] += " " + code

    for n, cell in enumerate(page.cells):
        source = text(cell["source"])
        d = directives(source) if cell["cell_type"] == "code" else {}
        if cell["cell_type"] == "markdown":
            page.copy.append(
                re.sub(
                    r"\]\(([^)\s]+\.ipynb[^)\s]*)\)",
                    lambda m: f"]({w.link(page, m[1], '.md')})",
                    source,
                )
                + "\n"
            )
            fragment = w.markdown(page, source, taken)
            if n == 0:
                fragment = fragment.replace("<blockquote>", '<blockquote class="promise">', 1)
            page.body.append(fragment)
            words(re.sub(r"(?s)<h\d.*?</h\d>", " ", fragment))
            continue
        if cell["cell_type"] != "code" or "hide" in d or "default_exp" in d:
            continue
        code = code_of(cell)
        api = page.api.get(cell["id"], [])
        if "export" in d and all(
            isinstance(x, (ast.Import, ast.ImportFrom)) for x in ast.parse(code).body
        ):
            continue
        for a in api:
            page.body.append(card(w, page, a))
            page.toc.append(
                (
                    4 if a.kind == "method" else 3,
                    a.anchor,
                    f"<code>{esc(a.name.rpartition('.')[2] if a.kind == 'method' else a.name)}</code>",
                )
            )
            back = page.found[-1][:2] if page.found else ["", page.title]
            page.found += [
                [
                    a.anchor,
                    a.name,
                    a.sig + " " + a.doc + " " + " ".join(f"{x[0]} {x[3]}" for x in a.params),
                    "",
                ],
                [*back, "", ""],
            ]
        if code and "echo" not in d:
            block = coloured(code)
            lines = code.count("\n") + 1
            if api:
                block = f'<details class="source"{" open" if lines <= 16 else ""}><summary>Source, {lines} line{"s" * (lines > 1)}</summary>{block}</details>'
            page.body.append(block)
            page.copy.append(f"```python\n{code}\n```\n")
            words("", code)
        if d.get("eval") == "false":
            continue
        out, copy = outputs(page, cell, d.get("fig-alt", ""))
        page.body += out
        page.copy += copy
        words(" ".join(plain(o) for o in out))


def sections(pages: list[Page]):
    "(section, its pages), in order"
    for name in dict.fromkeys(p.section for p in pages):
        yield name, [p for p in pages if p.section == name]


def sidebar(page: Page, pages: list[Page], w: Writer) -> str:
    def item(p):
        return f'<li><a href="{page.up}{p.url}"{" aria-current=page" if p is page else ""}>{"Home" if p.book == "index.ipynb" else w.inline(page, p.title)}</a></li>'

    return "".join(
        (f"<h2>{esc(s)}</h2>" if s else "") + "<ul>" + "".join(map(item, ps)) + "</ul>"
        for s, ps in sections(pages)
    )


def colours() -> str:
    "One rule per kind of token, light and dark"
    light, dark = get_style_by_name("friendly"), get_style_by_name("github-dark")
    out = []
    from pygments.token import STANDARD_TYPES

    for t, short in STANDARD_TYPES.items():
        if not short:
            continue
        a, b = light.style_for_token(t), dark.style_for_token(t)
        if a["color"] or b["color"]:
            out.append(
                f".code .{short}{{color:light-dark({'#' + (a['color'] or '1f2328')},{'#' + (b['color'] or 'd6dae0')}){';font-style:italic' if a['italic'] else ''}}}"
            )
    return "\n".join(out)


def framed(p: Page, pages: list[Page], w: Writer, site: dict, repo: str) -> str:
    "The whole page, after `render`"
    k, line = pages.index(p), lambda x: w.inline(p, x)
    toc = "".join(
        f'<li class="l{level}"><a href="#{a}">{t}</a></li>' for level, a, t in p.toc if level > 1
    )
    near = [
        f'<a class="prev" rel="prev" href="{p.up}{q.url}">← {line(q.title)}</a>'
        for q in pages[:k][-1:]
    ] + [
        f'<a class="next" rel="next" href="{p.up}{q.url}">{line(q.title)} →</a>'
        for q in pages[k + 1 :][:1]
    ]
    return Template((THEME / "page.html").read_text(encoding="utf-8")).substitute(
        title=esc(plain(line(p.title)) + (f" · {site['title']}" if k else "")),
        about=esc(plain(line(p.promise)) or site["description"]),
        up=p.up,
        site=esc(site["title"]),
        sidebar=sidebar(p, pages, w),
        toc=f'<nav class="toc" aria-label="On this page"><h2>On this page</h2><ul>{toc}</ul></nav>'
        if toc
        else "",
        body="\n".join(p.body),
        near="".join(near),
        copy=address(p.book.rpartition("/")[2], ".md"),
        source=f"{repo}/blob/main/nbs/{p.book}",
        repo=repo,
    )


def llms(pages: list[Page], site: dict) -> str:
    "What a language model should read: the Markdown copies, with what they promise"
    parts = [
        f"## {s or 'Overview'}\n\n"
        + "".join(f"- [{p.title}]({address(p.book, '.md')}): {p.promise}\n" for p in ps)
        for s, ps in sections(pages)
    ]
    return "\n".join([f"# {site['title']}\n\n> {site['description']}\n", *parts])


def build(root: Path, out: Path) -> list[Page]:
    "Write the site into `out`; `ValueError` if there is something else"
    if out.exists() and any(out.iterdir()) and not (out / "llms.txt").exists():
        raise ValueError(
            f"{out} holds something that is not a site: name a new folder, or one that this command wrote"
        )
    site = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    ini = (root / "settings.ini").read_text(encoding="utf-8")
    repo = "https://github.com/" + "/".join(
        re.search(rf"^{k} = (.+)$", ini, re.M)[1] for k in ("user", "repo")
    )
    pages = load(root)
    w = Writer(pages)
    index = []
    tmp = out.with_name(out.name + ".new")
    shutil.rmtree(tmp, ignore_errors=True)

    def put(file, content):
        (tmp / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    for p in pages:
        render(w, p)
        put(p.url, framed(p, pages, w, site, repo))
        put(address(p.book, ".md"), "\n".join(p.copy))
        for f, b in p.files.items():
            put(f, b)
        index += [
            [p.url, plain(w.inline(p, p.title)), *f]
            for f in p.found
            if f[2].strip() or f[3].strip() or f[1]
        ]
    put(
        "assets/index.js",
        "window.INDEX="
        + json.dumps(index, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/"),
    )
    for f in ("site.js", "math.woff2", "math.LICENSE"):
        put(f"assets/{f}", (THEME / f).read_bytes())
    put("assets/style.css", (THEME / "style.css").read_text(encoding="utf-8") + colours())
    put("llms.txt", llms(pages, site))
    put(".nojekyll", "")
    shutil.rmtree(out, ignore_errors=True)
    tmp.rename(out)
    return pages


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs").resolve()
    print(f"{len(build(ROOT, out))} pages in {out}")

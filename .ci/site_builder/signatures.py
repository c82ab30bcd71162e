"""Functions and classes as their source describes them; nothing is imported or run.

The comment that ends the line of a parameter is its meaning; the one behind the colon of the
signature is the meaning of what comes back.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Parameter(NamedTuple):
    "A parameter of a function, or a field of a class"

    name: str
    type: str
    default: str
    meaning: str
    in_call: bool = True  # False for a field that the constructor does not take


class Returned(NamedTuple):
    "What comes back"

    type: str
    meaning: str


NOTHING = Returned("", "")


@dataclass
class Api:
    "A public function, class, method or property"

    name: str  # with its class: `SolutionPath.cut`
    kind: str  # function, class, method, classmethod, staticmethod or property
    sig: str  # in one line
    doc: str
    params: list[Parameter]
    returns: Returned
    anchor: str = ""

    @property
    def in_class(self) -> bool:
        return self.kind not in ("function", "class")

    def undescribed(self) -> list[str]:
        "What has no meaning: names of parameters, and `→ type` for what comes back"
        missing = [p.name for p in self.params if not p.meaning]
        if self.kind == "property":
            return missing + ([] if self.doc else ["docstring"])
        if self.returns.type not in ("", "None", "Self") and not self.returns.meaning:
            missing.append(f"→ {self.returns.type}")
        return missing


class Source:
    "The code of a cell with its comments"

    def __init__(self, code: str):
        self.tree = ast.parse(code)
        self.tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
        self.comments = {
            token.start[0]: token.string.lstrip("# ").strip()
            for token in self.tokens
            if token.type == tokenize.COMMENT
        }
        self.bare = self.without_comments(code)

    def without_comments(self, code: str) -> str:
        "The same lines up to their comments"
        lines = code.splitlines(keepends=True)
        for token in self.tokens:
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column] + "\n"
        return "".join(lines)

    def text(self, node: ast.AST | None) -> str:
        "The source of a node in one line, as if it had always been one"
        if node is None:
            return ""
        line = re.sub(r"\s+", " ", ast.get_source_segment(self.bare, node)).strip()
        line = re.sub(r"([\[({]) ", r"\1", line)
        if isinstance(node, ast.Tuple) and len(node.elts) == 1:
            return line.replace(", )", ",)")
        return re.sub(r",? ([\])}])", r"\1", line)

    def last_line(self, function: Function) -> int:
        "The line of the colon that ends a signature"
        depth = 0
        started = False
        for token in self.tokens:
            if token.start[0] < function.lineno or token.type not in (tokenize.OP, tokenize.NAME):
                continue
            started = started or token.string == "def"
            if token.string in "([{":
                depth += 1
            elif token.string in ")]}":
                depth -= 1
            elif token.string == ":" and started and depth == 0:
                return token.start[0]
        raise ValueError(f"no end of the signature of {function.name}")


# --- parameters and results -------------------------------------------------------------------


class Argument(NamedTuple):
    "A parameter as `ast` has it"

    stars: str
    node: ast.arg | None  # None for the bare `*`
    default: ast.AST | None

    @property
    def end(self) -> int:
        return (self.default or self.node).end_lineno


def arguments(function: Function) -> list[Argument]:
    "The parameters of a function in order, with their stars"
    every = function.args
    plain = every.posonlyargs + every.args
    defaults = [None] * (len(plain) - len(every.defaults)) + every.defaults
    rows = [Argument("", node, default) for node, default in zip(plain, defaults)]
    if every.vararg:
        rows.append(Argument("*", every.vararg, None))
    elif every.kwonlyargs:
        rows.append(Argument("*", None, None))
    rows += [Argument("", *both) for both in zip(every.kwonlyargs, every.kw_defaults)]
    if every.kwarg:
        rows.append(Argument("**", every.kwarg, None))
    return rows


def option_help(source: Source, annotation: ast.AST | None) -> tuple[str, str]:
    "Type and meaning of a parameter; `Annotated[int, typer.Option(help='…')]` holds both"
    is_annotated = (
        isinstance(annotation, ast.Subscript)
        and source.text(annotation.value).rpartition(".")[2] == "Annotated"
    )
    if not is_annotated:
        return source.text(annotation), ""
    kind, *notes = annotation.slice.elts
    for note in notes:
        for keyword in getattr(note, "keywords", []):
            if keyword.arg == "help" and isinstance(keyword.value, ast.Constant):
                return source.text(kind), keyword.value.value
    return source.text(kind), ""


def parameters(source: Source, function: Function) -> list[Parameter]:
    "The parameters of a function with their meanings; the bare `*` is one of them"
    rows = arguments(function)
    last_of_line = {row.end: row.node for row in rows if row.node}
    taken = source.last_line(function) if function.returns else 0  # by what comes back
    found = []
    for row in rows:
        if row.node is None:
            found.append(Parameter("*", "", "", ""))
            continue
        kind, meaning = option_help(source, row.node.annotation)
        if not meaning and last_of_line[row.end] is row.node:
            lines = [row.end]
            if row.node.lineno not in last_of_line:
                lines.append(row.node.lineno)  # a default of several lines, told in its first
            told = (source.comments.get(line, "") for line in lines if line != taken)
            meaning = next(filter(None, told), "")
        name = row.stars + row.node.arg
        found.append(Parameter(name, kind, source.text(row.default), meaning))
    return found


def returned(source: Source, function: Function) -> Returned:
    "What comes back: the comment behind the signature, unless that is a parameter's"
    line = source.last_line(function)
    mine = bool(function.returns) or all(row.end != line for row in arguments(function) if row.node)
    meaning = source.comments.get(line, "") if mine else ""
    return Returned(source.text(function.returns).strip("\"'"), meaning)


def default_of(source: Source, value: ast.AST | None) -> tuple[str, bool]:
    "The default of a field, and whether the constructor takes it; `field(default=1)` → 1"
    if not (isinstance(value, ast.Call) and source.text(value.func).endswith("field")):
        return source.text(value), True
    told = {keyword.arg: keyword.value for keyword in value.keywords}
    in_call = source.text(told.get("init")) != "False"
    if "default" in told:
        return source.text(told["default"]), in_call
    factory = told.get("default_factory")
    if factory is None:
        return "", in_call
    made = factory.body if isinstance(factory, ast.Lambda) else None
    return source.text(made) if made else f"{source.text(factory)}()", in_call


def fields(source: Source, node: ast.ClassDef) -> list[Parameter]:
    "The public fields of a class"
    found = []
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        kind = source.text(item.annotation)
        if item.target.id.startswith("_") or kind.startswith("ClassVar"):
            continue
        default, in_call = default_of(source, item.value)
        comments = source.comments
        meaning = comments.get(item.end_lineno) or comments.get(item.lineno, "")
        found.append(Parameter(item.target.id, kind, default, meaning, in_call))
    return found


# --- functions, methods, classes ----------------------------------------------------------------


def decorators(source: Source, function: Function) -> list[str]:
    return [source.text(node) for node in function.decorator_list]


def kind_of(marks: list[str]) -> str:
    "What a method is by its decorators"
    names = {mark.partition("(")[0].rpartition(".")[2] for mark in marks}
    patch = next((mark for mark in marks if mark.startswith("patch")), "")
    if names & {"property", "cached_property", "patch_property"} or "as_prop=True" in patch:
        return "property"
    if "classmethod" in names or "cls_method=True" in patch:
        return "classmethod"
    return "staticmethod" if "staticmethod" in names else "method"


def is_second(marks: list[str]) -> bool:
    "Whether a function only adds to one that stands elsewhere"
    return any(re.search(r"\.(setter|deleter)$|(^|\.)overload$", mark) for mark in marks)


def call(name: str, rows: list[Parameter], returns: Returned) -> str:
    "`f(a, b=1) → int`"
    inside = ", ".join(
        row.name + (f"={row.default}" if row.default else "") for row in rows if row.in_call
    )
    return f"{name}({inside})" + (f" → {returns.type}" if returns.type else "")


def described(source: Source, function: Function, owner: str = "") -> Api:
    "A function, or a method of `owner`"
    kind = kind_of(decorators(source, function)) if owner else "function"
    rows = parameters(source, function)
    if kind in ("method", "classmethod", "property"):
        rows = rows[1:]
    returns = returned(source, function)
    name = f"{owner}.{function.name}" if owner else function.name
    sig = call(name, rows, returns)
    if kind == "property":
        sig = name + (f" → {returns.type}" if returns.type else "")
    doc = ast.get_docstring(function) or ""
    return Api(name, kind, sig, doc, [row for row in rows if row.name != "*"], returns)


def class_cards(source: Source, node: ast.ClassDef) -> Iterator[Api]:
    "A class, then its public methods and properties"
    own = [item for item in node.body if isinstance(item, Function)]
    init = next((item for item in own if item.name == "__init__"), None)
    rows = parameters(source, init)[1:] if init else fields(source, node)
    doc = ast.get_docstring(node) or ""
    shown = [row for row in rows if row.name != "*"]
    yield Api(node.name, "class", call(node.name, rows, NOTHING), doc, shown, NOTHING)
    for item in own:
        if not item.name.startswith("_") and not is_second(decorators(source, item)):
            yield described(source, item, node.name)


def exported(code: str) -> list[Api]:
    "The public functions, classes and methods of a cell, in order"
    source = Source(code)
    found = []
    for node in source.tree.body:
        if getattr(node, "name", "_").startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            found += class_cards(source, node)
        elif isinstance(node, Function) and not is_second(marks := decorators(source, node)):
            patched = any(mark.startswith("patch") for mark in marks)
            owner = source.text(node.args.args[0].annotation).strip("\"'") if patched else ""
            found.append(described(source, node, owner))
    return found


def is_private(code: str) -> bool:
    "Whether a cell does nothing but define names that start with `_`"
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False  # a cell of shell commands
    names: list[str] = []
    for node in body:
        if isinstance(node, ast.ClassDef | Function):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [ast.unparse(target) for target in targets]
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            return False
    return bool(names) and all(name.startswith("_") for name in names)

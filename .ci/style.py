"""Figures of form, for the notebooks and what is exported from them.

python .ci/style.py [NOTEBOOK…]   a line of figures, then each place that wants a hand (default: all)
python .ci/style.py --count ROOT  only the line of figures, for the notebooks below another folder
"""

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, SCREEN, MODULE = 100, 60, 500  # columns of a line, lines of a function and of a module


@dataclass
class Figures:
    "What was counted"

    lines: int = 0  # of code, blank ones left out
    over_100: int = 0  # of those, longer than 100 columns
    over_120: int = 0  # of those, longer than 120 columns
    joins: int = 0  # statements joined by `;`
    asserts: int = 0  # assert statements, `assert_close`, `test_eq` and the like
    words: int = 0  # of prose

    def __str__(self):
        def per_line(n):
            return n / max(self.lines, 1)

        return (
            f"{self.lines:,} code lines; over 100 columns {per_line(self.over_100):.1%}"
            f" ({self.over_100}), over 120 {per_line(self.over_120):.1%}; `;` joins per 100 lines"
            f" {100 * per_line(self.joins):.1f} ({self.joins}); asserts per 100 lines"
            f" {100 * per_line(self.asserts):.1f}; words of prose per code line"
            f" {per_line(self.words):.1f}"
        )


def source(cell: dict) -> str:
    return "".join(cell["source"])


def notebooks(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def joins(code: str) -> int:
    "Statements joined by `;`, or ended by one"
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, IndentationError):
        return 0  # a cell of shell commands
    return sum(t.type == tokenize.OP and t.string == ";" for t in tokens)


def count(code: str, into: Figures) -> None:
    "Add the figures of a piece of code"
    lines = [line for line in code.splitlines() if line.strip()]
    into.lines += len(lines)
    into.over_100 += sum(len(line) > COLUMNS for line in lines)
    into.over_120 += sum(len(line) > 120 for line in lines)
    into.joins += joins(code)
    into.asserts += len(re.findall(r"\bassert\b|\bassert_close\(|\btest_\w+\(", code))


def figures(books: list[Path]) -> Figures:
    "The figures of `books`, notebooks and Python files"
    total = Figures()
    for book in books:
        if book.suffix == ".py":
            count(book.read_text(encoding="utf-8"), total)
            continue
        for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                count(source(cell), total)
            else:
                total.words += len(source(cell).split())
    return total


# --- places that want a hand ----------------------------------------------------------------


@dataclass
class Place:
    "One finding"

    file: str
    where: str
    what: str
    weight: int = field(default=0)

    def __str__(self):
        return f"{self.file}: {self.where}: {self.what}"


def functions(code: str) -> Iterator[tuple[str, int]]:
    "(name, lines) of the functions of a cell, methods included"
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", code, flags=re.M))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def wanting(book: Path) -> Iterator[Place]:
    "What is too long, joined, or not run in a notebook or Python file"
    name = str(book.relative_to(ROOT)) if book.is_relative_to(ROOT) else str(book)
    if book.suffix == ".py":
        cells = [("", book.read_text(encoding="utf-8"))]
    else:
        cells = [
            (f"cell {cell.get('id')}", source(cell))
            for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        ]
    for where, code in cells:
        for line in code.splitlines():
            if len(line) > COLUMNS:
                yield Place(name, where, f"{len(line)} columns: {line.strip()[:60]}…")
        if joins(code):
            yield Place(name, where, f"{joins(code)} statements end in `;`")
        if re.search(r"#\|\s*eval:\s*false", code):
            yield Place(name, where, "`eval: false` stops Run All in plain Jupyter")
        for function, lines in functions(code):
            if lines > SCREEN:
                yield Place(name, where, f"{function} has {lines} lines", lines)


def undescribed(books: list[Path]) -> Iterator[Place]:
    "Parameters and results of public functions without a meaning"
    from pages import load

    for page in load(ROOT):
        if ROOT / "nbs" / page.book not in books:
            continue
        for api in (a for found in page.api.values() for a in found):
            missing = [name for name, _, _, meaning in api.params if not meaning]
            if api.returns[0] not in ("", "None", "Self") and not api.returns[1]:
                missing.append(f"→ {api.returns[0]}")
            if missing:
                yield Place(f"nbs/{page.book}", api.name, "no meaning: " + ", ".join(missing))


def modules() -> Iterator[Place]:
    "Exported modules that are longer than they should be"
    for file in sorted((ROOT / "spp").rglob("*.py")):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if file.name != "_modidx.py" and lines > MODULE:
            yield Place(str(file.relative_to(ROOT)), "module", f"{lines} lines", lines)


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--count"]:
        print(figures(notebooks(Path(arguments[1]))))
        return 0
    books = [Path(a).resolve() for a in arguments] or notebooks(ROOT / "nbs")
    print(figures(books))
    places = [p for book in books for p in wanting(book)] + list(undescribed(books))
    places += [] if arguments else list(modules())
    print("\n".join(map(str, places)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

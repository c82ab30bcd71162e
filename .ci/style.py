"""Figures of form, for the notebooks, what is exported from them, the tests and .ci.

python .ci/style.py [FILE…]           figures, then each place that wants a hand (default: all)
python .ci/style.py --check           the same, and exit 1 if there is such a place that must not be
python .ci/style.py --at REVISION …   figures of the notebooks, earlier revisions beside today's
python .ci/style.py --count FOLDER    the figures of the notebooks below another folder

What must not be: a code line over 100 columns, a `;` that joins statements, `eval: false`, and a
parameter or result of a public function without a meaning. Long functions and modules are listed.
"""

import ast
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pages import load

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 100  # of a line of code
WIDE = 120  # columns of a line that no screen shows whole
SCREEN = 60  # lines of a function
MODULE = 500  # lines of a module


# --- figures ----------------------------------------------------------------------------------


@dataclass
class Figures:
    "What was counted"

    lines: int = 0  # of code, without blank ones and directives
    over_100: int = 0  # of those, longer than 100 columns
    over_120: int = 0  # of those, longer than 120 columns
    joins: int = 0  # statements joined by `;`
    asserts: int = 0  # `assert …`, `assert_close(…)`, `test_eq(…)` and the like
    words: int = 0  # of prose

    def per_line(self, count: int) -> float:
        return count / max(self.lines, 1)

    def row(self, name: str) -> str:
        "A row of the table in STYLE.md"
        columns = [
            f"{self.lines:,}",
            f"{100 * self.per_line(self.over_100):.1f} ({self.over_100:,})",
            f"{100 * self.per_line(self.over_120):.1f} ({self.over_120:,})",
            f"{100 * self.per_line(self.joins):.1f} ({self.joins:,})",
            f"{100 * self.per_line(self.asserts):.1f}",
            f"{self.per_line(self.words):.1f}",
        ]
        return f"| {name} | {' | '.join(columns)} |"


HEAD = """\
| | code lines | % over 100 columns | % over 120 | `;` joins per 100 lines | asserts per 100 lines \
| words of prose per code line |
|---|---|---|---|---|---|---|"""


def source(cell: dict) -> str:
    return "".join(cell["source"])


def notebooks(root: Path) -> list[Path]:
    "The notebooks below a folder, without copies that Jupyter keeps"
    return sorted(p for p in root.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def scripts(root: Path) -> list[Path]:
    "Tests and tools: Python, shell, and what the site is drawn with"
    kinds = (".py", ".js", ".css", ".html", "")
    files = [p for folder in ("tests", ".ci") for p in (root / folder).rglob("*") if p.is_file()]
    return sorted(p for p in files if p.suffix in kinds) + [root / "setup.py"]


def joins(code: str) -> int:
    "Statements joined by `;`, or ended by one"
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, IndentationError):
        return 0  # a cell of shell commands
    return sum(t.type == tokenize.OP and t.string == ";" for t in tokens)


def count(code: str, into: Figures) -> None:
    "Add the figures of a piece of Python"
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#|")]
    into.lines += len(lines)
    into.over_100 += sum(len(line) > COLUMNS for line in lines)
    into.over_120 += sum(len(line) > WIDE for line in lines)
    into.joins += joins(code)
    into.asserts += len(re.findall(r"\bassert|\btest_\w+\(", code))


def cells(book: Path) -> list[dict]:
    return json.loads(book.read_text(encoding="utf-8"))["cells"]


def figures(files: Iterable[Path]) -> Figures:
    "The figures of notebooks and Python files"
    total = Figures()
    for file in files:
        if file.suffix == ".py":
            count(file.read_text(encoding="utf-8"), total)
        if file.suffix != ".ipynb":
            continue
        for cell in cells(file):
            if cell["cell_type"] == "code":
                count(source(cell), total)
            else:
                total.words += len(source(cell).split())
    return total


def at_revision(revision: str) -> Figures:
    "The figures of the notebooks as git has them at `revision`"
    packed = subprocess.run(
        ["git", "archive", revision, "nbs"], cwd=ROOT, capture_output=True, check=True
    )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            inside = [m for m in archive.getmembers() if m.name.endswith(".ipynb")]
            for member in inside:
                target = Path(folder) / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
        return figures(notebooks(Path(folder)))


# --- places that want a hand --------------------------------------------------------------------


@dataclass
class Place:
    "One finding"

    file: str
    where: str
    what: str
    must_not_be: bool = True

    def __str__(self):
        return ": ".join(filter(None, [self.file, self.where, self.what]))


def functions(code: str) -> Iterator[tuple[str, int]]:
    "(name, lines) of the functions of a cell, methods included"
    try:
        tree = ast.parse(re.sub(r"^\s*[%!].*$", "pass", code, flags=re.M))
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.end_lineno - node.lineno + 1


def pieces(file: Path) -> list[tuple[str, str]]:
    "(where, code) of a file: its code cells, or the whole"
    if file.suffix != ".ipynb":
        return [("", file.read_text(encoding="utf-8"))]
    return [
        (f"cell {cell.get('id')}", source(cell))
        for cell in cells(file)
        if cell["cell_type"] == "code"
    ]


def wanting(file: Path) -> Iterator[Place]:
    "What is too long, joined, or not run in a notebook or script"
    name = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)
    for where, code in pieces(file):
        for line in code.splitlines():
            if len(line) > COLUMNS:
                yield Place(name, where, f"{len(line)} columns: {line.strip()[:60]}…")
        if file.suffix not in (".py", ".ipynb"):
            continue
        if joins(code):
            yield Place(name, where, f"{joins(code)} statements end in `;`")
        if file.suffix == ".ipynb" and re.search(r"#\|\s*eval:\s*false", code):
            yield Place(name, where, "`eval: false` stops Run All in plain Jupyter")
        for function, lines in functions(code):
            if lines > SCREEN:
                yield Place(name, where, f"{function} has {lines} lines", must_not_be=False)


def undescribed(files: Iterable[Path]) -> Iterator[Place]:
    "Parameters and results of public functions without a meaning"
    books = set(files)
    for page in load(ROOT):
        if ROOT / "nbs" / page.book not in books:
            continue
        for api in page.cards:
            missing = api.undescribed()
            if missing:
                yield Place(f"nbs/{page.book}", api.name, "no meaning: " + ", ".join(missing))


def long_modules() -> Iterator[Place]:
    "Modules that are longer than they should be"
    exported = (f for f in (ROOT / "spp").rglob("*.py") if f.name != "_modidx.py")
    for file in sorted([*exported, *(f for f in scripts(ROOT) if f.suffix == ".py")]):
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > MODULE:
            yield Place(str(file.relative_to(ROOT)), "", f"{lines} lines", must_not_be=False)


def places(files: list[Path]) -> list[Place]:
    "Every place of `files` that wants a hand"
    return [place for file in files for place in wanting(file)] + list(undescribed(files))


def everything() -> list[Path]:
    "What the figures are about: notebooks, tests, tools"
    return notebooks(ROOT / "nbs") + scripts(ROOT)


def table(files: list[Path], revisions: list[str]) -> str:
    "The rows of STYLE.md's table for this project"
    books = [file for file in files if file.suffix == ".ipynb"]
    others = [file for file in files if file.suffix == ".py"]
    rows = [at_revision(name).row(f"notebooks at {name}") for name in revisions]
    rows += [figures(books).row(f"{len(books)} notebooks")] if books else []
    rows += [figures(others).row(f"{len(others)} tests and tools")] if others else []
    return "\n".join([HEAD, *rows])


def main(arguments: list[str]) -> int:
    "The exit status of `python .ci/style.py ARGUMENTS…`"
    if arguments[:1] == ["--count"]:
        print(f"{HEAD}\n{figures(notebooks(Path(arguments[1]))).row(arguments[1])}")
        return 0
    revisions = arguments[1:] if arguments[:1] == ["--at"] else []
    check = arguments[:1] == ["--check"]
    names = [] if revisions else arguments[check:]
    files = [Path(name).resolve() for name in names] or everything()
    print(table(files, revisions))
    if revisions:
        return 0
    found = places(files) + ([] if names else list(long_modules()))
    print("\n".join(map(str, found)))
    return int(check and any(place.must_not_be for place in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"The repository: notebooks, modules, site and README belong together"

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from itertools import groupby
from pathlib import Path

import pytest
from notebooks import in_step, notebooks
from site_builder.sources import contents

ROOT = Path(__file__).resolve().parents[1]
BOOKS = notebooks()
ROOMS = ["core", "models", "cutting", "method", "training", "judging", "llm", "running", "lab"]


def cells(book: Path) -> list[dict]:
    return json.loads(book.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


# --- files ------------------------------------------------------------------------------------


def test_readme_is_the_index():
    assert in_step() == []


def test_no_output_holds_a_warning_or_a_place_of_this_machine():
    for book in notebooks():
        for cell in cells(book):
            for output in cell.get("outputs", []):
                text = "".join(output.get("text", []))
                assert not re.search(r"\.py:\d+: \w*Warning|/(home|root|site-packages)/", text), (
                    f"{book}, cell {cell['id']}: {text[:200]}"
                )


def test_modules_name_their_notebook():
    for file in (ROOT / "spp").rglob("*.py"):
        if file.name in ("__init__.py", "_modidx.py"):
            continue
        head = file.read_text(encoding="utf-8")
        book = re.search(r"File to edit: (\S+)\.$", head, re.M)[1]
        assert (file.parent / book).resolve().exists() or (ROOT / "spp" / book).resolve().exists()


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: str(book.relative_to(ROOT / "nbs")))
def test_notebook_is_whole(book):
    "Ids, outputs, links that lead somewhere, and a place on the site"
    ids = [cell.get("id") for cell in cells(book)]
    assert None not in ids
    assert len(set(ids)) == len(ids)
    code = [cell for cell in cells(book) if cell["cell_type"] == "code"]
    assert not code or any(cell.get("outputs") for cell in code)
    for cell in code:
        if "#| fig-alt" in source(cell) and "if FULL" not in source(cell):
            assert any("image/png" in out.get("data", {}) for out in cell["outputs"]), source(cell)
    prose = [cell for cell in cells(book) if cell["cell_type"] == "markdown"]
    for cell in prose:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", source(cell)):
            assert (book.parent / link).exists(), f"{book.name} links to {link}"
    sidebar = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    assert str(book.relative_to(ROOT / "nbs")) in sidebar


def test_small_enough_to_ship():
    assert sum(f.stat().st_size for f in (ROOT / "spp/assets").rglob("*")) < 2_000_000


def test_contributing_is_short():
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 45


# --- form -------------------------------------------------------------------------------------


def test_form():
    "No line over 100 columns, no joined statements, no `eval: false`, nothing undescribed"
    from style import everything, places

    found = [str(place) for place in places(everything()) if place.must_not_be]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("what", [["format", "--check"], ["check"]], ids=" ".join)
def test_ruff(what):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *what, "--quiet", "--no-cache", "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# --- rooms ------------------------------------------------------------------------------------


def modules() -> dict[str, Path]:
    "Every module of the package and its file, `spp.method.search` → spp/method/search.py"
    files = [f for f in (ROOT / "spp").rglob("*.py") if f.name not in ("__init__.py", "_modidx.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}


def imports(name: str, file: Path, everywhere: bool) -> set[str]:
    "Modules of the package that `file` imports when it is loaded; `everywhere`: in functions, too"
    found = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            parts = name.split(".")[: -node.level] if node.level else []
            base = ".".join(parts + ([node.module] if node.module else []))
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules().keys()


def test_imports_run_downwards_only():
    "No module imports, directly or through others, a module that imports it"
    graph = {name: imports(name, file, everywhere=False) for name, file in modules().items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


def test_rooms_import_from_rooms_before_them():
    "Of two rooms only one knows the other; the lab is known by the command line alone"
    room = {name: ROOMS.index(name.split(".")[1]) for name in modules()}
    for name, file in modules().items():
        for other in imports(name, file, everywhere=False):
            assert room[other] <= room[name], f"{name} imports {other}"
        if room[name] < ROOMS.index("lab") and name != "spp.running.cli":
            lab = [x for x in imports(name, file, everywhere=True) if x.startswith("spp.lab.")]
            assert not lab, f"{name} imports {lab}"


def test_folders_are_rooms():
    "A notebook that exports lies in the folder of its module, and has its name"
    for book in BOOKS:
        text = "\n".join(source(cell) for cell in cells(book))
        found = re.search(r"#\|\s*default_exp (\S+)", text)
        if found:
            folder, _, name = found[1].rpartition(".")
            assert book.parent.name == folder
            assert re.sub(r"^\d+_", "", book.stem) == name


def test_reading_order():
    "A section of the sidebar is a folder, and its notebooks stand in the order of their numbers"
    folders = []
    for section, books in contents(ROOT):
        inside = [book.rpartition("/")[0] for book in books if "/" in book]
        assert len(set(inside)) <= 1, f"{section} mixes {set(inside)}"
        folders += [folder for folder, _ in groupby(inside)]
        numbers = re.findall(r"/(\d\d)_", " ".join(books))
        assert numbers == sorted(numbers), section
    assert len(set(folders)) == len(folders)
    assert set(ROOMS) <= set(folders)


def test_modules_do_not_hide_behind_functions():
    "`spp.search` is the function alone: no module of the package is called like a public name"
    import spp

    for name in spp.__all__:
        assert f"spp.{name}" not in modules()


def test_public_names_are_told_once_to_editors_and_once_to_python():
    "What `spp/__init__.py` imports for type checkers is what its table imports on demand"
    import spp

    tree = ast.parse((ROOT / "spp/__init__.py").read_text(encoding="utf-8"))
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module[:4] == "spp."
    ]
    told = {node.module: tuple(name.name for name in node.names) for node in imports}
    assert told == spp._HOMES
    assert sorted(name for names in told.values() for name in names) == sorted(spp.__all__)
    assert all(hasattr(spp, name) for name in spp.__all__)

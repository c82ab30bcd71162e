"The repository: notebooks, modules, site and README belong together"

import ast
import json
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
from notebooks import in_step, notebooks

BOOKS = notebooks()


def cells(p):
    return json.loads(p.read_text(encoding="utf-8"))["cells"]


def test_readme_is_the_index():
    assert in_step() == []


def test_modules_name_their_notebook():
    for f in (ROOT / "spp").rglob("*.py"):
        if f.name in ("__init__.py", "_modidx.py"):
            continue
        book = re.search(r"File to edit: (\S+)\.$", f.read_text(encoding="utf-8"), re.M)[1]
        assert (f.parent / book).resolve().exists() or (ROOT / "spp" / book).resolve().exists(), f


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_is_whole(book):
    "Ids, outputs, links that lead somewhere, and a place on the site"
    all_ = cells(book)
    ids = [c.get("id") for c in all_]
    assert None not in ids and len(set(ids)) == len(ids)
    assert any(c.get("outputs") for c in all_ if c["cell_type"] == "code")
    for c in all_:
        for link in (
            re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "".join(c["source"]))
            if c["cell_type"] == "markdown"
            else ()
        ):
            assert (book.parent / link).exists(), f"{book.name} links to {link}"
    assert str(book.relative_to(ROOT / "nbs")) in (ROOT / "_quarto.yml").read_text(encoding="utf-8")


def test_small_enough_to_ship():
    assert sum(f.stat().st_size for f in (ROOT / "spp/assets").rglob("*")) < 2_000_000


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 45


# --- rooms ----------------------------------------------------------------------------------

ROOMS = ["models", "cutting", "method", "training", "judging", "llm", "running", "lab"]


def modules() -> dict[str, Path]:
    "Every module of the package and its file, `spp.method.search` → spp/method/search.py"
    files = [f for f in (ROOT / "spp").rglob("*.py") if f.name not in ("__init__.py", "_modidx.py")]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}


def imports(name: str, file: Path, everywhere: bool) -> set[str]:
    "Modules of the package that `file` imports when it is loaded; `everywhere`: in functions, too"
    known, found = modules(), set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            parts = name.split(".")[: -node.level] if node.level else []
            base = ".".join(parts + ([node.module] if node.module else []))
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


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
        found = re.search(
            r"#\|\s*default_exp (\S+)", "\n".join("".join(c["source"]) for c in cells(book))
        )
        if found:
            folder, _, name = found[1].rpartition(".")
            assert book.parent.name == folder and re.sub(r"^\d+_", "", book.stem) == name


def test_modules_do_not_hide_behind_functions():
    "`spp.search` is the function alone: no module of the package is called like a public name"
    import spp

    for name in spp.__all__:
        assert f"spp.{name}" not in modules()

"The repository: notebooks, modules, site and README belong together"
import json
import re
import sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / ".ci"))
from notebooks import in_step, notebooks

BOOKS = notebooks()
cells = lambda p: json.loads(p.read_text(encoding="utf-8"))["cells"]

def test_readme_is_the_index(): assert in_step() == []

def test_modules_name_their_notebook():
    for f in (ROOT / "spp").rglob("*.py"):
        if f.name in ("__init__.py", "_modidx.py"): continue
        book = re.search(r"File to edit: (\S+)\.$", f.read_text(encoding="utf-8"), re.M)[1]
        assert (f.parent / book).resolve().exists() or (ROOT / "spp" / book).resolve().exists(), f

@pytest.mark.parametrize("book", BOOKS, ids=lambda p: str(p.relative_to(ROOT / "nbs")))
def test_notebook_is_whole(book):
    "Ids, outputs, links that lead somewhere, and a place on the site"
    all_ = cells(book); ids = [c.get("id") for c in all_]; assert None not in ids and len(set(ids)) == len(ids)
    assert any(c.get("outputs") for c in all_ if c["cell_type"] == "code")
    for c in all_:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "".join(c["source"])) if c["cell_type"] == "markdown" else ():
            assert (book.parent / link).exists(), f"{book.name} links to {link}"
    assert str(book.relative_to(ROOT / "nbs")) in (ROOT / "_quarto.yml").read_text(encoding="utf-8")

def test_small_enough_to_ship(): assert sum(f.stat().st_size for f in (ROOT / "spp/assets").rglob("*")) < 2_000_000

def test_contributing_is_short(): assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 45

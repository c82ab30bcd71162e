"""Work on the notebooks without a notebook server.

    python .ci/notebooks.py run [NOTEBOOK…]     execute in place and store the outputs (all of nbs/ when none is named)
    python .ci/notebooks.py run --slow NOTEBOOK the same with its cells marked `#| slow`, whose outputs stay as they are otherwise;
                                                a notebook with `#| slow full` keeps all its outputs from such a run: without --slow it is only tested
    python .ci/notebooks.py test NOTEBOOK       execute one, write nothing
    python .ci/notebooks.py readme              write README.md and its pictures from nbs/index.ipynb
    python .ci/notebooks.py check               exit 1 unless spp/, nbs/ and README.md are in step
"""
import base64
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.environ |= {"TQDM_DISABLE": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}   # bars tell the time: never stored

def notebooks() -> list[Path]:
    "Every notebook of the project, in reading order"
    return sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)

def execute(path: Path, store: bool, slow: bool = False) -> None:
    "Execute `path` as `nbdev_test` would (its skip flags hold, but for `slow` if that is asked for) and keep the outputs if `store`"
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    skip, source, run = set(get_config().tst_flags.split()) - ({"slow"} if slow else set()), read_nb(path), NBProcessor(path, process=True).nb
    def skipped(cell):
        if cell.cell_type != "code": return True
        flags = getattr(cell, "directives_", None) or {}
        return flags.get("eval:", [""])[0].lower() == "false" or bool(skip & flags.keys())
    os.chdir(path.parent)
    sys.path.insert(0, str(ROOT))
    for cell in run.cells:
        if cell.cell_type == "code": cell.outputs = []       # a cell that prints nothing would keep what it printed before
    shell = CaptureShell(path, mpl_format="png")
    try: shell.run_all(run, exc_stop=True, preproc=skipped)
    except Exception:
        done = [c for c in run.cells if c.cell_type == "code" and not skipped(c) and c.get("outputs") is not None]
        failed = next((c for c in done if any(o["output_type"] == "error" for o in c["outputs"])), None)
        if failed: print(f"{path.name}: this cell failed\n{failed.source}\n", file=sys.stderr)
        raise
    full = any("full" in (getattr(c, "directives_", None) or {}).get("slow", []) for c in run.cells)
    if store and full and not slow: print(f"{path.name} passed; its outputs are those of a run with --slow and stay")
    if not store or full and not slow: return
    for old, new in zip(source.cells, run.cells):
        if old.cell_type == "code" and not skipped(new):
            old.outputs, old.execution_count = new.get("outputs", []), None
    write_nb(source, path)

def text(x) -> str: return "".join(x) if isinstance(x, list) else (x or "")

def readme() -> tuple[str, dict[Path, bytes]]:
    "README.md as Markdown, from the prose, code and stored outputs of index.ipynb, and the pictures it shows"
    from execnb.nbio import read_nb
    out, pictures = ["<!-- Written from nbs/index.ipynb; edit that notebook instead. -->\n"], {}
    for cell in read_nb(ROOT / "nbs/index.ipynb").cells:
        source = text(cell.source).strip()
        if cell.cell_type == "markdown": out.append(source + "\n")
        if cell.cell_type != "code" or "#| hide" in source: continue
        shown = "\n".join(l for l in source.splitlines() if not l.startswith("#|"))
        if shown and "#| echo: false" not in source: out.append(f"```python\n{shown}\n```\n")
        for o in cell.get("outputs", []):
            data = o.get("data", {})
            if "image/png" in data:
                file = Path(f"nbs/images/index_{len(pictures) + 1}.png"); pictures[file] = base64.b64decode(text(data["image/png"]))
                out.append(f"![{(re.search(r'^#[|] fig-alt: (.+)$', source, re.M) or ('', ''))[1]}]({file})\n")
            elif plain := text(o.get("text") or data.get("text/plain")): out.append("```\n" + plain.rstrip() + "\n```\n")
    page = re.sub(r"\]\(((?:[\w-]+/)*[\w-]+\.ipynb)", r"](nbs/\1", "\n".join(out))
    return page, pictures

def in_step() -> list[str]:
    "What README.md and its pictures have that index.ipynb does not, one line each"
    page, pictures = readme()
    want = {Path("README.md"): page.encode(), **pictures}
    return [f"{f} differs from nbs/index.ipynb: run `python .ci/notebooks.py readme`" for f, b in want.items() if not (ROOT / f).exists() or (ROOT / f).read_bytes() != b]

def check() -> list[str]:
    "What is out of step, one line each"
    def sh(*a): return subprocess.run(a, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sh("nbdev_clean"), sh("nbdev_export")
    return [f"changed by nbdev_clean and nbdev_export: {l}" for l in sh("git", "status", "--porcelain", "--", "spp", "nbs").splitlines()] + in_step()

def write(file: Path, content: bytes) -> None:
    "Write beside, then rename"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as f: f.write(content)
    os.chmod(f.name, 0o644); os.replace(f.name, file)

if __name__ == "__main__":
    what, slow, names = (sys.argv[1:2] or ["help"])[0], "--slow" in sys.argv, [Path(a).resolve() for a in sys.argv[2:] if a != "--slow"]
    if what == "run" and len(names) == 1 or what == "test": execute(names[0], what == "run", slow)
    elif what == "run":
        for p in names or notebooks():                       # a process each: no notebook sees another's state
            t = time.time()
            subprocess.run([sys.executable, __file__, "run", str(p)], check=True)
            print(f"{p.relative_to(ROOT)}  {time.time() - t:.0f} s", flush=True)
    elif what == "readme":
        page, pictures = readme()
        for file, content in {Path("README.md"): page.encode(), **pictures}.items(): write(ROOT / file, content)
    elif what == "check":
        bad = check()
        print("\n".join(bad) or "spp/, nbs/ and README.md are in step")
        sys.exit(bool(bad))
    else: print(__doc__)

"""Execute and check the notebooks without a notebook server.

python .ci/notebooks.py run [NOTEBOOK…]   execute and store the outputs (default: all of nbs/)
python .ci/notebooks.py test NOTEBOOK…    execute, store nothing
python .ci/notebooks.py serve [kernel]    execute each that is named on standard input, see `serve`
python .ci/notebooks.py readme            write README.md and its pictures from nbs/index.ipynb
python .ci/notebooks.py check             exit 1 unless spp/, nbs/ and README.md are in step

Each notebook runs from its first cell to its last in a new plain Jupyter kernel; `serve` saves the
seconds in which a kernel imports the libraries, `serve kernel` in such kernels, too.
"""

import base64
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"


def notebooks() -> list[Path]:
    "Every notebook of the project, sorted by path"
    return sorted(p for p in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


# --- execute --------------------------------------------------------------------------------


def kernel_environment() -> dict[str, str]:
    """The environment of a kernel: this checkout comes first; bars are off, for they tell the time.

    A backend of Matplotlib that was chosen outside would leave the pages without pictures.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {
        **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
        "PYTHONPATH": path,
        "TQDM_DISABLE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


def execute(path: Path, forked: bool = False) -> nbformat.NotebookNode:
    """Run `path` in a new Python kernel, in its own folder, and return it with its outputs.

    The kernel is a new process, or a fork of this one, which has imported what it will need.
    Raises `nbclient.exceptions.CellExecutionError` at the first cell that fails.
    """
    from nbclient import NotebookClient

    book = read(path)
    client = NotebookClient(
        book,
        timeout=None,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        **({"km": forked_kernel(path.parent)} if forked else {}),
    )
    client.owns_km = True  # it ends the kernel
    client.execute(env=kernel_environment())
    return book


def forked_kernel(folder: Path):
    """A manager, as nbclient knows them, of a kernel that was forked off this process.

    Call it in a process with one thread, that is, before any client of a kernel was made.
    """
    from ipykernel.kernelapp import IPKernelApp
    from jupyter_client.connect import write_connection_file
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_client.provisioning import KernelProvisionerBase

    file, _ = write_connection_file(str(Path(tempfile.mkdtemp()) / "kernel.json"))
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(folder)
            os.environ.pop("MPLBACKEND", None)
            os.environ |= kernel_environment()
            sys.path.insert(0, "")
            IPKernelApp.launch_instance(["-f", file, "--log-level=ERROR"])
        finally:
            os._exit(0)

    class Forked(KernelProvisionerBase):
        has_process = True

        async def poll(self):
            if self.has_process and os.waitpid(child, os.WNOHANG) != (0, 0):
                self.has_process = False
            return None if self.has_process else 0

        async def wait(self):
            if self.has_process:
                os.waitpid(child, 0)
                self.has_process = False
            return 0

        async def send_signal(self, signum):
            if await self.poll() is None:
                os.killpg(child, signum)

        async def kill(self, restart=False):
            await self.send_signal(signal.SIGKILL)

        async def terminate(self, restart=False):
            await self.send_signal(signal.SIGTERM)

        async def launch_kernel(self, cmd, **kwargs):
            return {}

        async def cleanup(self, restart=False):
            shutil.rmtree(Path(file).parent, ignore_errors=True)

    manager = AsyncKernelManager(kernel_name="python3")
    manager.load_connection_file(file)
    manager.provisioner = Forked(parent=manager)
    return manager


def tidy(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "Drop what differs from run to run: execution counts, metadata, addresses; join split streams"
    book.metadata = {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
    }
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        cell.outputs = joined([output for output in cell.outputs if not is_bar(output)])
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = None
            if "metadata" in output:
                output.metadata = {}
    return book


def is_bar(output) -> bool:
    "Is it a progress bar? Those tell the time, and mean nothing once the kernel is gone"
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def joined(outputs: list) -> list:
    "One output for each run of prints to the same stream"
    kept: list = []
    for output in outputs:
        before = kept[-1] if kept else {}
        stream = output.output_type == "stream" == before.get("output_type")
        if stream and output.name == before.name:
            before.text += output.text
        else:
            kept.append(output)
    return kept


def store(book: nbformat.NotebookNode, path: Path) -> None:
    "Write `book` as nbdev does: sorted keys, one space of indent, text unescaped"
    import json

    text = nbformat.writes(tidy(book), version=nbformat.NO_CONVERT)
    plain = json.dumps(json.loads(text), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write(path, plain.encode())


def run_each(paths: list[Path], keep: bool = False, forked: bool = False) -> int:
    "Execute `paths` one after another and print their seconds; the number that failed"
    from nbclient.exceptions import CellExecutionError

    failed = 0
    for path in paths:
        since = time.time()
        try:
            book = execute(path, forked)
        except CellExecutionError as error:
            failed += 1
            plain = re.sub(r"\x1b\[[\d;]*m", "", str(error))
            print(f"{path.relative_to(ROOT)}: this cell failed\n{plain}", file=sys.stderr)
            continue
        if keep:
            store(book, path)
        print(f"{path.relative_to(ROOT)}  {time.time() - since:.0f} s", flush=True)
    return failed


# --- execute many -------------------------------------------------------------------------


def run_here(path: Path) -> bool:
    "Run every cell of `path` in this process, one after another; False at the first that fails"
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(path.parent)
    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    for cell in read(path).cells:
        if cell.cell_type == "code" and not shell.run_cell(cell.source).success:
            print(f"{path.relative_to(ROOT)}: this cell failed\n{cell.source}")
            return False
    return True


def serve(kernel: bool) -> None:
    """Import the libraries once, then run each notebook named on standard input in a fork.

    In the fork itself, or in a Jupyter kernel, which imports spp itself. Answers each line with a
    line, the exit status. What a notebook prints goes to standard error.
    """
    os.environ |= {"TQDM_DISABLE": "1"} | ({} if kernel else {"MPLBACKEND": "Agg"})
    sys.path.insert(0, str(ROOT))
    for name in ("open_clip", "pandas", "sklearn.datasets", "timm", "transformers", "nbclient"):
        import_module(name)
    if not kernel:
        import_module("matplotlib.pyplot")
        import_module("spp")
    for line in sys.stdin:
        path = Path(line.strip())
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            ok = False
            try:
                ok = not run_each([path], forked=True) if kernel else run_here(path)
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0 if ok else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


# --- the README -----------------------------------------------------------------------------


def shown(output, alt: str, number: int) -> tuple[str, dict[Path, bytes]]:
    "An output as Markdown, and the picture file that it needs"
    data = output.get("data", {})
    if "image/png" in data:
        file = Path(f"nbs/images/index_{number}.png")
        return f"![{alt}]({file})\n", {file: base64.b64decode(data["image/png"])}
    plain = output.get("text") or data.get("text/plain") or ""
    return ("```\n" + plain.rstrip() + "\n```\n" if plain else ""), {}


def readme() -> tuple[str, dict[Path, bytes]]:
    "README.md from the prose, code and stored outputs of index.ipynb, and the pictures it shows"
    parts = ["<!-- Written from nbs/index.ipynb; edit that notebook instead. -->\n"]
    pictures: dict[Path, bytes] = {}
    for cell in read(NBS / "index.ipynb").cells:
        source = cell.source.strip()
        if cell.cell_type == "markdown":
            parts.append(source + "\n")
        if cell.cell_type != "code" or "#| hide" in source:
            continue
        code = "\n".join(line for line in source.splitlines() if not line.startswith("#|"))
        if code and "#| echo: false" not in source:
            parts.append(f"```python\n{code}\n```\n")
        alt = re.search(r"^#[|] fig-alt: (.+)$", source, re.M)
        for output in cell.outputs:
            text, files = shown(output, alt[1] if alt else "", len(pictures) + 1)
            pictures |= files
            parts += [text] if text else []
    page = re.sub(r"\]\(((?:[\w-]+/)*)([\w-]+)\.ipynb", on_site, "\n".join(parts))
    return page, pictures


def on_site(link: re.Match) -> str:
    "The address on the site of a notebook that index.ipynb links to; the registry shows it, too"
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    host = ini["DEFAULT"]["doc_host"] + ini["DEFAULT"]["doc_baseurl"]
    folder, name = link[1], re.sub(r"^\d+[a-z]?_", "", link[2])
    return f"]({host}/{folder}{name}.html"


def expected() -> dict[Path, bytes]:
    "README.md and its pictures as they should be"
    page, pictures = readme()
    return {Path("README.md"): page.encode(), **pictures}


# --- check ----------------------------------------------------------------------------------


def in_step() -> list[str]:
    "What README.md and its pictures have that index.ipynb does not, one line each"
    return [
        f"{file} differs from nbs/index.ipynb: run `python .ci/notebooks.py readme`"
        for file, content in expected().items()
        if not (ROOT / file).exists() or (ROOT / file).read_bytes() != content
    ]


def check() -> list[str]:
    "What is out of step, one line each"

    def sh(*command):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    sh("nbdev_clean")
    sh("nbdev_export")
    changed = sh("git", "status", "--porcelain", "--", "spp", "nbs").splitlines()
    return [f"changed by nbdev_clean and nbdev_export: {line}" for line in changed] + in_step()


def write(file: Path, content: bytes) -> None:
    "Write beside `file`, then rename"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as f:
        f.write(content)
    os.chmod(f.name, 0o644)
    os.replace(f.name, file)


def main(what: str = "help", *names: str) -> int:
    "The exit status of `python .ci/notebooks.py WHAT NAMES…`"
    paths = [Path(name).resolve() for name in names] or notebooks()
    if what in ("run", "test"):
        return run_each(paths, keep=what == "run")
    if what == "serve":
        serve(kernel="kernel" in names)
        return 0
    if what == "readme":
        for file, content in expected().items():
            write(ROOT / file, content)
        return 0
    if what == "check":
        wrong = check()
        print("\n".join(wrong) or "spp/, nbs/ and README.md are in step")
        return bool(wrong)
    print(__doc__)
    return what not in ("help", "-h", "--help")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

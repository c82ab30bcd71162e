"pytest collects the notebooks too: each is executed from its first cell to its last, in a process of its own, and nothing is stored"
import subprocess
import sys
from pathlib import Path
import pytest

RUN = Path(__file__).resolve().parents[1] / ".ci/notebooks.py"

class NotebookFailed(Exception): pass

class NotebookItem(pytest.Item):
    def runtest(self):
        r = subprocess.run([sys.executable, RUN, "test", self.path], capture_output=True, text=True)
        if r.returncode: raise NotebookFailed(r.stdout + r.stderr)
    def repr_failure(self, excinfo): return str(excinfo.value) if excinfo.errisinstance(NotebookFailed) else super().repr_failure(excinfo)
    def reportinfo(self): return self.path, 0, f"notebook {self.path.name}"

class NotebookFile(pytest.File):
    def collect(self): yield NotebookItem.from_parent(self, name="runs")

def pytest_collect_file(parent, file_path):
    if file_path.suffix == ".ipynb" and ".ipynb_checkpoints" not in file_path.parts: return NotebookFile.from_parent(parent, path=file_path)

"""The documentation site, from `_quarto.yml` and the stored outputs of the notebooks.

python .ci/pages.py [FOLDER]   write FOLDER (default `_docs`)

It holds pages, their Markdown copies, llms.txt and a search index. Nothing is executed, nothing
is fetched, and the site asks no other host for anything. Where Quarto is installed, `nbdev_docs`
makes its own pages from the same file.
"""

import sys
from pathlib import Path

from site_builder.building import build
from site_builder.sources import load

__all__ = ["ROOT", "build", "load"]
ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    out = Path(arguments[0] if arguments else ROOT / "_docs").resolve()
    print(f"{len(build(ROOT, out))} pages in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

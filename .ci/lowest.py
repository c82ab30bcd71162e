"""The lowest versions that settings.ini allows, as constraints for pip.

python .ci/lowest.py               one line for each package, `torch==2.11`
python .ci/lowest.py --installed   what is installed of them
"""

import re
import sys
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = ("", "transformers_", "clip_", "llm_", "slurm_")  # what a user installs; not `dev`


def bounds() -> dict[str, str]:
    "Package → the lowest version that is allowed"
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    found = {}
    for prefix in LISTS:
        for requirement in ini["DEFAULT"][f"{prefix}requirements"].split():
            name, lowest = re.fullmatch(r"([\w.-]+)>=([\w.]+)(?:,.*)?", requirement).groups()
            found[name] = lowest
    return found


def installed(name: str) -> str:
    "The version of `name` that is installed"
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    for name, lowest in bounds().items():
        show = f"{name} {installed(name)} (at least {lowest})"
        print(show if "--installed" in sys.argv else f"{name}=={lowest}")

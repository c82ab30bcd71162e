"Everything is in settings.ini; this file only hands it to setuptools."

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
EXTRAS = ("transformers", "clip", "llm", "slurm", "dev")

ini = ConfigParser(delimiters=["="])
ini.read(HERE / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]


def extras() -> dict[str, list[str]]:
    "What each extra installs; `all` is what a user may want, `dev` has it, too"
    of = {name: cfg[f"{name}_requirements"].split() for name in EXTRAS}
    of["all"] = sorted({x for name in EXTRAS if name != "dev" for x in of[name]})
    of["dev"] += of["all"]
    return of


def description() -> str:
    "README.md with pictures where the package registry can show them"
    raw = cfg["git_url"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    text = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"(!\[[^\]]*\]\()(?!https?:)", rf"\g<1>{raw}", text)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=description(),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Source": cfg["git_url"],
        "Changelog": cfg["git_url"] + "/blob/main/CHANGELOG.md",
        "Issues": cfg["git_url"] + "/issues",
        "Paper": "https://arxiv.org/abs/2501.03289",
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Framework :: Jupyter",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["spp", "spp.*"]),
    package_data={"spp": ["assets/**/*", "py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras(),
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)

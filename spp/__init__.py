"Solution Path Pruning: one search gives a smaller pretrained transformer at every size"

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what an editor reads; the table below is what runs
    from spp.cutting.cut import Cut, cut
    from spp.cutting.files import load, save
    from spp.cutting.gguf import save_gguf
    from spp.cutting.latency import summary
    from spp.cutting.pretrained import save_pretrained
    from spp.judging.choosing import Comparison, Sizes, compare
    from spp.judging.evaluate import accuracy, evaluate
    from spp.judging.sensitivity import Sensitivity
    from spp.method.balance import balance
    from spp.method.objective import SearchStopped
    from spp.method.path import SolutionPath
    from spp.method.repair import repair
    from spp.method.search import search
    from spp.models.attention import attention_pair
    from spp.models.gates import gated
    from spp.models.pairs import Pair, find_pairs, mlp_pair
    from spp.training.family import Family, joint, walk
    from spp.training.finetune import finetune

# imported when first asked for: `spp --help` waits for no tensor library
_HOMES = {
    "spp.cutting.cut": ("Cut", "cut"),
    "spp.cutting.files": ("load", "save"),
    "spp.cutting.gguf": ("save_gguf",),
    "spp.cutting.latency": ("summary",),
    "spp.cutting.pretrained": ("save_pretrained",),
    "spp.judging.choosing": ("Comparison", "Sizes", "compare"),
    "spp.judging.evaluate": ("accuracy", "evaluate"),
    "spp.judging.sensitivity": ("Sensitivity",),
    "spp.method.balance": ("balance",),
    "spp.method.objective": ("SearchStopped",),
    "spp.method.path": ("SolutionPath",),
    "spp.method.repair": ("repair",),
    "spp.method.search": ("search",),
    "spp.models.attention": ("attention_pair",),
    "spp.models.gates": ("gated",),
    "spp.models.pairs": ("Pair", "find_pairs", "mlp_pair"),
    "spp.training.family": ("Family", "joint", "walk"),
    "spp.training.finetune": ("finetune",),
}

__all__ = [
    "Comparison",
    "Cut",
    "Family",
    "Pair",
    "SearchStopped",
    "Sensitivity",
    "Sizes",
    "SolutionPath",
    "accuracy",
    "attention_pair",
    "balance",
    "compare",
    "cut",
    "evaluate",
    "find_pairs",
    "finetune",
    "gated",
    "joint",
    "load",
    "mlp_pair",
    "repair",
    "save",
    "save_gguf",
    "save_pretrained",
    "search",
    "summary",
    "walk",
]


def __getattr__(name: str):
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'spp' has no attribute {name!r}")
    found = getattr(import_module(home), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

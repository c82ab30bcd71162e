"Solution Path Pruning: one search gives a smaller pretrained transformer at every size"

__version__ = "0.1.0"

from spp.cutting.cut import Cut, cut
from spp.cutting.files import load, save
from spp.cutting.latency import summary
from spp.cutting.pretrained import save_pretrained
from spp.method.balance import balance
from spp.method.objective import SearchStopped
from spp.method.path import SolutionPath
from spp.method.repair import repair
from spp.method.search import search
from spp.models.gates import gated
from spp.models.pairs import Pair, find_pairs, mlp_pair
from spp.training.family import Family, joint, walk
from spp.training.finetune import finetune

__all__ = [
    "Cut",
    "Family",
    "Pair",
    "SearchStopped",
    "SolutionPath",
    "balance",
    "cut",
    "find_pairs",
    "finetune",
    "gated",
    "joint",
    "load",
    "mlp_pair",
    "repair",
    "save",
    "save_pretrained",
    "search",
    "summary",
    "walk",
]

"Solution Path Pruning: one search gives a smaller pretrained transformer at every size"
__version__ = "0.1.0"

from spp.pairs import Pair, find_pairs, mlp_pair
from spp.gates import gated
from spp.cut import Cut, cut, load, save, save_pretrained
from spp.latency import summary
from spp.path import SolutionPath
from spp.objective import SearchStopped
from spp.search import search
from spp.balance import balance
from spp.finetune import finetune
from spp.family import Family, joint, walk

__all__ = ["Cut", "Family", "Pair", "SearchStopped", "SolutionPath", "balance", "cut", "find_pairs", "finetune", "gated", "joint", "load", "mlp_pair", "save", "save_pretrained", "search", "summary", "walk"]

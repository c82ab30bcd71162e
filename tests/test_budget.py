"Budgets: what is asked is met from below, within one percent, on models of real shape; and contradictions are said"
import random
import pytest
import timm
import torch
import transformers as hf
from spp import find_pairs
from spp.budget import Steps, cost_of, macs_of, params_of, solve
from spp.pairs import adapter_of
from spp.path import SolutionPath

_TEXT = dict(hidden_size=768, num_attention_heads=12)
SHAPES = {
    "deit_small": lambda: timm.create_model("deit_small_patch16_224"),
    "swin_tiny": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "bert_base": lambda: hf.BertModel(hf.BertConfig()),
    "opt_125m": lambda: hf.OPTForCausalLM(hf.OPTConfig(**_TEXT)),
    "llama_160m": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=32000, num_hidden_layers=12, intermediate_size=3072, **_TEXT)),
}

@pytest.mark.parametrize("shape", SHAPES)
def test_within_a_percent(shape):
    "Twenty random targets of each measure, on the device meta: nothing is computed, everything is counted"
    with torch.device("meta"): model = SHAPES[shape]().eval()
    pairs, rand = find_pairs(model), random.Random(0)
    path = SolutionPath(pairs, torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0))).attach(model)
    one, rest = adapter_of(model).example(model), path.costs.rest(pairs)
    for i in range(20):
        for k, count in (("params", params_of), ("flops", lambda m: macs_of(m, one)), ("units", lambda m: m.spp.units[0])):
            least = rest[k] / path.costs.dense[k]; b = rand.uniform(least + .02 * (1 - least), 1.)
            if i: told = cost_of(path.mask(**{k: b}), pairs, path.costs)[k]
            else: small = path.cut(**{k: b}); told = count(small)                 # the first is built and counted
            assert b - .01 <= told / path.costs.dense[k] <= b, (k, b, told / path.costs.dense[k])

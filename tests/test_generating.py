"Decoding of cuts whose first attention has no heads: the scores are those without a cache"

import copy

import pytest
import sweep
import torch
import transformers as hf
from sweep import inputs, tiny

import spp

# Not among them, since a dense one puts out something else behind a cache, too: RoBERTa as a
# decoder (positions), MPT (a softmax in float32), LED behind a static cache
CAUSAL = [
    "BartForCausalLM",
    "BertLMHeadModel",
    "BioGptForCausalLM",
    "BloomForCausalLM",
    "CohereForCausalLM",
    "FalconForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTNeoXForCausalLM",
    "Gemma2ForCausalLM",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "ModernBertDecoderForCausalLM",
    "OPTForCausalLM",
    "OlmoForCausalLM",
    "Phi3ForCausalLM",
    "PhiForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "StableLmForCausalLM",
]
ENCODES = [
    "BartForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "BlenderbotSmallForConditionalGeneration",
    "LongT5ForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "MBartForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "MarianMTModel",
    "MvpForConditionalGeneration",
    "PLBartForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "PegasusXForConditionalGeneration",
    "SwitchTransformersForConditionalGeneration",
    "T5ForConditionalGeneration",
    "UMT5ForConditionalGeneration",
    "WhisperForConditionalGeneration",
]
# Whisper's own `generate` writes segments of speech; underneath is the one of all
HOW = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
GIVEN = ("input_ids", "input_features")


def made(name):
    "A small random model in float64, what it reads, and a cut without heads where it begins"
    torch.manual_seed(0)
    kind = getattr(hf, name)
    other = {"is_decoder": True} if name == "BertLMHeadModel" else {}
    model = sweep.randomised(kind(tiny(kind.config_class, other))).double()
    numbers = model.generation_config
    numbers.update(eos_token_id=None, forced_eos_token_id=None, forced_bos_token_id=None)
    numbers.update(suppress_tokens=None, begin_suppress_tokens=None)
    if model.config.is_encoder_decoder:
        numbers.update(decoder_start_token_id=3)
    x = {k: v[:1] for k, v in sweep.double(inputs(model)).items() if k in GIVEN}
    pairs = spp.find_pairs(model)
    sites = [p.site for p in pairs if p.kind == "vo"]
    decoding = [site for site in sites if "decoder" in site] or sites
    empty = {sites[0], decoding[0]}
    mask = torch.cat([torch.full((p.n,), p.site not in empty) for p in pairs])
    small = spp.cut(model, pairs, mask)
    small.generation_config = copy.deepcopy(numbers)
    return model, small, x


def decoded(model, x, **how):
    "What a model wrote, and the scores in float64 that it saw at each place, behind a cache"
    seen = {}

    def note(module, args, given, out):
        ids = given.get("decoder_input_ids", given.get("input_ids"))
        cache = out.past_key_values
        before = int(cache.get_seq_length()) - ids.shape[1] if cache is not None else 0
        start = before + ids.shape[1] - out.logits.shape[1]
        seen.update({start + i: row for i, row in enumerate(out.logits[0])})

    hook = model.register_forward_hook(note, with_kwargs=True)
    try:
        ids = hf.GenerationMixin.generate(model, **x, **HOW, **how)
    finally:
        hook.remove()
    return ids, seen


def told(model, x, ids):
    "The scores of the same text in one pass, without a cache"
    if model.config.is_encoder_decoder:
        return model(**x, decoder_input_ids=ids, use_cache=False).logits[0]
    return model(input_ids=ids, use_cache=False).logits[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL + ENCODES)
@torch.no_grad()
def test_scores_behind_a_cache(name):
    "Dynamic and static caches, the cut assisted by the dense model and the other way round"
    dense, small, x = made(name)
    for model, how in (
        (small, dict(cache_implementation="dynamic")),
        (small, dict(cache_implementation="static")),
        (small, dict(assistant_model=dense)),
        (dense, dict(assistant_model=small)),
    ):
        ids, seen = decoded(model, x, **how)
        want = told(model, x, ids)
        begin = 0 if model.config.is_encoder_decoder else x["input_ids"].shape[1] - 1
        places = range(begin, ids.shape[1] - 1)
        assert len(places) >= 6
        got = torch.stack([seen[i] for i in places])
        assert got.dtype == torch.float64
        assert (got - want[begin:-1]).abs().max() < 1e-10, how
        plain = hf.GenerationMixin.generate(model, **x, **HOW, use_cache=False)
        assert torch.equal(ids, plain), how

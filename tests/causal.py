"Small random causal language models that the tests share, with windows, a text and a tokenizer."

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from spp.llm.calibration import blocks, linears

_ONE = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4)


def _opt(**kw):
    config = hf.OPTConfig(**_ONE, ffn_dim=64, max_position_embeddings=64, **kw)
    return hf.OPTForCausalLM(config)


def _llama(**kw):
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_ONE, intermediate_size=64, **kw))


def _gpt2():
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=61, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    )


def _mistral():
    config = hf.MistralConfig(**_ONE, num_key_value_heads=2, intermediate_size=64, sliding_window=8)
    return hf.MistralForCausalLM(config)


def _qwen2():
    config = hf.Qwen2Config(
        **_ONE,
        num_key_value_heads=2,
        intermediate_size=64,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
    )
    return hf.Qwen2ForCausalLM(config)


CAUSAL = {
    "opt": lambda: _opt(word_embed_proj_dim=48, dropout=0.5),
    "opt_norm_behind": lambda: _opt(word_embed_proj_dim=24, do_layer_norm_before=False),
    "gpt2": _gpt2,
    "llama_gqa": lambda: _llama(num_key_value_heads=2),
    "llama_tied": lambda: _llama(num_key_value_heads=1, tie_word_embeddings=True),
    "mistral": _mistral,
    "qwen2": _qwen2,
}
IDS = torch.randint(61, (6, 32), generator=torch.Generator().manual_seed(1))
TEXT = [" ".join(f"w{(i * k) % 53}" for i in range(400)) for k in (1, 3, 7, 11)]


def inner(model):
    "The linear layers of all blocks, by name"
    name, stack = blocks(model)
    return {
        f"{name}.{i}.{child}": layer
        for i, block in enumerate(stack)
        for child, layer in linears(block).items()
    }


def words():
    "A tokenizer of sixty words, without a token for padding"
    vocabulary = {f"w{i}": i for i in range(60)} | {"?": 60}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def distance(a, b):
    "Mean square distance of the logits of two models"
    with torch.no_grad():
        return (a(IDS).logits - b(IDS).logits).square().mean().item()

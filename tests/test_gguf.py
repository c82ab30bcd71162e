"GGUF: what an unmodified llama.cpp computes from a file is what torch computes"

import pytest
import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import spp
from spp import cut, find_pairs
from spp.cutting.budget import solve, unit_costs
from spp.cutting.gguf import save_gguf
from spp.cutting.llama_cpp import LlamaCpp, torch_log_probs
from spp.cutting.vocabulary import vocabulary

VOCABULARY = 320
SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=96,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
TEXT = "In 1984 the cat's mat, 3.14 m long, was   sold\n\nfor £12 — to ÉMILE; we'll see!"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def splits(name):
    "The pre-tokenizer of a family"
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    numbers = r"\p{N}{1,3}" if name == "llama-bpe" else r"\p{N}"
    words = pre_tokenizers.Split(Regex(_WORD + numbers + _REST), "isolated")
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, raw])


def bytes_tokenizer(name="gpt-2"):
    "A tokenizer over bytes, with merges of its own, also of digits"
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = splits(name)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([TEXT] * 3 + ["1984 1984 1983 198 84 the the cat sold to"] * 9, trainer)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    made = hf.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")
    made.chat_template = template
    return made


def letters_tokenizer():
    "A tokenizer as Llama 2's: letters, bytes to fall back on, spaces as ▁"
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, "▁", *"theca"]
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("▁", "the"),
        ("c", "a"),
        ("a", "t"),
        ("ca", "t"),
        ("▁", "cat"),
    ]
    tokens += ["".join(pair) for pair in merges]
    model = models.BPE(
        {t: i for i, t in enumerate(tokens)}, merges, unk_token="<unk>", byte_fallback=True
    )
    bpe = Tokenizer(model)
    space = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    bpe.normalizer = normalizers.Sequence(space)
    special = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return hf.PreTrainedTokenizerFast(tokenizer_object=bpe, **special)


def llama(**kw):
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE | kw))


def qwen2():
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**SHAPE))


def mistral():
    return hf.MistralForCausalLM(hf.MistralConfig(**SHAPE, sliding_window=256))


FAMILY = {
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama, biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama, scaled positions": lambda: llama(rope_parameters=LLAMA3),
    "mistral": mistral,
    "qwen2": qwen2,
}


def loud(model):
    "Weights so large that each shows in the output"
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            size = 0.15 if p.dim() > 1 else 0.3
            p.copy_(torch.randn(p.shape, generator=g) * size + float("norm" in name))
    return model.eval()


def by_heads(model, seed=0, uniform=False, **budget):
    "A cut by whole groups, of an order drawn at random"
    pairs = find_pairs(model)
    score = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(seed))
    how = dict(heads="whole", uniform=uniform)
    return cut(model, pairs, solve(score, pairs, unit_costs(model, pairs), **how, **budget))


def without(model, gone):
    "A cut without the pairs of `gone`, (layer, kind), and with half of every other MLP"
    pairs = find_pairs(model)
    masks = []
    for p in pairs:
        layer = int(p.block.split("layers.")[1].split(".")[0])
        mask = torch.ones(p.n)
        mask[:] = (layer, p.kind) not in gone
        if p.kind == "glu":
            mask[p.n // 2 + layer :] = 0
        masks.append(mask)
    return cut(model, pairs, torch.cat(masks))


def apart(model, file, n):
    "Largest difference of log-probabilities at `n` positions, and the ratio of perplexities"
    ids = torch.randint(2, VOCABULARY, (n,), generator=torch.Generator().manual_seed(1))
    got = LlamaCpp(file).log_probs(ids, VOCABULARY)
    want = torch_log_probs(model, ids)
    loss = [-x[:-1].gather(1, ids[1:, None]).mean() for x in (got, want)]
    return (got - want).abs().max().item(), (loss[0] - loss[1]).exp().item()


def fields(file):
    "What a file says"
    import gguf

    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}, reader


@pytest.mark.parametrize("name", FAMILY)
def test_own_widths(name, tmp_path):
    "Widths of their own in every layer; of the first at 200 positions"
    model = loud(FAMILY[name]())
    small = by_heads(model, units=0.6)
    file = save_gguf(small, tmp_path / "small.gguf", bytes_tokenizer(), "f32")
    told, _ = fields(file)
    assert told["general.architecture"] == "deci"
    assert len(set(told["deci.feed_forward_length"])) > 1
    far, ratio = apart(small, file, 200 if name == "llama" else 50)
    assert far < 1e-2
    assert abs(ratio - 1) < 5e-3


@pytest.mark.parametrize("gone", [0, 1, 3])
@pytest.mark.parametrize("kind", ["vo", "glu"])
def test_nothing_left(kind, gone, tmp_path):
    "A layer without attention, or without an MLP: the first, one between, the last"
    small = without(loud(llama()), {(gone, kind)})
    file = save_gguf(small, tmp_path / "small.gguf", bytes_tokenizer(), "f32")
    assert apart(small, file, 40)[0] < 1e-2


def test_layer_without_both(tmp_path):
    small = without(loud(llama()), {(0, "vo"), (2, "vo"), (2, "glu"), (3, "vo"), (3, "glu")})
    file = save_gguf(small, tmp_path / "small.gguf", bytes_tokenizer(), "f32")
    assert apart(small, file, 40)[0] < 1e-2


def test_uniform_is_llama(tmp_path):
    "Equal widths, and a dense model, need no lists"
    model = loud(llama())
    for m in (by_heads(model, uniform=True, units=0.6), model):
        file = save_gguf(m, tmp_path / "small.gguf", bytes_tokenizer(), "f32")
        told, _ = fields(file)
        assert told["general.architecture"] == "llama"
        assert isinstance(told["llama.attention.head_count"], int)
        assert apart(m, file, 60)[0] < 1e-2


def test_any_size_of_a_family(tmp_path):
    "One set of weights in one folder; members of two sizes, one of them repaired, as files"
    ids = torch.randint(2, VOCABULARY, (6, 2, 24), generator=torch.Generator().manual_seed(0))
    data = [(dict(input_ids=x), x) for x in ids]
    model = loud(llama())
    path = spp.search(model, data * 3, steps=8, heads="whole", progress=False)
    spp.joint(path, data, (1.0, 0.5), epochs=1, sizes=4, progress=False).save(tmp_path / "family")
    family = spp.Family.load(tmp_path / "family")
    for share, repair in ((0.8, None), (0.63, data)):
        options = repair and dict(progress=False)
        small = family.cut(params=share, repair=repair, repair_options=options)
        assert small.spp.got["params"] <= share
        file = save_gguf(small, tmp_path / f"{share}.gguf", bytes_tokenizer(), "f32")
        assert apart(small, file, 40)[0] < 1e-2


def test_types(tmp_path):
    """16 bits within rounding; bytes near, with rows filled up to blocks of 32.

    Half precision keeps three bits more than bfloat16: an eighth of its error. (Ten draws of the
    weights: .015 to .031, .10 to .35 and .32 to .68; the draws differ between processors.)
    """
    small = by_heads(loud(llama()), units=0.6)
    off = {}
    for dtype, most in (("f16", 0.05), ("bf16", 0.5), ("q8_0", 1.0)):
        file = save_gguf(small, tmp_path / "small.gguf", bytes_tokenizer(), dtype)
        told, reader = fields(file)
        off[dtype] = apart(small, file, 60)[0]
        assert off[dtype] < most, dtype
        kinds = {t.tensor_type.name for t in reader.tensors if len(t.shape) > 1}
        assert kinds == {dtype.upper()}
    assert 3 * off["f16"] < off["bf16"] < 24 * off["f16"]
    hidden = told["deci.feed_forward_length"]
    assert all(n % 32 == 0 for n in hidden)
    assert hidden != [w["hidden"] for w in small.spp.widths.values() if "hidden" in w]


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", "letters"])
def test_tokenizers(name, tmp_path):
    "llama.cpp splits a text into the same tokens: the next one is as after their ids"
    tokenizer = letters_tokenizer() if name == "letters" else bytes_tokenizer(name)
    model = loud(llama())
    file = save_gguf(model, tmp_path / "dense.gguf", tokenizer, "f32")
    engine = LlamaCpp(file)
    text = "the cat, that é" if name == "letters" else TEXT
    ids = tokenizer(text).input_ids
    by_ids = engine.next_token(ids, VOCABULARY)
    torch.testing.assert_close(engine.next_token(text, VOCABULARY), by_ids, rtol=0, atol=1e-3)
    told, _ = fields(file)
    assert told["tokenizer.ggml.bos_token_id"] == tokenizer.bos_token_id
    assert told["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert told.get("tokenizer.chat_template") == tokenizer.chat_template
    assert told["tokenizer.ggml.add_bos_token"] is False


def test_begins_with_a_token(tmp_path):
    "A text that the tokenizer begins with <s> is begun so by llama.cpp"
    from tokenizers.processors import TemplateProcessing

    tokenizer = bytes_tokenizer()
    both = dict(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**both)
    assert tokenizer(TEXT).input_ids[0] == 0
    file = save_gguf(loud(llama()), tmp_path / "dense.gguf", tokenizer, "f32")
    engine = LlamaCpp(file)
    by_ids = engine.next_token(tokenizer(TEXT).input_ids, VOCABULARY)
    torch.testing.assert_close(engine.next_token(TEXT, VOCABULARY), by_ids, rtol=0, atol=1e-3)


def narrowed_values():
    model = loud(llama())
    pairs = find_pairs(model)
    return cut(
        model,
        pairs,
        solve(torch.rand(sum(p.n for p in pairs)), pairs, unit_costs(model, pairs), units=0.7),
    )


REFUSED = {
    "narrow values": (narrowed_values, ValueError, 'heads="whole"'),
    "another activation": (lambda: llama(hidden_act="gelu"), ValueError, "silu"),
    "positions by length": (
        lambda: llama(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)),
        ValueError,
        "'dynamic'",
    ),
    "norms of queries": (
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SHAPE)),
        TypeError,
        "this is a Qwen3ForCausalLM",
    ),
    "no causal model": (lambda: torch.nn.Linear(2, 2), TypeError, "this is a Linear"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    "What the format cannot express is refused, and nothing is written"
    make, error, text = REFUSED[name]
    with pytest.raises(error, match=text):
        save_gguf(make(), tmp_path / "x.gguf", bytes_tokenizer())
    assert not list(tmp_path.iterdir())


def test_refused_besides(tmp_path):
    "Another softmax scale, a forward of one's own, values beyond 16 bits, a tokenizer that is none"
    file = tmp_path / "x.gguf"
    model = llama()
    model.model.layers[1].self_attn.scaling = 0.3
    with pytest.raises(ValueError, match="divides scores by"):
        save_gguf(model, file, bytes_tokenizer())
    model = llama()
    model.model.layers[1].mlp.forward = lambda x: x
    with pytest.raises(TypeError, match="mlp"):
        save_gguf(model, file, bytes_tokenizer())
    model = llama()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match="float16 cannot hold"):
        save_gguf(model, file, bytes_tokenizer())
    with pytest.raises(TypeError, match="fast tokenizer"):
        save_gguf(llama(), file, "gpt2")
    with pytest.raises(ValueError, match="dtype"):
        save_gguf(llama(), file, bytes_tokenizer(), "q4_k")
    odd = bytes_tokenizer()
    odd.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match="how this tokenizer splits text"):
        save_gguf(llama(), file, odd)
    with pytest.raises(ValueError, match="another model's"):
        save_gguf(
            hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE | dict(vocab_size=64))),
            file,
            bytes_tokenizer(),
        )
    assert not list(tmp_path.iterdir())


def test_replaces_only_its_own(tmp_path):
    "A file that somebody else's program wrote stays, also another GGUF; ours is replaced"
    import gguf

    model, tokenizer, file = llama(), bytes_tokenizer(), tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_string("general.name", "mine")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    for content in (file.read_bytes(), b"GGUF", b"hello", b""):
        file.write_bytes(content)
        with pytest.raises(FileExistsError, match="is not a model saved by spp for llama.cpp"):
            save_gguf(model, file, tokenizer)
        assert file.read_bytes() == content
    file.unlink()
    save_gguf(model, file, tokenizer)
    first = file.read_bytes()
    save_gguf(by_heads(model, units=0.5), file, tokenizer)
    assert file.read_bytes() != first
    assert [f.name for f in tmp_path.iterdir()] == ["x.gguf"]


def test_sliding_window_ends_the_context(tmp_path):
    file = save_gguf(mistral(), tmp_path / "x.gguf", bytes_tokenizer())
    assert fields(file)[0]["llama.context_length"] == 256


def test_public():
    assert spp.save_gguf is save_gguf
    assert vocabulary(bytes_tokenizer(), VOCABULARY).model == "gpt2"

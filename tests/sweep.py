"""The law on every class: tiny models of all that transformers and timm have, gated against cut

`python tests/sweep.py transformers` walks all, `… timm` the other library; names choose some, and
`1/4` every fourth. With `--to results/coverage.json`, each row is kept as soon as it is known, and
rows of the same revision are not made again. Prints a line for each class and the sums; the exit
status is 1 if a cut was wrong or crashed.
"""

import copy
import inspect
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm
import torch
import transformers as hf
from torch import nn
from transformers.models.auto import modeling_auto as auto

import spp
from spp.judging.evaluate import provenance
from spp.lab.records import read_record, write_record
from spp.models.pairs import skipped, split_units
from spp.models.proof import NOT_RUN, prove, without

HIDDEN, HEADS, WORDS, LARGEST = 64, 4, 61, 40_000_000

# --- small configurations -------------------------------------------------------------------

SIZES = {
    HIDDEN: "hidden_size d_model n_embd dim embed_dim hidden_dim encoder_hidden_size embedding_size"
    " decoder_hidden_size word_embed_proj_dim out_hidden_size embed_size width output_dim"
    " encoder_hidden_dim decoder_hidden_dim vision_hidden_size query_dim lru_width"
    " cross_attention_hidden_size output_hidden_size text_hidden_size audio_hidden_size",
    72: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner d_ff ffn_hidden_size"
    " mlp_dim encoder_intermediate_size decoder_intermediate_size dim_feedforward"
    " encoder_feedforward_dim conv_hidden_size block_ff_dim",
    96: "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx"
    " context_length",
    24: "projection_dim",
    40: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size",
    HEADS: "num_attention_heads encoder_attention_heads decoder_attention_heads n_head num_heads"
    " attention_heads n_heads decoder_num_attention_heads encoder_num_attention_heads"
    " num_experts num_local_experts n_routed_experts moe_num_experts num_cross_attention_heads"
    " num_self_attention_heads cross_attention_num_heads decoder_num_heads encoder_num_heads",
    8: "qk_nope_head_dim patch_size num_queries hidden_size_per_layer_input qk_rope_head_dim"
    " prediction_length feature_size",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth"
    " num_decoder_layers num_encoder_layers decoder_num_hidden_layers num_key_value_heads"
    " num_experts_per_tok type_vocab_size encoder_num_hidden_layers encoder_num_layers"
    " decoder_depth num_blocks decoder_num_layers l_layers x_layers r_layers num_kv_heads"
    " top_k moe_topk num_block_layers num_self_attends_per_block",
    16: "head_dim attention_head_size kv_channels v_head_dim kv_lora_rank q_lora_rank num_mel_bins",
    WORDS: "vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input"
    " encoder_vocab_size decoder_vocab_size",
    32: "image_size input_size img_size",
    6: "sliding_window",
    1: "n_group topk_group n_shared_experts first_k_dense_replace",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}
IDS = {"image_token_id": 57, "image_token_index": 57, "video_token_id": 56, "audio_token_id": 55}


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BACKBONE = dict(
    embedding_size=8, hidden_sizes=[8, 8, 8, 64], depths=[1] * 4, out_features=["stage4"]
)
HEAD_WIDTHS = ["head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_channels"]
OTHER = (
    {},
    {"num_key_value_heads": HEADS},
    dict.fromkeys(HEAD_WIDTHS),
    dict.fromkeys(HEAD_WIDTHS) | {"num_key_value_heads": HEADS},
    {"rope_parameters": ROPE},
    dict.fromkeys(("num_experts_per_tok", "sliding_window", "top_k")) | {"head_dim": 16},
    dict.fromkeys(("patch_size", "image_size", "num_channels")),
    dict.fromkeys(("num_blocks", "depths", "num_hidden_layers")),
    {"hidden_size": None, "embed_dim": None, "head_dim": None},
    {"use_timm_backbone": False, "use_pretrained_backbone": False}
    | {"backbone_config": {"model_type": "resnet", **BACKBONE}},
)  # other numbers to try, one after another; None: those of the default configuration


def _sizes(default, other):
    "Arguments that make a configuration small, given one with its own numbers"
    told, names = {}, vars(default)
    for name, old in names.items():
        own = default.attribute_map.get(name, name)
        if isinstance(old, bool) or own != name:
            continue
        if name in SMALL and isinstance(old, int):
            told[name] = SMALL[name]
        elif name in ("image_size", "img_size", "input_size") and isinstance(old, (list, tuple)):
            told[name] = type(old)([32] * len(old))
        elif name in ("depths", "num_blocks") and isinstance(old, (list, tuple)):
            told[name] = type(old)([1] * len(old))
        elif name == "prediction_length":
            told[name] = 8
        elif name.endswith(("token_id", "token_index")) and isinstance(old, int) and old >= WORDS:
            told[name] = IDS.get(name, 1)
    for name, x in other.items():
        if x is None:
            told.pop(name, None)
        elif name in names:
            told[name] = x
    for name in getattr(default, "sub_configs", None) or {}:
        inner = getattr(default, name, None)
        if isinstance(inner, hf.PreTrainedConfig) and name not in other:
            model_type = {"model_type": inner.model_type} if inner.model_type else {}
            told[name] = model_type | _sizes(inner, other)
    return told


def eager(
    config,  # changed
):
    "`config` with experts one after another: grouped products know no float64"
    for name in getattr(config, "sub_configs", None) or {}:
        if isinstance(inner := getattr(config, name, None), hf.PreTrainedConfig):
            eager(inner)
    config._experts_implementation = "eager"
    return config


def tiny(
    kind: type,  # a configuration class of transformers
    other: dict,  # numbers that differ from `SMALL`
) -> hf.PreTrainedConfig:  # with two layers of 64
    "A small configuration"
    told = _sizes(kind(), other)
    try:
        return eager(kind(**told))
    except Exception:
        plain = {k: v for k, v in told.items() if not isinstance(v, (dict, list, tuple))}
        if plain.keys() == told.keys():
            raise
        return eager(kind(**plain))


_SWIN = dict(
    image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
)
_GPTJ = dict(vocab_size=WORDS, n_embd=HIDDEN, n_layer=2, n_head=HEADS, rotary_dim=8)
_BOTH_SIDES = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
_BOTH_SIDES |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS)
_BOTH_SIDES |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 72)
FITTING = {
    "CodeGenForCausalLM": _GPTJ,
    "CodeGenModel": _GPTJ,
    "DonutSwinModel": _SWIN,
    "GPTJForCausalLM": _GPTJ,
    "GPTJModel": _GPTJ,
    "Speech2TextModel": _BOTH_SIDES
    | dict(vocab_size=WORDS, d_model=HIDDEN, input_feat_per_channel=16, conv_channels=32)
    | dict(max_source_positions=32, max_target_positions=96),
    "SpeechT5Model": _BOTH_SIDES | dict(vocab_size=WORDS, hidden_size=HIDDEN),
    "Swin2SRModel": {k: v for k, v in _SWIN.items() if k != "patch_size"},
    "SwinModel": _SWIN,
    "VivitModel": dict(image_size=32, num_frames=4, tubelet_size=[2, 8, 8], hidden_size=HIDDEN)
    | dict(num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=72),
    "XmodModel": dict(vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=2)
    | dict(num_attention_heads=HEADS, intermediate_size=72)
    | dict(languages=["en_XX"], default_language="en_XX"),
}  # configurations of classes whose numbers hang together
FEATURES = {
    "SpeechT5Model": dict(input_values=(2, 9, HIDDEN), decoder_input_values=(2, 5, HIDDEN)),
    "VivitModel": dict(pixel_values=(2, 4, 3, 32, 32)),
    "Wav2Vec2BertModel": dict(input_features=(2, 16, 160)),
}  # shapes of what they read, where it is not what their signature says


# --- inputs ---------------------------------------------------------------------------------


def inputs(
    model: nn.Module,  # of transformers
) -> dict:  # for two samples
    "What the model's signature asks for, random"
    takes = inspect.signature(type(model).forward).parameters
    g = torch.Generator().manual_seed(1)
    config, x = model.config, {}
    vision = getattr(config, "vision_config", config)
    ids = torch.randint(3, 50, (2, 9), generator=g)
    if "input_ids" in takes:
        x["input_ids"] = ids
        if "attention_mask" in takes:
            x["attention_mask"] = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    if "decoder_input_ids" in takes:
        x["decoder_input_ids"] = torch.randint(3, 50, (2, 5), generator=g)
    if "pixel_values" in takes:
        size = getattr(vision, "image_size", 32) or 32
        size = (size, size) if isinstance(size, int) else tuple(size)[-2:]
        x["pixel_values"] = torch.randn(2, getattr(vision, "num_channels", 3) or 3, *size)
    mels = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 16
    if "grid_thw" in takes or "image_grid_thw" in takes:
        name = "hidden_states" if "hidden_states" in takes else "pixel_values"
        patch = getattr(config, "patch_size", 8)
        times = getattr(config, "temporal_patch_size", 1)
        channels = getattr(config, "in_channels", None) or getattr(config, "num_channels", 3)
        if "grid_thw" in takes:
            x[name] = torch.randn(16, channels * times * patch * patch, generator=g)
            x["grid_thw"] = torch.tensor([[1, 4, 4]])
    if "pixel_values_videos" in takes:
        x["pixel_values_videos"] = torch.randn(2, 4, 3, 32, 32, generator=g)
    if "query_embeds" in takes and "input_ids" not in takes:
        x["query_embeds"] = torch.randn(2, 4, HIDDEN, generator=g)
        x["encoder_hidden_states"] = torch.randn(2, 5, HIDDEN, generator=g)
    if "inputs_embeds" in takes and "input_ids" not in takes:
        x["inputs_embeds"] = torch.randn(2, 9, HIDDEN, generator=g)
    if "input_features_mask" in takes:
        x["input_features_mask"] = torch.ones(2, 64, dtype=torch.long)
    if "padding_mask" in takes and "input_values" in takes:
        x["padding_mask"] = torch.ones(2, 2000, dtype=torch.long)
    if "input_features" in takes:
        places = getattr(config, "max_source_positions", None)
        length = 2 * places if places else 64
        shape = (2, mels, length) if places else (2, length, mels)
        x["input_features"] = torch.randn(shape, generator=g)
    if "input_values" in takes and "input_ids" not in takes:
        x["input_values"] = torch.randn(2, 2000, generator=g)
    if "bbox" in takes:
        x["bbox"] = torch.randint(0, 40, (2, 9, 4), generator=g).sort(-1).values
    if "past_values" in takes:
        length = getattr(config, "context_length", 32)
        x["past_values"] = torch.randn(2, length, getattr(config, "num_input_channels", 1) or 1)
    if "visual_feats" in takes:
        x["visual_feats"] = torch.randn(2, 4, config.visual_feat_dim, generator=g)
        x["visual_pos"] = torch.rand(2, 4, config.visual_pos_dim, generator=g)
    if "use_cache" in takes or model.can_generate():
        x["use_cache"] = False
    return x


def _variants(model, x):
    "`x`, and what is left of it if a model of more than one input takes only some"
    yield x
    for drop in (
        ("attention_mask",),
        ("pixel_values",),
        ("pixel_values", "attention_mask"),
        ("pixel_values", "pixel_values_videos"),
        ("pixel_values_videos", "input_ids", "attention_mask"),
        ("pixel_values", "pixel_values_videos", "input_features"),
        ("use_cache",),
        ("pixel_values", "use_cache"),
        ("input_ids", "attention_mask"),
        ("input_ids", "attention_mask", "use_cache"),
        ("input_features",),
    ):
        if x.keys() & set(drop):
            yield {k: v for k, v in x.items() if k not in drop}
    if "input_features" in x:
        yield {**x, "input_features": x["input_features"].transpose(1, 2)}
    if "pixel_values" in x:
        yield {**x, "pixel_values": x["pixel_values"][:, None].repeat(1, 2, 1, 1, 1)}
        rest = {k: v for k, v in x.items() if k != "pixel_values"}
        yield {"pixel_values": torch.randn(2, 3, 64, 64)} | rest
        yield {"pixel_values": torch.randn(2, 16, 3, 32, 32)}
    if "input_values" in x:
        yield {**x, "input_values": x["input_values"][:, None]}
        yield {"input_values": x["input_values"]}


def randomised(
    model: nn.Module,  # changed
    seed: int = 0,
) -> nn.Module:  # in evaluation mode
    "`model` with parameters so large that every unit shows, and scales about 1"
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            one = p.dim() == 1 and "bias" not in name and p.mean() > 0.5
            size = 1.2 / p.shape[-1] ** 0.5 if p.dim() > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=g) * size + float(one))
    return model.eval()


# --- outputs --------------------------------------------------------------------------------


def flat(
    y,  # what a model returned
    place: str = "",
) -> dict[str, torch.Tensor]:  # the tensors of floating point in it
    "All numbers of an output, by their place in it; caches and attention weights are left out"
    if isinstance(y, torch.Tensor):
        return {place: y} if y.is_floating_point() else {}
    if "cache" in type(y).__name__.lower() or "attentions" in place or "past" in place:
        return {}
    if hasattr(y, "items"):
        inner = y.items()
    elif isinstance(y, (list, tuple)):
        inner = enumerate(y)
    else:
        return {}
    return {k: v for a, b in inner for k, v in flat(b, f"{place}.{a}").items()}


def distance(
    a,  # an output
    b,  # another
) -> float:  # relative to the largest number; infinity if they do not match
    "The largest difference of two outputs"
    a, b, worst = flat(a), flat(b), 0.0
    if a.keys() != b.keys():
        return float("inf")
    for name, x in a.items():
        y = b[name]
        if x.shape != y.shape or not torch.equal(x.isfinite(), y.isfinite()):
            return float("inf")
        x, y = x[x.isfinite()], y[y.isfinite()]
        if x.numel():
            worst = max(worst, float((x - y).abs().max() / x.abs().max().clamp(min=1)))
    return worst


# --- masks and runs -------------------------------------------------------------------------


def masks(pairs):
    "Masks that have gone wrong somewhere, by name"
    g = torch.Generator().manual_seed(0)
    n = sum(p.n for p in pairs)
    mask = torch.rand(n, generator=g) < 0.5
    for i, part in enumerate(split_units(mask, pairs)):
        if len(part) > 1:
            part[i % len(part)] = False
    yield "uneven, a head off", mask
    yield "nothing", torch.zeros(n, dtype=torch.bool)
    mask = torch.ones(n, dtype=torch.bool)
    for part in split_units(mask, pairs):
        part[-1, -1] = False
    yield "one unit off", mask
    mask = torch.rand(n, generator=g) < 0.6
    for p, part in zip(pairs, split_units(mask, pairs)):
        if p.site == pairs[0].site:
            part.zero_()
    yield "nothing in the first layer", mask


def _call(model, x):
    torch.manual_seed(1)
    return model(**x) if isinstance(x, dict) else model(x)


def _cached(model, x):
    "The second half of a text, after the first half went into a cache"
    ids = x["input_ids"]
    y = _call(model, {"input_ids": ids[:, :5], "use_cache": True})
    z = _call(
        model, {"input_ids": ids[:, 5:], "past_key_values": y.past_key_values, "use_cache": True}
    )
    return {"first": flat(y), "second": flat(z)}


@dataclass
class Row:
    "What came of one class"

    name: str  # of the class
    status: str = ""  # held, left alone, wrong, crash, late, no model, no input
    note: str = ""  # an error, or the reasons
    kinds: dict = field(default_factory=dict)  # class and kind of the cut layers → how many
    left: dict = field(default_factory=dict)  # reason → how often
    refused: list = field(default_factory=list)  # what the proof said of layers that failed it
    worst: float = 0.0  # largest relative difference
    attends: bool = False  # does the model hold an attention layer of whatever kind?
    seconds: float = 0.0

    def __str__(self):
        kinds = ", ".join(f"{k} {n}" for k, n in self.kinds.items())
        left = "; ".join(f"{n} × {why}" for why, n in self.left.items())
        return f"{self.name} | {self.status} | {self.worst:.0e} | {kinds} | {self.note} | {left}"


def attends(
    model: nn.Module,  # any model
) -> bool:  # yes or no
    "Does a model hold an attention layer, whatever its kind?"
    kinds = {type(m).__name__.lower() for m in model.modules()}
    return any("attention" in x or "attn" in x or x.endswith("mla") for x in kinds)


def _why(e):
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text[:160]}"


def law(
    row: Row,  # filled
    model: nn.Module,  # in float64
    x,  # its input, of float64
    pairs: list,  # its pairs
) -> None:
    "Compare gated with cut for all masks, with and without a cache"
    runs = {"": _call}
    if isinstance(x, dict) and "use_cache" in x and "input_ids" in x:
        try:
            _cached(model, x)
            runs["with a cache"] = _cached
        except Exception:
            pass  # a dense model that does not do that is not tested so
    for name, mask in masks(pairs):
        try:
            small = spp.cut(model, pairs, mask, batch=x)
        except Exception as e:
            row.status, row.note = "crash", f"cut, {name}: {_why(e)}"
            return
        for how, run in runs.items():
            with spp.gated(model, pairs, mask.double()):
                want = run(model, x)
            try:
                got = run(small, x)
            except Exception as e:
                row.status, row.note = "crash", f"{name} {how}: {_why(e)}"
                return
            row.worst = max(row.worst, distance(want, got))
            if row.worst > 1e-6:  # some classes compute norms in float32
                row.status, row.note = "wrong", f"{name} {how}"
                return


def double(
    x,  # inputs
):
    "`x` with images and the like in float64"
    if isinstance(x, dict):
        return {k: double(v) for k, v in x.items()}
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def _not_run(why):
    "Did a layer fail its proof only because the input does not reach it?"
    return why.endswith(NOT_RUN)


def examined(
    row: Row,  # filled
    model: nn.Module,  # random
    tries,  # inputs, of which the first that runs is taken
) -> None:
    "Find the pairs of a model and test the law on it"
    model = model.double()
    row.attends = attends(model)
    try:
        pairs = spp.find_pairs(model)
    except TypeError:
        row.status, row.left = "left alone", dict(Counter(skipped(model).values()))
        return
    first = None
    for x in tries:
        x = double(x)
        try:
            with torch.no_grad():
                y = flat(_call(model, x)).values()
            if y and all(v.isfinite().double().mean() > 0.5 for v in y if v.numel()):
                break
        except Exception as e:
            first = first or e
    else:
        row.status, row.note = "no input", _why(first) if first else "nothing finite"
        return
    pairs = spp.find_pairs(model)  # again: a first run may change a model (BigBird)
    failed = prove(model, pairs, lambda m: next(iter(flat(_call(m, x)).values())))
    row.refused = list(failed.values())
    pairs = []
    with suppress(TypeError):  # nothing is left
        pairs = without(model, spp.find_pairs(model), failed)
    if not pairs:
        row.status = "left alone"
    kinds = (f"{type(model.get_submodule(p.site)).__name__}:{p.kind}" for p in pairs)
    row.kinds = {} if row.status else dict(Counter(kinds))
    row.left = dict(Counter([*skipped(model).values(), *filter(_not_run, failed.values())]))
    if not row.status:
        with torch.no_grad():
            law(row, model, x, pairs)
    row.status = row.status or "held"


class _Late(BaseException):
    "The time for a class is over; no other handler of errors takes it"


@contextmanager
def _within(seconds):
    "Raise `_Late` after some seconds of work; those of other processes do not count"

    def late(*_):
        raise _Late(f"more than {seconds} s")

    old = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def _made(row, kind, other):
    "The law on a small model of class `kind`"
    if row.name in FITTING:
        config = eager(kind.config_class(**FITTING[row.name]))
    else:
        config = tiny(kind.config_class, other)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million parameters")
    model = randomised(kind(config))
    given = inputs(model)
    if row.name in FEATURES:
        g = torch.Generator().manual_seed(1)
        given = {k: torch.randn(x, generator=g) for k, x in FEATURES[row.name].items()}
    examined(row, model, _variants(model, given))


def one(
    name: str,  # of a model class of transformers
    seconds: int = 40,  # after which it is given up
) -> Row:  # what came of it
    "The law on one class of transformers"
    row, start = Row(name), time.time()
    try:
        with _within(seconds):
            torch.manual_seed(0)
            kind = getattr(hf, name)
            for other in OTHER:
                was = row
                row = Row(name)
                try:
                    _made(row, kind, other)
                except Exception as e:
                    row.status, row.note = "no model", _why(e)
                if row.status not in ("no model", "no input") or "million" in row.note:
                    break
                if was.status == "no input":
                    row = was
    except _Late as e:
        row.status, row.note = "late", _why(e)
    except Exception as e:
        row.status, row.note = row.status or "no model", _why(e)
    row.seconds = time.time() - start
    return row


def names() -> list[str]:  # sorted
    "The classes that transformers' AutoModel and AutoModelForCausalLM make"
    found = set()
    for mapping in (auto.MODEL_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        for value in mapping.values():
            found |= {value} if isinstance(value, str) else set(value)
    return sorted(found)


SMALLEST = [
    "atto",
    "femto",
    "pico",
    "nano",
    "xxtiny",
    "xxs",
    "xx",
    "tiny",
    "ti",
    "xs",
    "small",
    "s",
]


def timm_names() -> list[str]:  # sorted
    "A small variant of each of timm's families, by their names"
    out = []
    for module in timm.list_modules():
        every = [x for x in timm.list_models(module=module) if not x.startswith("test_")]

        def size(name):
            words = [w.rstrip("0123456789") for w in name.split("_")]
            rank = [SMALLEST.index(w) for w in words if w in SMALLEST]
            return min(rank, default=len(SMALLEST)), len(name)

        out += sorted(every, key=size)[:1]
    return sorted(out)


SMALLER = (
    dict(depth=2, img_size=64),
    dict(depths=(1, 1, 1, 1), img_size=128),
    dict(depth=2),
    dict(img_size=64),
    {},
)  # arguments of a model of timm, of which the first that it can be made and run with are taken


def one_of_timm(
    name: str,  # of a model of timm
    seconds: int = 60,  # after which it is given up
) -> Row:  # what came of it
    "The law on one model of timm, with few blocks and a small image as far as it takes them"
    row, start = Row(name, "no model"), time.time()
    try:
        with _within(seconds):
            for few in SMALLER:
                torch.manual_seed(0)
                try:
                    model = timm.create_model(name, num_classes=7, **few)
                except (TypeError, AssertionError, RuntimeError, ValueError) as e:
                    row.note = row.note or _why(e)
                    continue
                row = Row(name)
                size = model.pretrained_cfg.get("input_size", (3, 224, 224))
                own = getattr(getattr(model, "patch_embed", None), "img_size", None) or size[1:]
                examined(row, randomised(model), [torch.randn(2, 3, *own)])
                if row.status != "no input":
                    break
    except _Late as e:
        row.status, row.note = "late", _why(e)
    except Exception as e:
        row.status, row.note = row.status or "no model", _why(e)
    row.seconds = time.time() - start
    return row


# --- sums and files -------------------------------------------------------------------------


def has_both(
    row: Row,  # of a class
) -> bool:  # yes or no
    "Are pairs of attention and of an MLP found in it?"
    kinds = {k.rpartition(":")[2] for k in row.kinds}
    return "vo" in kinds and bool(kinds & {"mlp", "glu"})


def runs(
    row: Row,  # of a class
) -> bool:  # yes or no
    "Could a small model of the class be made and run?"
    return row.status in ("held", "left alone", "wrong", "crash")


def sums(
    rows: list[Row],  # of all classes
) -> dict[str, int]:  # what → how many classes
    "How many classes run, attend, are found, wrong"
    attending = [row for row in rows if runs(row) and row.attends]
    return dict(
        classes=len(rows),
        run=sum(map(runs, rows)),
        attend=len(attending),
        both=sum(map(has_both, attending)),
        either=sum(bool(row.kinds) for row in attending),
        **{s: sum(r.status == s for r in rows) for s in ("held", "left alone", "wrong", "crash")},
    )


def summary(
    rows: list[Row],  # of all classes
) -> str:  # some lines
    "How many classes were found, left, wrong"
    counts = ", ".join(f"{n} {s}" for s, n in Counter(r.status for r in rows).most_common())
    n = sums(rows)
    share = f" ({n['both'] / n['attend']:.1%})" if n["attend"] else ""
    return (
        f"{len(rows)} classes: {counts}\n{n['attend']} of those that run have an attention;"
        f" it and an MLP are found in {n['both']}{share}, either in {n['either']}"
    )


class Kept:
    "Rows in a file of a record, by package and class"

    def __init__(self, file: Path | None, package: str):
        self.file, self.package = file, package
        there = read_record(file) if file and file.exists() else {}
        self.all = there.get("rows", {})
        self.rows = self.all.setdefault(package, {})
        self.told = provenance(0, 0.0, {"package": package})
        self.told["versions"]["transformers"] = hf.__version__

    def get(self, name: str) -> Row | None:
        "The row of a class, if this revision made it"
        row = dict(self.rows.get(name, {}))
        same = row.pop("revision", None) == self.told["revision"]
        return Row(**row) if same else None

    def put(self, row: Row) -> None:
        "Keep a row, and the sums of all"
        self.rows[row.name] = asdict(row) | {"revision": self.told["revision"]}
        if self.file is None:
            return
        rows = {lib: dict(sorted(x.items())) for lib, x in self.all.items()}
        known = {lib: [_row(x) for x in every.values()] for lib, every in rows.items()}
        self.told["seconds"] = round(sum(r.seconds for x in known.values() for r in x), 1)
        of_all = {lib: sums(x) for lib, x in known.items()}
        write_record(self.file, self.told | {"sums": of_all, "rows": rows})


def _row(told):
    return Row(**{k: v for k, v in told.items() if k != "revision"})


def _chosen(every, chosen):
    "Those of all names that an argument of the command line asks for"
    if chosen and chosen[0][0].isdigit():
        i, n = map(int, chosen[0].split("/"))
        return every[i::n]
    return chosen or every


def main(argv):
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    library, *chosen = argv
    file = None
    if "--to" in chosen:
        i = chosen.index("--to")
        file = Path(chosen[i + 1])
        del chosen[i : i + 2]
    every, look = (names(), one) if library == "transformers" else (timm_names(), one_of_timm)
    kept, rows = Kept(file, library), []
    for name in _chosen(every, chosen):
        row = kept.get(name)
        if row is None:
            row = look(name)
            kept.put(row)
            print(row, f"| {row.seconds:.1f} s", flush=True)
        rows.append(row)
    print(summary(rows))
    return int(any(row.status in ("wrong", "crash") for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"Models and paths on disk: round trips in a fresh process, damage, folders that hold something else"

import json
import os
import subprocess
import sys
import warnings

import open_clip
import pytest
import torch
import transformers
from families import FAMILIES, TEXT, VISION, out, randomised, to

from spp import SolutionPath, cut, find_pairs, load, save, save_pretrained, search


def halved(model):
    pairs = find_pairs(model)
    return cut(
        model,
        pairs,
        torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0)) < 0.5,
    )


def test_fresh_process(family, tmp_path):
    "Loaded elsewhere, the model gives equal bits"
    model, x = family
    small = halved(model)
    save(small, tmp_path / "m")
    torch.save({"x": x, "y": out(small, x)}, tmp_path / "xy.pt")
    code = (
        f"import spp, torch; d = torch.load({str(tmp_path / 'xy.pt')!r}, weights_only=True); m = spp.load({str(tmp_path / 'm')!r})\n"
        "from spp.method.objective import answer\nassert torch.equal(answer(m, d['x']).out, d['y']); print(m.spp)"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.strip() == str(small.spp)


def test_dense_and_half(family, tmp_path):
    model, x = family
    model = model.bfloat16()
    x = to(x, torch.bfloat16)
    assert torch.equal(out(load(save(model, tmp_path / "dense")), x), out(model, x))
    small = halved(model)
    back = load(save(small, tmp_path / "small"))
    assert (
        torch.equal(out(back, x), out(small, x))
        and sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in small.parameters())
        and next(back.parameters()).dtype == torch.bfloat16
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_fewer_bytes(family, tmp_path, dtype):
    "Every matrix within half a step of what it was, in the type it had; vectors, buffers and ties exactly"
    model, x = family
    small = halved(model)
    back = load(save(small, tmp_path / "m", dtype=dtype))
    header = json.loads((tmp_path / "m/spp.json").read_text())
    told = header["rounded"]
    state = small.state_dict()
    assert state.keys() == back.state_dict().keys() and told and set(told.values()) == {"float32"}
    for name, b in back.state_dict().items():
        a = state[name]
        assert a.dtype == b.dtype and a.shape == b.shape
        if header["tied"].get(name, name) not in told:
            assert torch.equal(a, b), name
        elif a.numel():

            def rows(t):
                return t.reshape(next((n for n in t.shape if n > 1), 1), -1)

            step = (
                rows(a).abs().amax(1, keepdim=True) / 127
                if dtype == torch.int8
                else rows(a).abs().clamp(min=torch.finfo(dtype).smallest_normal)
                * torch.finfo(dtype).eps
            )
            assert ((rows(a) - rows(b)).abs() <= 0.5 * step * (1 + 1e-5)).all(), name
    assert (
        len({p.data_ptr() for p in back.parameters() if p.numel()})
        == len({p.data_ptr() for p in small.parameters() if p.numel()})
        and out(back, x).isfinite().all()
    )
    assert sum(f.stat().st_size for f in (tmp_path / "m").iterdir()) < sum(
        f.stat().st_size for f in save(small, tmp_path / "full").iterdir()
    )


def test_a_bfloat16_model_in_bytes(small, tmp_path):
    model, batches = small
    model, x = model.bfloat16(), batches[0][0].bfloat16()
    back = load(save(model, tmp_path / "m", dtype=torch.int8))
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16} and not torch.equal(
        back(x), model(x)
    )
    save(model, tmp_path / "m", dtype=torch.float16)
    assert json.loads((tmp_path / "m/spp.json").read_text())["rounded"] == {}


@pytest.mark.parametrize(
    "tower",
    [
        {},
        dict(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=5),
        dict(layers=[1, 1, 1, 1], width=16, head_width=32),
        dict(timm_model_name="test_vit", image_size=160, timm_pool="token"),
    ],
)
def test_clip_by_name(tmp_path, tower):
    "What create_model made of a configuration is loaded with its preprocessing"
    (tmp_path / "small-clip.json").write_text(
        json.dumps(dict(embed_dim=24, vision_cfg=VISION | tower, text_cfg=TEXT))
    )
    open_clip.add_model_config(tmp_path)
    model = randomised(open_clip.create_model("small-clip", output_dict=True))
    x = FAMILIES["open_clip_mha"]()[1] | (
        {"image": torch.randn(3, 3, 160, 160)} if "image_size" in tower else {}
    )
    small = halved(model)
    back = load(save(small, tmp_path / "m"))
    assert (
        torch.equal(out(back, x), out(small, x))
        and back.visual.preprocess_cfg == model.visual.preprocess_cfg
        and back.visual.image_mean == model.visual.image_mean
    )
    assert type(back(**x)) is dict


def test_a_clip_that_cannot_be_described(tmp_path):
    "It is cut, but saving says why it could not be loaded"
    model, x = FAMILIES["open_clip_others"]()
    model.visual.trunk = torch.nn.Identity()
    small = halved(model)
    with pytest.raises(
        TypeError, match="could not be made again: its image tower is timm's Identity"
    ):
        save(small, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_cut_again_and_saved(family, tmp_path):
    "A cut of a cut is saved with the description of the first model"
    model, x = family
    twice = halved(halved(model))
    assert torch.equal(out(load(save(twice, tmp_path / "twice")), x), out(twice, x))


def test_saving_again_replaces(small, tmp_path):
    model, _ = small
    a = halved(model)
    save(a, tmp_path / "m")
    save(model, tmp_path / "m")
    assert not hasattr(load(tmp_path / "m"), "spp") and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["m"]


@pytest.mark.parametrize("what", ["truncated", "altered", "json"])
def test_damaged_model(small, tmp_path, what):
    model, _ = small
    save(halved(model), tmp_path / "m")
    f = tmp_path / "m" / ("spp.json" if what == "json" else "model.safetensors")
    b = bytearray(f.read_bytes())
    if what == "truncated":
        b = b[: len(b) // 2]
    elif what == "altered":
        b[-100] ^= 1
    else:
        b = b.replace(b'"head_dim": ', b'"head_dim": 1', 1)
    f.write_bytes(bytes(b))
    with pytest.raises(ValueError, match="is truncated|was altered"):
        load(tmp_path / "m")


@pytest.mark.parametrize("what", ["truncated", "altered", "not ours"])
def test_damaged_path(small, tmp_path, what):
    model, data = small
    search(model, data, steps=5).save(f := tmp_path / "a.path")
    b = bytearray(f.read_bytes())
    if what == "truncated":
        b = b[:-7]
    elif what == "altered":
        b[-7] ^= 1
    else:
        b = bytearray(b"PK\x03\x04 something else altogether")
    f.write_bytes(bytes(b))
    with pytest.raises(
        ValueError, match="truncated or no safetensors file|was altered after it was written"
    ):
        SolutionPath.load(f)


def test_other_kind_of_file(small, tmp_path):
    model, _ = small
    save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="holds a model saved by spp, expected a solution path"):
        SolutionPath.load(tmp_path / "m" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a solution path"):
        SolutionPath.load(tmp_path / "none.path")
    with pytest.raises(FileNotFoundError, match="holds no spp.json"):
        load(tmp_path)


def test_foreign_folder(small, tmp_path):
    model, _ = small
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt, not a model saved by spp"):
        save(model, tmp_path / "x")
    assert (tmp_path / "x" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"):
        save(model, tmp_path / "x" / "notes.txt")
    save(model, tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")  # ours, with a file of somebody's in it
    with pytest.raises(FileExistsError, match="holds notes.txt"):
        save(model, tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_old_one(small, tmp_path, monkeypatch):
    model, data = small
    save(model, tmp_path / "m")
    x = data[0][0]
    want = model(x)

    def full(*a, **k):
        raise OSError("No space left on device")

    monkeypatch.setattr(sys.modules["spp.cut"], "save_tensors", full)  # `spp.cut` is the function
    with pytest.raises(OSError):
        save(halved(model), tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(x), want) and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["m"]


def test_what_could_not_be_rebuilt_is_not_saved(small, tmp_path):
    model, _ = small
    model.blocks[0].mlp.act = torch.nn.Tanh()
    with pytest.raises(TypeError, match="would not be the same when loaded: `blocks.0.mlp.act`"):
        save(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_path_round_trip(small, tmp_path):
    model, data = small
    path = search(model, data, steps=12, method="plain")
    path.save(tmp_path / "a.path")
    back = SolutionPath.load(tmp_path / "a.path", model)
    assert (
        repr(back) == repr(path)
        and back.history == path.history
        and torch.equal(back.entered, path.entered)
    )
    assert torch.equal(back.cut(units=0.4)(data[0][0]), path.cut(units=0.4)(data[0][0]))


# ---- for transformers

HF = [k for k in FAMILIES if k.startswith("hf_")]


def evenly(pairs):
    "A mask that takes from each layer what the stock class can have less of: half of the groups, other ones in each layer, or all but 24 units"
    g, out = torch.Generator().manual_seed(0), []
    for p in pairs:
        m = torch.full((p.groups, p.size), p.stock == "")
        if p.stock == "groups":
            m[torch.randperm(p.groups, generator=g)[: -(-p.groups // 2)]] = True
        if p.stock == "units":
            m[:, torch.randperm(p.size, generator=g)[:24]] = True
        out.append(m.flatten())
    return torch.cat(out)


@pytest.mark.parametrize("name", HF)
def test_even_cut_is_a_stock_model(name, tmp_path):
    "Cut alike in all layers, a model is loaded by its own class with other numbers, and by spp to equal bits; both can be saved and cut again"
    model, x = FAMILIES[name]()
    pairs = find_pairs(randomised(model))
    small = cut(model, pairs, evenly(pairs))
    y, config = out(small, x), model.config.to_dict()
    assert {p.stock for p in pairs if p.kind in ("mlp", "glu")} == {"units"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(small, tmp_path / "m")
        save_pretrained(small, tmp_path / "m")
    assert small.config.to_dict() == config  # saving changed nothing
    stock = type(model).from_pretrained(tmp_path / "m", **small.spp.build["options"])
    assert {type(m).__module__.partition(".")[0] for m in stock.modules()} <= {
        "torch",
        "transformers",
    } and sum(p.numel() for p in stock.parameters()) == small.spp.params[0] < small.spp.params[1]
    assert (out(stock, x) - y).abs().max() <= 1e-6 * max(1, y.abs().max())
    back = load(tmp_path / "m")
    assert torch.equal(out(back, x), y) and str(back.spp) == str(small.spp)
    assert torch.equal(out(load(save(back, tmp_path / "ours")), x), y)
    twice = halved(back)
    with pytest.warns(UserWarning, match="only spp.load can read this model"):
        save_pretrained(twice, tmp_path / "twice")
    assert torch.equal(out(load(tmp_path / "twice"), x), out(twice, x))


@pytest.mark.parametrize("name", ["hf_llama", "hf_opt", "hf_bert"])
def test_even_cut_without_spp(name, tmp_path):
    "A process in which spp cannot be imported loads the folder"
    model, x = FAMILIES[name]()
    pairs = find_pairs(randomised(model))
    small = cut(model, pairs, evenly(pairs))
    save_pretrained(small, tmp_path / "m")
    torch.save({"x": x, "y": out(small, x)}, tmp_path / "xy.pt")
    code = (
        f"import sys; sys.modules['spp'] = None\nimport torch, transformers; d = torch.load({str(tmp_path / 'xy.pt')!r}, weights_only=True)\n"
        f"m = transformers.{'AutoModelForCausalLM' if model.can_generate() else 'AutoModel'}.from_pretrained({str(tmp_path / 'm')!r})\ny = m(**d['x'])\n"
        f"assert (y.{'logits' if model.can_generate() else 'last_hidden_state'} - d['y']).abs().max() <= 1e-6, y"
    )
    r = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"},
    )
    assert r.returncode == 0, r.stderr


@pytest.mark.parametrize("name", HF)
def test_uneven_cut_for_transformers(name, tmp_path):
    "What the stock class cannot be is said, described layer by layer, and loaded by spp to equal bits"
    model, x = FAMILIES[name]()
    small = halved(randomised(model))
    y = out(small, x)
    with pytest.warns(
        UserWarning,
        match=rf"only spp.load can read this model, the class {type(model).__name__} cannot. .*(but not in layers \d|no number for all layers makes `)",
    ):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(out(load(tmp_path / "m"), x), y)
    told = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    dense = model.config
    for part in [p for p in dense.sub_configs] or [""]:
        c, n = (getattr(told, part), getattr(dense, part)) if part else (told, dense)
        prefix = f"{part.partition('_')[0]}_model." if part else ""
        for i, layer in enumerate(c.per_layer_config):
            w = next(
                w
                for s, w in small.spp.widths.items()
                if f".{i}." in f".{s}." and s.startswith(prefix) and "heads" in w
            )
            assert layer.num_attention_heads == w["heads"] and n.num_hidden_layers == len(
                c.per_layer_config
            )
    with pytest.raises(Exception):
        type(model).from_pretrained(tmp_path / "m")  # better no model than a wrong one


@pytest.mark.parametrize(
    "name,text",
    [
        ("hf_bert", "no number for all layers makes `encoder.layer.0.attention.self"),
        ("hf_llama", "no number for all layers makes `model.layers.0.self_attn.v_proj`"),
    ],
)
def test_even_but_narrow_heads(name, text, tmp_path):
    "Widths that are the same in all layers but that no number stands for"
    model, x = FAMILIES[name]()
    pairs = find_pairs(randomised(model))
    small = cut(
        model, pairs, torch.cat([torch.arange(p.size).lt(8).repeat(p.groups) for p in pairs])
    )
    with pytest.warns(UserWarning, match=text):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(out(load(tmp_path / "m"), x), out(small, x))


def test_numbers_that_a_class_refuses(tmp_path):
    "Llama wants a number of heads that divides hidden_size; it is not asked to be what it cannot"
    model = randomised(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=61,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
            )
        )
    )
    pairs = find_pairs(model)
    small = cut(
        model,
        pairs,
        torch.cat(
            [
                (torch.arange(p.groups * p.size) < p.size * 3).float()
                if p.kind == "vo"
                else torch.ones(p.n)
                for p in pairs
            ]
        ),
    )
    x = torch.arange(5)[None]
    with pytest.warns(
        UserWarning,
        match=r"LlamaForCausalLM cannot be made from the numbers of this cut: .*hidden size \(32\) is not a multiple of the number of attention heads \(3\)",
    ):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(x).logits, small(x).logits)


def test_saving_for_transformers_where_something_is(tmp_path):
    model, x = FAMILIES["hf_llama"]()
    pairs = find_pairs(randomised(model))
    small = cut(model, pairs, evenly(pairs))
    model.save_pretrained(tmp_path / "theirs")  # a checkpoint of somebody's
    with pytest.raises(
        FileExistsError, match="holds config.json, .*not a model saved by spp for transformers"
    ):
        save_pretrained(small, tmp_path / "theirs")
    save_pretrained(small, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds tokenizer.json"):
        save_pretrained(small, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    y = out(small, x)

    def full(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    small.save_pretrained = full  # a failed save leaves the old one
    with pytest.raises(OSError):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(out(load(tmp_path / "m"), x), y) and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["m", "theirs"]
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="lacks config.json"):
        load(tmp_path / "m")


def test_how_to_generate_is_kept(tmp_path):
    model, x = FAMILIES["hf_gpt2"]()
    model.generation_config.max_new_tokens = 3
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    small = halved(randomised(model))
    ids = x["input_ids"]
    for back in (load(save(small, tmp_path / "m")),):
        assert back.generation_config.max_new_tokens == 3 and torch.equal(
            back.generate(ids, do_sample=False), small.generate(ids, do_sample=False)
        )


def test_parameters_that_not_every_model_of_a_class_has(tmp_path):
    "A mask token is described; a parameter that cannot be is not lost in silence"
    model = randomised(
        transformers.ViTModel(
            FAMILIES["hf_vit"]()[0].config, add_pooling_layer=False, use_mask_token=True
        )
    )
    x = FAMILIES["hf_vit"]()[1]
    small = halved(model)
    back = load(save(small, tmp_path / "m"))
    assert torch.equal(out(back, x), out(small, x)) and torch.equal(
        back.embeddings.mask_token, model.embeddings.mask_token
    )
    small.layernorm.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(TypeError, match="`layernorm.extra` is only in it. Save its state_dict"):
        save(small, tmp_path / "n")

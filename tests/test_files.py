"Models and paths on disk: round trips in a new process, damage, folders that hold other things"

import json
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
import transformers
from command import python
from families import FAMILIES, TEXT, VISION, out, randomised, to

import spp.cutting.files
from spp import SolutionPath, cut, find_pairs, load, save, save_pretrained, search


def random_half(pairs):
    "A mask with a random half of all units"
    g = torch.Generator().manual_seed(0)
    return torch.rand(sum(p.n for p in pairs), generator=g) < 0.5


def halved(model):
    "`model` with a random half of its units"
    pairs = find_pairs(model)
    return cut(model, pairs, random_half(pairs))


def output(code, *args, **kw):
    "Run `code` in a new process; its output"
    r = python("-c", code, *args, **kw)
    assert r.returncode == 0, r.stderr
    return r.stdout


FRESH = """
import sys
import torch
import spp
from spp.method.objective import answer
for folder in sys.argv[1:]:
    told = torch.load(f"{folder}.pt", weights_only=True)
    model = spp.load(folder)
    assert torch.equal(answer(model, told["x"]).out, told["y"]), folder
    assert str(model.spp) == told["report"], folder
print("all")
"""


def check_fresh_process(names, tmp_path):
    "Loaded in another process, models of these families give equal bits and the same report"
    for name in names:
        model, x = FAMILIES[name]()
        small = halved(randomised(model))
        save(small, tmp_path / name)
        told = {"x": x, "y": out(small, x).detach(), "report": str(small.spp)}
        torch.save(told, tmp_path / f"{name}.pt")
    assert output(FRESH, *(tmp_path / name for name in names)) == "all\n"


def test_fresh_process(tmp_path):
    check_fresh_process(["deit_tiny", "swin", "hf_llama", "open_clip_mha"], tmp_path)


@pytest.mark.slow
def test_fresh_process_of_all_families(tmp_path):
    check_fresh_process(FAMILIES, tmp_path)


def test_dense_and_half(family, tmp_path):
    "Models in bfloat16, dense and cut, come back to the bit and in their type"
    model, x = family
    model = model.bfloat16()
    x = to(x, torch.bfloat16)
    assert torch.equal(out(load(save(model, tmp_path / "dense")), x), out(model, x))
    small = halved(model)
    back = load(save(small, tmp_path / "small"))
    assert torch.equal(out(back, x), out(small, x))
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in small.parameters())
    assert next(back.parameters()).dtype == torch.bfloat16


def rows(t):
    "A weight as a matrix, a row for each output"
    return t.reshape(next((n for n in t.shape if n > 1), 1), -1)


def rounding_step(t, dtype):
    "The distance between neighbours of the entries of `t`, once they are stored in `dtype`"
    if dtype == torch.int8:
        return rows(t).abs().amax(1, keepdim=True) / 127
    smallest = torch.finfo(dtype).smallest_normal
    return rows(t).abs().clamp(min=smallest) * torch.finfo(dtype).eps


def weights_of(model):
    "The number of tensors that hold the weights, tied ones once"
    return len({p.data_ptr() for p in model.parameters() if p.numel()})


def bytes_in(folder):
    return sum(f.stat().st_size for f in folder.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_fewer_bytes(family, tmp_path, dtype):
    "Every matrix is within half a step, in the type it had; vectors, buffers and ties are exact"
    model, x = family
    small = halved(model)
    back = load(save(small, tmp_path / "m", dtype=dtype))
    header = json.loads((tmp_path / "m/spp.json").read_text())
    told = header["rounded"]
    state = small.state_dict()
    assert state.keys() == back.state_dict().keys()
    assert told
    assert set(told.values()) == {"float32"}
    for name, b in back.state_dict().items():
        a = state[name]
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if header["tied"].get(name, name) not in told:
            assert torch.equal(a, b), name
        elif a.numel():
            most = 0.5 * rounding_step(a, dtype) * (1 + 1e-5)
            assert ((rows(a) - rows(b)).abs() <= most).all(), name
    assert weights_of(back) == weights_of(small)
    assert out(back, x).isfinite().all()
    assert bytes_in(tmp_path / "m") < bytes_in(save(small, tmp_path / "full"))


def test_a_bfloat16_model_in_bytes(small, tmp_path):
    "Two bytes are stored as one; as another two they are not rounded"
    model, batches = small
    model, x = model.bfloat16(), batches[0][0].bfloat16()
    back = load(save(model, tmp_path / "m", dtype=torch.int8))
    assert {p.dtype for p in back.parameters()} == {torch.bfloat16}
    assert not torch.equal(back(x), model(x))
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
    "A CLIP that create_model made of a configuration comes back with its preprocessing"
    config = dict(embed_dim=24, vision_cfg=VISION | tower, text_cfg=TEXT)
    (tmp_path / "small-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    model = randomised(open_clip.create_model("small-clip", output_dict=True))
    x = FAMILIES["open_clip_mha"]()[1]
    if "image_size" in tower:
        x |= {"image": torch.randn(3, 3, 160, 160)}
    small = halved(model)
    back = load(save(small, tmp_path / "m"))
    assert torch.equal(out(back, x), out(small, x))
    assert back.visual.preprocess_cfg == model.visual.preprocess_cfg
    assert back.visual.image_mean == model.visual.image_mean
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
    "A second model takes the place of the first, and nothing lies about"
    model, _ = small
    a = halved(model)
    save(a, tmp_path / "m")
    save(model, tmp_path / "m")
    assert not hasattr(load(tmp_path / "m"), "spp")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("what", ["truncated", "altered", "json"])
def test_damaged_model(small, tmp_path, what):
    "A file that was cut short or altered is not loaded"
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
    "Neither is a path, or a file of another format"
    model, data = small
    f = tmp_path / "a.path"
    search(model, data, steps=5).save(f)
    b = bytearray(f.read_bytes())
    if what == "truncated":
        b = b[:-7]
    elif what == "altered":
        b[-7] ^= 1
    else:
        b = bytearray(b"PK\x03\x04 something else altogether")
    f.write_bytes(bytes(b))
    with pytest.raises(ValueError, match="truncated or no safetensors file|was altered"):
        SolutionPath.load(f)


def test_other_kind_of_file(small, tmp_path):
    "The error names what was found and what was expected"
    model, _ = small
    save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="holds a model saved by spp, expected a solution path"):
        SolutionPath.load(tmp_path / "m" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a solution path"):
        SolutionPath.load(tmp_path / "none.path")
    with pytest.raises(FileNotFoundError, match="holds no spp.json"):
        load(tmp_path)


def test_foreign_folder(small, tmp_path):
    "A folder that holds something else is not replaced, nor one of ours with a user's file in it"
    model, _ = small
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt, which spp did not write there"):
        save(model, tmp_path / "x")
    assert (tmp_path / "x" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="notes.txt exists and is not a model"):
        save(model, tmp_path / "x" / "notes.txt")
    save(model, tmp_path / "m")
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt"):
        save(model, tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_old_one(small, tmp_path, monkeypatch):
    "When the disk is full, the model that was there before stays"
    model, data = small
    save(model, tmp_path / "m")
    x = data[0][0]
    want = model(x)

    def full(*a, **k):
        raise OSError("No space left on device")

    monkeypatch.setattr(spp.cutting.files, "write_tensors", full)
    with pytest.raises(OSError):
        save(halved(model), tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(x), want)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_could_not_be_rebuilt_is_not_saved(small, tmp_path):
    "A changed module is named, and nothing is written"
    model, _ = small
    model.blocks[0].mlp.act = torch.nn.Tanh()
    with pytest.raises(TypeError, match="would not be the same when loaded: `blocks.0.mlp.act`"):
        save(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_path_round_trip(small, tmp_path):
    "A path comes back whole, and cuts the same models"
    model, data = small
    path = search(model, data, steps=12, method="plain")
    path.save(tmp_path / "a.path")
    back = SolutionPath.load(tmp_path / "a.path", model)
    assert repr(back) == repr(path)
    assert back.history == path.history
    assert torch.equal(back.entered, path.entered)
    assert torch.equal(back.cut(units=0.4)(data[0][0]), path.cut(units=0.4)(data[0][0]))


# --- for transformers ------------------------------------------------------------------------

HF = [k for k in FAMILIES if k.startswith("hf_")]


def evenly(pairs):
    """A mask that takes from each layer what the stock class can have less of.

    Half of the groups, other ones in each layer; or all but 24 units.
    """
    g = torch.Generator().manual_seed(0)
    out = []
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
    """Cut alike in all layers, a model is one of its own class with other numbers.

    spp loads it to equal bits, and can save and cut it again.
    """
    model, x = FAMILIES[name]()
    pairs = find_pairs(randomised(model))
    assert {p.stock for p in pairs if p.kind in ("mlp", "glu")} == {"units"}
    small = cut(model, pairs, evenly(pairs))
    y = out(small, x)
    config = small.config.to_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_pretrained(small, tmp_path / "m")
        save_pretrained(small, tmp_path / "m")
    assert small.config.to_dict() == config  # saving changed nothing
    stock = type(model).from_pretrained(tmp_path / "m", **small.spp.build["options"])
    libraries = {type(m).__module__.partition(".")[0] for m in stock.modules()}
    assert libraries <= {"torch", "transformers"}
    count = sum(p.numel() for p in stock.parameters())
    assert count == small.spp.params[0] < small.spp.params[1]
    assert (out(stock, x) - y).abs().max() <= 1e-6 * max(1, y.abs().max())
    back = load(tmp_path / "m")
    assert torch.equal(out(back, x), y)
    assert str(back.spp) == str(small.spp)
    assert torch.equal(out(load(save(back, tmp_path / "ours")), x), y)
    twice = halved(back)
    with pytest.warns(UserWarning, match="only spp.load can read this model"):
        save_pretrained(twice, tmp_path / "twice")
    assert torch.equal(out(load(tmp_path / "twice"), x), out(twice, x))


WITHOUT_SPP = """
import sys
sys.modules["spp"] = None
import torch
import transformers
for folder in sys.argv[1:]:
    told = torch.load(f"{folder}.pt", weights_only=True)
    model = getattr(transformers, told["class"]).from_pretrained(folder)
    y = getattr(model(**told["x"]), told["output"])
    assert (y - told["y"]).abs().max() <= 1e-6, folder
print("all")
"""


@pytest.mark.slow
def test_even_cut_without_spp(tmp_path):
    "A process in which spp cannot be imported loads the folders"
    names = ("hf_llama", "hf_opt", "hf_bert")
    for name in names:
        model, x = FAMILIES[name]()
        pairs = find_pairs(randomised(model))
        small = cut(model, pairs, evenly(pairs))
        save_pretrained(small, tmp_path / name)
        told = {"class": "AutoModel", "output": "last_hidden_state"}
        if model.can_generate():
            told = {"class": "AutoModelForCausalLM", "output": "logits"}
        told |= {"x": x, "y": out(small, x).detach()}
        torch.save(told, tmp_path / f"{name}.pt")
    assert (
        output(WITHOUT_SPP, *(tmp_path / name for name in names), env={"HF_HUB_OFFLINE": "1"})
        == "all\n"
    )


@pytest.mark.parametrize("name", HF)
def test_uneven_cut_for_transformers(name, tmp_path):
    "An uneven cut is described layer by layer, with a warning, and spp loads it to equal bits"
    model, x = FAMILIES[name]()
    small = halved(randomised(model))
    y = out(small, x)
    cannot = f"only spp.load can read this model, the class {type(model).__name__} cannot. "
    why = r".*(but not in layers \d|no number for all layers makes `)"
    with pytest.warns(UserWarning, match=cannot + why):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(out(load(tmp_path / "m"), x), y)
    told = transformers.AutoConfig.from_pretrained(tmp_path / "m")
    for part in model.config.sub_configs or [""]:
        config = getattr(told, part) if part else told
        dense = getattr(model.config, part) if part else model.config
        prefix = f"{part.partition('_')[0]}_model." if part else ""
        assert dense.num_hidden_layers == len(config.per_layer_config)
        for i, layer in enumerate(config.per_layer_config):
            heads = [
                w["heads"]
                for site, w in small.spp.widths.items()
                if f".{i}." in f".{site}." and site.startswith(prefix) and "heads" in w
            ]
            assert layer.num_attention_heads == heads[0]
    with pytest.raises(Exception, match="."):  # of any class: better no model than a wrong one
        type(model).from_pretrained(tmp_path / "m")


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
    mask = torch.cat([torch.arange(p.size).lt(8).repeat(p.groups) for p in pairs])
    small = cut(model, pairs, mask)
    with pytest.warns(UserWarning, match=text):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(out(load(tmp_path / "m"), x), out(small, x))


def test_numbers_that_a_class_refuses(tmp_path):
    "Llama wants a number of heads that divides hidden_size: the warning says what it refused"
    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    config = transformers.LlamaConfig(vocab_size=61, **shape)
    model = randomised(transformers.LlamaForCausalLM(config))
    pairs = find_pairs(model)
    masks = [torch.arange(p.n) < (p.size * 3 if p.kind == "vo" else p.n) for p in pairs]
    small = cut(model, pairs, torch.cat(masks))
    x = torch.arange(5)[None]
    cannot = (
        r"LlamaForCausalLM cannot be made from the numbers of this cut: .*"
        r"hidden size \(32\) is not a multiple of the number of attention heads \(3\)"
    )
    with pytest.warns(UserWarning, match=cannot):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(x).logits, small(x).logits)


def test_saving_for_transformers_where_something_is(tmp_path, monkeypatch):
    "A checkpoint of somebody else's is not replaced; a failed save leaves the old folder"
    model, x = FAMILIES["hf_llama"]()
    pairs = find_pairs(randomised(model))
    small = cut(model, pairs, evenly(pairs))
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(
        FileExistsError,
        match="holds config.json, .*as part of a model saved by spp for transformers",
    ):
        save_pretrained(small, tmp_path / "theirs")
    save_pretrained(small, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds tokenizer.json"):
        save_pretrained(small, tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    y = out(small, x)

    def full(self, folder, **options):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(type(small), "save_pretrained", full)
    with pytest.raises(OSError):
        save_pretrained(small, tmp_path / "m")
    assert torch.equal(out(load(tmp_path / "m"), x), y)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "theirs"]
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="lacks config.json"):
        load(tmp_path / "m")


def test_how_to_generate_is_kept(tmp_path):
    "A loaded model has the generation settings of the saved one, and writes the same"
    model, x = FAMILIES["hf_gpt2"]()
    model.generation_config.max_new_tokens = 3
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    small = halved(randomised(model))
    ids = x["input_ids"]
    back = load(save(small, tmp_path / "m"))
    assert back.generation_config.max_new_tokens == 3
    written = [m.generate(ids, do_sample=False) for m in (back, small)]
    assert torch.equal(*written)


def test_parameters_that_not_every_model_of_a_class_has(tmp_path):
    "A mask token is described; a parameter that cannot be is not lost in silence"
    config = FAMILIES["hf_vit"]()[0].config
    model = transformers.ViTModel(config, add_pooling_layer=False, use_mask_token=True)
    model = randomised(model)
    x = FAMILIES["hf_vit"]()[1]
    small = halved(model)
    back = load(save(small, tmp_path / "m"))
    assert torch.equal(out(back, x), out(small, x))
    assert torch.equal(back.embeddings.mask_token, model.embeddings.mask_token)
    small.layernorm.register_parameter("extra", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(TypeError, match="`layernorm.extra` is only in it. Save its state_dict"):
        save(small, tmp_path / "n")

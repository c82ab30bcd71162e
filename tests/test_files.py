"Models and paths on disk: round trips in a fresh process, damage, folders that hold something else"
import json
import subprocess
import sys
import open_clip
import pytest
import torch
from spp import SolutionPath, cut, find_pairs, load, save, search
from families import CLIPS, FAMILIES, TEXT, VISION, out, randomised, to

def halved(model):
    pairs = find_pairs(model)
    return cut(model, pairs, torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0)) < .5)

def test_fresh_process(family, tmp_path):
    "Loaded elsewhere, the model gives equal bits"
    model, x = family; small = halved(model); save(small, tmp_path / "m"); torch.save({"x": x, "y": out(small, x)}, tmp_path / "xy.pt")
    code = (f"import spp, torch; d = torch.load({str(tmp_path / 'xy.pt')!r}, weights_only=True); m = spp.load({str(tmp_path / 'm')!r})\n"
            "from spp.objective import answer\nassert torch.equal(answer(m, d['x']).out, d['y']); print(m.spp)")
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert r.stdout.strip() == str(small.spp)

def test_dense_and_half(family, tmp_path):
    model, x = family; model = model.bfloat16(); x = to(x, torch.bfloat16)
    assert torch.equal(out(load(save(model, tmp_path / "dense")), x), out(model, x))
    small = halved(model); back = load(save(small, tmp_path / "small"))
    assert torch.equal(out(back, x), out(small, x)) and sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in small.parameters()) and next(back.parameters()).dtype == torch.bfloat16

@pytest.mark.parametrize("tower", [{}, dict(attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=5), dict(layers=[1, 1, 1, 1], width=16, head_width=32), dict(timm_model_name="test_vit", image_size=160, timm_pool="token")])
def test_clip_by_name(tmp_path, tower):
    "What create_model made of a configuration is loaded with its preprocessing"
    (tmp_path / "small-clip.json").write_text(json.dumps(dict(embed_dim=24, vision_cfg=VISION | tower, text_cfg=TEXT))); open_clip.add_model_config(tmp_path)
    model = randomised(open_clip.create_model("small-clip", output_dict=True)); x = FAMILIES["open_clip_mha"]()[1] | ({"image": torch.randn(3, 3, 160, 160)} if "image_size" in tower else {})
    small = halved(model); back = load(save(small, tmp_path / "m"))
    assert torch.equal(out(back, x), out(small, x)) and back.visual.preprocess_cfg == model.visual.preprocess_cfg and back.visual.image_mean == model.visual.image_mean
    assert type(back(**x)) is dict

def test_a_clip_that_cannot_be_described(tmp_path):
    "It is cut, but saving says why it could not be loaded"
    model, x = FAMILIES["open_clip_others"](); model.visual.trunk = torch.nn.Identity(); small = halved(model)
    with pytest.raises(TypeError, match="could not be made again: its image tower is timm's Identity"): save(small, tmp_path / "m")
    assert not any(tmp_path.iterdir())

def test_cut_again_and_saved(family, tmp_path):
    "A cut of a cut is saved with the description of the first model"
    model, x = family; twice = halved(halved(model))
    assert torch.equal(out(load(save(twice, tmp_path / "twice")), x), out(twice, x))

def test_saving_again_replaces(small, tmp_path):
    model, _ = small; a = halved(model); save(a, tmp_path / "m"); save(model, tmp_path / "m")
    assert not hasattr(load(tmp_path / "m"), "spp") and sorted(p.name for p in tmp_path.iterdir()) == ["m"]

@pytest.mark.parametrize("what", ["truncated", "altered", "json"])
def test_damaged_model(small, tmp_path, what):
    model, _ = small; save(halved(model), tmp_path / "m"); f = tmp_path / "m" / ("spp.json" if what == "json" else "model.safetensors"); b = bytearray(f.read_bytes())
    if what == "truncated": b = b[:len(b) // 2]
    elif what == "altered": b[-100] ^= 1
    else: b = b.replace(b'"head_dim": ', b'"head_dim": 1', 1)
    f.write_bytes(bytes(b))
    with pytest.raises(ValueError, match="is truncated|was altered"): load(tmp_path / "m")

@pytest.mark.parametrize("what", ["truncated", "altered", "not ours"])
def test_damaged_path(small, tmp_path, what):
    model, data = small; search(model, data, steps=5).save(f := tmp_path / "a.path"); b = bytearray(f.read_bytes())
    if what == "truncated": b = b[:-7]
    elif what == "altered": b[-7] ^= 1
    else: b = bytearray(b"PK\x03\x04 something else altogether")
    f.write_bytes(bytes(b))
    with pytest.raises(ValueError, match="truncated or no safetensors file|was altered after it was written"): SolutionPath.load(f)

def test_other_kind_of_file(small, tmp_path):
    model, _ = small; save(model, tmp_path / "m")
    with pytest.raises(ValueError, match="holds a model saved by spp, expected a solution path"): SolutionPath.load(tmp_path / "m" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a solution path"): SolutionPath.load(tmp_path / "none.path")
    with pytest.raises(FileNotFoundError, match="holds no spp.json"): load(tmp_path)

def test_foreign_folder(small, tmp_path):
    model, _ = small; (tmp_path / "x").mkdir(); (tmp_path / "x" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt, not a model saved by spp"): save(model, tmp_path / "x")
    assert (tmp_path / "x" / "notes.txt").read_text() == "mine"
    with pytest.raises(FileExistsError, match="is a file"): save(model, tmp_path / "x" / "notes.txt")
    save(model, tmp_path / "m"); (tmp_path / "m" / "notes.txt").write_text("mine")                # ours, with a file of somebody's in it
    with pytest.raises(FileExistsError, match="holds notes.txt"): save(model, tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"

def test_a_failed_save_leaves_the_old_one(small, tmp_path, monkeypatch):
    model, data = small; save(model, tmp_path / "m"); x = data[0][0]; want = model(x)
    def full(*a, **k): raise OSError("No space left on device")
    monkeypatch.setattr(sys.modules["spp.cut"], "save_tensors", full)      # `spp.cut` is the function
    with pytest.raises(OSError): save(halved(model), tmp_path / "m")
    assert torch.equal(load(tmp_path / "m")(x), want) and sorted(p.name for p in tmp_path.iterdir()) == ["m"]

def test_what_could_not_be_rebuilt_is_not_saved(small, tmp_path):
    model, _ = small; model.blocks[0].mlp.act = torch.nn.Tanh()
    with pytest.raises(TypeError, match="would not be the same when loaded: `blocks.0.mlp.act`"): save(model, tmp_path / "m")
    assert not any(tmp_path.iterdir())

def test_path_round_trip(small, tmp_path):
    model, data = small; path = search(model, data, steps=12, method="plain"); path.save(tmp_path / "a.path"); back = SolutionPath.load(tmp_path / "a.path", model)
    assert repr(back) == repr(path) and back.history == path.history and torch.equal(back.entered, path.entered)
    assert torch.equal(back.cut(units=.4)(data[0][0]), path.cut(units=.4)(data[0][0]))

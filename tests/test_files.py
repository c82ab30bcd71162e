"Models and paths on disk: round trips in a fresh process, damage, folders that hold something else"
import subprocess
import sys
import pytest
import torch
from spp import SolutionPath, cut, find_pairs, load, save, search
from families import out

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
    model, x = family; model = model.bfloat16(); x = x if isinstance(x, dict) else x.bfloat16()
    assert torch.equal(out(load(save(model, tmp_path / "dense")), x), out(model, x))
    small = halved(model); back = load(save(small, tmp_path / "small"))
    assert torch.equal(out(back, x), out(small, x)) and sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in small.parameters()) and next(back.parameters()).dtype == torch.bfloat16

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

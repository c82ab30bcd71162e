"Repaired cuts: nothing where nothing was removed, exact where it can be, better everywhere"

import copy

import pytest
import torch
from families import FAMILIES, out, randomised, small_vit, to
from processes import together

from spp import Family, cut, find_pairs, load, repair, save, search
from spp.core.files import save_tensors
from spp.method import kept_layers, scales, side_by_side
from spp.method import repair as repairs
from spp.method.objective import ranks
from spp.method.scales import Lesson


def like(x, seed):
    "Random inputs of the shape of `x`: other images, other texts with the same padding"
    g = torch.Generator().manual_seed(seed)
    if isinstance(x, torch.Tensor):
        return torch.randn(x.shape, generator=g, dtype=x.dtype)

    def other(name, v):
        if not isinstance(v, torch.Tensor) or "mask" in name:
            return v
        if v.is_floating_point():
            return torch.randn(v.shape, generator=g, dtype=v.dtype)
        return torch.where(v > 0, torch.randint(2, 60, v.shape, generator=g), v)

    return {name: other(name, v) for name, v in x.items()}


def wide(name, batches=16):
    "A family in float64, and batches for it"
    model, x = FAMILIES[name]()
    x = to(x, torch.float64)
    return randomised(model).double(), [like(x, seed) for seed in range(batches)]


def random_mask(pairs, share=0.6):
    n = sum(p.n for p in pairs)
    return torch.rand(n, generator=torch.Generator().manual_seed(0)) < share


@torch.no_grad()
def distance(small, model, data):
    "Mean squared distance of the outputs, of the size of the dense ones"
    pairs = [(out(small, x), out(model, x)) for x in data]
    apart = sum((a - b).square().sum() for a, b in pairs)
    return (apart / sum(b.square().sum() for _, b in pairs)).item()


def check_scales(model, pairs, mask, data):
    "The factors are in the weights: the model that is returned has the least held-out error"
    scaled = repair(model, pairs, mask, data, batches=4, scales=10, progress=False)
    told = scaled.spp.path["repair"]
    if not told["layers"]:  # so few samples that the plain cut did better
        assert "scales" not in told
        return
    steps, errors = told["scales"].values()
    assert (steps > 0) == (min(errors) < errors[0])
    left = Lesson(scaled, model, data[:4], None, None).held_out()
    assert left == pytest.approx(min(errors), rel=1e-4, abs=1e-12)


def check_family(name, tmp_path):
    "Nothing removed, nothing changed; better on its own data; saved and loaded; the model unharmed"
    model, data = wide(name)
    pairs = find_pairs(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
             for m in model.modules()]  # fmt: skip
    given = dict(scales=10, progress=False)
    everything = repair(model, pairs, torch.ones(sum(p.n for p in pairs)), data[:4], **given)
    assert distance(everything, model, data[:4]) <= 1e-18
    mask = random_mask(pairs)
    small = repair(model, pairs, mask, data, progress=False)
    assert distance(small, model, data) <= distance(cut(model, pairs, mask), model, data)
    assert (
        small.spp.fingerprint
        == everything.spp.fingerprint
        == cut(model, pairs, mask).spp.fingerprint
    )
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m))
                     for m in model.modules()]  # fmt: skip
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(out(again, data[0]), out(small, data[0]))
    assert 4 <= again.spp.path["repair"]["batches"] <= 16
    check_scales(model, pairs, mask, data)


FEW = ("swin", "hf_bert", "hf_gpt2", "open_clip_mha")  # windows; norms behind; Conv1D; two towers


@pytest.mark.filterwarnings("ignore:few tokens")
@pytest.mark.parametrize("name", FEW)
def test_families(name, tmp_path):
    check_family(name, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:few tokens")
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in FEW])
def test_all_families(name, tmp_path):
    check_family(name, tmp_path)


def copy_unit(model, pair):
    "Make unit 1 of an MLP do what unit 0 does"
    site = model.get_submodule(pair.site)
    first = next(m for name, m in site.named_modules() if name == pair.first)
    weight = first.weight.T if type(first).__name__ == "Conv1D" else first.weight
    with torch.no_grad():
        weight[1], first.bias[1] = weight[0], first.bias[0]


@pytest.mark.filterwarnings("ignore:few tokens")
@pytest.mark.parametrize("name", ["deit_tiny", "hf_bert", "hf_gpt2", "open_clip_mha"])
def test_a_unit_too_many(name):
    "Of two equal units one is removed: the function is restored"
    model, data = wide(name)
    pairs = find_pairs(model)
    at = [i for i, p in enumerate(pairs) if p.kind == "mlp"][-1]
    copy_unit(model, pairs[at])
    mask = torch.ones(sum(p.n for p in pairs))
    mask[sum(p.n for p in pairs[:at]) + 1] = 0
    lost = distance(cut(model, pairs, mask), model, data)
    left = distance(repair(model, pairs, mask, data, progress=False), model, data)
    assert lost > 1e-12
    assert left <= 1e-10 * lost


@pytest.mark.filterwarnings("ignore:few tokens")
@pytest.mark.parametrize("name", ["swin", "open_clip_mha"])
def test_skipped_blocks_change_nothing(name, monkeypatch):
    "Blocks that are done are skipped; run from the start each time, the bits are the same"
    model, data = wide(name, 4)
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    fast = repair(model, pairs, mask, data, progress=False)
    monkeypatch.setattr(side_by_side, "_reads_the_same", lambda *_: False)
    slow = repair(model, pairs, mask, data, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(fast.parameters(), slow.parameters()))


@pytest.mark.parametrize(
    "name, additions",
    [("deit_tiny", 1), ("vit_registers_avg", 1), ("hf_bert", 1), ("hf_llama", 1), ("swinv2", 0)],
)
def test_the_stream_is_found(name, additions):
    "Norm before and behind, a layer scale, RMSNorm; not where a norm stands before the sum"
    model, data = wide(name, 1)
    pairs = find_pairs(model)
    nets = side_by_side.SideBySide(model, pairs, torch.ones(sum(p.n for p in pairs)), data)
    with side_by_side.side_by_side(nets):
        for reader in nets.readers:
            assert side_by_side.find_stream(nets, reader)
            assert reader.additions == additions


def test_padding_is_left_out():
    "What stands at padded places changes nothing"
    model, data = wide("hf_bert", 8)
    pairs = find_pairs(model)
    other = [
        x | {"input_ids": torch.where(x["attention_mask"] > 0, x["input_ids"], 3)} for x in data
    ]
    a, b = (
        repair(model, pairs, random_mask(pairs), some, batches=8, progress=False)
        for some in (data, other)
    )
    for p, q in zip(a.parameters(), b.parameters()):
        assert torch.allclose(p, q, rtol=0, atol=1e-9)


def test_of_a_path(small):
    "`path.cut` with data, and its report"
    model, data = small
    path = search(model, data, steps=20, progress=False)
    plain = path.cut(params=0.7)
    repaired = path.cut(params=0.7, repair=data, repair_options=dict(batches=3, progress=False))
    inputs = [x for x, _ in data]
    assert distance(repaired, model, inputs) < distance(plain, model, inputs)
    assert repaired.spp.widths == plain.spp.widths
    assert repaired.spp.got == plain.spp.got
    layers = repaired.spp.path["repair"]["layers"]
    assert set(layers) == {p.gate for p in path.pairs if p.kind != "qk"}
    assert repaired.spp.path["steps"] == 20


@pytest.mark.filterwarnings("ignore:few tokens")
def test_without_gradients(small):
    "Inside `torch.no_grad` a repair is the same"
    model, data = small
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    outside = repair(model, pairs, mask, data, progress=False)
    with torch.no_grad():
        inside = repair(model, pairs, mask, data, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(outside.parameters(), inside.parameters()))


def test_a_stream_that_is_overwritten():
    "What a block writes in the place of the sum later is not the stream"
    y = torch.ones(2, requires_grad=True)
    with side_by_side.Additions() as additions:
        additions.on = True
        s = torch.full((2,), 3.0) + y
        s *= 10
    assert additions.values[0].tolist() == [4.0, 4.0]


def test_few_tokens_are_said(small):
    model, data = small
    pairs = find_pairs(model)
    mask = torch.ones(sum(p.n for p in pairs))
    with pytest.warns(UserWarning, match=r"few tokens to repair on: \d+ for the \d+ inputs of"):
        repair(model, pairs, mask, [data[0][0][:2]], progress=False)


def test_errors_leave_the_model_as_it_was(small):
    "No data; data that breaks in the middle; another mask"
    model, data = small
    pairs = find_pairs(model)
    mask = torch.ones(sum(p.n for p in pairs))
    state = copy.deepcopy(model.state_dict())
    model.train()
    with pytest.raises(ValueError, match="no batches"):
        repair(model, pairs, mask, [], progress=False)
    bad = [data[0][0], data[1][0], data[2][0][:, :1], data[0][0]]
    with pytest.raises(ValueError, match="cannot run a batch"):
        repair(model, pairs, mask, bad, batches=4, progress=False)
    with pytest.raises(ValueError, match="units"):
        repair(model, pairs, mask[1:], data, progress=False)
    assert model.training
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_half_precision(small):
    "Under autocast, and of a model in bfloat16"
    model, data = small
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    inputs = [x for x, _ in data]
    plain = distance(cut(model, pairs, mask), model, inputs)
    amp = repair(model, pairs, mask, inputs, batches=3, amp=torch.bfloat16, progress=False)
    assert distance(amp, model, inputs) < plain
    narrow = [x.bfloat16() for x in inputs]
    model = model.bfloat16()
    small = repair(model, pairs, mask, narrow, batches=3, progress=False)
    assert next(small.parameters()).dtype == torch.bfloat16
    assert distance(small, model, narrow) < plain


@pytest.mark.filterwarnings("ignore:few tokens")
def test_few_samples_that_mislead(small, monkeypatch):
    "The plain cut is returned where the repaired one does worse on what was held out"
    model, data = small
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    inputs = [x[:2] for x, _ in data]
    fit = repairs.best_fit

    def misled(*args):
        found, choice = fit(*args)
        return found._replace(weight=-3 * found.weight), choice

    monkeypatch.setattr(repairs, "best_fit", misled)
    with pytest.warns(UserWarning, match="samples are too few to repair on.* Give some hundred"):
        got = repair(model, pairs, mask, inputs, scales=0, progress=False)
    want = cut(model, pairs, mask)
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), want.parameters()))
    assert got.spp.path["repair"]["layers"] == {}


def repair_part(folder):
    "Repair the small ViT on this process's share of the batches, and save it"
    rank, world = ranks()
    model, batches = small_vit()
    model = model.double()
    x = torch.cat([x for x, _ in batches]).double()
    mine = x.tensor_split(8)[rank::world]
    pairs = find_pairs(model)
    given = dict(batches=len(mine), scales=15, progress=False)
    small = repair(model, pairs, random_mask(pairs), mine, **given)
    save(small, f"{folder}/{world}{rank}")


@pytest.mark.slow
def test_several_processes(tmp_path):
    "Two processes on half of the batches each get the same bits, and what one gets on all"
    repair_part(tmp_path)
    together(repair_part, tmp_path)
    one, a, b = (load(tmp_path / x) for x in ("10", "20", "21"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    assert all(
        torch.allclose(x, y, rtol=0, atol=1e-9) for x, y in zip(one.parameters(), a.parameters())
    )


def repair_text_part(folder):
    "Repair a language model on this process's share of the batches, and save it"
    rank, world = ranks()
    model, data = wide("hf_llama", 8)
    pairs = find_pairs(model)
    mine = data[rank::world]
    given = dict(batches=len(mine), scales=6, progress=False)
    save(repair(model, pairs, random_mask(pairs), mine, **given), f"{folder}/{world}{rank}")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:few tokens")
def test_several_processes_on_text(tmp_path):
    "A step takes a batch of each process: both end with the same bits, and with less error"
    together(repair_text_part, tmp_path)
    a, b = (load(tmp_path / x) for x in ("20", "21"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))
    steps, errors = a.spp.path["repair"]["scales"].values()
    assert steps == 6
    assert errors[1] < errors[0]


@pytest.mark.filterwarnings("ignore:few tokens")
def test_steps_that_pay(small, monkeypatch):
    "Scales are fitted from so many tokens on, where each is predicted, else from so many samples"
    text, data = wide("hf_llama", 8)
    pairs = find_pairs(text)
    mask = random_mask(pairs)
    tokens = sum(x["input_ids"].numel() for x in data)

    def told(model, pairs, mask, batches):
        found = repair(model, pairs, mask, batches, batches=8, progress=False)
        return found.spp.path["repair"].get("scales")

    assert told(text, pairs, mask, data) is None
    monkeypatch.setattr(scales, "_TOKENS", tokens)
    assert len(told(text, pairs, mask, data)["errors"]) == 2  # a pass: before and after
    model, images = small
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    assert told(model, pairs, mask, images) is None
    monkeypatch.setattr(scales, "_SAMPLES", 8)
    assert len(told(model, pairs, mask, images)["errors"]) > 2


def padded(name="hf_bert"):
    "A family in float64, some batches for it, and one that is all padding"
    model, data = wide(name, 6)
    empty = {**data[0], "attention_mask": torch.zeros_like(data[0]["attention_mask"])}
    return model, data, empty


@pytest.mark.filterwarnings("ignore:few tokens")
@pytest.mark.parametrize("name", ["hf_bert", "hf_llama"])
def test_batches_of_padding(name):
    "They are left out, wherever they stand; a sample that is all padding does not count either"
    model, data, empty = padded(name)
    pairs = find_pairs(model)
    mask = random_mask(pairs)

    def repaired(batches):
        return repair(model, pairs, mask, batches, batches=6, progress=False)

    plain = repaired(data)
    other = repaired([empty, *data[:3], empty, *data[3:]])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters()))
    tensors = {k: e for k, e in empty.items() if isinstance(e, torch.Tensor)}
    rows = [{**x, **{k: torch.cat([x[k], e]) for k, e in tensors.items()}} for x in data]
    other = repaired(rows)
    assert all(p.isfinite().all() for p in other.parameters())
    assert distance(other, model, data) < distance(cut(model, pairs, mask), model, data)
    with pytest.raises(ValueError, match="attention_mask is 0 everywhere in its 2 batches"):
        repaired([empty, empty])


def test_no_token_of_the_first_batch_reaches_the_stream(small, monkeypatch):
    "The shift of the moments is that of the first tokens that count"
    model, data = small
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    inputs = [x for x, _ in data]
    whole = repair(model, pairs, mask, inputs, batches=4, progress=False)
    own = repairs.look

    def look(nets, reader, batch):
        seen = own(nets, reader, batch)
        if batch == 0:
            seen.counts = torch.zeros_like(seen.counts)
        return seen

    monkeypatch.setattr(repairs, "look", look)
    small = repair(model, pairs, mask, inputs, batches=4, progress=False)
    assert all(p.isfinite().all() for p in small.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(small.parameters(), whole.parameters()))
    assert distance(small, model, inputs) < distance(cut(model, pairs, mask), model, inputs)


def shuffled(data):
    "A loader that shuffles as torch's own random numbers say"
    return torch.utils.data.DataLoader(torch.cat([x for x, _ in data]), 8, shuffle=True)


def repaired_again(small, file=None):
    model, data = small
    pairs = find_pairs(model)
    how = dict(batches=4, checkpoint=file, progress=False)
    return repair(model, pairs, random_mask(pairs), shuffled(data), **how)


def stopping(times):
    "`save_tensors` of checkpoints, until Ctrl-C"
    left = iter(range(times))

    def save(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        save_tensors(*args)

    return save


def noting(done, own):
    "A `_fit` that notes which layers it fits"

    def fit(nets, reader, omega):
        done.append(reader.name)
        return own(nets, reader, omega)

    return fit


def test_interrupted_and_resumed(small, tmp_path, monkeypatch):
    "After any layer, from a loader that shuffles: the layers done stay, and the bits are the same"
    torch.manual_seed(3)
    whole = repaired_again(small)
    for times in (1, 2, 3):
        file = tmp_path / f"{times}.run"
        torch.manual_seed(3)
        monkeypatch.setattr(kept_layers, "save_tensors", stopping(times))
        with pytest.raises(KeyboardInterrupt, match=f"after {times + 1} layers.* is kept"):
            repaired_again(small, file)
        monkeypatch.undo()
        torch.manual_seed(99)
        done = []
        monkeypatch.setattr(repairs, "_fit", noting(done, repairs._fit))
        again = repaired_again(small, file)
        monkeypatch.undo()
        assert len(done) == len(whole.spp.path["repair"]["layers"]) - times
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters()))
        assert again.spp.path == whole.spp.path
    before = file.read_bytes()
    finished = repaired_again(small, file)  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(finished.parameters(), whole.parameters()))
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "change, text",
    [
        (dict(mask=1), "mask was"),
        (dict(draws=3), "draws was None, now 3"),
        (dict(amp=torch.bfloat16), "amp was None, now 'torch.bfloat16'"),
        (dict(read=lambda y, x: y), "read was None"),
        (dict(batches=3), "data.process 0.batches was 4, now 6"),
        (dict(data=-1), "data.process 0.digest was"),
        (dict(weights=1), "weights was"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_another_repair_is_refused(small, tmp_path, change, text):
    model, data = copy.deepcopy(small[0]), [x for x, _ in small[1]]
    pairs = find_pairs(model)
    mask = random_mask(pairs)
    how = dict(batches=4, checkpoint=tmp_path / "a.run", progress=False)
    repair(model, pairs, mask, data, **how)
    if "mask" in change:
        mask = mask.clone()
        mask[0] = ~mask[0]
    if "data" in change:
        data = [*data[:3], data[3] + 1e-3, *data[4:]]
    if "weights" in change:
        model.head.weight.data[0, 0] += 1
    how |= {k: v for k, v in change.items() if k in ("draws", "amp", "read", "batches")}
    with pytest.raises(ValueError, match=f"another repair: .*{text}"):
        repair(model, pairs, mask, data, **how)


def test_a_member_of_a_family(small, tmp_path):
    "A size between those that were trained is repaired towards the largest, saved and loaded"
    model, data = small
    family = Family(model, search(model, data, steps=3, progress=False), trained=(1.0, 0.4))
    inputs = [x for x, _ in data]
    how = dict(params=0.63, align=1)
    member = family.cut(**how, repair=data, repair_options=dict(batches=4, progress=False))
    direct = family.path.cut(**how, repair=data, repair_options=dict(batches=4, progress=False))
    assert all(torch.equal(a, b) for a, b in zip(member.parameters(), direct.parameters()))
    assert distance(member, model, inputs) < distance(family.cut(**how), model, inputs)
    save(member, tmp_path / "member")
    assert torch.equal(load(tmp_path / "member")(inputs[0]), member(inputs[0]))
    with pytest.raises(ValueError, match="trained from 1 down to 0.4.*repair=loader"):
        family.cut(params=0.3, align=1, repair=data)

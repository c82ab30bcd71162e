"Attention of one's own, declared by the names of its projections"

import pytest
import torch
from processes import alone
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import spp
from spp import attention_pair, cut, gated, mlp_pair
from spp.cutting.budget import params_of
from spp.cutting.cut import fit
from spp.models.attention import Picking, Spread, proved
from spp.models.pairs import split_units

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero")
X = torch.randn(4, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def split(x, heads):
    "Heads behind each other, as einops' `b n (h d) -> b h n d`"
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Fused(nn.Module):
    "One projection; the scale is computed from a shape"

    names = dict(qkv="to_qkv", out="to_out.0")

    def __init__(self):
        super().__init__()
        self.to_qkv = nn.Linear(16, 72)
        self.to_out = nn.Sequential(nn.Linear(24, 16), nn.Dropout(0.1))

    def forward(self, x):
        q, k, v = (split(y, 3) for y in self.to_qkv(x).chunk(3, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        return self.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Three(nn.Module):
    "Three projections, wide values, causal"

    names = dict(q="q", k="k", v="v", out="out")

    def __init__(self):
        super().__init__()
        self.q, self.k = (nn.Linear(16, 24, bias=False) for _ in range(2))
        self.v, self.out = nn.Linear(16, 30), nn.Linear(30, 16, bias=False)

    def forward(self, x):
        parts = (split(layer(x), 3) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Crossing(nn.Module):
    "Queries of all tokens, keys and values of the first three"

    names = dict(q="q", kv="kv", out="out")

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(16, 24), nn.Linear(16, 48), nn.Linear(24, 16)

    def forward(self, x):
        parts = (split(y, 3) for y in (self.q(x), *self.kv(x[:, :3]).chunk(2, -1)))
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, kind=Fused, first=True):
        super().__init__()
        self.num_classes, self.first = 4, first
        self.layers = nn.ModuleList([kind(), kind()])
        self.up, self.down, self.head = nn.Linear(16, 20), nn.Linear(20, 16), nn.Linear(16, 4)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


def net(kind=Fused):
    torch.manual_seed(0)
    return Net(kind).double().eval()


def pairs_of(model):
    names = type(model.layers[0]).names
    found = [attention_pair(model, f"layers.{i}", **names, heads=3) for i in range(2)]
    return [*found[0], *found[1], mlp_pair(model, "", "up", "down")]


@pytest.mark.parametrize("kind", (Fused, Three, Crossing))
def test_the_law(kind):
    "Gated is cut; costs are what leaves; a new model takes the weights"
    model = net(kind)
    pairs = pairs_of(model)
    uneven = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(1)) < 0.5
    empty = uneven.clone()
    split_units(uneven, pairs)[1][1] = False
    split_units(empty, pairs)[0][:] = split_units(empty, pairs)[1][:] = False
    for mask in (uneven, empty, torch.ones_like(uneven)):
        small = cut(model, pairs, mask, batch=X)
        with torch.no_grad(), gated(model, pairs, mask.double()):
            want = model(X)
        assert_close(small(X).detach(), want)
        gone = sum(p.params * (~part).sum() for p, part in zip(pairs, split_units(mask, pairs)))
        assert params_of(model) - params_of(small) == gone
        again = fit(Net(kind).double(), small.spp.widths, pairs).eval()
        again.load_state_dict(small.state_dict())
        assert torch.equal(again(X), small(X))
    assert not any(isinstance(m, (Spread, Picking)) for m in small.modules())
    with pytest.raises(ValueError, match="layers.0 say qk 99, but the dense layer has 24"):
        fit(Net(kind), {"layers.0": {"qk": 99}}, pairs)


def test_search_repair_and_whole_heads():
    "The declaration is proved by the search; its cuts are repaired; heads go as a whole"
    model = net().float()
    data = [(X[torch.randperm(4)].float(), torch.arange(4)) for _ in range(4)]
    path = spp.search(model, data, steps=8, pairs=pairs_of(model), progress=False)
    path.attach(model, example=X[:1].float())
    plain = path.cut(params=0.7)
    proved.clear()  # as in a new process: a repair proves on its own data
    path.batch = None
    repaired = path.cut(params=0.7, repair=data)
    assert "queries and keys of" in str(plain.spp)
    with torch.no_grad():
        dense, x = model(X.float()), X.float()
        assert (repaired(x) - dense).norm() < (plain(x) - dense).norm()
    whole = path.cut(units=0.5, heads="whole")
    widths = [w for w in whole.spp.widths.values() if "vo" in w]
    assert all(w["vo"] % 8 == w["qk"] % 8 == 0 for w in widths)
    assert "/" in {text.get_text()[2:3] for text in path.plot_widths(params=0.7).texts}


def test_false_claims_are_refused_with_the_difference():
    "Values that are queries, a norm of queries, and an input that is not there"

    class Normed(Fused):
        def forward(self, x):
            q, k, v = (split(y, 3) for y in self.to_qkv(x).chunk(3, -1))
            y = F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)
            return self.to_out(y.transpose(1, 2).flatten(2))

    model = net()
    parts = dict(q="to_qkv[48:72]", k="to_qkv[24:48]", v="to_qkv[0:24]")
    wrong = attention_pair(model, "layers.0", **parts, out="to_out.0", heads=3)
    keep = torch.ones(48)
    for _ in range(2):  # a failed proof is not forgotten
        with pytest.raises(ValueError, match=r"`layers.0` cannot be cut: .* differs .* by 0\.\d"):
            cut(model, wrong, keep, batch=X)
        with pytest.raises(ValueError, match=r"`layers.0` cannot be cut: .* differs .* by 0\.\d"):
            spp.search(model, [X], steps=2, pairs=wrong, progress=False)
    normed = net(Normed)
    with pytest.raises(ValueError, match="differs from the gated model"):
        cut(normed, pairs_of(normed)[:2], keep, batch=X)
    cut(normed, pairs_of(normed)[1:2], keep[:24], batch=X)  # values alone
    with pytest.raises(ValueError, match=r"Pass one: cut\(…, batch=inputs\)"):
        cut(normed, pairs_of(normed)[2:], torch.ones(68))
    with pytest.raises(ValueError, match="these pairs are of another model"):
        cut(net(Three), pairs_of(model), torch.ones(116), batch=X)


def test_a_cut_of_a_library_with_a_declared_layer_says_how_to_load_it(tmp_path):
    "What `spp.save` could not load again is refused, with what to write"
    import timm

    torch.manual_seed(0)
    small = dict(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    vit = timm.create_model("vit_tiny_patch16_224", **small)
    pair = mlp_pair(vit, "blocks.0.mlp", "fc1", "fc2")
    with pytest.raises(TypeError, match=r"cutting\.cut\.fit\(dense, small\.spp\.widths, pairs\)"):
        spp.save(cut(vit, [pair], torch.arange(64) % 2), tmp_path / "declared")


def graph_gives_the_same():
    "The graph of a cut gives what the cut gives"
    import onnxruntime

    model = net().float()
    pairs = pairs_of(model)
    small = cut(model, pairs, torch.arange(116) % 3 > 0, batch=X.float())
    program = torch.onnx.export(small, (X.float(),), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    assert_close(torch.from_numpy(got), small(X.float()).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx():
    "In a process of its own: an export starts threads that no fork survives"
    pytest.importorskip("onnxruntime")
    assert alone(graph_gives_the_same) == 0

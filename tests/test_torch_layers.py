"PyTorch's own attention, encoders and decoders, in models of one's own"

import copy
import warnings

import pytest
import torch
from processes import alone
from torch import nn
from torch.testing import assert_close

import spp
from spp import cut, find_pairs, gated, mlp_pair
from spp.cutting.cut import fit
from spp.models.pairs import split_units
from spp.models.torch_heads import Encoder, NarrowAttention

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in ("enable_nested_tensor is True", "Initializing zero", "The PyTorch API of nested")
]

DRAW = torch.Generator().manual_seed(0)
X = torch.randn(4, 7, 8, dtype=torch.float64, generator=DRAW)
PADDING = torch.arange(7) >= torch.tensor([[7], [4], [5], [1]])


class Net(nn.Module):
    "Tokens, PyTorch's encoder, and where asked a decoder that reads what it says"

    def __init__(self, decodes=False, **how):
        super().__init__()
        how = dict(dict(batch_first=True, activation="gelu"), **how)
        self.first = how["batch_first"]
        self.num_classes = 5
        self.stem = nn.Linear(8, 32)
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, **how), 2)
        self.decoder = nn.TransformerDecoderLayer(32, 4, 48, **how) if decodes else None
        self.head = nn.Linear(32, 5)

    def forward(self, x, padding=None):
        y = self.stem(x)
        y = y if self.first else y.transpose(0, 1)
        y = z = self.body(y, src_key_padding_mask=padding)
        if self.decoder is not None:
            y = self.decoder(y, z, memory_key_padding_mask=padding)
        return self.head(y.mean(int(self.first)))


def net(seed=0, **how):
    torch.manual_seed(seed)
    model = Net(**how).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # biases and norms that show
    return model


def masks(pairs):
    "Uneven heads without one; no unit of the first attention and the last MLP; one of each pair"
    draw = torch.Generator().manual_seed(1)
    uneven = torch.rand(sum(p.n for p in pairs), generator=draw) < 0.5
    empty, one = uneven.clone(), torch.zeros_like(uneven)
    parts = split_units(uneven, pairs), split_units(empty, pairs), split_units(one, pairs)
    parts[0][1][2] = False
    parts[1][1][:] = False
    parts[1][-1][:] = False
    for part in parts[2]:
        part[0, 1] = True
    return uneven, empty, one, torch.ones_like(uneven)


SETTINGS = [
    {},
    dict(norm_first=True),
    dict(batch_first=False),
    dict(bias=False),
    dict(activation="relu", decodes=True),
    dict(norm_first=True, batch_first=False, decodes=True),
]


@pytest.mark.parametrize("how", SETTINGS, ids=str)
def test_the_law(how):
    "Gated is cut, with and without padding, where the dense model takes its fast paths, too"
    model = net(**how)
    pairs = find_pairs(model)
    kinds = ["qk", "vo", "mlp"] * 2 + ["qk", "vo", "qk", "vo", "mlp"] * how.get("decodes", False)
    assert [p.kind for p in pairs] == kinds
    for mask in masks(pairs):
        small = cut(model, pairs, mask)
        for given in ((X,), (X, PADDING)):
            with gated(model, pairs, mask.double()):
                want = model(*given).detach()
            with torch.no_grad():
                assert_close(small(*given), want)
        again = fit(Net(**how).double(), small.spp.widths).eval()
        again.load_state_dict(small.state_dict())
        with torch.no_grad():
            assert torch.equal(again(X, PADDING), small(X, PADDING))
    with torch.no_grad():  # the last mask keeps everything
        assert_close(small(X, PADDING), model(X, PADDING))


def test_dense_layers_stay_pytorchs():
    "Where attention keeps its widths it stays nn.MultiheadAttention, elsewhere packing goes"
    model = net()
    pairs = find_pairs(model)
    keep = torch.ones(sum(p.n for p in pairs), dtype=torch.bool)
    split_units(keep, pairs)[2][:, 3:] = False
    split_units(keep, pairs)[0][1, :4] = False  # zeros in a head of the dense width
    small = cut(model, pairs, keep)
    assert not any(isinstance(m, (NarrowAttention, Encoder)) for m in small.modules())
    split_units(keep, pairs)[1][1] = False
    small = cut(model, pairs, keep)
    assert [type(x.self_attn) for x in small.body.layers] == [
        NarrowAttention,
        nn.MultiheadAttention,
    ]
    assert type(small.body) is Encoder and type(model.body) is nn.TransformerEncoder


def test_gates_of_each_sample_where_tokens_come_first():
    "The gradient in the gates of a sample is the same whichever axis the samples are on"
    found = []
    for first in (True, False):
        model = net(batch_first=first)
        with gated(model, find_pairs(model)) as gates:
            gates.set(torch.ones(4, gates.n))
            found.append(gates.grad(model(X).square().sum()))
    assert_close(found[1], found[0])


def test_a_declared_mlp_of_an_encoder_with_padding():
    "Gates of mlp_pair meet no nested tensor; samples on the wrong axis are told"
    model = net()
    pair = mlp_pair(model, "body.layers.1", "linear1", "linear2")
    mask = torch.arange(48) % 2
    with torch.no_grad(), gated(model, [pair], mask):
        want = model(X, PADDING)
    with torch.no_grad():
        assert_close(cut(model, [pair], mask)(X, PADDING), want)
    turned = net(batch_first=False)
    with gated(turned, [mlp_pair(turned, "body.layers.1", "linear1", "linear2")]) as gates:
        gates.set(torch.ones(4, 48))
        with pytest.raises(ValueError, match=r"declare it so: mlp_pair\(…, batch=1\)"):
            turned(X)


def test_search_whole_heads_and_repair():
    "A search orders dimensions or whole heads; a repair of the cut does no worse than the cut"
    model = net().float()
    data = [(X[torch.randperm(4)].float(), torch.arange(4)) for _ in range(4)]
    path = spp.search(model, data, steps=8, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = path.cut(units=0.5, repair=data)
    assert "repair" in small.spp.path
    with torch.no_grad():
        dense, plain = model(X.float()), path.cut(units=0.5)(X.float())
        assert (small(X.float()) - dense).norm() <= (plain - dense).norm()
    whole = path.cut(units=0.5, heads="whole")
    dims = {w["head_dim"] for w in whole.spp.widths.values() if w.get("heads")}
    assert dims <= {8}
    assert sum(w.get("heads", 0) for w in whole.spp.widths.values()) < 8


def test_balanced_heads_compute_the_same():
    "Also in attention to another text, whose keys are of another width"

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.ask = nn.Linear(8, 32)
            self.attn = nn.MultiheadAttention(32, 4, kdim=8, vdim=8, batch_first=True)

        def forward(self, x):
            return self.attn(self.ask(x), x[:, :5], x[:, :5])[0]

    torch.manual_seed(0)
    model = Cross().double().eval()
    balanced = spp.balance(model, [X], progress=False)
    assert not torch.equal(balanced.attn.q_proj_weight, model.attn.q_proj_weight)
    assert_close(balanced(X), model(X))


def test_masks_of_heads_find_their_heads():
    "A mask of each head of each sample, where a head has left"

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 4, batch_first=True)

        def forward(self, x, mask):
            return self.attn(x, x, x, attn_mask=mask)[0]

    torch.manual_seed(0)
    model = One().double().eval()
    pairs = find_pairs(model)
    mask = torch.ones(16, dtype=torch.bool)
    mask[8 + 2 : 8 + 4] = False  # the values of the second head
    biases = torch.randn(16, 7, 7, dtype=torch.float64)
    with gated(model, pairs, mask.double()):
        want = model(X, biases)
    small = cut(model, pairs, mask)
    assert small.attn.heads.tolist() == [0, 2, 3]
    assert_close(small(X, biases), want)
    assert (small(X, biases.flip(0)) - want).abs().max() > 1e-3


def graph_gives_the_same():
    "The graph of a cut with an attention layer without heads gives what the cut gives"
    import onnxruntime

    model = net().float()
    pairs = find_pairs(model)
    small = cut(model, pairs, masks(pairs)[1])
    x = X.float()
    program = torch.onnx.export(copy.deepcopy(small), (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(got), small(x).detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx():
    "In a process of its own: an export starts threads that no fork survives"
    pytest.importorskip("onnxruntime")
    assert alone(graph_gives_the_same) == 0

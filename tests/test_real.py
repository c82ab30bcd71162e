"""The three pretrained models that registry packages hold.

The law at real weights, and cuts carried elsewhere. Skipped where the registry is away.
"""

import pytest
import torch
from command import python
from families import out, to
from test_export import Answer, onnxruntime, tensors

from spp import balance, cut, find_pairs, gated, save
from spp.lab.samples import dinov2, minilm, smollm2
from spp.method.objective import answer

pytestmark = pytest.mark.slow

MODELS = {"dinov2": dinov2, "minilm": minilm, "smollm2": smollm2}
SENTENCES = ["Pruning makes a model smaller.", "A unit is one index of the inner dimension."]


@pytest.fixture(params=MODELS)
def real(request):
    "Name, pretrained model, and an input"
    try:
        made = MODELS[request.param]()
    except ConnectionError as e:
        pytest.skip(str(e))
    if request.param == "dinov2":
        images = torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
        return request.param, made, images
    model, tokenizer = made
    if request.param == "minilm":
        return request.param, model, dict(tokenizer(SENTENCES, return_tensors="pt", padding=True))
    x = tokenizer(SENTENCES, return_tensors="pt", truncation=True, max_length=7)
    return request.param, model, {**x, "use_cache": False}


AGAIN = """
import sys, torch, spp
from spp.method.objective import answer

folder = sys.argv[1]
d = torch.load(f"{folder}/xy.pt", weights_only=True)
assert torch.equal(answer(spp.load(f"{folder}/m"), d["x"]).out, d["y"])
"""


def onnx_outputs(model, x, path):
    "The first output of `model` as ONNX Runtime computes it"
    given = tensors(x)
    program = torch.onnx.export(
        Answer(model, list(given) if isinstance(x, dict) else None).eval(),
        tuple(given.values()),
        dynamo=True,
        verbose=False,
    )
    program.save(path, external_data=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    named = {i.name: v.numpy() for i, v in zip(session.get_inputs(), given.values())}
    return torch.from_numpy(session.run(None, named)[0])


def test_real_weights(real, tmp_path):
    "gated ≡ cut in float64; equal bits in a new process; torch.export and ONNX; finite gradients"
    name, model, x = real
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0)) < 0.7
    small = cut(model, pairs, mask, align=8)
    y = out(small, x)

    def near(other):
        return (other - y).abs().max() <= 1e-4 * max(1, y.abs().max())

    save(small, tmp_path / "m")
    torch.save({"x": x, "y": y}, tmp_path / "xy.pt")
    done = python("-c", AGAIN, tmp_path)
    assert done.returncode == 0, done.stderr

    inputs = ((), x) if isinstance(x, dict) else ((x,), {})
    assert near(answer(torch.export.export(small, *inputs).module(), x).out)
    if name == "smollm2":
        small.config.use_cache = False
    assert near(onnx_outputs(small, x, tmp_path / "m.onnx"))

    small.train()
    out(small, x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in small.parameters() if p.grad is not None)

    model.double()
    x = to(x, torch.float64)
    with gated(model, pairs, mask.double()):
        want = out(model, x)
    off = (out(cut(model, pairs, mask), x) - want).abs().max()
    assert off <= 1e-10 * max(1, want.abs().max())


def test_balanced_real_weights(real):
    """The balanced model computes the same, in float64 to 1e-8, in float32 to 1e-4.

    Real heads have moments over many orders of magnitude.
    """
    _, model, x = real
    want = out(model, x)
    size = want.abs().max()

    def off(x):
        balanced = balance(model, [x], batches=1, progress=False)
        return (out(balanced, x) - out(model, x)).abs().max()

    assert off(x) <= 1e-4 * size
    model.double()
    assert off(to(x, torch.float64)) <= 1e-8 * size

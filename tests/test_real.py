"The three pretrained models that registry packages hold: the law at real weights, and carried elsewhere; skipped where the registry is away"

import subprocess
import sys

import pytest
import torch
from families import out
from test_export import Answer, onnxruntime, tensors

from spp import balance, cut, find_pairs, gated, save
from spp.lab.samples import dinov2, minilm, smollm2
from spp.method.objective import answer


def model_of(name):
    try:
        made = {"dinov2": dinov2, "minilm": minilm, "smollm2": smollm2}[name]()
    except ConnectionError as e:
        pytest.skip(str(e))
    if name == "dinov2":
        return made, torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    model, tokenizer = made
    x = dict(
        tokenizer(
            ["Pruning makes a model smaller.", "A unit is one index of the inner dimension."],
            return_tensors="pt",
            **dict(padding=True) if name == "minilm" else dict(truncation=True, max_length=7),
        )
    )
    return model, x | ({"use_cache": False} if name == "smollm2" else {})


@pytest.mark.parametrize("name", ["dinov2", "minilm", "smollm2"])
def test_real_weights(name, tmp_path):
    "gated ≡ cut in float64; equal bits in a new process; torch.export and ONNX to 1e-4; finite gradients"
    model, x = model_of(name)
    pairs = find_pairs(model)
    mask = torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0)) < 0.7
    small = cut(model, pairs, mask, align=8)
    y = out(small, x)
    given = tensors(x)

    def near(a):
        return (a - y).abs().max() <= 1e-4 * max(1, y.abs().max())

    save(small, tmp_path / "m")
    torch.save({"x": x, "y": y}, tmp_path / "xy.pt")
    code = (
        f"import spp, torch; from spp.method.objective import answer; d = torch.load({str(tmp_path / 'xy.pt')!r}, weights_only=True)\n"
        f"assert torch.equal(answer(spp.load({str(tmp_path / 'm')!r}), d['x']).out, d['y'])"
    )
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    inputs = ((), x) if isinstance(x, dict) else ((x,), {})
    assert near(answer(torch.export.export(small, *inputs).module(), x).out)
    if name == "smollm2":
        small.config.use_cache = False
    program = torch.onnx.export(
        Answer(small, list(given) if isinstance(x, dict) else None).eval(),
        tuple(given.values()),
        dynamo=True,
        verbose=False,
    )
    program.save(tmp_path / "m.onnx", external_data=True)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]
    )
    assert near(
        torch.from_numpy(
            session.run(
                None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), given.values())}
            )[0]
        )
    )
    small.train()
    out(small, x).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in small.parameters() if p.grad is not None)
    model.double()
    x = x if isinstance(x, dict) else x.double()
    with gated(model, pairs, mask.double()):
        want = out(model, x)
    assert (out(cut(model, pairs, mask), x) - want).abs().max() <= 1e-10 * max(1, want.abs().max())


@pytest.mark.parametrize("name", ["dinov2", "minilm", "smollm2"])
def test_balanced_real_weights(name):
    "Real heads have moments over many orders of magnitude: the balanced model says the same in float64 to 1e-8, in float32 to 1e-4"
    model, x = model_of(name)
    want, size = out(model, x), out(model, x).abs().max()
    assert (
        out(balance(model, [x], batches=1, progress=False), x) - want
    ).abs().max() <= 1e-4 * size
    model.double()
    x = x if isinstance(x, dict) else x.double()
    assert (
        out(balance(model, [x], batches=1, progress=False), x) - out(model, x)
    ).abs().max() <= 1e-8 * size

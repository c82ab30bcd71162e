"Carried elsewhere: ONNX, checked with onnxruntime, and torch.compile, for every family"

import pytest
import torch
from families import FAMILIES, out, randomised

from spp import cut, find_pairs
from spp.method.objective import answer

onnxruntime = pytest.importorskip("onnxruntime")


def halved(model):
    pairs = find_pairs(model)
    return cut(
        model,
        pairs,
        torch.rand(sum(p.n for p in pairs), generator=torch.Generator().manual_seed(0)) < 0.5,
        align=4,
    )


class Answer(torch.nn.Module):
    "A model of tensors only: what a graph can return"

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *x):
        return answer(self.model, dict(zip(self.names, x)) if self.names else x[0]).out


def tensors(x):
    return (
        {k: v for k, v in x.items() if isinstance(v, torch.Tensor)}
        if isinstance(x, dict)
        else {"x": x}
    )


def test_onnx(family):
    "The graph that onnxruntime runs gives what the cut model gives, to 1e-4"
    model, x = family
    small = halved(model)
    given = tensors(x)
    if isinstance(x, dict) and "use_cache" in x:
        small.config.use_cache = False
    wrapped = Answer(small, list(given) if isinstance(x, dict) else None).eval()
    want = wrapped(*given.values())
    program = torch.onnx.export(
        wrapped, tuple(given.values()), dynamo=True, verbose=False, input_names=list(given)
    )
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(
        None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), given.values())}
    )
    assert (torch.from_numpy(got) - want).abs().max() <= 1e-4 * max(1, want.abs().max())


@pytest.mark.parametrize(
    "name", ["deit_tiny", "swin", "eva02", "hf_bert", "hf_llama", "hf_gpt2", "open_clip_mha"]
)
def test_compile(name):
    "torch.compile traces a cut model as one graph"
    model, x = FAMILIES[name]()
    small = halved(randomised(model))
    want = out(small, x)
    assert (
        out(torch.compile(small, backend="aot_eager", fullgraph=True), x) - want
    ).abs().max() <= 1e-5 * max(1, want.abs().max())

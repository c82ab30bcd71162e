"Cut models elsewhere: ONNX, checked with onnxruntime, and torch.compile, for every family"

import pytest
import torch
from families import FAMILIES, out, randomised

from spp import cut, find_pairs
from spp.method.objective import answer

onnxruntime = pytest.importorskip("onnxruntime")

# the exports of these run in the default tier, those of all others are marked slow
ALWAYS = ("vit_features", "hf_bert", "open_clip_mha")
NAMES = [
    name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]


def halved(model):
    "`model` with a random half of its units, widths filled up to multiples of 4"
    pairs = find_pairs(model)
    g = torch.Generator().manual_seed(0)
    return cut(model, pairs, torch.rand(sum(p.n for p in pairs), generator=g) < 0.5, align=4)


class Answer(torch.nn.Module):
    "A model of tensors only: what a graph can return"

    def __init__(self, model, names):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *x):
        return answer(self.model, dict(zip(self.names, x)) if self.names else x[0]).out


def tensors(x):
    "The tensors of an input, by name"
    if not isinstance(x, dict):
        return {"x": x}
    return {k: v for k, v in x.items() if isinstance(v, torch.Tensor)}


def exported(name):
    "A cut of a family as ONNX, its inputs by name, and what it answers"
    model, x = FAMILIES[name]()
    small = halved(randomised(model))
    given = tensors(x)
    if isinstance(x, dict) and "use_cache" in x:
        small.config.use_cache = False
    wrapped = Answer(small, list(given) if isinstance(x, dict) else None).eval()
    want = wrapped(*given.values())
    program = torch.onnx.export(
        wrapped, tuple(given.values()), dynamo=True, verbose=False, input_names=list(given)
    )
    return program.model_proto.SerializeToString(), given, want


def near(got, want):
    "Are outputs equal to 1e-4 of the largest?"
    return (torch.from_numpy(got) - want).abs().max() <= 1e-4 * max(1, want.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_onnx(name):
    "The graph that onnxruntime runs gives what the cut model gives"
    graph, given, want = exported(name)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = {i.name: v.numpy() for i, v in zip(session.get_inputs(), given.values())}
    (got,) = session.run(None, inputs)
    assert near(got, want)


@pytest.mark.parametrize("name", ("vit_features", pytest.param("hf_bert", marks=pytest.mark.slow)))
def test_openvino(name):
    "OpenVINO reads the same graph; on the CPU, in float32, it gives what the cut model gives"
    openvino = pytest.importorskip("openvino", reason="OpenVINO (pip install openvino) is not here")
    graph, given, want = exported(name)
    core = openvino.Core()
    exact = dict(INFERENCE_PRECISION_HINT="f32")
    compiled = core.compile_model(core.read_model(model=graph), "CPU", exact)
    got = compiled({k: v.numpy() for k, v in given.items()})[0]
    assert near(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ("portable", "xnnpack"))
def test_executorch(backend):
    "ExecuTorch, with its portable kernels and with XNNPACK's, gives what the cut model gives"
    pytest.importorskip("executorch", reason="ExecuTorch (pip install executorch) is not here")
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    model, x = FAMILIES["vit_features"]()
    small = halved(randomised(model)).eval()
    parts = [XnnpackPartitioner()] if backend == "xnnpack" else None
    graph = to_edge_transform_and_lower(torch.export.export(small, (x,)), partitioner=parts)
    program = Runtime.get().load_program(graph.to_executorch().buffer)
    (got,) = program.load_method("forward").execute([x])
    assert near(got.numpy(), out(small, x))


COMPILED = ("deit_tiny", "swin", "eva02", "hf_bert", "hf_llama", "hf_gpt2", "open_clip_mha")


@pytest.mark.parametrize("name", COMPILED)
def test_compile(name):
    "torch.compile traces a cut model as one graph"
    model, x = FAMILIES[name]()
    small = halved(randomised(model))
    want = out(small, x)
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    assert (out(compiled, x) - want).abs().max() <= 1e-5 * max(1, want.abs().max())

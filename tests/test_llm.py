"Language models: masks, repair and whole runs on OPT, GPT-2 and Llama with grouped heads, small and random"

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers as hf
from families import randomised
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from spp.llm.llm import (
    METRICS,
    LLMPath,
    _consumers,
    batches,
    blocks,
    linears,
    one_shot,
    repaired_cut,
    run_llm,
    tokens,
    walk,
    weight_path,
    windows,
)
from spp.method.search import search
from spp.models.transformers import weight

_ONE = dict(vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4)
MODELS = {
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **_ONE, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=48, dropout=0.5
        )
    ),
    "opt_norm_behind": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            **_ONE,
            ffn_dim=64,
            max_position_embeddings=64,
            word_embed_proj_dim=24,
            do_layer_norm_before=False,
        )
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=61, n_embd=48, n_layer=2, n_head=4, n_positions=64)
    ),
    "llama_gqa": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**_ONE, num_key_value_heads=2, intermediate_size=64)
    ),
    "llama_tied": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(
            **_ONE, num_key_value_heads=1, intermediate_size=64, tie_word_embeddings=True
        )
    ),
    "mistral": lambda: hf.MistralForCausalLM(
        hf.MistralConfig(**_ONE, num_key_value_heads=2, intermediate_size=64, sliding_window=8)
    ),
    "qwen2": lambda: hf.Qwen2ForCausalLM(
        hf.Qwen2Config(
            **_ONE,
            num_key_value_heads=2,
            intermediate_size=64,
            use_sliding_window=True,
            sliding_window=8,
            max_window_layers=1,
        )
    ),
}
IDS = torch.randint(61, (6, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=MODELS)
def model(request):
    return randomised(MODELS[request.param]())


def inner(model):
    return {
        f"{blocks(model)[0]}.{i}.{n}": m
        for i, b in enumerate(blocks(model)[1])
        for n, m in linears(b).items()
    }


def test_walk_sees_what_each_layer_reads(model):
    "The moments are those of the whole model's forward pass, and the model is as it was"
    model.train()
    before, want = {k: v.clone() for k, v in model.state_dict().items()}, {}
    got = {n: s for n, _, s in walk(model, IDS, progress=False)}
    assert model.training
    model.eval()
    hooks = [
        m.register_forward_pre_hook(
            lambda m, a, n=n: want.setdefault(n, []).append(a[0].flatten(0, -2))
        )
        for n, m in inner(model).items()
    ]
    with torch.no_grad():
        model(IDS)
    for h in hooks:
        h.remove()
    assert got.keys() == want.keys() == inner(model).keys()
    for n, x in want.items():
        x = torch.cat(x)
        torch.testing.assert_close(
            got[n].h, x.T @ x / len(x), rtol=1e-3, atol=1e-4 * (x.T @ x / len(x)).abs().max().item()
        )
        torch.testing.assert_close(got[n].mean, x.mean(0), rtol=1e-3, atol=1e-4)
        assert got[n].n == IDS.numel()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert not any("forward" in vars(b) or b._forward_pre_hooks for b in model.modules())


def test_a_refreshed_walk_is_calibrated_on_the_pruned_model(model):
    "Zero the first block's layers on the way: what the second reads is what it reads in the model so changed"
    for name, layer, s in walk(model, IDS, refresh=True, progress=False):
        if ".0." in name:
            layer.weight.data.zero_()
        elif name.endswith(list(linears(blocks(model)[1][1]))[0]):
            got = s
    again = {n: s for n, _, s in walk(model, IDS, progress=False)}
    first = f"{blocks(model)[0]}.1.{list(linears(blocks(model)[1][1]))[0]}"
    torch.testing.assert_close(got.h, again[first].h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_masks_are_nested_and_as_large_as_asked(model, metric):
    path = weight_path(model, IDS, metric, progress=False)
    before = None
    assert path.levels.keys() == inner(model).keys()
    for s in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.95):
        mask = path.mask(s)
        for n, m in mask.items():
            assert m.shape == weight(inner(model)[n]).shape
            if path.info["by"] == "row":
                assert ((~m).sum(1) == int(s * m.shape[1] + 1e-9)).all()
            else:
                assert (~m).sum() == int(s * m.numel() + 1e-9)
            if before is not None:
                assert not (m & ~before[n]).any()
        before = mask
    for pattern, (n, m) in {"2:4": (2, 4), "4:8": (4, 8), "1:16": (1, 16)}.items():
        assert all((x.view(-1, m).sum(1) == n).all() for x in path.mask(pattern=pattern).values())


def test_five_sparsities_of_one_run_are_five_runs(model):
    path = weight_path(model, IDS, progress=False)
    for s in (0.3, 0.4, 0.5, 0.6, 0.7):
        one, own = path.prune(s), weight_path(model, IDS, progress=False).prune(s)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), own.parameters()))
        assert all(((weight(m) != 0) <= path.mask(s)[n]).all() for n, m in inner(one).items())


def test_embeddings_and_head_stay(model):
    small, own = (
        weight_path(model, IDS, progress=False).prune(0.6, repair=IDS, progress=False),
        {id(p) for m in inner(model).values() for p in m.parameters()},
    )
    for (n, a), b in zip(model.named_parameters(), small.parameters()):
        if id(a) not in own:
            assert torch.equal(a, b), n
    assert (small.get_output_embeddings().weight is small.get_input_embeddings().weight) == (
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
    )


def _far(a, b):
    with torch.no_grad():
        return (a(IDS).logits - b(IDS).logits).square().mean().item()


def test_repair_comes_closer(model):
    path = weight_path(model, IDS, progress=False)
    for how in (dict(sparsity=0.5), dict(pattern="2:4")):
        plain, fixed = path.prune(**how), path.prune(**how, repair=IDS, progress=False)
        assert _far(fixed, model) < _far(plain, model)
        assert all(((weight(m) != 0) <= path.mask(**how)[n]).all() for n, m in inner(fixed).items())


def test_first_layer_is_repaired_by_least_squares():
    "Against torch.linalg.lstsq on the activations themselves; with a bias, on the activations and a one"
    for kind in ("opt", "gpt2", "llama_gqa"):
        model = randomised(MODELS[kind]()).double()
        path = weight_path(model, IDS, progress=False)
        name, layer = next(iter(inner(model).items()))
        seen = []
        h = layer.register_forward_pre_hook(lambda m, a: seen.append(a[0].flatten(0, -2)))
        with torch.no_grad():
            model(IDS)
        h.remove()
        x = torch.cat(seen)
        w, b = weight(layer), getattr(layer, "bias", None)
        y = x @ w.T + (0 if b is None else b)
        fixed = inner(path.prune(0.5, repair=IDS, damping=1e-9, progress=False))[name]
        keep = path.mask(0.5)[name]
        for row in range(0, len(w), 7):
            k = x[:, keep[row]]
            k = k if b is None else torch.cat([k, torch.ones(len(k), 1, dtype=k.dtype)], 1)
            want = torch.linalg.lstsq(k, y[:, row : row + 1]).solution[:, 0]
            best, got = (
                (k @ want - y[:, row]).square().mean(),
                (x @ weight(fixed)[row] + (0 if b is None else fixed.bias[row]) - y[:, row])
                .square()
                .mean(),
            )
            assert best <= got * (1 + 1e-6) and got - best < 1e-3 * y[:, row].var(), (
                kind,
                row,
                best.item(),
                got.item(),
            )


def test_units_are_folded(model):
    path = search(model, batches(IDS), steps=4, progress=False)
    plain, fixed = (
        path.cut(params=0.75, align=1),
        repaired_cut(path, IDS, params=0.75, align=1, progress=False),
    )
    assert (
        fixed.spp.got == plain.spp.got
        and fixed.spp.fingerprint == plain.spp.fingerprint
        and [p.shape for p in fixed.parameters()] == [p.shape for p in plain.parameters()]
    )
    assert _far(fixed, model) < _far(plain, model)
    assert _far(repaired_cut(path, IDS, params=1.0, progress=False), model) == 0
    assert all(
        m.any() or not m.any()
        for m in _consumers(model, path.pairs, path.mask(1, params=0.75)).values()
    ) and set(_consumers(model, path.pairs, path.mask(1, params=0.75))) <= set(inner(model))


def test_one_shot_is_sequential(model):
    "At each metric the first block is that of the path; later blocks may differ, since they saw the pruned one"
    for metric in METRICS:
        a, b = (
            one_shot(model, IDS, metric, 0.5, progress=False),
            weight_path(model, IDS, metric, progress=False).prune(0.5),
        )
        assert all(
            torch.equal(x.weight, y.weight)
            for (n, x), y in zip(inner(a).items(), inner(b).values())
            if ".0." in n
        )


def test_files(model, tmp_path):
    path = weight_path(model, IDS, progress=False)
    path.save(tmp_path / "p")
    back = LLMPath.load(tmp_path / "p", model)
    assert (
        list(back.levels) == list(path.levels)
        and all(torch.equal(a, b) for a, b in zip(back.levels.values(), path.levels.values()))
        and back.info == path.info
    )
    n = sum(l.numel() for l in path.levels.values())
    assert (tmp_path / "p").stat().st_size < n + 20_000
    good = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(good[:-9])
    with pytest.raises(ValueError, match="truncated"):
        LLMPath.load(tmp_path / "p")


def test_half_precision():
    model = randomised(MODELS["llama_gqa"]()).bfloat16()
    small = weight_path(model, IDS, progress=False).prune(0.5, repair=IDS, progress=False)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16} and small(
        IDS
    ).logits.isfinite().all()


def test_errors(model):
    path = weight_path(model, IDS, progress=False)
    for how, text in (
        (dict(sparsity=1.0), r"in \[0, 1\), got 1.0"),
        (dict(sparsity=-0.1), r"in \[0, 1\)"),
        (dict(pattern="5:4"), "expected 0 < N ≤ M"),
        (dict(pattern="2:7"), "does not divide the rows of"),
        (dict(), "either `sparsity` or `pattern`"),
        (dict(sparsity=0.5, pattern="2:4"), "either"),
    ):
        with pytest.raises(ValueError, match=text):
            path.prune(**how)
    with pytest.raises(ValueError, match="take its own tokenizer"):
        weight_path(model, IDS + 40)
    with pytest.raises(TypeError, match="no list of decoder layers in Linear"):
        weight_path(nn.Linear(3, 3), IDS)
    with pytest.raises(TypeError, match="Inclusion"):
        weight_path(model, IDS, stps=3)
    name, layer = list(inner(model).items())[-1]
    with torch.no_grad():
        layer.weight.zero_()
        (layer.bias if getattr(layer, "bias", None) is not None else layer.weight).fill_(1.0)
    first, bad = list(inner(model).items())[0]
    with torch.no_grad():
        bad.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match=r"what \S+\.0\.\S+ reads is not finite"):
        weight_path(model, IDS, progress=False)


def test_singular_moments_name_the_layer():
    model = randomised(MODELS["llama_gqa"]())
    few = IDS[:1, :8]
    path = weight_path(model, few, progress=False)
    with pytest.raises(
        ArithmeticError,
        match=r"what model.layers.0.self_attn.q_proj reads are singular \(8 tokens, 48 inputs\)",
    ):
        path.prune(0.5, repair=few, damping=0.0, progress=False)
    assert all(
        p.isfinite().all() for p in path.prune(0.5, repair=few, progress=False).parameters()
    )  # damping goes on


def test_an_input_that_is_always_zero():
    model = randomised(MODELS["llama_gqa"]())
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[:5] = 0
    for metric in METRICS:
        assert all(
            p.isfinite().all()
            for p in weight_path(model, IDS, metric, progress=False)
            .prune(0.5, repair=IDS, progress=False)
            .parameters()
        )
    gone = ~weight_path(model, IDS, progress=False).mask(5 / 48)["model.layers.0.self_attn.q_proj"]
    assert gone[:, :5].float().mean() > 0.9  # nobody reads them


TEXT = [" ".join(f"w{(i * k) % 53}" for i in range(400)) for k in (1, 3, 7, 11)]


def words():
    t = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)} | {"?": 60}, unk_token="?"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(tokenizer_object=t, unk_token="?")  # no token for padding


def test_windows():
    t = words()
    assert (
        t.pad_token is None
        and windows(TEXT, t, 5, 100).shape == (5, 100)
        and tokens(TEXT[:1], t).shape == (400,)
    )
    with pytest.raises(ValueError, match="has 1600 tokens and one window takes 2000"):
        windows(TEXT, t, length=2000)
    with pytest.raises(ValueError, match="has 0 tokens"):
        windows([], t)
    with pytest.raises(ValueError, match="2000 tokens, but OPTForCausalLM has 64 positions"):
        weight_path(MODELS["opt"](), torch.zeros(1, 2000, dtype=torch.long))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    at = tmp_path_factory.mktemp("llm")
    (at / "a.txt").write_text(TEXT[0])
    (at / "b.txt").write_text(TEXT[2])
    for kind in ("llama_gqa", "gpt2"):
        randomised(MODELS[kind]()).save_pretrained(at / kind)
        words().save_pretrained(at / kind)
    return at


def spp(*args, cwd):
    return subprocess.run(
        [sys.executable, "-c", "from spp.running.cli import main; main()", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
    )


_AGAIN = "import json, sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; from spp.llm.llm import perplexity, tokens; t = T.from_pretrained(sys.argv[1]); print(json.dumps(float(perplexity(M.from_pretrained(sys.argv[1]), tokens('b.txt', t), 32))))"


@pytest.mark.parametrize(
    "kind, args",
    [
        ("llama_gqa", ("--sparsity", 0.5, "--repair")),
        ("gpt2", ("--pattern", "2:4")),
        ("llama_gqa", ("--params", 0.8, "--repair", "--uniform", "--steps", 3)),
    ],
)
def test_command_and_reload_in_a_new_process(stored, kind, args):
    out = f"out_{kind}_{args[0]}"
    r = spp(
        "llm",
        kind,
        "--calibration",
        "a.txt",
        "--judge",
        "b.txt",
        "--windows",
        6,
        "--length",
        32,
        *args,
        "--out",
        out,
        cwd=stored,
    )
    assert r.returncode == 0, r.stderr
    said = json.loads((stored / out / "llm.json").read_text())
    assert (
        said["pruned"]["length"] == 32
        and said["pruned"]["data"] == said["dense"]["data"]
        and "revision" in said
    )
    assert (
        "faster everywhere"
        if args[0] == "--params"
        else "faster only through sparse kernels"
        if args[0] == "--pattern"
        else "as fast as the dense one"
    ) in r.stdout
    again = subprocess.run(
        [sys.executable, "-c", _AGAIN, out], capture_output=True, text=True, cwd=stored
    )
    assert again.returncode == 0, again.stderr
    assert abs(json.loads(again.stdout.splitlines()[-1]) / said["pruned"]["value"] - 1) < 1e-6
    assert ("zeros" in said and abs(said["zeros"] - 0.5) < 0.01) or 0.7 < said["got"][
        "params"
    ] <= 0.8
    assert (
        spp(
            "llm",
            kind,
            "--calibration",
            "a.txt",
            "--windows",
            6,
            "--length",
            32,
            *args,
            "--out",
            out,
            cwd=stored,
        ).returncode
        == 0
    )  # its own folder may be replaced


def test_command_errors(stored):
    for args, text in (
        (("llama_gqa", "--calibration", "a.txt", "--sparsity", 1.2), "in [0, 1), got 1.2"),
        (("llama_gqa", "--calibration", "a.txt"), "give one of sparsity, pattern and params"),
        (
            (
                "llama_gqa",
                "--calibration",
                "a.txt",
                "--pattern",
                "2:5",
                "--windows",
                2,
                "--length",
                32,
            ),
            "does not divide",
        ),
        (("llama_gqa", "--sparsity", 0.5), "which calibration text?"),
        (("llama_gqa", "--calibration", "none.txt", "--sparsity", 0.5), "no text none.txt"),
        (
            ("llama_gqa", "--calibration", "a.txt", "--sparsity", 0.5, "--length", 999),
            "has 400 tokens and one window takes 999",
        ),
    ):
        r = spp("llm", *args, "--out", "bad", cwd=stored)
        assert r.returncode == 1 and text in r.stderr and "Traceback" not in r.stderr, r.stderr
        assert not (stored / "bad").exists()
    (stored / "mine").mkdir(exist_ok=True)
    (stored / "mine/thesis.tex").touch()
    with pytest.raises(FileExistsError, match="thesis.tex"):
        run_llm(str(stored / "llama_gqa"), stored / "mine", stored / "a.txt", sparsity=0.5)


_TASK = """
import json, sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; import spp.llm.llm as L
L.SETS["here"] = dict(path="json", data_files=dict(train="docs.jsonl")); assert L.texts("here") == ["w1 w2", "w3"]
task = dict(task="facts", dataset_path="json", dataset_kwargs=dict(data_files=dict(test="facts.jsonl")), test_split="test", output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="{{choices}}", doc_to_target="{{answer}}", metric_list=[dict(metric="acc", aggregation="mean", higher_is_better=True)])
print(json.dumps(L.run_llm("asked", "judged", "a.txt", sparsity=.5, n=4, length=32, tasks=(task,))["zero_shot"]))
net, t = M.from_pretrained("asked").eval(), T.from_pretrained("asked"); import torch; right = []
for x in map(json.loads, open("facts.jsonl")):
    start, says = t(x["q"])["input_ids"], []
    for c in x["choices"]:
        own = t(" " + c)["input_ids"]; logp = net(input_ids=torch.tensor([start + own])).logits[0].log_softmax(-1); says.append(sum(logp[len(start) - 1 + i, j].item() for i, j in enumerate(own)))
    right.append(says.index(max(says)) == x["answer"])
print(sum(right) / len(right))
"""


def test_zero_shot_and_datasets(stored):
    "A task of one's own through lm_eval, a data set of one's own through datasets; against the likelihoods themselves. Nothing is fetched"
    pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    shutil.copytree(stored / "llama_gqa", stored / "asked")
    t = words()
    t.eos_token = "?"
    t.save_pretrained(stored / "asked")  # lm_eval needs an end
    (stored / "facts.jsonl").write_text(
        "".join(
            json.dumps(
                dict(
                    q=f"w{i} w{i + 1}",
                    choices=[f"w{3 * i % 50}", f"w{7 * i % 50} w1"],
                    answer=i % 2,
                )
            )
            + "\n"
            for i in range(12)
        )
    )
    (stored / "docs.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n')
    r = subprocess.run(
        [sys.executable, "-c", _TASK],
        capture_output=True,
        text=True,
        cwd=stored,
        env=os.environ | dict(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=str(stored / "cache")),
    )
    assert r.returncode == 0, r.stderr
    said, want = map(json.loads, r.stdout.splitlines()[-2:])
    assert said["dense"] == {"facts": pytest.approx(want)} and 0 <= said["pruned"]["facts"] <= 1
    r = spp(
        "llm",
        "asked",
        "--calibration",
        "a.txt",
        "--sparsity",
        0.5,
        "--length",
        32,
        "--windows",
        2,
        "--tasks",
        "no_such_task",
        "--out",
        "none",
        cwd=stored,
    )
    assert (
        r.returncode == 1
        and "no_such_task" in r.stderr
        and "Traceback" not in r.stderr
        and not (stored / "none").exists()
    ), r.stderr

"Runs on language models: `run_llm` and `spp llm`, from a folder on disk to another."

import json
import os
import shutil

import pytest
from causal import CAUSAL, TEXT, words
from command import python, spp
from families import randomised
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from spp.lab.bench_llm import memory
from spp.lab.cells import Record
from spp.llm.running import run_llm
from spp.llm.text import perplexity, tokens
from spp.running.cli import app


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "A folder with two models, their tokenizers and two texts"
    at = tmp_path_factory.mktemp("llm")
    (at / "a.txt").write_text(TEXT[0])
    (at / "b.txt").write_text(TEXT[2])
    for kind in ("llama_gqa", "gpt2"):
        randomised(CAUSAL[kind]()).save_pretrained(at / kind)
        words().save_pretrained(at / kind)
    return at


def in_process(*args):
    "`spp` with these arguments, in this process: exit status, output, errors"
    done = CliRunner().invoke(app, [*map(str, args)])
    return done.exit_code, done.stdout, done.stderr


def in_new_process(*args):
    "`spp` with these arguments, in a new process: exit status, output, errors"
    done = spp(*args)
    return done.returncode, done.stdout, done.stderr


SMALL = ("--calibration", "a.txt", "--windows", 6, "--length", 32)
COMMANDS = {
    "sparsity": ("llama_gqa", "--sparsity", 0.5, "--repair"),
    "pattern": ("gpt2", "--pattern", "2:4"),
    "params": ("llama_gqa", "--params", 0.8, "--repair", "--uniform", "--steps", 3),
}
SPEED = {
    "sparsity": "as fast as the dense one",
    "pattern": "faster only through sparse kernels",
    "params": "faster everywhere",
}


def right(name, folder, said, record):
    "Check what a command printed and wrote"
    assert SPEED[name] in said
    assert record == json.loads((folder / "llm.json").read_text())
    assert record["pruned"]["length"] == 32
    assert record["pruned"]["data"] == record["dense"]["data"]
    assert "revision" in record
    if name == "params":
        assert 0.7 < record["got"]["params"] <= 0.8
    else:
        assert abs(record["zeros"] - 0.5) < 0.01


@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_reload(stored, monkeypatch, name):
    "A model that `spp llm` wrote has the perplexity that it wrote; its folder may be replaced"
    monkeypatch.chdir(stored)
    out = stored / f"here_{name}"
    kind, *args = COMMANDS[name]
    for judge in (("--judge", "b.txt"), ()):
        status, said, errors = in_process("llm", kind, *SMALL, *judge, *args, "--out", out)
        assert status == 0, errors
        record = json.loads((out / "llm.json").read_text())
        if not judge:
            assert record["pruned"] is None
            continue
        right(name, out, said, record)
        text = tokens("b.txt", AutoTokenizer.from_pretrained(out))
        again = perplexity(AutoModelForCausalLM.from_pretrained(out), text, 32)
        assert abs(again.value / record["pruned"]["value"] - 1) < 1e-6


AGAIN = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from spp.llm.text import perplexity, tokens

text = tokens("b.txt", AutoTokenizer.from_pretrained(sys.argv[1]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(json.dumps(perplexity(model, text, 32).value))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_command_and_reload_in_new_processes(stored, monkeypatch, name):
    "As above, with the command, the reloading and the replacing each in a process of its own"
    monkeypatch.chdir(stored)
    out = stored / f"out_{name}"
    kind, *args = COMMANDS[name]
    status, said, errors = in_new_process(
        "llm", kind, *SMALL, "--judge", "b.txt", *args, "--out", out
    )
    assert status == 0, errors
    record = json.loads((out / "llm.json").read_text())
    right(name, out, said, record)
    again = python("-c", AGAIN, out)
    assert again.returncode == 0, again.stderr
    value = json.loads(again.stdout.splitlines()[-1])
    assert abs(value / record["pruned"]["value"] - 1) < 1e-6
    status, _, errors = in_new_process("llm", kind, *SMALL, *args, "--out", out)
    assert status == 0, errors


CALIBRATED = ("llama_gqa", "--calibration", "a.txt")
ERRORS = [
    ((*CALIBRATED, "--sparsity", 1.2), "`sparsity` must be in [0, 1)"),
    (CALIBRATED, "give one of sparsity, pattern and params"),
    ((*CALIBRATED, "--pattern", "2:5", "--windows", 2, "--length", 32), "does not divide"),
    (("llama_gqa", "--sparsity", 0.5), "which calibration text?"),
    (("llama_gqa", "--calibration", "none.txt", "--sparsity", 0.5), "no text none.txt"),
    (
        (*CALIBRATED, "--sparsity", 0.5, "--length", 999),
        "has 400 tokens and one window takes 999",
    ),
]


def fails(spp, args, text):
    "Check that `spp llm` says what is wrong, without a traceback, and writes nothing"
    status, _, errors = spp("llm", *args, "--out", "bad")
    assert status == 2
    assert text in errors
    assert "Traceback" not in errors
    assert not os.path.exists("bad")


@pytest.mark.parametrize("args, text", ERRORS)
def test_command_errors(stored, monkeypatch, args, text):
    monkeypatch.chdir(stored)
    fails(in_process, args, text)


@pytest.mark.slow
@pytest.mark.parametrize("args, text", ERRORS)
def test_command_errors_in_a_new_process(stored, monkeypatch, args, text):
    monkeypatch.chdir(stored)
    fails(in_new_process, args, text)


def test_a_folder_is_read_without_the_hub(stored, monkeypatch, tmp_path):
    monkeypatch.setattr("spp.core.hub.hub_answers", lambda: pytest.fail("the hub was asked"))
    given = dict(sparsity=0.5, n=2, length=16)
    run_llm(str(stored / "gpt2"), tmp_path / "out", str(stored / "a.txt"), **given)
    assert (tmp_path / "out" / "llm.json").exists()
    with pytest.raises(pytest.fail.Exception, match="the hub was asked"):
        run_llm("no/such", tmp_path / "none", str(stored / "a.txt"), **given)


def test_a_column_of_the_text(stored, monkeypatch):
    "`--field` says which column of a .jsonl is the text; without it the columns are named"
    monkeypatch.chdir(stored)
    rows = [json.dumps(dict(source="web", body=text)) for text in (TEXT[0], TEXT[2])]
    (stored / "rows.jsonl").write_text("\n".join(rows))
    args = ("llm", "llama_gqa", "--sparsity", 0.5, "--metric", "magnitude")
    args += ("--calibration", "rows.jsonl", "--windows", 2, "--length", 16, "--out", "of_rows")
    status, _, errors = in_process(*args)
    assert status == 2
    assert "which field is the text? There are source, body. Pass field= (--field)" in errors
    status, _, errors = in_process(*args, "--field", "body", "--judge", "rows.jsonl")
    assert status == 0, errors
    record = json.loads((stored / "of_rows/llm.json").read_text())
    ids = tokens([TEXT[0], TEXT[2]], AutoTokenizer.from_pretrained(stored / "llama_gqa"))
    windows = -(-len(ids) // 16)  # nothing predicts the first token of each
    assert record["pruned"]["tokens"] == len(ids) - windows


def test_a_folder_of_something_else_stays(stored):
    (stored / "mine").mkdir()
    (stored / "mine/thesis.tex").touch()
    with pytest.raises(FileExistsError, match="thesis.tex"):
        run_llm(str(stored / "llama_gqa"), stored / "mine", stored / "a.txt", sparsity=0.5)


# --- zero-shot tasks ------------------------------------------------------------------------

TASK = """
import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from spp.llm.running import run_llm
from spp.llm.text import SETS, texts

SETS["here"] = dict(path="json", data_files=dict(train="docs.jsonl"))
assert texts("here") == ["w1 w2", "w3"]
task = dict(
    task="facts",
    dataset_path="json",
    dataset_kwargs=dict(data_files=dict(test="facts.jsonl")),
    test_split="test",
    output_type="multiple_choice",
    doc_to_text="{{q}}",
    doc_to_choice="{{choices}}",
    doc_to_target="{{answer}}",
    metric_list=[dict(metric="acc", aggregation="mean", higher_is_better=True)],
)
record = run_llm("asked", "judged", "a.txt", sparsity=0.5, n=4, length=32, tasks=(task,))
print(json.dumps(record["zero_shot"]))

model = AutoModelForCausalLM.from_pretrained("asked").eval()
tokenizer = AutoTokenizer.from_pretrained("asked")


def likelihood(question, choice):
    start = tokenizer(question)["input_ids"]
    own = tokenizer(" " + choice)["input_ids"]
    logp = model(input_ids=torch.tensor([start + own])).logits[0].log_softmax(-1)
    return sum(logp[len(start) - 1 + i, token].item() for i, token in enumerate(own))


right = []
for fact in map(json.loads, open("facts.jsonl")):
    found = [likelihood(fact["q"], choice) for choice in fact["choices"]]
    right.append(found.index(max(found)) == fact["answer"])
print(sum(right) / len(right))
"""


def fact(i):
    choices = [f"w{3 * i % 50}", f"w{7 * i % 50} w1"]
    return dict(q=f"w{i} w{i + 1}", choices=choices, answer=i % 2)


@pytest.fixture
def asked(stored, monkeypatch):
    "A model that can be asked, with questions and a data set in files"
    pytest.importorskip("lm_eval")
    pytest.importorskip("datasets")
    monkeypatch.chdir(stored)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(stored / "cache"))
    shutil.copytree("llama_gqa", "asked", dirs_exist_ok=True)
    tokenizer = words()
    tokenizer.eos_token = "?"
    tokenizer.save_pretrained("asked")  # lm_eval needs an end of text
    (stored / "facts.jsonl").write_text("\n".join(json.dumps(fact(i)) for i in range(12)) + "\n")
    (stored / "docs.jsonl").write_text('{"text": "w1 w2"}\n{"text": "w3"}\n')


@pytest.mark.slow
def test_zero_shot_and_datasets(asked):
    "Own tasks through lm_eval, own data through datasets, against likelihoods; nothing is fetched"
    done = python("-c", TASK)
    assert done.returncode == 0, done.stderr
    said, want = map(json.loads, done.stdout.splitlines()[-2:])
    assert said["dense"] == {"facts": pytest.approx(want)}
    assert 0 <= said["pruned"]["facts"] <= 1


@pytest.mark.slow
def test_unknown_tasks(asked):
    few = ("--calibration", "a.txt", "--sparsity", 0.5, "--length", 32, "--windows", 2)
    status, _, errors = in_new_process(
        "llm", "asked", *few, "--tasks", "no_such_task", "--out", "none"
    )
    assert status == 2
    assert "no_such_task" in errors
    assert "Traceback" not in errors
    assert not os.path.exists("none")


# --- the benchmark --------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    record = Record(tmp_path / "llm.json", dict(windows=8))
    config = dict(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    memory(record, config)
    found = record.figures["memory"]
    assert found["parameters"] > 80_000
    assert found["statistics"] == 4 * (3 * 64**2 + 128**2)

"Fine-tuning across processes: killed and resumed, and two processes as one"

import json
import signal
from pathlib import Path

import pytest
import torch
from command import python
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("finetuning.py")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def train(out, how, checkpoint="", dies=-1, launch=()):
    "Run `finetuning.py`"
    return python(*launch, SCRIPT, out, checkpoint, dies, how)


def rows(out):
    "The log of a run"
    return [json.loads(line) for line in Path(f"{out}.jsonl").read_text().splitlines()]


def assert_near(one, two):
    "Both runs have the same weights, to 1e-9"
    a, b = load_file(one), load_file(two)
    assert all((a[k] - b[k]).abs().max() <= 1e-9 for k in a)


@pytest.mark.slow
def test_resume_after_kill(tmp_path):
    """Killed with SIGKILL and resumed, a training ends at the same bits and the same log.

    It dies before the first checkpoint, in the middle of an epoch and in the last one; with
    dropout, Mixup, an average of the weights and a loader in another process.
    """
    want, got, checkpoint = tmp_path / "want", tmp_path / "got", tmp_path / "run"
    r = train(want, "killed")
    assert r.returncode == 0, r.stderr
    for dies in (2, 13, 12):
        r = train(got, "killed", checkpoint, dies)
        assert r.returncode == -signal.SIGKILL, r.stderr
        assert not got.exists()
    r = train(got, "killed", checkpoint)
    assert r.returncode == 0, r.stderr
    a, b = load_file(want), load_file(got)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert rows(got) == rows(want)
    assert len(rows(got)) == 3
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]  # nothing is left behind


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    "Two processes on halves of each batch train the model of one process on the whole"
    one, two = tmp_path / "one", tmp_path / "two"
    r = train(one, "parallel")
    assert r.returncode == 0, r.stderr
    r = train(two, "parallel", launch=TWO)
    assert r.returncode == 0, r.stderr
    assert_near(one, two)
    losses = [[row["loss"] for row in rows(out)] for out in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_divided_is_whole(tmp_path):
    "Two processes with half of the weights each train the model of one; also if they are resumed"
    one, two, checkpoint = tmp_path / "one", tmp_path / "two", tmp_path / "run"
    r = train(one, "divided")
    assert r.returncode == 0, r.stderr
    r = train(two, "divided", checkpoint, dies=7, launch=TWO)
    assert r.returncode and "dies here" in r.stderr, r.stderr
    assert checkpoint.exists() and not two.exists()
    r = train(two, "divided", checkpoint, launch=TWO)
    assert r.returncode == 0, r.stderr
    assert_near(one, two)
    scores = [[row["score"] for row in rows(out)] for out in (one, two)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-9)

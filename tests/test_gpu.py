"What only a GPU can get wrong (`pytest -m gpu`), and the command that measures it, at toy size"

import pytest
import torch
from command import inside, refused

from spp.lab.gpu import PARTS
from spp.lab.gpu_checks import CHECKS, run_check
from spp.lab.records import read_record


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHECKS)
def test_on_a_gpu(name):
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    found = run_check(name, torch.device("cuda"))
    if found["ok"] is None:
        pytest.skip(found["reason"])
    assert found["ok"], found


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_the_command_at_toy_size(tmp_path):
    "Every part gives rows; the full size is refused with the line that works"
    done = inside("bench", "gpu", "--toy", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "gpu_toy.json")
    assert list(record["parts"]) == list(PARTS)
    assert all(part["rows"] for part in record["parts"].values()), record["parts"]
    refused(inside("bench", "gpu", "--out", tmp_path), "write `spp bench gpu --toy`", status=1)
    refused(inside("bench", "speed", "--toy"), "--toy belongs to `spp bench gpu`")


def test_a_part_that_fails_is_told_and_the_next_one_runs(tmp_path, monkeypatch):
    from spp.lab import gpu as day

    def broken(device, scale):
        raise ArithmeticError("no such number")

    parts = dict(first=broken, second=lambda device, scale: [dict(value=1)])
    monkeypatch.setattr(day, "PARTS", parts)
    monkeypatch.setattr(day, "_device", lambda toy: torch.device("cpu"))
    run = read_record(day.gpu(tmp_path, toy=True, progress=False))["parts"]
    assert run["first"] == dict(rows=[], failed="ArithmeticError: no such number")
    assert run["second"]["rows"] == [dict(value=1)]
    run = read_record(day.gpu(tmp_path, toy=True, minutes=1e-9, progress=False))["parts"]
    assert {part["left_out"] for part in run.values()} == {"time"}

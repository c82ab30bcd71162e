"Benchmarks of the lab that take too long for their notebooks"

import pytest

from spp.lab.ablation import VARIANTS, ablation
from spp.lab.cost import search_memory
from spp.lab.families import FAMILIES, families
from spp.lab.offline_tasks import offline_tasks
from spp.lab.records import read_record
from spp.lab.samples import smollm2
from spp.lab.tasks import TASKS, digits_task, fashion_task
from spp.llm.running import zero_shot

pytestmark = pytest.mark.slow


@pytest.fixture
def tiny():
    "The digits, with a search of ten steps"
    task = digits_task()
    task.steps = task.looks = 10
    return task


def test_every_variant_of_the_ablation(tiny, tmp_path, monkeypatch):
    "The digits get all variants, four couplings of the plain iteration, and few pictures"
    for name in ("100 steps", "200 steps", "800 steps"):
        monkeypatch.setitem(VARIANTS, name, dict(steps=10))
    run = read_record(ablation(tmp_path, [tiny], seeds=(0,), progress=False))
    found = [row["variant"] for row in run["rows"]]
    couplings = [f"plain, nu * {factor}" for factor in ("0.0625", "0.25", "4", "16")]
    cuts = ["same dimensions in all heads", "widths in multiples of 8"]
    assert sorted(found) == sorted([*VARIANTS, *couplings, *cuts, "64 pictures", "256 pictures"])
    assert all(0 <= score <= 1 for row in run["rows"] for score in row["score"])


def test_families(tiny, tmp_path, monkeypatch):
    "All ways and sizes, and a member of DeiT-Small; what the file says of other tasks stays"
    monkeypatch.setitem(FAMILIES, "tiny", (lambda: tiny, 2))
    monkeypatch.setattr("spp.lab.families.BATCHES", 2)
    run = {}
    for _ in range(2):
        run = read_record(families(tmp_path, ("tiny",), (0.75, 0.5), (0,), progress=False))
    told = run["tasks"]["tiny"]
    names = ["separate", "walk", "walk, then each", "joint, from bytes"]
    expected = [(way, share) for way in names for share in (0.75, 0.5)]
    for way in ("joint", "joint, four sizes", "nested", "curriculum"):
        for ending in ("", ", repaired"):
            expected += [(way + ending, share) for share in (0.75, 0.5, 0.625)]
    assert [(row["way"], row["asked"]) for row in told["rows"]] == expected
    assert run["deit_small_at_ms"] > 0
    disk = told["disk"]
    assert [d["members"] for d in disk] == [2, 8, 11, 16]
    assert disk[0]["family"] == disk[3]["family"] < disk[3]["separate"] / 5
    for d in disk:
        assert d["family_int8"] < 0.4 * d["family"]
        assert d["separate_int8"] < 0.4 * d["separate"]


def test_search_takes_less_memory_than_training(tmp_path):
    run = read_record(search_memory(tmp_path, batch=1, parts=("search", "training")))
    assert 0 < run["search"] < run["training"]


@pytest.mark.parametrize("name", [*TASKS, "fashion"])
def test_tasks(name):
    "Batches can be searched on, and the dense model scores as a dense model does"
    make = (TASKS | dict(fashion=fashion_task))[name]
    try:
        task = make()
    except ConnectionError as e:
        pytest.skip(str(e))
    assert task.name == name
    assert len(list(task.data(2, 20))) >= 2
    least, most = dict(accuracy=(0.8, 1), cosine=(0.999, 1.001), perplexity=(10, 30))[task.measure]
    assert least < task.score(task.model) < most


def test_questions_without_a_download(tmp_path):
    "lm_eval asks a pretrained model all three kinds, and it knows most answers"
    pytest.importorskip("lm_eval")
    try:
        model, tokenizer = smollm2()
        tasks = offline_tasks(tmp_path, n=10)
    except ConnectionError as e:
        pytest.skip(str(e))
    found = zero_shot(model, tokenizer, tasks)
    assert list(found) == ["cloze", "analogies", "related"]
    assert sum(found.values()) > 1.8  # chance is 1, the model has 2.6 on 200 questions of each

"""Files other than models that somebody sends you, each sealed as spp seals its own.

A field is missing, is of another type, or names what lies elsewhere. Nothing runs, no host is
asked, nothing outside the folder is opened, and every refusal names the file in one paragraph.
"""

import os
import sys
import tempfile
from contextlib import contextmanager

import pytest
import torch
from families import FAMILIES
from outputs import OUTPUTS, parts, repair_write, searched_folder
from test_strangers import clip, folder, timm_build

import spp
from spp.core.formats import load_json, load_tensors, save_json, write_tensors
from spp.cutting.cut import narrowed
from spp.cutting.files import KIND as MODEL
from spp.lab.records import RECORD
from spp.llm.weight_paths import KIND as LLM_PATH
from spp.method.kept_layers import KIND as REPAIR
from spp.method.path import KIND as PATH
from spp.method.resume import RUN
from spp.models.pairs import find_pairs
from spp.running.folder import KINDS
from spp.running.report import read
from spp.training.checkpoint import KIND as TRAINING
from spp.training.family import KIND as FAMILY

FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "pickle.",
    "urllib.",
    "ctypes.dlopen",
)
watched: list[tuple[str, tuple]] | None = None  # events while a file is read


def _watch(event, args):
    if watched is not None and (event.startswith(FORBIDDEN) or event == "open"):
        watched.append((event, args))


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def made():
    "Models and paths, before a file is read"
    parts()
    searched_folder()


@contextmanager
def watching():
    "Fails if the block does more than read below the scratch folder and the libraries"
    global watched
    watched = []
    try:
        yield
    finally:
        events, watched = watched, None
    scratch, here = tempfile.gettempdir(), os.getcwd()
    allowed = (scratch, sys.prefix, sys.base_prefix, here, "/proc/self")
    odd = [(event, args[0]) for event, args in events]
    odd = [(event, x) for event, x in odd if event != "open" or str(x)[:1] == "/"]
    assert not [x for x in odd if x[0] != "open" or not str(x[1]).startswith(allowed)]


# output, its file, kind, and field → what a stranger puts there (MISSING: nothing)
MISSING = object()
FIELDS = {
    ("path", "", PATH): {
        "pairs": (MISSING, 3, [3], [{"site": "os.system"}], [{}], "x", {"a": 1}, None),
        "history": (MISSING, 3, [1]),
        "info": (MISSING, [1], "x"),
    },
    ("search", "", RUN): {
        "info": (MISSING, 3, {}, {"model": "evil"}),
        "k": (MISSING, 7, "x", None),
        "numbers": (MISSING, 3, [1]),
        "history": (MISSING, 3),
    },
    ("training", "", TRAINING): {
        "info": (MISSING, 3, {}, {"model": "evil"}),
        "k": (MISSING, "x", None, [1]),
        "total": (MISSING, "x", None),
        "rows": (MISSING, 3, None),
    },
    ("repair", "", REPAIR): {
        "info": (MISSING, 3, "x"),
        "choices": (
            MISSING,
            3,
            ["x"],
            {"no such layer": {}},
            {"blocks.0.mlp.fc2": {"target": "own"}},
        ),
    },
    ("llm path", "", LLM_PATH): {
        "layers": (MISSING, 3, ["no such layer"], [[1]]),
        "info": (MISSING, 3, "x"),
    },
    ("family", "family.json", FAMILY): {
        "table": (MISSING,),
        "trained": (MISSING,),
    },
    ("family", "order.path", PATH): {"pairs": (MISSING, 3), "info": (MISSING,)},
    ("run", "results.json", KINDS["results.json"]): {
        "rows": (MISSING, 3, [3], "x", None),
        "recipe": (MISSING,),
        "seed": (MISSING,),
    },
    ("jobs", "jobs.json", KINDS["jobs.json"]): {
        "jobs": (MISSING, 3, [3], [{}], {"a": 1}, None, "x"),
    },
}
CASES = [
    (*where, field, value)
    for where, fields in FIELDS.items()
    for field, values in fields.items()
    for value in values
]


def reseal(file, kind, field, value):
    "Change a field of a file and seal it again"
    tensors = None
    if file.suffix == ".json":
        told = load_json(file, kind)
    else:
        tensors, told = load_tensors(file, kind)
        told.pop("kind", None)
    told.pop(field) if value is MISSING else told.update({field: value})
    if tensors is None:
        save_json(file, kind, told)
    else:
        write_tensors(file, tensors, kind, told)


def refused(function, *args):
    "The text of the `ValueError` that `function` must raise, in one paragraph"
    with pytest.raises((ValueError, FileNotFoundError)) as error, watching():
        function(*args)
    assert type(error.value) in (ValueError, FileNotFoundError)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name, inside, kind, field, value",
    CASES,
    ids=[f"{c[0]} {c[3]}={'' if c[4] is MISSING else c[4]}"[:40] for c in CASES],
)
def test_crafted_field(tmp_path, name, inside, kind, field, value):
    place = tmp_path / "sent"
    OUTPUTS[name].write(place)
    reseal(place / inside if inside else place, kind, field, value)
    assert str(place) in refused(OUTPUTS[name].read, place)


@pytest.mark.parametrize("name", ["v", "fisher", "trace"])
def test_crafted_tensor_of_a_path(tmp_path, name):
    "Shorter than the units, or missing"
    place = tmp_path / "sent"
    parts()["path"].save(place)
    tensors, told = load_tensors(place, PATH)
    short = tensors | {name: tensors[name][..., :-1].contiguous()}
    write_tensors(place, short, PATH, told)
    assert str(place) in refused(spp.SolutionPath.load, place)
    write_tensors(place, tensors | {"evil": torch.ones(3)}, PATH, told)
    assert str(place) in refused(spp.SolutionPath.load, place)


def one_column(layers):
    name = next(k for k in layers if k.startswith("weight."))
    return {name: layers[name][:, :1].contiguous()}


def one_row(layers):
    name = next(k for k in layers if k.startswith("bias."))
    return {name: layers[name][:1].contiguous()}


@pytest.mark.parametrize("wrong", [one_column, one_row])
def test_crafted_layers_of_a_repair(tmp_path, wrong):
    "Of another shape, which torch would stretch without a word"
    place = tmp_path / "sent"
    repair_write(place)
    tensors, told = load_tensors(place, REPAIR)
    told.pop("kind", None)
    write_tensors(place, tensors | wrong(tensors), REPAIR, told)
    assert "but the layer has" in refused(repair_write, place)


WIDER = {
    "hidden": ("hf_bert", "mlp", dict(hidden=10_000)),
    "heads": ("deit_tiny", "attn", dict(heads=64, head_dim=4)),
    "head_dim": ("open_clip_mha", "attn", dict(heads=1, head_dim=1000)),
    "queries that share a key": ("hf_llama", "self_attn", dict(heads=3, head_dim=4)),
}


@pytest.mark.parametrize("name", WIDER)
def test_widths_that_the_layer_has_not(name):
    "However the weights that come with them look"
    family, layer, widths = WIDER[name]
    model = FAMILIES[family]()[0]
    site = next(p.site for p in find_pairs(model) if layer in p.site or "hidden" in widths)
    with pytest.raises(ValueError, match=f"{site} say .*, but "):
        narrowed(model, {site: widths})


@pytest.mark.parametrize("name", ["model", "order.path", "family.json"])
def test_a_family_with_links_that_lead_out(tmp_path, name):
    "Even if what they lead to is sound"
    OUTPUTS["family"].write(tmp_path / "mine")
    OUTPUTS["family"].write(tmp_path / "sent")
    os.rename(tmp_path / "sent" / name, tmp_path / "away")
    (tmp_path / "sent" / name).symlink_to(tmp_path / "mine" / name)
    assert "is a link to a place outside" in refused(OUTPUTS["family"].read, tmp_path / "sent")


@pytest.mark.parametrize("name", ["spp.json", "model.safetensors"])
def test_a_model_with_links_that_lead_out(tmp_path, name):
    OUTPUTS["model"].write(tmp_path / "mine")
    OUTPUTS["model"].write(tmp_path / "sent")
    (tmp_path / "sent" / name).unlink()
    (tmp_path / "sent" / name).symlink_to(tmp_path / "mine" / name)
    assert "is a link to a place outside" in refused(spp.load, tmp_path / "sent")


@pytest.mark.parametrize(
    "content, text",
    [
        (b"", "truncated or no JSON"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 10_000, "holds no valid"),
        (b"null", "holds a NoneType"),
        (b'"x"', "holds a str"),
        (b"{}", "holds something else"),
        (b'{"kind": ["x"]}', "expected"),
        (b'{"kind": "\\ud800"}', "expected"),
        (b"NaN", "holds a float"),
        (b"\x80\x04c", "no text in UTF-8"),  # a pickle
    ],
    ids=lambda x: repr(x)[:20],
)
@pytest.mark.parametrize("name", ["run.json", "results.json", "record", "spp.json"])
def test_what_is_no_json(tmp_path, content, text, name):
    "Everywhere where JSON is read"
    if name == "spp.json":
        OUTPUTS["model"].write(tmp_path / "sent")
        reader = spp.load
    elif name == "record":
        (tmp_path / "sent").mkdir()
        reader = OUTPUTS["record"].read
    else:
        OUTPUTS["run"].write(tmp_path / "sent")
        reader = OUTPUTS["run"].read
    (tmp_path / "sent" / name).write_bytes(content)
    told = refused(reader, tmp_path / "sent" / ("record" if name == "record" else ""))
    assert name in told and text in told


@pytest.mark.parametrize("kind", [PATH, RUN, TRAINING, LLM_PATH, MODEL, FAMILY, RECORD])
def test_made_by_a_newer_spp(tmp_path, monkeypatch, kind):
    "Both formats say so, and how to update"
    monkeypatch.setattr("spp.core.formats.FORMAT", 2)
    save_json(tmp_path / "a.json", kind, {})
    write_tensors(tmp_path / "a.path", {}, kind, {})
    monkeypatch.setattr("spp.core.formats.FORMAT", 1)
    for load, name in ((load_json, "a.json"), (load_tensors, "a.path")):
        assert "made by a newer spp (format 2" in refused(load, tmp_path / name, kind)


HEADERS = [
    (field, value)
    for field in ("widths", "tied", "cut", "build")
    for value in (3, "x", [1], {"blocks.0": {"mlp": -1}}, None)
    if (field, value) != ("cut", None)  # that is what a dense model has
]


@pytest.mark.parametrize("field, value", HEADERS, ids=repr)
def test_crafted_header_of_a_model(tmp_path, field, value):
    "Beside the descriptions of `test_strangers.py`: what stands around them"
    given = dict(build=timm_build(architecture="test_vit")) | {field: value}
    sent = folder(tmp_path / "sent", given.pop("build"), **given)
    assert "sent" in str(refused_or_type(sent))


def refused_or_type(sent):
    with pytest.raises((ValueError, TypeError)) as error, watching():
        spp.load(sent)
    assert "\n" not in str(error.value)
    return error.value


def test_report_of_a_crafted_run(tmp_path):
    "Another type in each of the files of a run"
    for name in ("run.json", "latency.json", "results.json"):
        OUTPUTS["run"].write(tmp_path / name)
        save_json(tmp_path / name / name, KINDS[name], {"relative": 3, "rows": 3, "params": 3})
        assert name in refused(read, tmp_path / name)


def test_clip_that_reads_elsewhere(tmp_path):
    "An open_clip of which a path is asked"
    sent = folder(tmp_path / "sent", clip(vision={"timm_model_pretrained": "/etc/passwd"}))
    assert "timm_model_pretrained" in str(refused_or_type(sent))

"""Whatever the package writes: nothing of the user's goes, no kill leaves a half, damage is told.

The table of outputs stands in `outputs.py`; each test goes through all of it.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from families import small_vit
from outputs import OUTPUTS, parts, searched_folder
from test_core_files import run_child

from spp.core import files
from spp.core.files import LISTING, recover
from spp.lab.demo import demo
from spp.llm.running import run_llm
from spp.running.recipes import RECIPES, Recipe
from spp.running.report import report
from spp.running.runs import run, run_search
from spp.training.finetune import finetune

WHOLE = [name for name, output in OUTPUTS.items() if output.replaced]
FOLDERS = ["model", "bytes", "stock", "native", "family", "picked"]
CHECKED = [name for name, output in OUTPUTS.items() if output.checked]
MUTATIONS = 1000


@pytest.fixture(scope="module", autouse=True)
def made():
    "Models and paths, before a test counts file operations"
    parts()
    searched_folder()


@pytest.fixture
def written(tmp_path):
    "A function that writes an output to tmp_path/out and tells the file that is damaged"

    def write(name):
        place = tmp_path / "out"
        OUTPUTS[name].write(place)
        return place

    return write


@pytest.mark.parametrize("name", WHOLE)
def test_a_users_folder_or_file_stays(tmp_path, name):
    "A folder or file of the name that the user gave, with something of theirs"
    folder, file = tmp_path / "thesis", tmp_path / "data.csv"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("years")
    file.write_text("1,2")
    for place in (folder, file):
        with pytest.raises((OSError, ValueError), match=place.name):
            OUTPUTS[name].write(place)
    assert (folder / "chapter1.tex").read_text() == "years" and file.read_text() == "1,2"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["data.csv", "thesis"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_users_file_in_an_output_stays(written, tmp_path, name):
    "Put beside ours, below ours, or in place of ours; then removed, and the output is replaced"
    place = written(name)
    own = next(f for f in sorted(place.rglob("*.json")) if f.name != LISTING)
    before = own.read_bytes()
    own.write_bytes(before.replace(b"1", b"2"))
    (place / "notes").mkdir()
    (place / "notes" / "a.txt").write_text("mine")
    (place / "b.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="b.txt"):
        OUTPUTS[name].write(place)
    assert (place / "notes" / "a.txt").read_text() == (place / "b.txt").read_text() == "mine"
    assert own.read_bytes() == before.replace(b"1", b"2")
    own.write_bytes(before)
    shutil.rmtree(place / "notes")
    (place / "b.txt").unlink()
    (place / ".DS_Store").write_text("x")
    OUTPUTS[name].write(place)
    assert [x.name for x in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_users_file_put_there_meanwhile_stays(written, tmp_path, monkeypatch, name):
    "The new output is kept beside, and the error says where"
    place = written(name)
    real = files.list_files

    def and_a_file(folder, kind):
        real(folder, kind)
        (place / "mine.txt").write_text("mine")

    monkeypatch.setattr(files, "list_files", and_a_file)
    with pytest.raises(FileExistsError, match=r"mine.txt.*kept in .*out\.new"):
        OUTPUTS[name].write(place)
    assert (place / "mine.txt").read_text() == "mine"
    assert OUTPUTS[name].read(tmp_path / "out.new") == OUTPUTS[name].read(tmp_path / "out")


# What is finished is not written again; checkpoints under way, and what takes long before it
# writes, are killed in test_kills
WRITTEN_AGAIN = [name for name in WHOLE if name not in ("search", "training", "repair", "picked")]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN_AGAIN)
def test_killed_between_two_operations(written, tmp_path, name):
    "The output is what it was, whatever the moment, and the next start leaves no box"
    output = OUTPUTS[name]
    place = written(name)
    before = output.read(place)
    kills = 0
    while run_child(lambda: output.write(place), kills + 1):
        kills += 1
        recover(place)
        assert [x.name for x in tmp_path.iterdir()] == ["out"], kills
        assert output.read(place) == before, kills
    assert kills > 10
    print(f"{name}: {kills} kills")


def damaged(content: bytes, chance: random.Random) -> bytes:
    "One of the things that happen to files"
    at = chance.randrange(len(content))
    how = chance.choice(["bit", "byte", "cut", "gap", "more", "twice", "zeros"])
    some = chance.randrange(1, 40)
    return {
        "bit": content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :],
        "byte": content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :],
        "cut": content[:at],
        "gap": content[:at] + content[at + some :],
        "more": content + chance.randbytes(some),
        "twice": content[:at] + content[max(at - some, 0) :],
        "zeros": content[:at] + bytes(some) + content[at + some :],
    }[how]


@pytest.mark.parametrize("name", ["path", "llm path", "training", "repair"])
def test_a_folder_where_a_file_is_read(tmp_path, name):
    "Not: that there is no such file"
    with pytest.raises(IsADirectoryError, match="is a folder: expected a .*, which is one file"):
        OUTPUTS[name].read(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKED)
def test_damage_is_told(written, tmp_path, name):
    "Read as it was written, or an error that names the file and fits a paragraph"
    output = OUTPUTS[name]
    place = written(name)
    held = [place] if place.is_file() else [f for f in sorted(place.rglob("*")) if f.is_file()]
    held = [f for f in held if f.name not in (LISTING, "README.md")]
    before = output.read(place)
    chance = random.Random(0)
    told = same = 0
    for k in range(-(-MUTATIONS // len(CHECKED))):
        file = held[k % len(held)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, chance))
        try:
            assert output.read(place) == before, f"silent: mutation {k} of {file.name}"
            same += 1
        except (ValueError, FileNotFoundError) as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), repr(error)
            assert type(error) in (ValueError, FileNotFoundError), repr(error)
            told += 1
        file.write_bytes(content)
    assert told > same
    print(f"{name}: {told} told, {same} the same")


@pytest.mark.parametrize("name", WHOLE)
def test_umask_links_and_home(tmp_path, monkeypatch, name):
    "Permissions are the user's, `~` is their home, and a link is followed"
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    before = os.umask(0o027)
    try:
        OUTPUTS[name].write("~/link")
    finally:
        os.umask(before)
    assert (tmp_path / "link").is_symlink()
    held = [tmp_path / "real", *(tmp_path / "real").rglob("*")]
    modes = {x.is_dir(): oct(x.stat().st_mode & 0o777) for x in held}
    assert modes.get(False, "0o640") == "0o640" and modes.get(True, "0o750") == "0o750"
    assert OUTPUTS[name].read("~/link") == OUTPUTS[name].read(tmp_path / "real")


# --- commands that take long -------------------------------------------------------------------


def refuses_at_once(command, place, name):
    "The command ends before it has begun, and the user's file is as it was"
    mine = place / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=mine.parts[len(place.parts)]):
        command(place)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["a.json", "model.safetensors", "notes.txt", "params_0.50/a.txt"])
def test_demo_and_llm_refuse_a_folder_with_a_users_file(tmp_path, monkeypatch, name):
    "Before a model is loaded"
    monkeypatch.setattr("spp.lab.demo.digits_vit", lambda: pytest.fail("work has begun"))
    monkeypatch.setattr("spp.llm.running._loaded", lambda *a: pytest.fail("work has begun"))
    refuses_at_once(lambda out: demo(out, progress=False), tmp_path / "demo", name)
    given = dict(calibration="pep8", sparsity=0.5)
    refuses_at_once(lambda out: run_llm("gpt2", out, **given), tmp_path / "llm", name)


@pytest.mark.parametrize(
    "name",
    [
        "order.path",
        "search.run",
        "run.json",
        "times.json",
        "latency.json",
        "results.json",
        "results.csv",
        "params_0.50/notes.txt",
        "params_0.75.run",
        "pruned/params_0.75/notes.txt",
        "repaired/params_0.75/notes.txt",
        "dense/notes.txt",
        "prune.run",
        "balanced/notes.txt",
    ],
)
@pytest.mark.parametrize("command", [run, run_search], ids=lambda f: f.__name__)
def test_a_run_refuses_where_a_users_file_is_in_the_way(tmp_path, monkeypatch, name, command):
    monkeypatch.setattr(
        "spp.running.runs.dense_model", lambda *a, **kw: pytest.fail("work has begun")
    )
    refuses_at_once(lambda out: command("deit_tiny", out=out, smoke=True), tmp_path, name)


@pytest.mark.parametrize(
    "output, name",
    [("cuts", "params_0.70/notes.txt"), ("cuts", "units_0.50/order.path"), ("picked", "a.json")],
)
def test_a_cut_refuses_where_a_users_file_is_in_the_way(tmp_path, monkeypatch, output, name):
    "Before an image is read, for all sizes"
    monkeypatch.setattr("spp.running.cuts.pictures", lambda *a: pytest.fail("work has begun"))
    refuses_at_once(OUTPUTS[output].write, tmp_path / "out", name)
    assert [x.relative_to(tmp_path) for x in tmp_path.rglob("*") if x.is_file()] == [
        Path("out") / name
    ]


def test_a_cut_leaves_a_users_other_files(tmp_path):
    "Beside the folders of the sizes"
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):
        OUTPUTS["cuts"].write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(x.name for x in tmp_path.iterdir()) == ["notes.txt", "params_0.70", "units_0.50"]


def test_a_run_leaves_a_users_other_files(tmp_path):
    "Whatever else lies in its folder stays, and so does a table that somebody edited"
    RECIPES["tiny"] = Recipe("test_vit", 1, 1, 1, 4, 1e-3)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".lock").write_text("a lock of mine")
    try:
        with pytest.raises(FileExistsError, match="is not the lock of a run"):
            run("tiny", out=tmp_path, smoke=True, progress=False)
        assert (tmp_path / ".lock").read_text() == "a lock of mine"
        (tmp_path / ".lock").unlink()
        run("tiny", out=tmp_path, smoke=True, progress=False)
        run("tiny", out=tmp_path, smoke=True, progress=False)
        (tmp_path / "results.csv").write_text("my,own,table\n")
        with pytest.raises(FileExistsError, match="results.csv exists and is not a table"):
            run("tiny", out=tmp_path, smoke=True, progress=False)
    finally:
        del RECIPES["tiny"]
    assert (tmp_path / "results.csv").read_text() == "my,own,table\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_budget_that_cannot_be_met_is_told_before_a_run(tmp_path, monkeypatch):
    "Nothing is searched, and the folder can be used for another run"
    monkeypatch.setattr("spp.running.runs.search_stage", lambda *a: pytest.fail("work has begun"))
    for share in (1.5, 0.0001, 0):
        with pytest.raises(ValueError, match="params"):
            run("deit_tiny", out=tmp_path, smoke=True, params=(share,), progress=False)
    assert not (tmp_path / "run.json").exists()


def test_a_log_and_a_report_replace_only_their_own(tmp_path):
    "A log is known by its lines; a page and its numbers by a checksum at the end of the page"
    model, batches = small_vit()
    given = dict(epochs=1, progress=False)
    log = tmp_path / "log.jsonl"
    for text in ("my notes", '{"epoch": 1}\nand a note', '{"epoch": 2}'):
        log.write_text(text)
        with pytest.raises(FileExistsError, match="is not a log of fine-tuning"):
            finetune(model, batches, None, log=log, **given)
        assert log.read_text() == text
    log.unlink()
    for _ in range(2):
        finetune(model, batches, None, log=log, **given)
    OUTPUTS["run"].write(tmp_path / "run")
    page, numbers = tmp_path / "a.html", tmp_path / "a.csv"
    for _ in range(2):
        report([tmp_path / "run"], page)
    for file in (page, numbers):
        before = file.read_text()
        file.write_text(before.replace("0.75", "0.99"))
        assert file.read_text() != before
        with pytest.raises(FileExistsError, match=f"{file.name} exists and is not"):
            report([tmp_path / "run"], page)
        assert file.read_text() != before
        file.write_text(before)


@pytest.mark.parametrize("name", [*FOLDERS, "path", "llm path", "record"])
def test_a_full_disk_names_the_output(small_disk, name):
    "Whichever library meets it; what was there is as it was, and no box stays"
    subprocess.run(["mount", "-o", "remount,size=8m,nr_inodes=200", str(small_disk)], check=True)
    OUTPUTS[name].write(small_disk / "out")
    before = OUTPUTS[name].read(small_disk / "out")
    room = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - 4096))
    with pytest.raises(OSError, match=r"out could not be (written|replaced).*(full|No space)"):
        OUTPUTS[name].write(small_disk / "out")
    assert OUTPUTS[name].read(small_disk / "out") == before
    # what was small enough to be written, and could not be put in place, is kept
    assert {x.name for x in small_disk.iterdir()} - {"out.new"} == {"filler", "out"}

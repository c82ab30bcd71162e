"""Whatever the package writes: nothing of the user's goes, no kill leaves a half, damage is told.

The table of outputs stands in `outputs.py`; each test goes through all of it.
"""

import os
import random
import shutil

import pytest
from outputs import OUTPUTS, parts
from test_core_files import run_child

from spp.core import files
from spp.core.files import LISTING, recover

WHOLE = [name for name, output in OUTPUTS.items() if output.replaced]
FOLDERS = ["model", "bytes", "stock", "family"]
MUTATIONS = 1000


@pytest.fixture(scope="module", autouse=True)
def made():
    "Models and paths, before a test counts file operations"
    parts()


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


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_damage_is_told(written, tmp_path, name):
    "Read as it was written, or an error that names the file and fits a paragraph"
    output = OUTPUTS[name]
    place = written(name)
    held = [place] if place.is_file() else [f for f in sorted(place.rglob("*")) if f.is_file()]
    held = [f for f in held if f.name not in (LISTING, "README.md")]
    before = output.read(place)
    chance = random.Random(0)
    told = same = 0
    for k in range(-(-MUTATIONS // len(OUTPUTS))):
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

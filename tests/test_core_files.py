"""Outputs: killed at every moment, refused where something is not ours, on disks that are full.

A child process is killed before every file operation of a replacement. Then the output must be the
old one or the new one, whole, and the next start must leave nothing else.
"""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from spp.core import files
from spp.core.files import check_output, recover, replacing, save_tensors
from spp.core.formats import kind_of, load_tensors

KIND = "a thing"
EVENTS = ("open", "os.", "shutil.", "ctypes.", "tempfile.")


def run_child(work, dies_at: int) -> bool:
    "Run `work` in a child that dies before its `dies_at`-th file operation; True if it died"
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    torch.set_num_threads(1)  # of a pool of threads a fork has the locks, but not the threads
    seen = 0

    def count(event, _):
        nonlocal seen
        if event.startswith(EVENTS):
            seen += 1
            if seen == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        work()
    finally:
        os._exit(0)


def write(path: Path, text: str, folder: bool) -> None:
    "An output of one file, or of a folder with a subfolder"
    if not folder:
        save_tensors(path, {"x": torch.full((3,), float(len(text)))}, KIND, {"text": text})
        return
    with replacing(path, KIND, folder=True) as new:
        (new / "sub").mkdir()
        (new / "sub" / "a.txt").write_text(text)
        (new / "b.txt").write_text(text)


def read(path: Path, folder: bool) -> str:
    "What `write` wrote; an error if it is not whole"
    if not folder:
        return load_tensors(path, KIND)[1]["text"]
    texts = {(path / name).read_text() for name in ("sub/a.txt", "b.txt")}
    assert len(texts) == 1 and files.foreign(path, KIND) == []
    return texts.pop()


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    "before", ["", pytest.param("old", marks=pytest.mark.slow)], ids=["new", "over-old"]
)
def test_killed_before_every_operation(tmp_path, monkeypatch, folder, before, exchange):
    "Old or new, whole; nothing at all only where there was nothing; no box after the next start"
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path, kills, found = tmp_path / "out", 0, set()
    while True:
        if before:
            write(path, before, folder)
        died = run_child(lambda: write(path, "new", folder), kills + 1)
        recover(path)
        state = read(path, folder) if path.exists() else ""
        assert state in (before, "new")
        assert [x.name for x in tmp_path.iterdir()] == ([path.name] if state else [])
        found.add(state)
        if not died:
            break
        kills += 1
        if path.is_dir():
            files.shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    assert kills > 10 and found == {before, "new"}


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "failed"])
@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_what_a_library_has_beside_its_file_goes(tmp_path, folder, dies):
    "safetensors writes to a file of its own first, and may be killed there"

    def stop_halfway():
        with suppress(ZeroDivisionError), replacing(tmp_path / "out", KIND, folder=folder) as new:
            beside = new if folder else new.parent
            (beside / ".tmpA1b2").write_bytes(b"half")
            (beside / "scratch").mkdir()
            (beside / "scratch" / "x").write_bytes(b"half")
            if dies:
                os.kill(os.getpid(), signal.SIGKILL)
            1 / 0  # noqa: B018

    if run_child(stop_halfway, -1):
        assert len(list(tmp_path.iterdir())) == 1
    recover(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_living_process_keeps_its_box(tmp_path):
    "Another start recovers boxes of dead processes only"
    path = tmp_path / "out"
    with replacing(path, KIND, folder=True) as new:
        (new / "a").write_text("x")
        child = os.fork()
        if child == 0:
            recover(path)
            os._exit(0)
        os.waitpid(child, 0)
        assert (new / "a").read_text() == "x"
    assert (path / "a").read_text() == "x"


def test_an_empty_box_that_another_process_clears(tmp_path, monkeypatch):
    "A check beside a `recover` of the same output: the trial box may be gone before it is removed"
    mkdtemp = files.tempfile.mkdtemp

    def made(**how):
        box = mkdtemp(**how)
        recover(tmp_path / "x")
        assert not os.path.exists(box)
        return box

    monkeypatch.setattr(files.tempfile, "mkdtemp", made)
    check_output(tmp_path / "x", "a text")
    assert not list(tmp_path.iterdir())


def test_what_a_user_put_there_survives_a_kill(tmp_path):
    "A file that came just before the exchange is not deleted with the old output"
    path = tmp_path / "out"
    write(path, "old", folder=True)
    real, done = files._exchange, []

    def and_die(one, other):
        (path / "mine.txt").write_text("mine")
        done.append(real(one, other))
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        files._exchange = and_die
        try:
            write(path, "new", folder=True)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    recover(path)
    assert read(path, folder=True) == "new"
    assert (tmp_path / "out.kept" / "mine.txt").read_text() == "mine"


def test_a_file_put_there_between_check_and_exchange(tmp_path, monkeypatch):
    "It stays, at its place; the new output is kept beside"
    path = tmp_path / "out"
    write(path, "old", folder=True)
    real = files._exchange

    def late(one, other):
        if not (path / "mine.txt").exists() and not (one / "mine.txt").exists():
            (path / "mine.txt").write_text("mine")
        return real(one, other)

    monkeypatch.setattr(files, "_exchange", late)
    with pytest.raises(FileExistsError, match=r"mine.txt.*kept in .*out\.new"):
        write(path, "new", folder=True)
    assert (path / "mine.txt").read_text() == "mine" and (path / "b.txt").read_text() == "old"
    assert (tmp_path / "out.new" / "b.txt").read_text() == "new"


def test_an_edited_file_is_the_users(tmp_path):
    "A model card that somebody wrote into is not replaced"
    path = tmp_path / "out"
    write(path, "old", folder=True)
    (path / "b.txt").write_text("my own words")
    with pytest.raises(FileExistsError, match="b.txt, which spp did not write"):
        write(path, "new", folder=True)
    assert (path / "b.txt").read_text() == "my own words"


def test_what_systems_leave_in_folders_does_not_count(tmp_path):
    path = tmp_path / "out"
    write(path, "old", folder=True)
    (path / ".DS_Store").write_text("x")
    (path / "sub" / "Thumbs.db").write_text("x")
    write(path, "new", folder=True)
    assert read(path, folder=True) == "new"


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_links_are_followed(tmp_path, folder):
    "Through a live link and a broken one; the link stays a link"
    real = tmp_path / "real"
    (tmp_path / "link").symlink_to(real)
    for text in ("one", "two"):
        write(tmp_path / "link", text, folder)
        assert (tmp_path / "link").is_symlink() and read(real, folder) == text


def test_umask_is_kept(tmp_path):
    "Files and folders have the permissions that the user's umask gives"
    before = os.umask(0o027)
    try:
        write(tmp_path / "folder", "x", folder=True)
        write(tmp_path / "file", "x", folder=False)
    finally:
        os.umask(before)
    modes = {oct(x.stat().st_mode & 0o777) for x in tmp_path.rglob("*") if x.is_file()}
    assert modes == {"0o640"}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_an_error_in_the_block_leaves_everything(tmp_path):
    "Also Ctrl-C: the old output and no box"
    write(tmp_path / "out", "old", folder=True)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), replacing(tmp_path / "out", KIND, folder=True) as new:
            (new / "half").write_text("x")
            raise error
    assert read(tmp_path / "out", folder=True) == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_parent_without_leave(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"):
        check_output(tmp_path / "out", KIND)


def test_read_only(small_disk):
    "Found before the work"
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="out cannot be written"):
        check_output(small_disk / "out", KIND)


@pytest.mark.parametrize("folder", [False, True], ids=["file", "folder"])
def test_other_device(small_disk, tmp_path, folder):
    "Through a link to another device: the box is made there"
    (tmp_path / "link").symlink_to(small_disk / "out")
    for text in ("one", "two"):
        write(tmp_path / "link", text, folder)
    assert (tmp_path / "link").is_symlink() and read(small_disk / "out", folder) == "two"
    assert [x.name for x in small_disk.iterdir()] == ["out"]


def test_a_link_to_itself(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "x")
    with pytest.raises(FileExistsError, match="a link that leads nowhere"):
        check_output(tmp_path / "x", KIND)


def test_full_disk(small_disk):
    "The error names the output; the old one is as it was; no box stays"
    save_tensors(small_disk / "out", {"x": torch.zeros(10)}, KIND, {"text": "old"})
    with pytest.raises(OSError, match=r"out could not be written.*is the disk full"):
        save_tensors(small_disk / "out", {"x": torch.zeros(1_000_000)}, KIND, {"text": "new"})
    assert load_tensors(small_disk / "out", KIND)[1]["text"] == "old"
    assert [x.name for x in small_disk.iterdir()] == ["out"]


def test_no_inodes(small_disk):
    "Found before the work"
    with suppress(OSError):
        for k in range(60):
            (small_disk / str(k)).touch()
    with pytest.raises(OSError, match="cannot be written: No space left"):
        check_output(small_disk / "out", KIND)


def test_mount_point(small_disk):
    with pytest.raises(FileExistsError, match="is no place for a thing"):
        check_output(small_disk, KIND, folder=True)


def test_two_processes_write_the_same_output(tmp_path):
    "One after the other or at once: the output is one of the two, whole"
    path = tmp_path / "out"
    children = []
    for text in ("one", "two", "three", "four"):
        child = os.fork()
        if child == 0:
            try:
                for _ in range(20):
                    write(path, text, folder=True)
                    write(tmp_path / "file", text, folder=False)
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    recover(path)
    assert read(path, folder=True) in ("one", "two", "three", "four")
    assert kind_of(tmp_path / "file") == KIND
    assert {x.name for x in tmp_path.iterdir() if x.name.startswith(".spp")} == set()


def test_what_lies_beside_an_output_is_left_alone(tmp_path, monkeypatch):
    "Neither opened nor flushed: a socket cannot be opened, and a neighbour may be large"
    neighbour = tmp_path / "neighbour"
    neighbour.mkdir()
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(neighbour)  # the name of a socket must be short
    listener.bind("socket")
    save_tensors(tmp_path / "out", {"x": torch.ones(2)}, "numbers", {})
    assert load_tensors(tmp_path / "out", "numbers")[0]["x"].sum() == 2
    listener.close()

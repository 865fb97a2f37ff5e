"""pytest tests/files/test_atomic.py: what is written appears whole or not at all."""

import os
from pathlib import Path

import pytest

from vismoe.files import atomic, whole_file, whole_files, whole_folder, write_json, write_text


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o640
    os.umask(before)


@pytest.fixture
def synced(monkeypatch):
    """Names of what was synced, in order."""
    names, sync = [], atomic.sync
    monkeypatch.setattr(atomic, "sync", lambda path: (names.append(path.name), sync(path)))
    return names


def lies(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_is_whole_or_as_it_was(tmp_path):
    """An error inside leaves the older file and nothing beside it; while it is written the older one is there."""
    path = tmp_path / "a.json"
    write_text(path, "old")

    def broken():
        with whole_file(path) as aside:
            aside.write_text("new")
            assert path.read_text() == "old"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert (lies(tmp_path), path.read_text()) == (["a.json"], "old")
    write_json(path, {"a": 1})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udc80")
    write_text(path, "\udc80", errors="backslashreplace")
    assert (lies(tmp_path), path.read_text()) == (["a.json"], "\\udc80")


def test_a_place_of_its_own_is_written_over(tmp_path):
    """What a killed writer left at a fixed place is in nobody's way, nor is it read."""
    path, aside = tmp_path / "a", tmp_path / ".a"
    aside.write_text("left by a killed one, and longer")
    aside.chmod(0o600)
    write_text(path, "new", aside=aside)
    assert (lies(tmp_path), path.read_text(), path.stat().st_mode & 0o777) == (["a"], "new", 0o644)


def test_the_umask_decides_who_may_read(tmp_path, umask):
    """Of files and of a folder's files, also where the writer thinks otherwise, as safetensors does."""

    def private(path: Path):
        path.unlink(missing_ok=True)
        path.touch(0o600)

    with whole_file(tmp_path / "file") as aside:
        private(aside)
    with whole_folder(tmp_path / "folder") as aside:
        private(aside / "file")
        (aside / "inner").mkdir()
        private(aside / "inner" / "file")
    files = ("file", "folder/file", "folder/inner/file")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in files] == [umask] * 3
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    """Content first, then the folder that holds the name."""
    write_text(tmp_path / "a", "x")
    assert [name.startswith(".a.") for name in synced] == [True, False]
    assert synced[1] == tmp_path.name
    synced.clear()
    with whole_folder(tmp_path / "folder") as aside:
        (aside / "b").write_text("x")
    assert (synced[0], synced[-1]) == ("b", tmp_path.name)
    assert synced[1].startswith(".folder.")
    synced.clear()
    with whole_folder(tmp_path / "cache", synced=False) as aside:
        (aside / "b").write_text("x")
    assert synced == [tmp_path.name]


def test_several_files_appear_together(tmp_path, monkeypatch):
    """If one of them cannot get its name, none has."""

    def both(*names):
        with whole_files([tmp_path / name for name in names]) as asides:
            for aside in asides:
                aside.write_text("x")

    both("a", "b")
    assert lies(tmp_path) == ["a", "b"]
    replace = Path.replace

    def full(self, to):
        if to.name == "d":
            raise OSError("full")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="full"):
        both("c", "d")
    assert lies(tmp_path) == ["a", "b"]


def test_a_folder_is_whole_or_as_it_was(tmp_path, monkeypatch):
    """An older folder of known files is replaced; anything else stays, whatever happens on the way."""
    path = tmp_path / "above" / "folder"
    with whole_folder(path, ("a", "b")) as aside:
        (aside / "a").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(path, ("a", "b")) as aside:
        raise RuntimeError
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: os.stat(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError), whole_folder(path, ("a", "b")):
        pass
    monkeypatch.setattr(Path, "replace", replace)
    assert lies(tmp_path / "above") == ["folder", "folder/a"]
    with whole_folder(path, ("a", "b")) as aside:
        (aside / "b").write_text("new")
    assert lies(tmp_path / "above") == ["folder", "folder/b"]
    with pytest.raises(ValueError, match="has other files than a: choose another path"), whole_folder(path, ("a",)):
        pass
    with pytest.raises(FileExistsError), whole_folder(path):
        pass
    assert lies(tmp_path / "above") == ["folder", "folder/b"]


def test_long_names(tmp_path):
    """A name as long as file systems allow is written aside under a shorter one."""
    write_text(tmp_path / ("x" * 255), "x")
    assert lies(tmp_path) == ["x" * 255]

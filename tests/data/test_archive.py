"""pytest tests/data/test_archive.py: a zip of images is the folder that it holds, and does no harm."""

import io
import stat
import zipfile

import pytest
from PIL import Image

from vismoe.data import open_data
from vismoe.data.folders import archive as archives
from vismoe.data.folders.archive import archive_folder, unpack


def png(level=0):
    file = io.BytesIO()
    Image.new("L", (8, 8), level).save(file, "png")
    return file.getvalue()


def pack(path, members, **options):
    """A zip of {name or ZipInfo: content}."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def pets(prefix=""):
    return {f"{prefix}{kind}/{number}.png": png(number) for kind in ("cat", "dog") for number in range(4)}


def member(name, mode=0, system=3):
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.external_attr, info.create_system = mode << 16, system
    return info


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vismoe" / "archives"


def lies(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("prefix", ["", "pets/", "./"])
def test_a_zip_is_the_folder_that_it_holds(tmp_path, cache, prefix):
    """With or without a folder around it, and with what macOS and hidden files add; named as it was given."""
    extra = {"__MACOSX/pets/._0.png": b"x", f"{prefix}.DS_Store": b"x", f"{prefix}cat/.hidden.png": b"x"}
    path = pack(tmp_path / "pets.ZIP", {**extra, **pets(prefix)})
    opened = open_data(str(path), 0)
    assert (opened.name, opened.classes, opened.left_out) == (str(path), ["cat", "dog"], ())
    assert sorted(f for split in opened.train_and_val for f in split.files) == sorted(pets())
    assert opened.val.image(0).size == (8, 8)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_zip_with_metadata(tmp_path, prefix):
    """A flat folder with its table, around which there is one or not."""
    table = {f"{prefix}metadata.csv": "file_name,label\n0.png,a\n1.png,b\n"}
    images = {f"{prefix}{number}.png": png(number) for number in range(2)}
    assert open_data(str(pack(tmp_path / "a.zip", table | images))).classes == ["a", "b"]


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_part_is_no_folder_around(tmp_path, name):
    """A zip of `train/` alone says what its images are for; a class is not taken for the folder around either."""
    folder = unpack(pack(tmp_path / "a.zip", pets(f"{name}/")), tmp_path / "out")
    assert lies(folder) == sorted(pets(f"{name}/"))
    folder = unpack(pack(tmp_path / "b.zip", {"cat/0.png": png()}), tmp_path / "out2")
    assert lies(folder) == ["cat/0.png"]


def test_it_is_unpacked_once(tmp_path, cache):
    """A second look finds what the first unpacked; other contents are another folder; names do not matter."""
    path = pack(tmp_path / "a.zip", pets())
    folder = archive_folder(path)
    (folder / "mark").touch()
    moved = path.rename(tmp_path / "b.zip")
    assert (archive_folder(moved) / "mark").exists()
    assert archive_folder(pack(tmp_path / "c.zip", {"cat/0.png": png(9)})) != folder
    assert len(list(cache.iterdir())) == 2


HARMFUL = {
    "absolute": ({"/etc/cat.png": b""}, "is outside the archive"),
    "climbing": ({"cat/../../a.png": b""}, "is outside the archive"),
    "drive": ({"C:\\cat\\a.png": b""}, "is outside the archive"),
    "backslash": ({member("cat\\..\\..\\a.png"): b""}, "is outside the archive"),
    "share": ({member("\\\\host\\a.png"): b""}, "is outside the archive"),
    "nul": ({member("cat/a.png\0.txt"): b""}, "is outside the archive"),
    "link": ({member("cat/a.png", stat.S_IFLNK | 0o777): b"/etc/passwd"}, "is a link"),
    "device": ({member("cat/a.png", stat.S_IFCHR | 0o666): b""}, "not a plain file"),
    "long": ({"cat/" + "a" * 300 + ".png": b""}, "longer than"),
    "twice": ({member("cat/a.png"): b"", member("cat/./a.png"): b""}, "two members"),
    "file and folder": ({"cat": b"", "cat/a.png": b""}, "have the same path"),
    "nothing": ({"__MACOSX/a": b"", "cat/": b""}, "has no files"),
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_what_leads_elsewhere_is_refused(tmp_path, kind):
    """Nothing of such an archive is left behind, beside the good members that come before."""
    members, reason = HARMFUL[kind]
    good = {} if kind == "nothing" else {"dog/0.png": png()}
    path = pack(tmp_path / "a.zip", {**good, **members})
    with pytest.raises(ValueError, match=reason):
        open_data(str(path))
    assert lies(tmp_path) == ["a.zip"]


def test_windows_separators(tmp_path):
    """Old tools of Windows write backslashes between names; elsewhere one may be part of a name."""
    path = pack(tmp_path / "a.zip", {member("cat\\a.png", system=0): png(), member("dog/b\\c.png"): png()})
    assert lies(unpack(path, tmp_path / "out")) == ["cat/a.png", "dog/b\\c.png"]


def test_damage_is_an_error(tmp_path):
    """A flipped bit is found by the checksum, a missing end and another kind of file at once; nothing is left."""
    path = pack(tmp_path / "a.zip", pets())
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 1
    for broken in (content, content[: len(content) // 2], b"hello"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"a\.zip is (not a zip, or is )?damaged"):
            open_data(str(path))
    assert lies(tmp_path) == ["a.zip"]


def test_an_encrypted_zip_is_an_error(tmp_path):
    """The flag alone says so."""
    path = pack(tmp_path / "a.zip", {"cat/0.png": png()})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is encrypted: unpack it yourself"):
        open_data(str(path))


def test_bombs_are_refused(tmp_path, monkeypatch):
    """By what the headers say, by the number of members, and by what is really written."""
    path = pack(tmp_path / "a.zip", {"cat/0.png": bytes(300_000)}, compression=zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(archives, "FREE_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"is 300,000 bytes when unpacked; accepted are 100,000"):
        archive_folder(path)
    monkeypatch.setattr(archives, "_too_large", lambda path, size, limit: size)
    monkeypatch.setattr(archives, "_members", lambda path, entries, limit: {"a": entries[0]})
    with pytest.raises(ValueError, match=r"^more than 100,000$"):
        archive_folder(path)
    monkeypatch.undo()
    monkeypatch.setattr(archives, "MAX_MEMBERS", 7)
    with pytest.raises(ValueError, match=r"has 8 members; accepted are 7"):
        unpack(pack(tmp_path / "b.zip", pets()), tmp_path / "out")
    assert lies(tmp_path) == ["a.zip", "b.zip"]


def test_errors_of_the_set_name_the_zip(tmp_path):
    """Where the cache is does not help anybody."""
    path = pack(tmp_path / "a.zip", {"0.png": png(), "1.png": png()})
    with pytest.raises(ValueError, match=r"^\S*/a\.zip has no class folders"):
        open_data(str(path))

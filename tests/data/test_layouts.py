"""pytest tests/data/test_layouts.py: which folders are splits, which are classes, and what is said of the others."""

import json
import os

import pytest
from PIL import Image

from vismoe.data import check_images, list_images, open_data, read_image


def lay(root, *folders, images=2, suffix="png"):
    """Folders of so many images each."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            kind = "JPEG" if suffix not in ("png", "gif") else None
            Image.effect_noise((8, 8), 40).save(root / folder / f"{number}.{suffix}", format=kind)


def sides(root):
    """The first folder of each split's files: of train, val and test."""
    data = open_data(str(root))
    return [part and sorted({file.split("/")[0] for file in part.files}) for part in (data.train, data.val, data.test)]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("Training", "Testing"),
        ("TRAIN", "VAL"),
        ("Train", "Valid"),
        ("trn", "tst"),
        ("train", "dev"),
        ("training_set", "test_set"),
        ("Train Data", "Validation-Data"),
        ("trainset", "testset"),
        ("train", "eval"),
        ("train_images", "holdout"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, val):
    """A person's Training/ and Testing/ are the splits, not the classes, however they are written."""
    lay(tmp_path, f"{train}/cat", f"{train}/dog", f"{val}/cat", f"{val}/dog")
    assert open_data(str(tmp_path)).classes == ["cat", "dog"]
    assert sides(tmp_path) == [[train], [val], None]


def test_a_split_that_is_not_used_is_said(tmp_path):
    """test/ and eval/ are both for tests: the first in the table of names is used."""
    lay(tmp_path, *(f"{split}/{name}" for split in ("train", "eval", "test") for name in ("cat", "dog")))
    assert sides(tmp_path) == [["train"], ["test"], None]
    assert open_data(str(tmp_path)).notes == ("evaluation uses test/; not used: eval/",)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Dev", "Testing")])
def test_three_splits_are_three(tmp_path, names):
    """Of train/, val/ and test/ nothing is chosen by test/, and it is not lost."""
    lay(tmp_path, *(f"{split}/{name}" for split in names for name in ("cat", "dog")))
    data = open_data(str(tmp_path))
    assert sides(tmp_path) == [[names[0]], [names[1]], [names[2]]]
    whole = data.for_testing
    assert (whole.train.files, whole.val.files) == ([*data.train.files, *data.val.files], data.test.files)
    assert whole.train.image(5).tobytes() == data.val.image(1).tobytes()
    assert whole.train.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert data.align_classes(["ant", "cat", "dog"]).test.labels.tolist() == [1, 1, 2, 2]


def test_unreadable_files_of_a_test_split_are_left_out(tmp_path):
    """They are named like those of the other splits, before anything is trained."""
    lay(tmp_path, *(f"{split}/{name}" for split in ("train", "val", "test") for name in ("cat", "dog")))
    (tmp_path / "test" / "cat" / "0.png").write_text("no image")
    data = check_images(open_data(str(tmp_path)), 0.1)
    assert [entry.file for entry in data.left_out] == ["test/cat/0.png"]
    assert (len(data.train), len(data.val), len(data.test)) == (4, 4, 3)


def test_a_test_split_without_labels_is_said_not_to_be_used(tmp_path):
    """As competitions hand it out: loose images whose labels nobody has."""
    lay(tmp_path, "train/cat", "train/dog", "val/cat", "val/dog", "test")
    assert sides(tmp_path) == [["train"], ["val"], None]
    (note,) = open_data(str(tmp_path)).notes
    assert note.startswith("test/ is not used: its labels are unknown, because it has no class folders")


def test_a_class_called_train_is_a_class(tmp_path):
    """Beside bus/ and car/ the folder train/ is one more vehicle: none of the classes is lost, and it is said."""
    lay(tmp_path, "bus", "car", "train/steam", "train/diesel")
    data = open_data(str(tmp_path))
    assert (data.classes, len(data.val)) == (["bus", "car", "train"], 8)
    assert data.notes == (
        "not read as a split, because the folder has classes too (bus/, car/): train/",
        "train/ has subfolders (diesel/, steam/): their images have the class of the class folder",
    )


def test_folders_without_images_beside_splits_are_said(tmp_path):
    """annotations/ is no class, and does not make classes of the splits."""
    lay(tmp_path, "train/cat", "train/dog", "val/cat")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.xml").write_text("<xml/>")
    data = open_data(str(tmp_path))
    assert (data.classes, len(data.train), len(data.val)) == (["cat", "dog"], 4, 2)
    assert data.notes == (
        "folders without images are not used: annotations/",
        "files that are not images are not read: 1 .xml",
    )


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train/cat", "val/cat", "extra/cat"), r"has the splits train/, val/ and the other folders extra/: move"),
        (("train/cat", "Training/cat"), r"several training splits, Training/, train/: keep one"),
        (("seg_train/cat", "seg_train/dog", "seg_test/cat", "seg_test/dog"), r"seg_test/, seg_train/ have the same"),
        (("cat/train", "cat/test", "dog/train", "dog/test"), r"put the classes into the splits, as in train/cat$"),
        (
            ("dataset/Training/cat", "dataset/Testing/cat"),
            r"has only the folder dataset/, which has the splits: use .*/dataset$",
        ),
        (("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog", "fold3/cat", "fold3/dog"), r"look like splits"),
    ],
)
def test_what_may_be_splits_or_classes_is_asked(tmp_path, folders, message):
    """Where folders look like splits that have other names, nothing is guessed: the error names them and the way out,
    which works."""
    lay(tmp_path, *folders)
    with pytest.raises(ValueError, match=message):
        open_data(str(tmp_path))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{f},{f.split('/')[0]}\n" for f in files))
    if "several" not in message:
        assert open_data(str(tmp_path)).classes == sorted({folder.split("/")[0] for folder in folders})


def test_nested_class_folders_stay_classes(tmp_path):
    """Subfolders of a class, some of the same name, do not make a split of it."""
    lay(tmp_path, "cat/indoors", "cat/outdoors", "dog/indoors", "owl")
    assert open_data(str(tmp_path)).classes == ["cat", "dog", "owl"]


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle", "$RECYCLE.BIN"])
@pytest.mark.parametrize("part", ["", "train/"])
def test_folders_of_the_system_are_no_classes(tmp_path, part, name):
    """What a disk station, an archiver or a notebook left behind is no class at any depth; it is said once."""
    lay(tmp_path / part, "cat", "dog", name, f"cat/{name}")
    data = open_data(str(tmp_path))
    assert (data.classes, len(data.val), data.left_out) == (["cat", "dog"], 4, ())
    (note,) = data.notes
    assert note.startswith("hidden folders and system folders are not read: ")
    assert note.count(name) == 2


@pytest.mark.parametrize("suffix", ["jfif", "JFIF", "jpe", "jif", "pjpeg", "pjp", "JPG"])
def test_all_suffixes_of_jpeg_are_read(tmp_path, suffix):
    """Browsers and cameras write JPEG under several suffixes, in any case."""
    lay(tmp_path, "cat", "dog", suffix=suffix)
    images, left_out = list_images(tmp_path)
    assert (len(images), left_out, len(open_data(str(tmp_path)).val)) == (4, [], 4)
    assert read_image(images[0]).size == (8, 8)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.heic", "HEIC is not read: convert it to JPEG"),
        ("x.CR2", "CR2 is not read: convert it to JPEG"),
        ("x.jpg_large", "its content is JPEG, but its suffix is '.jpg_large': rename it"),
        ("x", "its content is JPEG, but its suffix is '': rename it"),
    ],
)
def test_images_that_are_not_read_are_named(tmp_path, name, reason):
    """No photograph is lost in silence because of its suffix, neither of a set nor of a folder to predict."""
    lay(tmp_path, "cat", "dog", suffix="jpg")
    (tmp_path / "cat" / "0.jpg").rename(tmp_path / "cat" / name)
    assert [(entry.file, entry.reason) for entry in open_data(str(tmp_path)).left_out] == [(f"cat/{name}", reason)]
    assert [entry.file for entry in list_images(tmp_path)[1]] == [f"cat/{name}"]


def test_files_that_are_no_images_are_counted(tmp_path):
    """Notes and data bases of thumbnails are no fault of a set, but that they are not read is said."""
    lay(tmp_path, "cat", "dog")
    for name in ("a.txt", "b.txt", "Thumbs.db", "LICENSE"):
        (tmp_path / "cat" / name).write_text("text")
    data = open_data(str(tmp_path))
    assert data.left_out == ()
    assert data.notes == ("files that are not images are not read: 1 without a suffix, 1 .db, 2 .txt",)


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_lines_of_json_name_labels(tmp_path):
    """metadata.jsonl as Hugging Face's datasets have it: cameras' folders are no classes; a comma divides no name."""
    lay(tmp_path, "cam1", "cam2")
    write_lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "cam1/0.png", "label": "salt, pepper", "site": "north", "boxes": [[1, 2]]},
        {"file_name": "cam1/1.png", "label": "猫", "site": None},
        {"file_name": "cam2/0.png", "label": 7, "site": "south"},
        {"file_name": "gone.png", "label": "猫"},
    )
    data = open_data(str(tmp_path))
    assert (data.classes, data.multi_label) == (["7", "salt, pepper", "猫"], False)
    assert data.val.files == ["cam1/0.png", "cam1/1.png", "cam2/0.png"]
    assert data.val.labels.tolist() == [1, 2, 0]
    assert data.val.columns == {"boxes": ["[[1, 2]]", "", ""], "site": ["north", "", "south"]}
    assert {entry.file: entry.reason for entry in data.left_out} == {
        "gone.png": "named in metadata.jsonl, but no such image exists",
        "cam2/1.png": "not named in metadata.jsonl",
    }


def test_lists_in_lines_of_json_are_several_labels(tmp_path):
    """An image may show none, one or several; in each split's own table too."""
    for split in ("train", "val"):
        lay(tmp_path, split, images=3)
        write_lines(
            tmp_path / split / "metadata.jsonl",
            {"file_name": "0.png", "labels": ["a", "b"]},
            {"file_name": "1.png", "labels": "b"},
            {"file_name": "2.png", "labels": []},
        )
    data = open_data(str(tmp_path))
    assert data.multi_label
    assert data.train.labels.tolist() == data.val.labels.tolist() == [[True, True], [False, True], [False, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"metadata.jsonl, line 1 is not JSON"),
        ("[1]", r'line 1: expected an object such as \{"file_name": "1.png", "label": "cat"\}'),
        ('{"label": "a"}', r"line 1: expected an object"),
        ('\n{"file_name": "cat/0.png", "label": {"a": 1}}', r"line 2: the label .* is neither a name nor a list"),
        ('{"file_name": "cat/0.png", "label": "a", "labels": "b"}', r"both a column label and a column labels"),
        ("", "has no rows"),
    ],
)
def test_faults_of_lines_of_json_are_errors(tmp_path, text, message):
    """A table that cannot be read is refused with its line: the folders' names are not taken for labels instead."""
    lay(tmp_path, "cat", "dog")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_data(str(tmp_path))


def test_two_tables_and_tables_of_other_kinds_are_refused(tmp_path):
    """Which one says the labels is not guessed, and a table that is not read is not passed over."""
    lay(tmp_path, "cat", "dog")
    write_lines(tmp_path / "metadata.jsonl", {"file_name": "cat/0.png", "label": "a"})
    (tmp_path / "metadata.csv").write_text("file_name,label\ncat/0.png,a\n")
    with pytest.raises(ValueError, match=r"both metadata.csv and metadata.jsonl: remove one"):
        open_data(str(tmp_path))
    (tmp_path / "metadata.csv").rename(tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match=r"metadata.parquet is not read: write it as metadata.csv or metadata.jsonl"):
        open_data(str(tmp_path))


def test_a_comma_that_makes_a_set_multi_label_is_said(tmp_path):
    """One name with a comma changes the loss and the metric of the whole set: the note shows it, and how to write it as
    one name, which works."""
    lay(tmp_path, "", images=3)
    table = tmp_path / "metadata.csv"
    table.write_text('file_name,label\n0.png,"salt, pepper"\n1.png,sugar\n2.png,sugar\n')
    data = open_data(str(tmp_path))
    assert data.multi_label
    (note,) = data.notes
    assert note.startswith(
        "metadata.csv: 1 of 3 cells have several labels, such as 'salt, pepper', so an image may show"
    )
    assert note.endswith('write it as a JSON list, ["salt, pepper"]')
    table.write_text('file_name,label\n0.png,"[""salt, pepper""]"\n1.png,sugar\n2.png,sugar\n')
    data = open_data(str(tmp_path))
    assert (data.multi_label, data.notes, data.classes) == (False, (), ["salt, pepper", "sugar"])


def test_subfolders_of_classes_are_said(tmp_path):
    """Their names may have been meant as classes."""
    lay(tmp_path, "x/a", "x/b", "y")
    assert open_data(str(tmp_path)).notes == (
        "x/ has subfolders (a/, b/): their images have the class of the class folder",
    )


def test_a_column_of_splits_is_said_not_to_be_used(tmp_path):
    """A table of a folder without splits may name them; other columns of that name are nothing special."""
    lay(tmp_path, "cat", "dog")
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png"))
    sides = ["train", "val", "test"]
    rows = [f"{file},{sides[number % 3]},{number % 3}" for number, file in enumerate(files)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,Split,fold", *rows]))
    assert open_data(str(tmp_path)).notes == (
        "the column 'Split' (test, train, val) is not used: to keep these splits, move the images into folders with "
        "these names",
    )


def test_an_image_in_two_rows_is_said(tmp_path):
    """The second row makes the set multi-label, perhaps by mistake."""
    lay(tmp_path, "cat")
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.png"))
    rows = [f"{files[0]},a", f"{files[1]},b", f"{files[0]},b", f"{files[1]},b"]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    (note,) = open_data(str(tmp_path)).notes
    assert note == (
        f"metadata.csv: 1 image is in several rows with different labels, such as {files[0]} (a, b), so an image may "
        "show several classes; if this is a mistake, remove a row"
    )


def test_names_that_are_not_utf8_are_readable(tmp_path):
    """Any bytes are a file name. Tables and JSON have it as text that every program reads, bytes as \\xNN; the image is
    opened all the same."""
    lay(tmp_path, "cat", "dog", images=1)
    os.rename(tmp_path / "cat" / "0.png", os.fsencode(tmp_path / "cat") + b"/gr\xfcn.png")
    with open(os.fsencode(tmp_path / "dog") + b"/\xff.png", "w") as file:
        file.write("no image")
    data = check_images(open_data(str(tmp_path)), 0.5)
    assert data.val.files == ["cat/gr\\xfcn.png", "dog/0.png"]
    assert data.val.image(0).size == (8, 8)
    assert [entry.file for entry in data.left_out] == ["dog/\\xff.png"]
    json.dumps(data.val.files, ensure_ascii=False).encode()

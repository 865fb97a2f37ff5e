"""pytest tests/data/test_metadata.py: labels, and what else is said of images, from a metadata.csv."""

import pytest
from PIL import Image

from vismoe.data import check_images, open_data
from vismoe.data.folders.metadata import parse_labels


def lay(root, table, *names, encoding="utf-8"):
    """A folder of images, the first black, the next a shade lighter each, beside a metadata.csv."""
    for shade, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), shade).save(root / name)
    (root / "metadata.csv").write_bytes(table.encode(encoding))


def test_a_line_names_a_file_and_its_label(tmp_path):
    """Labels are found by file_name, whatever the order of the lines; classes are in the order of their names."""
    lay(tmp_path, "label,file_name\n猫,sub/x.png\nant,b.png\nbee hive,./a.png\n", "a.png", "b.png", "sub/x.png")
    opened = open_data(str(tmp_path))
    assert (opened.classes, opened.multi_label) == (["ant", "bee hive", "猫"], False)
    assert opened.val.files == ["a.png", "b.png", "sub/x.png"]
    assert opened.val.labels.tolist() == [1, 0, 2]
    assert [opened.val.image(number).getpixel((0, 0)) for number in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "cell",
    ["a|b", "a;b", '"a,b"', '"[""a"", ""b""]"', "\"['a', 'b']\"", " b | a ", "|a||b|", '"a;b,a"'],
)
def test_a_cell_of_several_labels_makes_a_set_multi_label(tmp_path, cell):
    """Separated by |, ; or commas, or as a list: the image shows both classes, and one class is a row of its own."""
    lay(tmp_path, f"file_name,label\nx.png,{cell}\ny.png,c\n", "x.png", "y.png")
    opened = open_data(str(tmp_path))
    assert (opened.classes, opened.multi_label) == (["a", "b", "c"], True)
    assert str(opened.val.labels.dtype) == "torch.bool"
    assert opened.val.labels.tolist() == [[True, True, False], [False, False, True]]


def test_lines_of_one_file_are_put_together(tmp_path):
    """A line for each label of a file is the same as one line with all."""
    lay(tmp_path, "file_name,label\nx.png,c\ny.png,b\nx.png,a\n", "x.png", "y.png")
    opened = open_data(str(tmp_path))
    assert opened.val.labels.tolist() == [[True, False, True], [False, True, False]]


@pytest.mark.parametrize("table", ["x.png,a|a\ny.png,b\n", "x.png,a\ny.png,b\nx.png,a\n"])
def test_a_label_that_is_said_twice_is_one_label(tmp_path, table):
    """A repetition neither adds an image nor makes a set multi-label."""
    lay(tmp_path, "file_name,label\n" + table, "x.png", "y.png")
    assert open_data(str(tmp_path)).val.labels.tolist() == [0, 1]


def test_a_json_list_keeps_the_signs_of_names(tmp_path):
    """Names that have separators themselves can be said, one alone too."""
    table = 'file_name,label\nx.png,"[""salt, pepper"", ""a|b;c""]"\ny.png,"[""salt, pepper""]"\n'
    lay(tmp_path, table, "x.png", "y.png")
    opened = open_data(str(tmp_path))
    assert opened.classes == ["a|b;c", "salt, pepper"]
    assert opened.val.labels.tolist() == [[True, True], [False, True]]


def test_the_column_labels_makes_a_set_multi_label(tmp_path):
    """`labels` says that there may be several, even where each file has one."""
    lay(tmp_path, "file_name,labels\nx.png,b\ny.png,a\n", "x.png", "y.png")
    opened = open_data(str(tmp_path))
    assert (opened.multi_label, opened.val.labels.tolist()) == (True, [[False, True], [True, False]])


@pytest.mark.parametrize("cell", ["", " ", "[]", "|"])
def test_an_empty_cell_of_a_multi_label_set_is_no_class(tmp_path, cell):
    """An image may show none of the classes."""
    lay(tmp_path, f"file_name,labels\nx.png,{cell}\ny.png,a\n", "x.png", "y.png")
    opened = open_data(str(tmp_path))
    assert (opened.val.labels.tolist(), opened.left_out) == ([[False], [True]], ())


@pytest.mark.parametrize("cell", ["", " ", "[]", "|"])
def test_an_empty_cell_of_a_single_label_set_leaves_the_file_out(tmp_path, cell):
    """An image without a class can be neither trained nor evaluated on: it is named."""
    lay(tmp_path, f"file_name,label\nx.png,{cell}\ny.png,a\n", "x.png", "y.png")
    opened = open_data(str(tmp_path))
    assert (opened.val.files, opened.val.labels.tolist()) == (["y.png"], [0])
    assert [(entry.file, entry.reason) for entry in opened.left_out] == [("x.png", "has no label in metadata.csv")]


def test_other_columns_come_in_the_order_of_files(tmp_path):
    """Each file keeps what its line says, as text, in both parts of a split too."""
    names = [f"{number}.png" for number in range(8)]
    lines = [f"{name},{'ab'[number % 2]},site {name},{number}" for number, name in enumerate(names)]
    lay(tmp_path, "\n".join(["file_name,label,site,age", *reversed(lines)]), *names)
    whole = open_data(str(tmp_path)).val
    assert whole.columns == {"age": list("01234567"), "site": [f"site {name}" for name in names]}
    parts = open_data(str(tmp_path), split_seed=0).train_and_val
    assert [len(part) for part in parts] == [6, 2]
    for part in parts:
        assert part.columns["site"] == [f"site {file}" for file in part.files]
        assert part.labels.tolist() == [int(age) % 2 for age in part.columns["age"]]


@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize("place", ["in each part", "at the root"])
def test_parts_with_metadata(tmp_path, place, held_out):
    """train/ and val/ have a metadata.csv each, or one above both names their files by train/… and val/…."""
    for part, files in (("train", ("a.png", "b.png")), (held_out, ("a.png",))):
        lay(tmp_path / part, "file_name,label,site\na.png,y,north\n" + "b.png,x,south\n" * (part == "train"), *files)
    if place == "at the root":
        for part in ("train", held_out):
            (tmp_path / part / "metadata.csv").unlink()
        lines = f"{held_out}/a.png,y,north\ntrain/a.png,y,north\ntrain/b.png,x,south\n"
        (tmp_path / "metadata.csv").write_text("file_name,label,site\n" + lines)
    opened = open_data(str(tmp_path))
    assert (opened.classes, opened.left_out) == (["x", "y"], ())
    assert (opened.train.files, opened.val.files) == (["train/a.png", "train/b.png"], [f"{held_out}/a.png"])
    assert (opened.train.labels.tolist(), opened.val.labels.tolist()) == ([1, 0], [1])
    assert (opened.train.columns, opened.val.columns) == ({"site": ["north", "south"]}, {"site": ["north"]})


def test_several_labels_in_one_part_make_both_multi_label(tmp_path):
    """The parts of a set have labels of one kind, and the training part's columns."""
    lay(tmp_path / "train", "file_name,label\n1.png,a|c\n2.png,b\n", "1.png", "2.png")
    lay(tmp_path / "val", "file_name,label\n1.png,c\n", "1.png")
    opened = open_data(str(tmp_path))
    assert opened.train.labels.tolist() == [[True, False, True], [False, True, False]]
    assert opened.val.labels.tolist() == [[False, False, True]]


def test_class_folders_label_what_metadata_does_not(tmp_path):
    """Without a column of labels the folders are the classes, and the other columns are kept."""
    lay(tmp_path, "file_name,site\nb/1.png,south\na/deep/1.png,north\n", "a/deep/1.png", "b/1.png")
    opened = open_data(str(tmp_path))
    assert (opened.classes, opened.val.labels.tolist()) == (["a", "b"], [0, 1])
    assert opened.val.columns == {"site": ["north", "south"]}


def test_no_label_anywhere_is_an_error(tmp_path):
    """A file that has a class neither by a column nor by its folder is named."""
    lay(tmp_path, "file_name,site\nx.png,south\n", "x.png")
    with pytest.raises(
        ValueError,
        match=r"no labelled images .*'x\.png': not in a class folder, and metadata\.csv has no column label",
    ):
        open_data(str(tmp_path))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_spreadsheets_write_is_read(tmp_path, encoding, end):
    """A byte order mark is no part of the first column's name, nor a carriage return one of a label."""
    lay(tmp_path, end.join(["file_name,label", "x.png,grün", ""]), "x.png", encoding=encoding)
    assert open_data(str(tmp_path)).classes == ["grün"]


@pytest.mark.parametrize("part", ["", "train/"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"image,label\nx.png,a\n", "expected the columns file_name and label, found image, label"),
        (
            b"file_name;label\nx.png;a\n",
            "expected the columns file_name and label, found file_name;label: its values are separated by ';'",
        ),
        (b"file_name\tlabel\nx.png\ta\n", r"its values are separated by '\t', but must be separated by commas"),
        (b"", "expected the columns file_name and label, found none"),
        (b"file_name,label\nx.png,a\nx.png\n", "line 3: expected 2 values"),
        (b"file_name,label\nx.png,a,b\n", "line 2: expected 2 values"),
        (b"file_name,label,labels\nx.png,a,a\n", "has both a column label and a column labels"),
        (b"file_name,label,label\nx.png,a,a\n", "has several columns label"),
        (b'file_name,label\nx.png,"[a"\ny.png,"[[1]]"\n', "label of 'y.png': [[1]] has values that are not names"),
        (b"file_name,label\n", "has no rows"),
        (b'file_name,label\nx.png,"a\n', "is not a CSV file in UTF-8"),
        ("file_name,label\nx.png,grün\n".encode("latin-1"), "is not a CSV file in UTF-8"),
        ("file_name,label\nx.png,a\n".encode("utf-16"), "is not a CSV file in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_followed_is_an_error(tmp_path, part, table, message):
    """What is wrong is said with the path of the metadata.csv, the one of a part too."""
    lay(tmp_path / part, "", "x.png")
    (tmp_path / part / "metadata.csv").write_bytes(table)
    with pytest.raises(ValueError, match="metadata") as error:
        open_data(str(tmp_path))
    assert str(error.value).startswith(str(tmp_path / part / "metadata.csv"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name", ["../out.png", "sub/../../out.png", "ABSOLUTE/out.png", "gone.png", "notes.txt", "sub"]
)
def test_a_file_name_that_leads_elsewhere_is_never_opened(tmp_path, monkeypatch, name):
    """What lies outside the folder, is not there, or is no image is left out and named."""
    name, root, opened = name.replace("ABSOLUTE", str(tmp_path)), tmp_path / "set", []
    lay(root, f"file_name,label\nx.png,a\n{name},a\n", "x.png", "sub/y.png", "../out.png")
    (root / "notes.txt").write_text("no image")
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or real(path, *rest))
    data = check_images(open_data(str(root)), 0.7)
    assert data.val.files == ["x.png"]
    reasons = {entry.file: entry.reason for entry in data.left_out}
    assert reasons.pop("sub/y.png") == "not named in metadata.csv"
    assert list(reasons) == [name.replace("sub/../../", "../")]
    assert "named in metadata.csv, but" in "".join(reasons.values())
    assert opened == [root / "x.png"]


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("['dog, big', 'cat']", ("dog, big", "cat")),
        ("""["it's", 'dog']""", ("it's", "dog")),
        ('["a;b"]', ("a;b",)),
        ("[3, 1]", ("3", "1")),
        ("a, b;c|a", ("a", "b", "c")),
        ("", ()),
    ],
)
def test_lists_of_labels(cell, labels):
    """JSON's, and Python's as pandas writes them, keep the signs in names; bare cells are cut at them."""
    assert parse_labels(cell) == labels


def test_files_are_named_below_the_set(tmp_path):
    """What a part's table names, and loose files of a part, carry the part; lines of no part are named too, and those
    of a held-out part that is not used are not."""
    lay(tmp_path / "train", "file_name,label\nx.png,a\ngone.png,a\n", "x.png")
    lay(tmp_path / "val", "", "a/y.png", "loose.png")
    (tmp_path / "val" / "metadata.csv").unlink()
    left_out = {entry.file: entry.reason for entry in open_data(str(tmp_path)).left_out}
    assert set(left_out) == {"train/gone.png", "val/loose.png"}
    lay(tmp_path, "file_name,label\ntypo/x.png,a\ntest/z.png,a\nval/a/y.png,a\nval/loose.png,a\n")
    left_out = {entry.file for entry in open_data(str(tmp_path)).left_out}
    assert left_out == {"train/gone.png", "typo/x.png"}


def test_a_part_without_a_line_is_an_error(tmp_path):
    """A table that names nothing of val/ is not a set without held-out images."""
    lay(tmp_path, "file_name,label\ntrain/x.png,a\n", "train/x.png", "val/y.png")
    with pytest.raises(ValueError, match=r"val has no labelled images .*'val/y\.png': not named in metadata\.csv"):
        open_data(str(tmp_path))


def test_a_name_too_long_for_any_file(tmp_path):
    """It is not there: no error of the system's."""
    lay(tmp_path, f"file_name,label\nx.png,a\n{'y' * 5000},a\n", "x.png")
    assert [entry.file for entry in open_data(str(tmp_path)).left_out] == ["y" * 5000]

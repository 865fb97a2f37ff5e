"""pytest tests/adapt/test_groups.py: images of one patient, video or site stay in one split."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from vismoe.adapt import run_splits
from vismoe.adapt.splits import open_splits
from vismoe.cli import main
from vismoe.data import format_summary
from vismoe.training import Run
from vismoe.training.run import describe

PATIENTS, IMAGES = 20, 6
TINY = ["--steps", "2", "--batch-size", "8", "--device", "cpu"]
SMALL = ["--epochs", "1", "--image-size", "8"]


def cells(folder, rows=None, count=PATIENTS):
    """Two classes, every patient with images of each; `rows`: of the table, by default with the column patient."""
    lines = []
    for number in range(count):
        for place in range(IMAGES):
            name = ("round", "long")[place % 2]
            generator = torch.Generator().manual_seed(1000 * number + place)
            pixels = torch.randint(0, 120, (9, 9), generator=generator) + 120 * (place % 2)
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.byte().numpy()).save(folder / name / f"{number}-{place}.png")
            lines.append(f"{name}/{number}-{place}.png,p{number},lab")
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient,hall", *(rows or lines)]))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return cells(tmp_path_factory.mktemp("cells") / "set")


def patients(files):
    return {file.rpartition("/")[2].partition("-")[0] for file in files}


def no_patient_twice(*parts):
    sides = [patients(part) for part in parts]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides))


def of_split(run):
    files = json.loads((run / "split.json").read_text())["files"]
    return [[file for file, side in files.items() if side == name] for name in ("train", "validation", "test")]


def test_finetune_keeps_patients_whole(folder, tmp_path, capsys):
    """No patient is in two of the three splits; how many each has is printed; eval keeps to the split."""
    out = tmp_path / "run"
    arguments = [
        "finetune",
        "--data",
        str(folder),
        "--group-column",
        "patient",
        "--epochs",
        "1",
        "--dense",
        "--image-size",
        "8",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    parts = of_split(out)
    no_patient_twice(*parts)
    assert sum(map(len, parts)) == PATIENTS * IMAGES
    numbers = " + ".join(str(len(patients(part))) for part in parts)
    assert f"each patient is in one split: {numbers}" in printed
    assert "may be too good" not in printed
    assert json.loads((out / "data.json").read_text())["group_column"] == "patient"
    assert main(["eval", str(out), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == len(parts[2])


def test_train_keeps_patients_whole(folder, tmp_path, capsys, monkeypatch):
    """The same of both splits of `train`; evaluated or resumed, the run has its split, with no image decoded for it."""
    out = tmp_path / "run"
    arguments = ["train", "digits", "--data", str(folder), *TINY, "--group-column", "patient", "--out", str(out)]
    assert main(arguments) == 0
    data = run_splits(Run(out))
    no_patient_twice(data.train.files, data.val.files)
    assert 20 <= len(data.val) <= 40
    assert "may be too good" not in capsys.readouterr().err
    assert describe(data)["digest"] == Run(out).data["digest"]
    monkeypatch.setattr("vismoe.data.splits.folder_split.try_fingerprints", None)
    assert main([*arguments, "--resume", "auto"]) == 0
    assert main([*arguments[:-4], "--out", str(out), "--resume", "auto"]) == 2
    assert "group_column=patient before, None now" in capsys.readouterr().err


def table(folder, patient_of):
    """Writes the table of a folder of `cells`; `patient_of`: patient of a class and a number."""
    files = sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/*.png"))
    rows = [f"{file},{patient_of(file.split('/')[0], int(re.split('[/-]', file)[1]))}" for file in files]
    (folder / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    return folder


def test_images_without_a_patient_are_said(tmp_path, capsys):
    """Each counts as a group of its own, and their number is printed by both commands."""
    folder = table(cells(tmp_path / "set"), lambda name, number: f"p{number}" if number > 3 else "")
    splits = open_splits(str(folder), 0, 0.1, group_column="patient")
    assert f"; {4 * IMAGES} images have no patient: each counts as a group of its own" in splits.sizes
    numbers = re.search(r"one split: (\d+) \+ (\d+) \+ (\d+);", splits.sizes)
    assert sum(map(int, numbers.groups())) == PATIENTS - 4 + 4 * IMAGES
    arguments = ["train", "digits", "--data", str(folder), *TINY, "--group-column", "patient"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    assert f"note: {4 * IMAGES} images have no patient" in capsys.readouterr().out


def test_a_class_of_one_patient_is_said(tmp_path):
    """It has no test images, for another reason than copies; a test split of a single class says nothing."""
    folder = table(cells(tmp_path / "set"), lambda name, number: "p0" if name == "long" else f"p{number}")
    text = format_summary(open_splits(str(folder), 0, 0.1, group_column="patient").summary)
    assert "classes without test images: long (all images of a class are of one patient)" in text
    assert "warning: the test split has only the class round: its metrics say nothing about the others" in text


def test_a_patient_s_copies_bring_the_next_one_along(tmp_path):
    """A copy of one patient's image under another's name joins the two."""
    folder = cells(tmp_path / "set")
    for number in range(0, PATIENTS, 4):
        image = (folder / "round" / f"{number}-0.png").read_bytes()
        (folder / "round" / f"{number + 1}-0.png").write_bytes(image)
    splits = open_splits(str(folder), 0, 0.1, group_column="patient")
    parts = [images.files for images in (*splits.fitting.train_and_val, splits.test.val)]
    no_patient_twice(*parts)
    for number in range(0, PATIENTS, 4):
        assert [{f"{number}", f"{number + 1}"} <= patients(part) for part in parts].count(True) == 1


def test_a_column_that_looks_like_a_group_is_pointed_out(folder, tmp_path, capsys):
    """Once, with the option to type and how many images are concerned, by both verbs; a column that repeats but is
    called otherwise is not."""
    assert main(["train", "digits", "--data", str(folder), *TINY, "--out", str(tmp_path / "one")]) == 0
    told = capsys.readouterr().err
    assert told.count("--group-column patient keeps each of the 20 groups in one split") == 1
    assert "hall" not in told
    splits = open_splits(str(folder), 0, 0.1)
    train = patients([*splits.fitting.train.files, *splits.fitting.val.files])
    shared = sum(bool(patients([file]) & train) for file in splits.test.val.files)
    assert (splits.unnamed.column, splits.unnamed.groups, splits.unnamed.shared) == ("patient", PATIENTS, shared)
    assert shared > 10


def test_file_names_that_look_like_groups_are_pointed_out(tmp_path, capsys):
    """Without a table: by both commands, once; not if a column is used, or looks like one."""
    folder = cells(tmp_path / "set")
    note = "If a beginning stands for a patient, slide or video"
    assert main(["train", "digits", "--data", str(folder), *TINY, "--out", str(tmp_path / "column")]) == 0
    assert note not in capsys.readouterr().err
    (folder / "metadata.csv").unlink()
    assert main(["train", "digits", "--data", str(folder), *TINY, "--out", str(tmp_path / "one")]) == 0
    assert capsys.readouterr().err.count(note) == 1
    assert open_splits(str(folder), 0, 0.1).by_name.groups == PATIENTS
    arguments = ["finetune", "--data", str(folder), "--dense", *SMALL, "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "two")]) == 0
    assert capsys.readouterr().out.count(note) == 1


def test_the_lines_that_make_a_column_of_file_names(tmp_path, monkeypatch):
    """Those of docs/finetune.md, on class folders without a table."""
    folder = cells(tmp_path / "images")
    (folder / "metadata.csv").unlink()
    page = (Path(__file__).parents[2] / "docs" / "finetune.md").read_text()
    (code,) = [
        block for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "slide" in block
    ]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    splits = open_splits("images", 0, 0.1, group_column="slide")
    assert splits.test.classes == ["long", "round"]
    no_patient_twice(*[images.files for images in (*splits.fitting.train_and_val, splits.test.val)])


@pytest.mark.parametrize(
    ("column", "rows", "said"),
    [
        (
            "person",
            None,
            "group_column='person': SET has no such column in a metadata.csv; its columns are hall, patient",
        ),
        ("hall", None, "group_column='hall': SET has one value, 'lab', in this column, but"),
        ("patient", 2, "group_column='patient': SET has 2 values in this column, but 3 splits need at least 3"),
    ],
)
def test_columns_that_cannot_be_split_by(tmp_path, capsys, column, rows, said):
    """Unknown, with one value, with two for three splits: exit code 2, one line, and no run folder."""
    folder = cells(tmp_path / "set", count=rows or 4)
    verbs = [["finetune"]] if rows else [["finetune"], ["train", "digits", *TINY]]
    for verb in verbs:
        assert main([*verb, "--data", str(folder), "--group-column", column, "--out", str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said.replace("SET", str(folder)) in line
        assert not (tmp_path / "run").exists()
    assert main(["train", "digits", *TINY, "--group-column", "patient", "--out", str(tmp_path / "run")]) == 2
    assert "digits has no such column" in capsys.readouterr().err


def test_a_set_s_own_test_split_keeps_its_groups(tmp_path, capsys):
    """finetune leaves out training images of patients that the set's own val/ has, and says how many; train, which
    changes no split that a set brings along, refuses."""
    folder = cells(tmp_path / "set")
    for side, numbers in (("train", range(14)), ("val", range(12, PATIENTS))):
        for file in [file for file in folder.glob("*/*.png") if int(file.stem.split("-")[0]) in numbers]:
            copied = folder / side / file.parent.name / file.name
            copied.parent.mkdir(parents=True, exist_ok=True)
            if side == "train" or not file.stem.endswith(("-0", "-1")):  # the same patients, no copies
                image = Image.open(file)
                (image.rotate(90) if side == "train" else image).save(copied)
    for name in ("round", "long"):
        for file in (folder / name).iterdir():
            file.unlink()
        (folder / name).rmdir()
    (folder / "metadata.csv").unlink()
    for side in ("train", "val"):
        files = [file.relative_to(folder / side).as_posix() for file in (folder / side).glob("*/*.png")]
        rows = [f"{file},p{file.split('/')[1].split('-')[0]}" for file in files]
        (folder / side / "metadata.csv").write_text("\n".join(["file_name,patient", *rows]))
    splits = open_splits(str(folder), 0, 0.1, group_column="patient")
    no_patient_twice(*[images.files for images in (*splits.fitting.train_and_val, splits.test.val)])
    assert splits.dropped == 2 * IMAGES
    assert (
        f"{2 * IMAGES} more are left out: their copies or images of their patient are in another split" in splits.sizes
    )
    arguments = ["train", "digits", *TINY, "--data", str(folder), "--group-column", "patient"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert "8 of 32 validation images of" in capsys.readouterr().err


@pytest.fixture(scope="module")
def parents(folder, tmp_path_factory, sketched):
    """A run of finetune on the folder and one of train, both without groups."""
    place = tmp_path_factory.mktemp("parents")
    shared = ["--data", str(folder), "--device", "cpu"]
    assert main(["finetune", *shared, "--dense", *SMALL, "--out", str(place / "tuned")]) == 0
    assert main(["train", "digits_dense", *TINY, "--data", str(folder), "--out", str(place / "trained")]) == 0
    return place


@pytest.mark.parametrize("parent", ["tuned", "trained", "child"])
def test_a_child_is_not_tested_on_what_its_parent_was_trained_on(folder, parents, tmp_path, capsys, parent):
    """`--from RUN` with another seed on the same folder keeps the parent's split, also that of a parent's parent; new
    images are trained on."""
    trained = {"tuned": of_split(parents / "tuned")[0], "trained": run_splits(Run(parents / "trained")).train.files}
    trained["child"] = trained["tuned"]
    source = parents / parent
    more = ["--seed", "7", "--train", "head", *SMALL, "--data", str(folder), "--device", "cpu"]
    if parent == "child":
        source = tmp_path / "between"
        assert main(["finetune", "--from", str(parents / "tuned"), *more, "--out", str(source)]) == 0
        more[1] = "8"
    assert main(["finetune", "--from", str(source), *more, "--out", str(tmp_path / "run")]) == 0
    assert "which was not trained on any of the test images" in capsys.readouterr().out
    train, validation, test = of_split(tmp_path / "run")
    assert test
    assert not set(trained[parent]) & set(test)
    assert set(train) | set(validation) | set(test) == {*run_splits(Run(parents / "trained")).train.files} | {
        *run_splits(Run(parents / "trained")).val.files
    }


def test_a_parent_without_groups_has_no_child_with_them(folder, parents, tmp_path, capsys):
    """Its patients are on both sides already: refused, with what to do."""
    arguments = ["finetune", "--data", str(folder), "--from", str(parents / "tuned"), "--group-column", "patient"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "was trained on images of the same patient as" in said
    assert "train it again with --group-column patient" in said
    assert not (tmp_path / "run").exists()


def test_weights_of_a_run_with_another_split_are_refused(folder, parents, tmp_path, capsys):
    """`train --weights RUN` on the same folder: only with the split of RUN, which the error names."""
    arguments = ["train", "digits_dense", *TINY, "--data", str(folder), "--weights", str(parents / "trained")]
    assert main([*arguments, "--split-seed", "3", "--out", str(tmp_path / "run")]) == 2
    assert "--split-seed 0 keeps its split" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0

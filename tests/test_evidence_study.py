"""pytest tests/test_evidence_study.py: a run of the study, from a folder of pictures to its row."""

import csv
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from evidence import study, transfer
from evidence.families import DENSE_1, GROWN, SPARSE_32
from evidence.kept import kept
from evidence.pictures import COLUMNS
from evidence.runs import KEY, Run, key_of
from evidence.tasks import PIXELS, TASKS, VIEWS, Kind, open_task, which_picture
from table import Table

from vismoe.data import ImageSet

pytestmark = pytest.mark.benchmarks

COLOURS, TIMES = 10, 384


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten plain pictures, eight of which are asked about, 384 views each: sixteen steps."""
    folder, generator = tmp_path_factory.mktemp("evidence"), np.random.default_rng(0)
    pixels = np.full((COLOURS, 64, 64, 4), 255, np.uint8)
    pixels[:, 8:56, 8:56, :3] = generator.integers(0, 200, (COLOURS, 1, 1, 3))
    np.save(folder / "pictures.npy", pixels)
    with (folder / "pictures.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *([["openclipart", f"{n}.png", "", "a"] for n in range(COLOURS)])])
    TASKS["tiny"] = Kind(partial(which_picture, 8), 8, 8, TIMES)
    yield folder
    del TASKS["tiny"]


@pytest.fixture
def no_emoji(monkeypatch):
    """In place of packages of some hundred megabytes: two kinds of noise."""
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(60, 48, 48, 3, generator=generator) * 255).byte().numpy()
    labels = torch.arange(60) % 2
    pixels[labels.numpy() == 1] //= 4
    shown = ImageSet(labels, partial(transfer.picture_of, pixels))
    monkeypatch.setattr(transfer, "_emoji", lambda styles, root: shown)


def test_views_are_of_their_picture_and_the_same_everywhere(root, tmp_path, monkeypatch):
    """Every view, to train on or held out, is nearest to its own picture in colour; another folder gives the same."""
    task = open_task("tiny", root)
    middle = slice(PIXELS // 3, -PIXELS // 3)
    train = task.data.train
    assert len(train) == 8 * TIMES
    assert train.labels.bincount().tolist() == [TIMES] * 8
    colours = torch.stack(
        [torch.from_numpy(_middle(train, train.labels == number, middle)) for number in range(8)]
    ).median(1)[0]
    for part in (task.validation.val, task.data.val):
        assert part.labels.tolist() == [number for number in range(8) for _ in range(VIEWS)]
        found = torch.from_numpy(_middle(part, torch.ones(len(part), dtype=torch.bool), middle))
        assert (torch.cdist(found, colours).argmin(1) == part.labels).float().mean() > 0.5
    for name in ("pictures.npy", "pictures.csv"):
        (tmp_path / name).write_bytes((root / name).read_bytes())
    monkeypatch.setitem(TASKS, "tiny", Kind(partial(which_picture, 8), 8, 8, 2))
    open_task("tiny", tmp_path)
    for part in ("train", "test", "validation"):
        again = np.load(tmp_path / f"{part}-tiny.npy")
        assert (again == np.load(root / f"{part}-tiny.npy")[: len(again)]).all()


def _middle(images, which, middle):
    """The mean colour of pictures' middles (N, 3)."""
    places = which.nonzero()[:, 0].tolist()
    pixels = np.stack([np.asarray(images.image(place), np.float32) for place in places])
    return pixels[:, middle, middle].mean((1, 2))


@pytest.mark.parametrize("family", [DENSE_1, SPARSE_32], ids=lambda family: family.name)
def test_a_run_and_its_row(family, root, tmp_path, no_emoji):
    """What the row has is what the run did; each view's loss is there, and their mean is the row's, as with what is
    recognised; of unfamiliar views and of familiar ones."""
    run = Run("decisive", family, 64, 1e-3, 3, "tiny")
    row = study.train_one(run, root, tmp_path / "views")
    assert {name: str(row[name]) for name in KEY} == dict(zip(KEY, run.key, strict=True))
    assert row["steps"] == 8 * TIMES * 2 // 3 // 128
    views = np.load(tmp_path / "views" / f"{run.name}.npz")
    for part, columns in (("test", "{}"), ("familiar", "familiar_{}")):
        assert views[f"{part}_loss"].shape == (8 * VIEWS,)
        expected = row[columns.format("val_loss_100")], row[columns.format("top1_100")]
        assert views[f"{part}_loss"].astype(float).mean() == pytest.approx(expected[0], rel=1e-2)
        assert views[f"{part}_right"].mean() == pytest.approx(expected[1], abs=1e-4)
    assert row["familiar_val_loss_100"] != row["val_loss_100"]
    assert row["classifier"] == 64 * 256 + 256 * 8
    assert row["probe"] == 1.0  # dark or bright
    table = Table(tmp_path / "rows.csv")
    table.append(row)
    assert key_of(table.rows()[0]) == run.key
    study.forget(run, root)
    assert list((root / "runs").iterdir()) == []
    if family == SPARSE_32:
        same = study.train_one(run, root, tmp_path / "views")
        assert {**same, "cpu_seconds": 0} == {**row, "cpu_seconds": 0}
        again = study.train_one(run, root, tmp_path / "views")  # its row could not be written: nothing is lost
        assert {**again, "cpu_seconds": 0} == {**row, "cpu_seconds": 0}


def test_one_network_under_two_names_is_trained_once(tmp_path):
    """Four times the trunk, grown in width, is the trunk of twice the width: the same weights, trained by the same
    recipe. It gets that one's row and views, once, under its own name."""
    grown = next(family for family in GROWN if (family.times, family.grow) == (4, "width"))
    run = Run("decisive", grown, 64, 1e-3, 3)
    assert run.plain == Run("decisive", DENSE_1, 128, 1e-3, 3)
    assert replace(run.recipe, model="") == replace(run.plain.recipe, model="")
    own, plain = (each.network().state_dict() for each in (run, run.plain))
    assert list(own) == list(plain)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in own.items())

    table, views = Table(tmp_path / "rows.csv"), tmp_path / "rows"
    study.named_twice([run, run.plain], table)
    assert table.rows() == []
    table.append(dict(zip(KEY, run.plain.key, strict=True)) | {"recipe": "other", "val_loss_100": "0.7"})
    views.mkdir()
    (views / f"{run.plain.name}.npz").write_bytes(b"views")
    for _ in range(2):
        study.named_twice([run, run.plain], table)
    first, second = table.rows()
    assert (key_of(second), second["val_loss_100"]) == (run.key, "0.7")
    assert second["recipe"] != first["recipe"]
    assert (views / f"{run.name}.npz").read_bytes() == b"views"


def test_time_left_goes_by_multiplications_and_by_how_fast_the_machine_is():
    """A step of each of forty rows takes 0.1 s and 10 ns a multiplication, of the newest twelve, all of one size, twice
    that: so do runs to come, of another size too."""
    sizes = [8e6 * times for times in (1, 2, 4, 8) for _ in range(7)] + [8e6] * 12
    seconds = [2000 * (0.1 + 1e-8 * size) * (2 if number >= 28 else 1) for number, size in enumerate(sizes)]
    figures = zip(sizes, seconds, strict=True)
    rows = [
        {"trunk": f"{size:.0f}", "classifier": "0", "steps": "2000", "cpu_seconds": f"{s:.0f}"} for size, s in figures
    ]
    for run in (Run("single", DENSE_1, 64, 1e-3), Run("single", DENSE_1, 128, 1e-3)):
        expected = run.steps * 2 * (0.1 + 1e-8 * sum(study.multiplications(run.network()))) / 3600
        assert study.hours([run], rows) == pytest.approx(expected, rel=0.2)
    assert study.hours([run], rows[:1]) == study.hours([run], []) > 0


def test_pilots_never_see_the_test(root, tmp_path, no_emoji):
    """A pilot sees a quarter of the views and is evaluated on views to choose by; it leaves nothing else."""
    run = Run("pilot", DENSE_1, 64, 1e-3, 0, "tiny")
    pilot = study.train_one(run, root, tmp_path / "views")
    assert pilot["steps"] == 8 * TIMES // 4 // 128
    assert (pilot["neighbours"], pilot["probe"]) == ("", "")
    assert {value for name, value in pilot.items() if name.startswith("familiar")} == {""}
    assert not (tmp_path / "views").exists()


def test_another_set_is_noticed(root, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", Kind(partial(which_picture, 8), 9, 8, TIMES))
    with pytest.raises(ValueError, match="another set than the study's"):
        open_task("tiny", root)


def test_an_array_is_made_once(tmp_path):
    """And not left half-written where making it fails."""
    path = tmp_path / "array.npy"
    with pytest.raises(RuntimeError):
        kept(path, lambda: (_ for _ in ()).throw(RuntimeError))
    assert not path.exists()
    assert kept(path, lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert kept(path, lambda: np.arange(9)).tolist() == [0, 1, 2]

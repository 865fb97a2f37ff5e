"""Reports of what the experts do: pytest tests/explain/test_report.py"""

import csv
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

import vismoe
from vismoe.cli import main
from vismoe.data import open_data
from vismoe.detection import make_detector
from vismoe.explain import experts_of_boxes, optimized_copy, parts_of_answer, trace_image
from vismoe.explain.report import Page, add_image
from vismoe.explain.routing_figure import expert_colours
from vismoe.inference import Predictor
from vismoe.tasks.detection import Detection

NASTY = '=cmd()|<script>alert(1)</script>"&.png'


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "m"
    names = ["<b>cat</b>", "=dog", "owl"]
    vismoe.save(vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3), path, names)
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    torch.manual_seed(1)
    path = tmp_path / NASTY.replace("/", "")
    Image.fromarray(torch.randint(0, 255, (12, 10, 3), dtype=torch.uint8).numpy()).save(path, "PNG")
    return path


def write_classes(folder: Path, classes: tuple[str, ...], number: int) -> None:
    """A folder for each class, with so many images of noise."""
    torch.manual_seed(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for place in range(number):
            pixels = torch.randint(0, 255, (8, 8, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / name / f"{place}.png")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_report_of_an_image(model, photo, tmp_path, capsys, monkeypatch):
    """The page is self-contained and escapes names; tables have every patch, capacity and part."""
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(model), photo.name, "--out", "out", "--capacity", "0.5", "0.25"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    tags = Tags(page)
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;b&gt;cat&lt;/b&gt;" in page
    for _, attributes in tags.found:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert all(attributes["alt"] for tag, attributes in tags.found if tag == "img")
    for name in ("routing", "capacity", "parts"):
        assert (tmp_path / "out" / "figures" / f"image-1-{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / "out" / "figures" / f"image-1-{name}.svg").read_text()
    tables = tmp_path / "out" / "tables"
    trace = trace_image(Predictor(vismoe.load(model)), Image.open(photo))
    patches = rows_of(tables / "image-1-patches.csv")
    assert [int(row["expert"]) for row in patches] == [
        expert for layer in trace.layers for (expert,) in layer.expert[1:].tolist()
    ]
    capacities = rows_of(tables / "image-1-capacity.csv")
    assert [row["capacity"] for row in capacities] == ["the model's own", "0.5", "0.5", "0.25", "0.25"]
    assert [row["order"] for row in capacities] == ["", "position", "priority", "position", "priority"]
    assert capsys.readouterr().err.splitlines()[-1] == "report: out/index.html"
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(tables / "image-1-patches.parquet").num_rows == len(patches)


def test_report_of_a_set(model, tmp_path, capsys):
    """Class names are escaped in the page and guarded in tables; JSON has the analysis; the dense twin is compared and
    the scores without each expert are there."""
    write_classes(tmp_path / "set", ("=dog", "owl"), 3)
    dense = tmp_path / "dense"
    vismoe.save(vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=3), dense, ["<b>cat</b>", "=dog", "owl"])
    out = tmp_path / "out"
    options = ["--without-experts", "--json", "--compare", str(dense), "--max-images", "4"]
    assert main(["explain", str(model), str(tmp_path / "set"), "--out", str(out), *options]) == 0
    printed = capsys.readouterr()
    analysis = json.loads(printed.out)
    assert "4 of 6 images are analysed" in printed.err
    assert analysis["images"] == 4
    assert sum(analysis["layers"][0]["load"]) == 4 * 17
    page = (out / "index.html").read_text()
    assert "<b>" not in page
    assert re.search(r"Dead experts[^<]*", page)
    assert [row["class"] for row in rows_of(out / "tables" / "classes.csv")][:3] == ["<b>cat</b>", "'=dog", "owl"]
    loads = rows_of(out / "tables" / "load.csv")
    assert [int(row["choices"]) for row in loads] == [n for layer in analysis["layers"] for n in layer["load"]]
    assert len(rows_of(out / "tables" / "without-experts.csv")) == 16
    sizes = rows_of(out / "tables" / "models.csv")
    assert int(sizes[0]["parameters"]) > int(sizes[0]["active parameters"])
    assert sizes[1]["parameters"] == sizes[1]["active parameters"]
    answers = [Predictor(vismoe.load(path)).predict(tmp_path / "set") for path in (model, dense)]
    chosen = [0, 1, 3, 4]  # four of six, evenly spaced
    differing = [n for n, place in enumerate(chosen) if answers[0][place].names[0] != answers[1][place].names[0]]
    rows = rows_of(out / "tables" / "differences.csv") if differing else []
    assert [int(row["number"]) for row in rows] == differing
    assert [row["class"] for row in rows] == [("'=dog", "'=dog", "owl", "owl")[number] for number in differing]


def test_a_run_and_its_dense_twin(tmp_path, capsys):
    """A run folder needs no data set: its own images are analysed, and the twin that the demo leaves in it is
    compared."""
    kept = Path(__file__).parents[1] / "old_formats" / "run_adamw"
    shutil.copytree(kept, tmp_path / "run")
    shutil.copytree(kept, tmp_path / "run" / "dense")
    assert main(["explain", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--max-images", "5"]) == 0
    printed = capsys.readouterr().err
    assert "compared with its dense twin" in printed
    assert "5 of 450 images" in printed
    assert len(rows_of(tmp_path / "out" / "tables" / "models.csv")) == 2
    assert "answers differ for 0 of 5 images" in (tmp_path / "out" / "index.html").read_text()
    for file in [tmp_path / "out" / "index.html", *(tmp_path / "out" / "tables").glob("*.csv")]:
        assert str(tmp_path) not in file.read_text()  # it is published as it is


def test_a_run_whose_data_set_is_elsewhere(tmp_path, capsys, monkeypatch):
    """A run that knows its data set by a relative path says from another folder to name it; named, it has the run's own
    split, and a folder that lacks some of the images has a note about training images."""
    write_classes(tmp_path / "photos", ("a", "b"), 30)
    monkeypatch.chdir(tmp_path)
    options = ["--model", "vmoe_pico_patch2_8_every2_e8", "--image-size", "8", "--steps", "2", "--batch-size", "8"]
    assert main(["train", "images", "--data", "photos", "--out", "run", *options]) == 0
    validation = open_data("photos", 0).val.files
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capsys.readouterr()
    assert main(["explain", "../run", "--out", "none"]) == 2
    assert "../run was trained on 'photos', which is not found from here" in capsys.readouterr().err
    photos = str(tmp_path / "photos")
    assert main(["explain", "../run", photos, "--out", "own", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["images"] == len(validation) < 60
    assert "has the images of the data set of ../run" in printed.err
    assert photos not in (tmp_path / "elsewhere" / "own" / "index.html").read_text()
    (tmp_path / "photos" / "a" / "3.png").unlink()
    assert main(["explain", "../run", "../photos", "--out", "other", "--max-images", "2"]) == 0
    assert "training images of ../run" in capsys.readouterr().err


def test_dense_networks(tmp_path, capsys, monkeypatch):
    """Nothing is written where nothing would be shown; otherwise a note says what is left."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    vismoe.save(vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=10), Path("dense"), list("0123456789"))
    for arguments, message in (
        (["digits"], "has no sparse layers, so there are no experts to show"),
        (["digits", "--without-experts"], "no expert can be left out"),
    ):
        assert main(["explain", "dense", *arguments, "--out", "out"]) == 2
        assert message in capsys.readouterr().err
        assert not Path("out").exists()
    assert main(["explain", "dense", "photo.png", "--out", "out"]) == 0
    assert "no sparse layers: the report shows the answers, attention rollout" in capsys.readouterr().err
    assert main(["explain", "photo.png", "--out", "again"]) == 2
    assert "photo.png is an image, not a model" in capsys.readouterr().err


def test_colours_are_those_of_the_page():
    """An expert has the colour that overlay.js gives it, whatever their number; the last colour is black."""
    script = (Path(vismoe.__file__).parent / "serve" / "page" / "overlay.js").read_text()
    colours = re.findall(r"#[0-9a-f]{6}", re.search(r"COLOURS = \[(.*?)\]", script)[1])
    shades = [int(each) for each in re.search(r"SHADES = \[(.*?)\]", script)[1].split(",")]
    shown = (255 * expert_colours(40)).round().astype(int).tolist()
    for expert in range(40):
        shade = shades[expert // len(colours) % len(shades)]
        target = 255 if shade > 0 else 0
        for place in range(3):
            own = int(colours[expert % len(colours)][1 + 2 * place : 3 + 2 * place], 16)
            assert abs(shown[expert][place] - (own + (target - own) * abs(shade) / 100)) <= 0.51
    assert shown[-1] == [0, 0, 0]


def test_optimized_copy(model, photo):
    """It has the same answers, and leaves the network as it was."""
    predictor = Predictor(vismoe.load(model))
    before = [name for name, _ in predictor.model.named_modules()]
    copied = optimized_copy(predictor)
    if copied is None:
        pytest.skip("no compiled kernels")
    (one,), (other,) = predictor.predict(photo), copied.predict(photo)
    assert one.names == other.names
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert copied.model is not predictor.model
    assert [name for name, _ in predictor.model.named_modules()] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.png"], "nothing.png: no such image"),
        (["photo.png", "nothing"], "nothing: no such image"),
        (["photo.png", "digits"], "digits is not an image file"),
        (["photo.png", "--capacity", "0"], "capacity=0: accepted are positive numbers"),
        (["photo.png", "--json"], "--json is for a data set"),
        (["photo.png", "--max-images", "3"], "--max-images is for a data set"),
        (["digits", "--capacity", "2"], "--capacity is for images"),
        (["broken.png"], "broken.png"),
        (["digits", "fashion-mnist"], "one data set"),
        ([], "name images or a data set after it"),
        (["photo.png", "--compare", "other"], "compare two networks with the same classes"),
    ],
)
def test_bad_input_leaves_nothing(model, tmp_path, capsys, monkeypatch, arguments, message):
    """Exit code 2, one clear line, and no folder."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    Path("broken.png").write_bytes(b"no image")
    vismoe.save(vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=2), Path("other"), ["a", "b"])
    assert main(["explain", str(model), *arguments, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "broken.png", "other"}


def test_without_captum_and_pyarrow(model, photo, tmp_path, monkeypatch):
    """Both are optional: the page says what is missing, and how to get it."""
    find = importlib.util.find_spec
    for module in ("vismoe.explain.report.page", "vismoe.explain.parts.attribution"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name in ("captum", "pyarrow") else find(name))
    page = Page(tmp_path, "title")
    add_image(page, Predictor(vismoe.load(model)), {"image": Image.open(photo)}, "photo", 1, [0.5])
    page.write()
    text = (tmp_path / "index.html").read_text()
    assert "needs captum, which is not installed" in text
    assert "Parquet needs pyarrow" in text
    assert not list((tmp_path / "tables").glob("*.parquet"))
    assert {row["part"] for row in rows_of(tmp_path / "tables" / "image-1-parts.csv")} == {"expert"}


def test_parts_are_what_the_answer_loses(model, photo):
    """The part of a patch, from an image whose pixels are replaced by hand, and that of an expert, from a network whose
    expert is zeroed by hand."""
    pytest.importorskip("captum")
    network = vismoe.load(model)
    predictor = Predictor(network)
    sample = predictor.prepare({"image": Image.open(photo)})
    parts = parts_of_answer(predictor, sample, (4, 4))

    def log_odds(pixels: torch.Tensor) -> float:
        with torch.no_grad():
            p = network.eval()(pixels[None])[0].double().softmax(0)[parts.target].item()
        return float(torch.tensor(p / (1 - p)).log())

    whole = log_odds(sample["image"])
    assert parts.log_odds == pytest.approx(whole, abs=1e-4)
    assert parts.patches.shape == (4, 4)
    for row, column in ((0, 0), (1, 3), (3, 2)):
        covered = sample["image"].clone()
        covered[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 0
        assert parts.patches[row, column].item() == pytest.approx(whole - log_odds(covered), abs=1e-4)
    down = network.blocks[3].mlp.experts.down
    with torch.no_grad():
        down.weight[5], down.bias[5] = 0, 0
    assert parts.experts["blocks.3"][5].item() == pytest.approx(whole - log_odds(sample["image"]), abs=1e-4)


def test_experts_of_boxes():
    """The patches whose centres are in a box, counted one by one; a box smaller than a patch has the one around it."""
    torch.manual_seed(0)
    detector = make_detector(vismoe.create_model("vmoe_pico_patch4_28_every2_e8", img_size=48), 2, (48, 48))
    predictor = Predictor(detector, task=Detection(["a", "b"]))
    trace = trace_image(predictor, Image.new("RGB", (96, 64), (200, 30, 30)))
    found = experts_of_boxes(trace, 0.0)
    assert found
    for each in found[:20]:
        left, top, right, bottom = (side / 2 for side in each.box.box)  # 96 pixels become 48
        for layer in trace.layers:
            experts = layer.expert.view(12, 12).tolist()
            inside = [
                experts[row][column]
                for row in range(12)
                for column in range(12)
                if left <= 4 * column + 2 <= right and top <= 4 * row + 2 <= bottom
            ]
            counts = each.experts[layer.name].tolist()
            if inside:
                assert each.patches == len(inside)
                assert counts == [inside.count(expert) for expert in range(8)]
            else:
                assert each.patches == 1
                assert sum(counts) <= 1
    classifier = Predictor(vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=2))
    with pytest.raises(ValueError, match="finds no boxes"):
        experts_of_boxes(trace_image(classifier, Image.new("RGB", (8, 8))))

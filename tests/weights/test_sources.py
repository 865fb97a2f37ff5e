"""pytest tests/weights/test_sources.py: what a string that names a model means, and what opens it."""

import pytest
import torch

import vismoe
from vismoe.weights import check_trained, open_source, open_trained, parse_source
from vismoe.weights.published import PUBLISHED
from vismoe.weights.sources import short_source

PRESET = "vmoe_pico_patch2_8_dense"
PUBLISHED_ONE = next(iter(PUBLISHED.values()))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model folder, a run, one that is not trained yet, and files."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = vismoe.create_model(PRESET, num_classes=3).eval()
    for folder in ("folder", "run/model"):
        vismoe.save(model, tmp_path / folder)
    (tmp_path / "begun").mkdir()
    for run in ("run", "begun"):
        (tmp_path / run / "recipe.json").write_text("{}")
    (tmp_path / "bare.safetensors").write_bytes((tmp_path / "folder" / "model.safetensors").read_bytes())
    (tmp_path / f"{PRESET}.onnx").write_bytes(b"no graph")
    return model


def means(text):
    source = parse_source(text)
    assert (source.text, str(source)) == (text, text)
    return source.kind, source.name


def test_kinds(place, tmp_path):
    """Each way to name a model, once."""
    tag = f"{PUBLISHED_ONE.preset}.{PUBLISHED_ONE.tag}"
    assert means(PRESET) == ("preset", PRESET)
    assert means(tag) == ("published", tag)
    assert means("timm:vit_tiny_patch16_224") == ("timm", "vit_tiny_patch16_224")
    assert means("hf:some/model") == ("hub", "some/model")
    assert means("run") == ("run", "run")
    assert means("folder") == means("local-dir:folder") == ("folder", "folder")
    assert means(str(tmp_path / "run" / "model")) == ("folder", str(tmp_path / "run" / "model"))
    assert means("local-dir:run") == ("run", "run")
    assert means("bare.safetensors") == ("file", "bare.safetensors")
    assert means(f"{PRESET}.onnx") == ("exported", f"{PRESET}.onnx")


def test_what_they_are_good_for(place):
    """Only a preset has learned nothing; only paths are on this machine."""
    texts = [PRESET, "timm:vit_tiny_patch16_224", "hf:some/model", "run", "folder", "bare.safetensors"]
    assert [parse_source(text).is_trained for text in texts] == [False, True, True, True, True, True]
    assert [parse_source(text).is_local for text in texts] == [False, False, False, True, True, True]


def test_what_others_see(place, tmp_path):
    """The name of a run, also by its model; that of a folder, though it is called "model"; no folders above them."""
    (tmp_path / "folder").rename(tmp_path / "model")
    for text, name in (("run", "run"), ("run/model/", "run"), (str(tmp_path / "run" / "model"), "run")):
        assert short_source(text) == name
    assert short_source("model") == "model"
    assert short_source("hf:some/model") == "hf:some/model"


def test_what_is_here_comes_before_a_preset(place, tmp_path):
    """A person's own folder is never taken for random weights because of its name."""
    (tmp_path / "folder").rename(tmp_path / PRESET)
    assert means(PRESET) == ("folder", PRESET)


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            "nothing",
            FileNotFoundError,
            "^nothing: no such run or model folder, file or preset; accepted are also timm:NAME",
        ),
        ("local-dir:nothing", FileNotFoundError, "^local-dir:nothing: no such run or model folder"),
        ("runs/vmoe", FileNotFoundError, "no such run or model folder"),
        ("vmoe.safetensors", FileNotFoundError, "no such run or model folder"),
        ("gone.onnx", FileNotFoundError, "^gone.onnx: no such file$"),
        (
            "begun",
            FileNotFoundError,
            "^begun has no model yet: wait until its training ends, or, if .* finish its training with --resume auto;",
        ),
        ("vmoe_pico_patch2_8_dens", ValueError, "unknown preset .*; did you mean vmoe_pico_patch2_8_dense"),
        (f"{PRESET}.tag", ValueError, "has no published weights 'tag': it has none"),
        ("timm:vit_tinny_patch16_224", ValueError, "timm has no model .* .did you mean .*vit_tiny_patch16_224"),
        ("timm:nosuch", ValueError, r"timm has no model 'nosuch'; accepted are timm:NAME .* of timm.list_models\(\)"),
        ("timm:", ValueError, "timm has no model ''; accepted are timm:NAME"),
        (
            "timm:resnet50.nosuch",
            ValueError,
            "timm has no weights 'nosuch' of resnet50: accepted are a1_in1k, .* no tag",
        ),
        (
            "timm:beit3_giant_patch14_224.x",
            ValueError,
            "timm has no weights 'x' of beit3_giant_patch14_224: it has none",
        ),
        ("resnet50", FileNotFoundError, r"^resnet50: no such .* preset \(did you mean timm:resnet50\?\); accepted are"),
        ("restnet50", FileNotFoundError, r"did you mean timm:resnet50 or "),
        ("pico_patch2_8_every2_e8", FileNotFoundError, "did you mean vmoe_pico_patch2_8_every2_e8"),
    ],
)
def test_what_means_nothing_is_refused(place, text, kind, says):
    """Before anything is opened, with what is accepted."""
    with pytest.raises(kind, match=says):
        parse_source(text)


def test_a_timm_model_without_trained_weights_is_refused():
    """A network that nobody published weights of is no case for looking at one's network cable."""
    with pytest.raises(
        ValueError, match=r"^timm has no trained weights of beit3_giant_patch14_224: use a name of timm"
    ):
        open_source("timm:beit3_giant_patch14_224")


def test_open(place):
    """Folders, runs and presets, at evaluation; a preset's classes can be chosen."""
    images = torch.randn(2, 3, 8, 8)
    for text in ("run", "folder", "local-dir:folder", parse_source("run")):
        assert torch.equal(open_source(text)(images), place(images))
        assert torch.equal(open_trained(text)(images), place(images))
    assert not open_source(PRESET).training
    assert (open_source(PRESET).num_classes, open_source(PRESET, num_classes=7).num_classes) == (1000, 7)


def test_only_what_is_trained(place):
    """Random weights and files that give answers alone are refused where a trained network is needed."""
    with pytest.raises(ValueError, match="is a preset with random weights: name a trained network"):
        check_trained(PRESET)
    for opener in (check_trained, open_trained, open_source):
        with pytest.raises(ValueError, match="an ONNX file can only predict"):
            opener(f"{PRESET}.onnx")
    with pytest.raises(ValueError, match="has only weights"):
        open_trained("bare.safetensors")

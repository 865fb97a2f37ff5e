"""Model folders: there and back, opened by timm, written whole or not at all, never unpickled."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import vismoe
from vismoe.weights.folders import save as saving

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}


def small(name="vmoe_tiny_patch16_224_every2_e8", **overrides):
    torch.manual_seed(0)
    return vismoe.create_model(name, **SMALL | {"img_size": 32} | overrides).eval()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vmoe_tiny_patch16_224_every2_e8", {}),
        ("vmoe_tiny_patch16_224_every2_e8", {"num_experts": 3, "experts_per_token": 2, "in_chans": 1, "img_size": 64}),
        ("vmoe_tiny_patch16_224_last2_e8", {"capacity_factor": 1.5, "eval_capacity_factor": "none", "group_size": 5}),
        ("vmoe_s32_every2_e8", {"representation_size": 24, "img_size": 64}),
        ("vmoe_tiny_patch16_224_dense", {}),
    ],
)
def test_there_and_back(name, overrides, tmp_path):
    """vismoe.load and timm's local-dir give the same weights, buffers and logits, whatever was overridden."""
    model = small(name, **overrides)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("balance_bias"):
            buffer.copy_(torch.randn_like(buffer))
    vismoe.save(model, tmp_path / "m")
    size = overrides.get("img_size", 32)
    images = torch.randn(2, overrides.get("in_chans", 3), size, size)
    for again in (
        vismoe.load(tmp_path / "m"),
        timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval(),
    ):
        assert again.state_dict().keys() == model.state_dict().keys()
        for given, expected in zip(again.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(given, expected)
        assert torch.equal(again(images), model(images))


def test_config_keeps_one_moe_object(tmp_path):
    """config.json has the sparse part as one `moe` object, no overrides beside it, and no num_classes in model_args."""
    vismoe.save(small(num_experts=3), tmp_path / "m", label_names=list("abcde"))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architecture"] == "vmoe_tiny_patch16_224_every2_e8"
    assert config["model_args"]["moe"]["num_experts"] == 3
    assert not {"num_experts", "num_classes"} & set(config["model_args"])
    assert config["num_classes"] == 5
    assert config["label_names"] == list("abcde")


def test_an_older_model_is_replaced_and_nothing_else(tmp_path):
    """Saving over a model folder replaces it; over anything else it is refused and left alone."""
    vismoe.save(small(), tmp_path / "m")
    vismoe.save(small(num_experts=2), tmp_path / "m")
    assert vismoe.load(tmp_path / "m").moe.num_experts == 2
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text("{}")
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"has other files than config\.json"):
        vismoe.save(small(), tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    """When writing fails, the older folder stands untouched and nothing half-written is left."""
    vismoe.save(small(), tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "save_config_for_hf", full_disk)
    with pytest.raises(OSError, match="no space"):
        vismoe.save(small(num_experts=2), tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_files_have_the_mode_that_the_user_gives(tmp_path):
    """Weights can be read by whom the configuration can."""
    before = os.umask(0o027)
    try:
        path = vismoe.save(small(), tmp_path / "m")
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in sorted(path.iterdir())] == [0o640, 0o640]
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_networks_that_cannot_be_described_are_refused(tmp_path):
    """A network of one's own, and label names for other classes than the network's: nothing is written."""
    with pytest.raises(TypeError, match="Linear was not made by create_model"):
        vismoe.save(torch.nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(ValueError, match="2 label_names for a network of 5 classes"):
        vismoe.save(small(), tmp_path / "m", label_names=["a", "b"])
    assert not list(tmp_path.iterdir())


def test_compiled_models_are_saved_as_what_they_wrap(tmp_path):
    """torch.compile's wrapper is no part of the folder."""
    model = small()
    vismoe.save(torch.compile(model), tmp_path / "m")
    assert vismoe.load(tmp_path / "m").state_dict().keys() == model.state_dict().keys()


def test_data_parallel_models_are_saved_as_what_they_wrap(tmp_path):
    """DataParallel's wrapper is no part of the folder, nor of the names of layers."""
    model = small()
    wrapped = torch.nn.DataParallel(model)
    vismoe.save(wrapped, tmp_path / "m")
    assert vismoe.load(tmp_path / "m").state_dict().keys() == model.state_dict().keys()
    with vismoe.record(wrapped) as routing:
        pass
    assert all(name.startswith("blocks.") for name in routing.layers)


def test_tensors_of_several_names_are_saved(tmp_path):
    """A network whose blocks share modules, as CoaT's do, opens with the same outputs, with timm too."""
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=32).eval()
    model.blocks[1].mlp = model.blocks[0].mlp
    images = torch.randn(2, 3, 32, 32)
    folder = vismoe.save(model, tmp_path / "m")
    for again in (vismoe.load(folder), timm.create_model(f"local-dir:{folder}", pretrained=True).eval()):
        assert torch.equal(again(images), model(images))


CONFIGS = [
    {"vismoe_format": "x"},
    {"model_args": None},
    {"model_args": ["img_size"]},
    {"model_args": {"img_size": "x"}},
    {"model_args": {"img_size": [8]}},
    {"model_args": {"patch_size": 0}},
    {"pretrained_cfg": None},
    {"label_names": 5},
    {"label_names": ["a"]},
    {"label_names": [1, 2, 3, 4, 5]},
]


@pytest.mark.parametrize(
    ("field", "value"),
    [("std", [0, 0, 0]), ("std", [float("nan")] * 3), ("std", []), ("std", "x"), ("mean", [None] * 3)]
    + [("crop_pct", value) for value in (0, -1.0, float("nan"), float("inf"))],
)
@pytest.mark.parametrize("nested", [True, False])
def test_preparations_that_make_no_image_are_named(field, value, nested, tmp_path):
    """A field that would make NaN of every image, or nothing: the file and the field, in both of timm's layouts."""
    path = vismoe.save(small(), tmp_path / "m") / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"][field] = value
    config = config if nested else config.pop("pretrained_cfg") | config
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: {field} is .*, expected"):
        vismoe.load(tmp_path / "m")


@pytest.mark.parametrize("arguments", [{"img_size": "x"}, {"patch_size": 0}, {"no_such": 1}])
def test_arguments_that_build_nothing_are_named(arguments, tmp_path):
    """The field is named as well as the file."""
    path = vismoe.save(small(), tmp_path / "m") / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"model_args": config["model_args"] | arguments}))
    with pytest.raises(ValueError, match=r"config\.json: architecture and model_args describe no network"):
        vismoe.load(tmp_path / "m")


@pytest.mark.parametrize("changes", CONFIGS)
def test_configurations_that_make_no_sense_are_named(changes, tmp_path):
    """Whatever stands in a config.json, opening it ends in a model or in a ValueError that names the file."""
    vismoe.save(small(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=r"config\.json"):
        vismoe.load(tmp_path / "m")


def test_weights_files_depend_on_weights_alone(tmp_path):
    """The same weights make the same bytes, wherever and whenever they are written."""
    files = [vismoe.save(small(), tmp_path / name) / "model.safetensors" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_refused_unopened(tmp_path):
    """A pickle, under its own name, as pytorch_model.bin, or dressed up as safetensors, is refused and never run."""
    evil = pickle.dumps(Bomb(tmp_path / "ran"))
    (tmp_path / "weights.pt").write_bytes(evil)
    for name in ("pytorch_model.bin", "model.safetensors"):
        path = vismoe.save(small(), tmp_path / name.partition(".")[0])
        (path / "model.safetensors").unlink()
        (path / name).write_bytes(evil)
        with pytest.raises(ValueError, match=r"pickled|not a safetensors file"):
            vismoe.load(path)
    with pytest.raises(ValueError, match="pickled"):
        vismoe.load(tmp_path / "weights.pt", preset="vmoe_tiny_patch16_224_dense")
    assert not (tmp_path / "ran").exists()


def test_unreadable_folders_are_named(tmp_path):
    """Missing, empty, broken, unknown, newer, truncated, of another shape: one ValueError each that names the file."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vismoe.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        vismoe.load(tmp_path / "empty")
    path = vismoe.save(small(), tmp_path / "m")
    good, weights = json.loads((path / "config.json").read_text()), (path / "model.safetensors").read_bytes()
    for text, message in (
        ("{", "not readable JSON"),
        ("[1]", "names no architecture"),
        (json.dumps(good | {"architecture": "vmoe_none"}), "no network that can be built"),
        (json.dumps(good | {"vismoe_format": 99}), "update vismoe"),
        (json.dumps(good | {"model_args": good["model_args"] | {"embed_dim": 16}}), "does not fit"),
    ):
        (path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            vismoe.load(path)
    (path / "config.json").write_text(json.dumps(good))
    (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="not a safetensors file"):
        vismoe.load(path)


def test_timms_own_folder_opens(tmp_path):
    """A dense ViT that timm wrote with safetensors is a model folder too."""
    model = timm.create_model("vit_tiny_patch16_224", **SMALL, img_size=32).eval()
    timm.models.save_for_hf(model, tmp_path / "vit", safe_serialization=True)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(vismoe.load(tmp_path / "vit")(images), model(images))


def test_bare_weights_need_a_preset(tmp_path):
    """A .safetensors file alone opens with the architecture's name, and says so without."""
    torch.manual_seed(0)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=4).eval()
    file = vismoe.save(model, tmp_path / "m") / "model.safetensors"
    assert len(load_file(file)["head.weight"]) == 4
    images = torch.randn(1, 3, 8, 8)
    assert torch.equal(vismoe.load(file, preset="vmoe_pico_patch2_8_every2_e8")(images), model(images))
    with pytest.raises(ValueError, match="preset="):
        vismoe.load(file)


def test_a_loaded_model_keeps_its_names(tmp_path):
    """Saved again it knows its classes and its type of problem; with a new head it has none."""
    model = vismoe.create_model("vmoe_pico_patch2_8_dense", num_classes=2)
    vismoe.save(model, tmp_path / "a", ["x", "y"], problem_type="multi_label_classification")
    loaded = vismoe.load(tmp_path / "a")
    vismoe.save(loaded, tmp_path / "b")
    again = vismoe.load(tmp_path / "b").pretrained_cfg
    assert (again["label_names"], again["problem_type"]) == (["x", "y"], "multi_label_classification")
    loaded.reset_classifier(3)
    vismoe.save(loaded, tmp_path / "c")
    assert vismoe.load(tmp_path / "c").pretrained_cfg["label_names"] is None

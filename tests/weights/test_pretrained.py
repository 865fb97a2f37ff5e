"""pytest tests/weights/test_pretrained.py: published weights by one line, from a server in this process."""

import json
import re
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants

import vismoe
from vismoe.adapt.classification.initial_model import open_start
from vismoe.cli import main
from vismoe.cli.shared.model import open_model
from vismoe.weights import PUBLISHED, Published, convert, open_trained, to_reference
from vismoe.weights.pretrained import _base
from vismoe.weights.published import tags_of
from vismoe.weights.registry import PREPROCESSING

from ..files.file_server import serving
from .reference_writer import nested, write

SPARSE = "vmoe_pico_patch2_8_every2_e8"
TAG = f"{SPARSE}.tiny_published"
SQUASHED = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
ENTRY = Published("tiny_published", SPARSE, 12, 5, "digits", 0.5, SQUASHED, bfloat16_exchange=True)
PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
DATA = [f"tiny_published.data-{shard:05d}-of-00002" for shard in range(2)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A network with any weights, and the files of a checkpoint that holds them."""
    torch.manual_seed(0)
    options = {"img_size": 12, "act_layer": "gelu_tanh", "representation_size": 24, "bfloat16_exchange": True}
    model = vismoe.create_model(SPARSE, num_classes=5, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("published")
    write(folder / "tiny_published", nested(to_reference(model)), shards=2)
    return model, {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setitem(PUBLISHED, "tiny_published", ENTRY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "cache" / "vismoe" / "weights" / "tiny_published"


@pytest.fixture
def server(made, cache, monkeypatch):
    with serving() as shop:
        shop.files |= made[1]
        monkeypatch.setenv("VISMOE_WEIGHTS_URL", f"{shop.address}/some/where/")
        yield shop


def pretrained(name=TAG, create=vismoe.create_model, **options):
    return create(name, pretrained=True, **options).eval()


def says(model, pixels=PIXELS):
    with torch.inference_mode():
        return model(pixels)


def says_features(model):
    with torch.inference_mode():
        return model.forward_intermediates(PIXELS, intermediates_only=True, norm=False)


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_line(made, server, cache, monkeypatch):
    """Downloaded over a connection that breaks and a server that is busy, converted once; afterwards no network is
    needed; vismoe's call, timm's and timm's with a configuration give what the written network says."""
    server.plan = [(503, {}), None, 3000]
    expected = says(made[0])
    assert torch.equal(says(pretrained()), expected)
    assert [name for name, _ in server.seen] == ["tiny_published.index"] * 2 + [DATA[0]] * 2 + [DATA[1]]
    assert server.seen[3][1] == "bytes=3000-"
    server.seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model in (
        pretrained(create=timm.create_model),
        pretrained(SPARSE, timm.create_model, pretrained_cfg={"tag": "tiny_published"}),
        open_trained(TAG).eval(),
        open_model(TAG),
    ):
        assert torch.equal(says(model), expected)
        assert model.moe.bfloat16_exchange
        assert model.pretrained_cfg["num_classes"] == 5
        assert SQUASHED.items() <= model.pretrained_cfg.items()
    assert not server.seen
    assert sorted(path.name for path in cache.iterdir() if path.name != ".lock") == ["model", "record.json"]
    assert set(json.loads((cache / "record.json").read_text())) == {*made[1], "model.safetensors"}


def test_saved_it_is_an_ordinary_folder(made, server, tmp_path):
    """`vismoe.save` and timm open it again without its tag."""
    vismoe.save(pretrained(), tmp_path / "m")
    assert torch.equal(says(vismoe.load(tmp_path / "m")), says(made[0]))
    again = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    assert torch.equal(says(again), says(made[0]))


def test_other_classes_and_sizes(made, server, tmp_path):
    """A new classifier, none, resized position embeddings as `convert` resizes them, other channels, features alone."""
    model, own = made[0], made[0].state_dict()
    for number in (3, 0):
        state = pretrained(num_classes=number).state_dict()
        assert ("head.weight" in state) == (number > 0)
        assert all(torch.equal(state[name], own[name]) for name in state if not name.startswith("head."))
    assert torch.equal(pretrained(num_classes=5).head.weight, model.head.weight)
    (tmp_path / "files").mkdir()
    for name, content in made[1].items():
        (tmp_path / "files" / name).write_bytes(content)
    larger = convert(tmp_path / "files" / "tiny_published", tmp_path / "larger", image_size=20)
    pixels = torch.randn(2, 3, 20, 20)
    assert torch.equal(says(pretrained(img_size=20), pixels), says(larger, pixels))
    grey = pretrained(create=timm.create_model, in_chans=1)
    torch.testing.assert_close(says(grey, PIXELS[:, :1]), says(model, PIXELS[:, :1].expand(-1, 3, -1, -1)))
    features = pretrained(create=timm.create_model, features_only=True)
    assert torch.equal(says(features)[-1], says_features(model)[-1])
    start = open_start(TAG, 3, None, torch.device("cpu"))
    assert (start.num_classes, tuple(start.pretrained_cfg["input_size"])) == (3, (3, 12, 12))


def test_other_balancing(made, server):
    """With biases that follow the load, for a loop that adds no losses, they begin at 0: the outputs are the same."""
    model = pretrained(balance="bias")
    assert torch.equal(says(model), says(made[0]))
    biases = [tensor for name, tensor in model.state_dict().items() if "balance" in name]
    assert biases
    assert not any(bias.any() for bias in biases)


@pytest.mark.parametrize("create", [timm.create_model, vismoe.create_model])
def test_options_of_another_network(server, create):
    """They are refused, and no part of a network stays random without a word."""
    for options in ({"num_experts": 4}, {"shared": True, "num_classes": 3}, {"representation_size": 0}):
        with pytest.raises(ValueError, match="these options do not fit the weights"):
            create(TAG, pretrained=True, **options)


def test_without_weights(server):
    """pretrained=False builds the architecture with the tag's preprocessing, and asks nobody."""
    for create in (timm.create_model, vismoe.create_model):
        model = create(TAG)
        assert (model.num_classes, model.pretrained_cfg["input_size"]) == (5, (3, 12, 12))
        assert model.moe.bfloat16_exchange
        assert SQUASHED.items() <= model.pretrained_cfg.items()
    assert not server.seen


@pytest.mark.parametrize("create", [timm.create_model, vismoe.create_model])
def test_unknown_tags(cache, create):
    """The preset's tags are listed, also where weights are asked for without one."""
    with pytest.raises(ValueError, match=f"{SPARSE} has no published weights 'huge': its tags are tiny_published"):
        create(f"{SPARSE}.huge")
    with pytest.raises(ValueError, match=f"{SPARSE} needs a tag: use {TAG}"):
        create(SPARSE, pretrained=True)
    with pytest.raises(ValueError, match="vmoe_pico_patch2_8_dense has no published weights 'x': it has none"):
        create("vmoe_pico_patch2_8_dense.x")


def test_what_is_not_there(server, cache):
    """The address and the variable are named; nothing is remembered."""
    del server.files[DATA[1]]
    with pytest.raises(ValueError, match=f"{server.address}/some/where/{DATA[1]}: the server answers 404") as raised:
        pretrained()
    assert "set VISMOE_WEIGHTS_URL to a mirror" in str(raised.value)
    assert not (cache / "record.json").exists()
    assert not (cache / "model").exists()


def test_an_answer_that_is_no_checkpoint(made, server, cache):
    """A page that says hello is neither kept nor expected ever after."""
    server.files["tiny_published.index"] = b"<html>hello</html>"
    with pytest.raises(ValueError, match="is not a valid index of a reference checkpoint"):
        pretrained()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    server.files |= made[1]
    assert torch.equal(says(pretrained()), says(made[0]))


def test_other_bytes_than_before(made, server, cache):
    """A file that changed, in size or content, is refused with given and expected, and leaves nothing."""
    pretrained()
    record = (cache / "record.json").read_bytes()
    (cache / "model" / "config.json").unlink()
    content = made[1][DATA[0]]
    for other in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        server.files[DATA[0]] = other
        with pytest.raises(ValueError, match="has changed") as raised:
            pretrained()
        for told in (f"{server.address}/some/where/{DATA[0]}", f"{len(other):,} bytes", f"{len(content):,} bytes"):
            assert told in str(raised.value)
        assert f"delete {cache} to accept this one" in str(raised.value)
        assert not (cache / "files" / DATA[0]).exists()
        assert (cache / "record.json").read_bytes() == record
    server.files[DATA[0]] = content
    assert torch.equal(says(pretrained()), says(made[0]))


def test_damage_in_the_cache(server, cache):
    """A flipped bit of the converted weights is noticed."""
    pretrained()
    path = cache / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} has changed.*delete {cache} to"):
        pretrained()


def test_a_damaged_configuration_in_the_cache(made, server, cache):
    """It is told what to delete, and that done the folder is made anew."""
    pretrained()
    path = cache / "model" / "config.json"
    told = f"{re.escape(str(path))} is damaged, delete it"
    for content in ("{}", '{"model_args": {}, "pretrained_cfg": {}}', '{"model_args": 1, "pretrained_cfg": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=told):
            pretrained()
    path.unlink()
    assert torch.equal(says(pretrained()), says(made[0]))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_local_folder(made, cache, tmp_path, monkeypatch, scheme):
    """It is read in place, also offline; what lacks is named."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "my files"
    monkeypatch.setenv("VISMOE_WEIGHTS_URL", f"{scheme}{folder}")
    with pytest.raises(ValueError, match="is not an existing folder; accepted are a folder and addresses"):
        pretrained()
    folder.mkdir()
    with pytest.raises(ValueError, match=r"tiny_published\.index: no such file"):
        pretrained()
    for name, content in made[1].items():
        (folder / name).write_bytes(content)
    assert torch.equal(says(pretrained()), says(made[0]))
    assert everything(folder) == made[1]
    assert not (cache / "files").exists()


def test_offline(server, cache, monkeypatch):
    """HF_HUB_OFFLINE: nobody is asked, and the message says why."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"HF_HUB_OFFLINE forbids downloading {server.address}"):
        pretrained()
    assert not server.seen


def test_where_it_is_looked_for(monkeypatch):
    """By default in the publisher's bucket, over HTTPS."""
    monkeypatch.delenv("VISMOE_WEIGHTS_URL", raising=False)
    assert _base() == "https://storage.googleapis.com/vmoe_checkpoints"
    monkeypatch.setenv("VISMOE_WEIGHTS_URL", "gs://my_bucket/a/b/")
    assert _base() == "https://storage.googleapis.com/my_bucket/a/b"


OTHER = """
import sys, torch, vismoe
from vismoe.weights import PUBLISHED, Published
PUBLISHED["tiny_published"] = Published(*sys.argv[1:3], 12, 5, "digits", 0.5, {}, bfloat16_exchange=True)
print("here", flush=True)
sys.stdin.readline()
model = vismoe.create_model(sys.argv[2] + ".tiny_published", pretrained=True)
print(float(model.head.weight.detach().sum()))
"""


def test_two_at_a_time(made, server, cache, forked):
    """A process and two threads that begin together all end well, and every file is downloaded once."""
    words = [forked, "-c", OTHER, "tiny_published", SPARSE]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "here\n"
    found = []
    threads = [threading.Thread(target=lambda: found.append(says(pretrained()))) for _ in range(2)]
    for thread in threads:
        thread.start()
    said, _ = other.communicate("go\n")
    for thread in threads:
        thread.join()
    assert float(said) == float(made[0].head.weight.detach().sum())
    assert len(found) == 2
    assert all(torch.equal(each, says(made[0])) for each in found)
    assert sorted(name for name, _ in server.seen) == sorted(made[1])


def test_timm_lists_them():
    """timm's list of what has weights, and ours; a preset without a tag stays as it was."""
    listed = vismoe.list_models(pretrained=True)
    assert len(listed) == len(PUBLISHED)
    assert sorted(timm.list_models("vmoe_*", pretrained=True)) == sorted(listed)
    assert vismoe.list_models("vmoe_b16*", pretrained=True) == vismoe.list_models("vmoe_b16*.*")
    assert "vmoe_b16_every2_e8.imagenet21k_randaug_strong" in listed
    for name in listed:
        preset, _, tag = name.partition(".")
        told, published = timm.get_pretrained_cfg(name), tags_of(preset)[tag]
        assert (told.num_classes, told.input_size[1]) == (published.classes, published.image_size)
        assert (told.mean, told.std) == (PREPROCESSING["mean"], PREPROCESSING["std"]) == ((0.5,) * 3, (0.5,) * 3)
        assert timm.get_pretrained_cfg(preset).num_classes == 1000


def test_the_table_of_the_docs():
    """docs/convert.md has every published name, as which tag of which preset, with the published figures."""
    page = (Path(__file__).parents[2] / "docs" / "convert.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in page.splitlines() if "| `vmoe_" in line
    ]
    expected = []
    for published in PUBLISHED.values():
        accuracy = "–" if published.accuracy is None else f"{100 * published.accuracy:g} %"
        named = f"{published.preset}.{published.tag}", published.name
        expected.append([*named, str(published.image_size), f"{published.classes:,}", published.data, accuracy])
    assert rows == expected


def test_the_command_line(cache, capsys):
    """`vismoe models` has a preset's weights beside it, and by a pattern with a dot; `--from` knows them."""
    assert main(["models", "vmoe_pico_patch2_8_*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: [each["name"] for each in row["weights"]] for row in rows if row["weights"]} == {SPARSE: [TAG]}
    assert main(["models", "*.tiny*"]) == 0
    assert "50.00%" in capsys.readouterr().out
    assert main(["eval", f"{SPARSE}.huge", "--data", "digits"]) == 2
    assert "its tags are tiny_published" in capsys.readouterr().err


def test_published_ensembles(tmp_path, cache, monkeypatch):
    """A tag of an ensemble builds one, of members that go to one expert each."""
    name = "eee_s32_last2_ilsvrc2012_ft_cifar100"
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], preset=SPARSE, image_size=8, classes=5))
    model = vismoe.create_model(f"{SPARSE}.eee_ilsvrc2012_ft_cifar100")
    assert (model.ensemble_size, model.moe.experts_per_token) == (2, 1)
    assert model.eval()(torch.randn(3, 3, 8, 8)).shape == (6, 5)


def test_differences_from_published_weights(cache, tmp_path, monkeypatch, capsys):
    """`vismoe upcycle PRESET.TAG … --only-differences`: the folder names the tag, and reads the rest by it."""
    dense = "vmoe_pico_patch2_8_dense"
    monkeypatch.setitem(PUBLISHED, "tiny_dense", Published("tiny_dense", dense, 12, 5, "digits", None, SQUASHED))
    model = vismoe.create_model(dense, 5, img_size=12, act_layer="gelu_tanh", representation_size=24).eval()
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "tiny_dense", nested(to_reference(model)))
    monkeypatch.setenv("VISMOE_WEIGHTS_URL", str(tmp_path / "files"))
    small = tmp_path / "small"
    arguments = ["upcycle", f"{dense}.tiny_dense", str(small), "--only-differences", "--num-experts", "2"]
    assert main(arguments) == 0, capsys.readouterr().err
    assert json.loads((small / "config.json").read_text())["parent"]["source"] == f"{dense}.tiny_dense"
    torch.testing.assert_close(says(vismoe.load(small)), says(model))

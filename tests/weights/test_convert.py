"""Files of the reference and of Google's dense ViTs as model folders.

python -m pytest tests/weights/test_convert.py
"""

import contextlib
import io
import json
import warnings
import zipfile
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import timm
import torch

import vismoe
from vismoe.cli import main
from vismoe.vit import PRESETS
from vismoe.vit.positions import resize_positions
from vismoe.weights import PUBLISHED, Published, convert, from_reference, to_reference
from vismoe.weights.reference.npz import DenseNpz

from ..memory import printed
from .reference_writer import BFloat16, nested, write

SPARSE, DENSE = "vmoe_pico_patch2_8_every2_e8", "vmoe_pico_patch2_8_dense"
POSITIONS = "Encoder/posembed_input/pos_embedding"
ATTENTION = "Encoder/encoderblock_0/SelfAttention/query/kernel"


def network(preset, **arguments):
    """A network with the reference's activation and any weights, and its parameters by the reference's names."""
    torch.manual_seed(0)
    model = vismoe.create_model(preset, act_layer="gelu_tanh", **({"num_classes": 5} | arguments)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model, to_reference(model)


def same(model, folder, size=8):
    """Whether a folder's network says what a model says, in its own mode and size."""
    images = torch.randn(3, 3, size, size)
    loaded = vismoe.load(folder)
    with torch.inference_mode():
        return torch.equal(loaded(images), model(images)) and not loaded.training


@pytest.fixture
def written(tmp_path):
    """A sparse network, its parameters and the prefix of a checkpoint that holds them."""
    model, arrays = network(SPARSE)
    write(tmp_path / "p", nested(arrays), shards=3)
    return model, arrays, tmp_path / "p"


def test_a_checkpoint_becomes_a_folder(written, tmp_path):
    """The folder's network gives the outputs of the network whose parameters were written; k, capacity and balancing
    are the preset's."""
    model, _, prefix = written
    made = convert(prefix, tmp_path / "out", SPARSE)
    assert same(model, tmp_path / "out")
    assert vismoe.load(tmp_path / "out").moe == made.moe == model.moe
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == SPARSE


def test_heads_and_representations(tmp_path):
    """Classes, image size, a representation layer or none, no head at all: read off the files."""
    for number, arguments in enumerate(
        [{"representation_size": 24}, {"num_classes": 0}, {"img_size": 12}, {"in_chans": 1, "representation_size": 64}]
    ):
        model, arrays = network(SPARSE, **arguments)
        write(tmp_path / "p", nested(arrays), cut=False)
        made = convert(tmp_path / "p", tmp_path / f"out{number}", SPARSE)
        images = torch.randn(2, arguments.get("in_chans", 3), *2 * [arguments.get("img_size", 8)])
        with torch.inference_mode():
            assert torch.equal(vismoe.load(tmp_path / f"out{number}")(images), model(images))
            assert torch.equal(made(images), model(images))


def test_a_training_state(tmp_path):
    """Of a whole training state the parameters are taken, the optimiser's moments are not."""
    model, arrays = network(SPARSE)
    moments = nested({name: np.ones_like(array) for name, array in arrays.items()})
    state = {"step": np.int32(9)[...], "params": nested(arrays), "opt_state": {"0": {}, "1": {"mu": moments}}}
    write(tmp_path / "ckpt_9", state | {"rngs": {"dropout": np.zeros(2, np.uint32)}}, shards=2)
    convert(tmp_path / "ckpt_9", tmp_path / "out", SPARSE)
    assert same(model, tmp_path / "out")


def test_bfloat16(tmp_path):
    """Parameters in bfloat16 are widened exactly."""
    _, arrays = network(SPARSE)
    halves = {name: BFloat16((array.view(np.uint32) >> 16).astype(np.uint16)) for name, array in arrays.items()}
    write(tmp_path / "p", nested(halves), shards=2)
    convert(tmp_path / "p", tmp_path / "out", SPARSE)
    for name, array in to_reference(vismoe.load(tmp_path / "out")).items():
        assert np.array_equal(array, (halves[name].bits.astype(np.uint32) << 16).view(np.float32))


def test_dense_checkpoints_need_no_preset(tmp_path):
    """Where nothing is sparse the files say all."""
    model, arrays = network(DENSE)
    write(tmp_path / "p", nested(arrays))
    convert(tmp_path / "p", tmp_path / "out")
    assert same(model, tmp_path / "out")
    convert(tmp_path / "p", tmp_path / "named", DENSE)
    assert same(model, tmp_path / "named")
    uneven = {name: np.zeros((64, 5, 16), np.float32) for name in arrays if name.endswith("/query/kernel")}
    write(tmp_path / "p", nested(arrays | uneven))
    refused(tmp_path / "p", tmp_path, "5 heads do not divide a width of 64")


def test_published_names(written, tmp_path, monkeypatch):
    """A published name brings its preset, and how its images are prepared."""
    model, arrays, _ = written
    squashed = {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
    monkeypatch.setitem(PUBLISHED, "known", Published("known", SPARSE, 8, 5, "digits", 0.5, squashed))
    write(tmp_path / "known", nested(arrays))
    convert(tmp_path / "known", tmp_path / "out")
    assert same(model, tmp_path / "out")
    assert squashed.items() <= vismoe.load(tmp_path / "out").pretrained_cfg.items()
    for name, published in PUBLISHED.items():
        assert published.name == name
        assert published.preset in PRESETS
        assert published.image_size % PRESETS[published.preset].arguments["patch_size"] == 0


@pytest.mark.parametrize("name", ["eee_s32_last2_ilsvrc2012", "eee_s32_last2_ilsvrc2012_ft_cifar100"])
@pytest.mark.parametrize("flat", [False, True])
def test_published_ensembles(name, flat, tmp_path, monkeypatch):
    """A published ensemble becomes the network that its configuration, of the same sizes, describes: two members, one
    expert a token, exchange in bfloat16; its routers' kernels may lie member by member or side by side."""
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], preset=SPARSE, image_size=8, classes=5))
    _, arrays = network(SPARSE, ensemble_size=2, representation_size=24)
    dispatcher = {
        "name": "einsum",
        "bfloat16": True,
        "capacity_factor": 4.0,
        "batch_priority": False,
    }  # none is dropped
    router = {"num_selected_experts": 1, "noise_std": 1.0, "importance_loss_weight": 0.005, "load_loss_weight": 0.005}
    moe = {"ensemble_size": 2, "num_experts": 8, "group_size": 3 * 17 * 2, "layers": (1, 3), "split_rngs": False}
    encoder = {"num_layers": 4, "num_heads": 4, "mlp_dim": 256, "moe": moe | {"router": router}}
    encoder["moe"]["router"]["dispatcher"] = dispatcher
    model = {"num_classes": 5, "patch_size": (2, 2), "hidden_size": 64, "classifier": "token"}
    model |= {"name": "VisionTransformerMoeEnsemble", "representation_size": 24, "encoder": encoder}
    expected = from_reference(arrays, {"model": model})
    kernels = {each: array for each, array in arrays.items() if each.endswith("/Moe/Router/dense/kernel")}
    assert [array.shape for array in kernels.values()] == [(64, 2, 4)] * 2
    if flat:
        arrays |= {each: array.reshape(64, 8) for each, array in kernels.items()}
    write(tmp_path / name, nested(arrays), shards=2)
    convert(tmp_path / name, tmp_path / "out")
    assert same(expected, tmp_path / "out")
    made = vismoe.load(tmp_path / "out").moe
    assert (made.ensemble_size, made.experts_per_token, made.bfloat16_exchange) == (2, 1, True)


def test_published_checkpoints_exchange_in_bfloat16():
    """All configurations that were published say so."""
    assert all(published.moe["bfloat16_exchange"] for published in PUBLISHED.values())


def test_another_image_size(written, tmp_path):
    """The position embedding is resized, its corners stay: the model for 20 × 20 pixels, of one for 8 × 8."""
    model, arrays, prefix = written
    made = convert(prefix, tmp_path / "out", SPARSE, image_size=20)
    grid = torch.tensor(arrays[POSITIONS][0, 1:]).unflatten(0, (4, 4))
    new = made.pos_embed.detach()
    assert torch.equal(new[0, 0], torch.tensor(arrays[POSITIONS][0, 0]))
    new = new[0, 1:].unflatten(0, (10, 10))
    assert torch.equal(new[[0, 0, 9, 9], [0, 9, 0, 9]], grid[[0, 0, 3, 3], [0, 3, 0, 3]])
    torch.testing.assert_close(new[3, 6], grid[1, 2])
    torch.testing.assert_close(new[0, 1], grid[0, 0] * 2 / 3 + grid[0, 1] / 3)
    other = model.blocks[1].mlp.experts.up.weight
    assert torch.equal(made.blocks[1].mlp.experts.up.weight, other)
    assert vismoe.load(tmp_path / "out")(torch.randn(1, 3, 20, 20)).shape == (1, 5)


def test_positions_of_the_reference(reference_figures):
    """The reference's own resizing, with class tokens and without: within a unit in the last place."""
    file = np.load(reference_figures / "posemb_vit_zoom.npz")
    for case in json.loads(str(file["config_json"]))["cases"]:
        source, output = (torch.tensor(file[f"case{case['case']}/{part}"]) for part in ("source", "output"))
        torch.testing.assert_close(resize_positions(source, output.shape[1]), output, rtol=0, atol=2e-7)


def refused(source, tmp_path, message, *options):
    """One line on stderr, code 2, and no folder."""
    before = sorted(path.name for path in tmp_path.iterdir())
    with contextlib.redirect_stderr(text := io.StringIO()):
        assert main(["convert", str(source), str(tmp_path / "refused"), *options]) == 2
    told = text.getvalue()
    assert len(told.splitlines()) == 1
    assert message in told
    assert str(source) in told
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_what_does_not_fit_is_named(written, tmp_path):
    """Missing, unexpected and misshapen tensors, all at once; sizes that are not the preset's; options files lack."""
    _, arrays, prefix = written
    refused(prefix, tmp_path, "experts per token, capacity and group size are unknown")
    refused(prefix, tmp_path, "width 64, the preset's 512; depth 4, the preset's 8", "--preset", "vmoe_s32_last2_e8")
    refused(prefix, tmp_path, "sparse blocks [1, 3], the preset's []", "--preset", DENSE)
    refused(
        prefix,
        tmp_path,
        "image_size=9 is not a multiple of 2 × 2, the patch size of",
        "--preset",
        SPARSE,
        "--image-size",
        "9",
    )
    refused(prefix, tmp_path, "a different class_token, global_pool, stem", "--preset", "vmoe_pico_patch4_28_every2_e8")
    wrong = {name: array for name, array in arrays.items() if name != "cls"}
    wrong |= {"extra/w": arrays["cls"], ATTENTION: arrays[ATTENTION].transpose(2, 1, 0)}
    wrong["head/bias"] = arrays["head/bias"][None]
    write(tmp_path / "wrong", nested(wrong))
    refused(tmp_path / "wrong", tmp_path, "missing: cls; unexpected: extra/w; of another", "--preset", SPARSE)
    wrong["cls"] = arrays["cls"]
    del wrong["Encoder/encoder_norm/bias"]
    write(tmp_path / "wrong", nested(wrong))
    listed = "missing: Encoder/encoder_norm/bias; unexpected: extra/w; of another shape: "
    listed += f"{ATTENTION} (16, 4, 64), expected (64, 4, 16); head/bias (1, 5), expected (5,)"
    refused(tmp_path / "wrong", tmp_path, listed.replace("; head", ", head"), "--preset", SPARSE)
    write(tmp_path / "wrong", nested(arrays | {"cls": arrays["cls"].astype(np.int32)}))
    refused(tmp_path / "wrong", tmp_path, "tensor 'cls' has type int32", "--preset", SPARSE)
    for wrong in ({"embedding/kernel": arrays["cls"]}, {"embedding/kernel": np.zeros((0, 0, 3, 64), np.float32)}):
        write(tmp_path / "wrong", nested(arrays | wrong))
        refused(tmp_path / "wrong", tmp_path, "tensor 'embedding/kernel' has shape", "--preset", SPARSE)
    write(tmp_path / "wrong", {"a": arrays["cls"]})
    refused(tmp_path / "wrong", tmp_path, f"lacks embedding/kernel and {POSITIONS}", "--preset", SPARSE)


def test_damaged_files(written, tmp_path):
    """A truncated data file, a missing one, and one that is found to be wrong only while it is read."""
    _, _, prefix = written
    path = prefix.with_name("p.data-00001-of-00003")
    content = path.read_bytes()
    for damaged in (content[:-1], content[:1000], content.replace(b"float32", b"float64")):
        path.write_bytes(damaged)
        refused(prefix, tmp_path, f"{path}: tensor '", "--preset", SPARSE)
    path.unlink()
    refused(prefix, tmp_path, f"{path}: no such file", "--preset", SPARSE)


def test_the_verb(written, tmp_path, capsys):
    """What it prints; a folder that is there is left alone."""
    _, _, prefix = written
    arguments = ["convert", str(prefix), str(tmp_path / "out"), "--preset", SPARSE]
    assert main(arguments) == 0
    assert "images of 8 × 8 pixels, 5 classes; written" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exists" in capsys.readouterr().err


OLD = ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
NEW = ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")


def google(arrays, prefix="", modules=OLD):
    """Parameters under the names of vit_jax, older or newer."""
    named = {}
    for name, array in arrays.items():
        for ours, theirs in zip(("SelfAttention", "LayerNorm_1", "Mlp"), modules, strict=True):
            name = name.replace(f"/{ours}/", f"/{theirs}/")
        named[prefix + name.replace("Encoder/", "Transformer/")] = array
    return named


@pytest.mark.parametrize(("prefix", "modules"), [("", OLD), ("opt/target/", OLD), ("", NEW)])
def test_dense_npz(prefix, modules, tmp_path):
    """Files of vit_jax, older and newer, and of AugReg; a head and representation layer, or neither."""
    for arguments in ({"representation_size": 24}, {"num_classes": 0}):
        model, arrays = network(DENSE, **arguments)
        np.savez(tmp_path / "vit.npz", **google(arrays, prefix, modules))
        out = tmp_path / f"out{len(arguments)}{arguments.get('num_classes', 5)}"
        convert(tmp_path / "vit.npz", out)
        assert same(model, out)


def test_big_vision(tmp_path):
    """big_vision's: positions without the class token's, training state around, blocks scanned or not, bfloat16."""
    model, arrays = network(DENSE)
    arrays[POSITIONS][:, 0] = 0
    with torch.no_grad():
        model.pos_embed[:, 0] = 0
    named = google(arrays, modules=NEW)
    named["pos_embedding"] = named.pop("Transformer/posembed_input/pos_embedding")[:, 1:]
    state = {f"params/{name}": array for name, array in named.items()} | {"opt/mu": np.zeros(3)}
    np.savez_compressed(tmp_path / "plain.npz", **state)
    convert(tmp_path / "plain.npz", tmp_path / "plain")
    assert same(model, tmp_path / "plain")

    blocks = {name.replace("encoderblock_0/", "encoderblock/") for name in named if "encoderblock_0/" in name}
    scanned = {name: array for name, array in named.items() if "encoderblock_" not in name}
    for name in blocks:
        scanned[name] = np.stack([named[name.replace("encoderblock/", f"encoderblock_{block}/")] for block in range(4)])
    np.savez(tmp_path / "scanned.npz", **{f"params/img/{name}": array for name, array in scanned.items()})
    convert(tmp_path / "scanned.npz", tmp_path / "scanned", DENSE)
    assert same(model, tmp_path / "scanned")

    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") for name, array in named.items()}
    np.savez(tmp_path / "half.npz", **halves)
    half = convert(tmp_path / "half.npz", tmp_path / "half")
    expected = (arrays["head/kernel"].view(np.uint32) >> 16 << 16).view(np.float32)
    assert np.array_equal(half.head.weight.detach().numpy(), expected.T)


def test_timm_reads_the_same(tmp_path):
    """timm's own reader of such files gives the same outputs, also at another size (but for how it resizes)."""
    _, arrays = network(DENSE)
    np.savez(tmp_path / "vit.npz", **google(arrays))
    other = timm.models.VisionTransformer(
        img_size=8, patch_size=2, embed_dim=64, depth=4, num_heads=4, num_classes=5, act_layer="gelu_tanh"
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.load_pretrained(str(tmp_path / "vit.npz"))
    convert(tmp_path / "vit.npz", tmp_path / "out")
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(vismoe.load(tmp_path / "out")(images), other(images), rtol=1e-5, atol=1e-5)


def test_bad_npz(tmp_path):
    """No archive, a truncated one, pickled objects, no ViT, one whose arrays do not fit: named, and no folder."""
    _, arrays = network(DENSE)
    path = tmp_path / "vit.npz"
    named = google(arrays)
    refused(path, tmp_path, "no such file")
    path.write_bytes(b"PK\3\4 nothing")
    refused(path, tmp_path, "is not a readable .npz file")
    np.savez(path, **named)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(path, tmp_path, "is not a readable .npz file")
    path.write_bytes(content.replace(b"'<f4'", b"'<f8'"))
    refused(path, tmp_path, "is not a readable .npz file")
    np.savez(path, **named, more=np.array([{}], dtype=object))
    refused(path, tmp_path, "more")
    np.savez(path, a=np.zeros(3, np.float32))
    refused(path, tmp_path, "lacks embedding/kernel")
    content = path.read_bytes()
    positions = POSITIONS.replace("Encoder", "Transformer")
    np.savez(path, **(named | {positions: named[positions].repeat(2, 0)}))
    refused(path, tmp_path, f"parameter {POSITIONS} has shape (2, 37, 64)", "--image-size", "12")
    np.savez(path, **named, **{"\x1b[2J": np.zeros(1, np.float32)})
    refused(path, tmp_path, "does not have the parameters \N{REPLACEMENT CHARACTER}[2J")
    np.savez(path, **{name: array for name, array in named.items() if "LayerNorm_2/scale" not in name})
    refused(path, tmp_path, "Encoder/encoderblock_0/LayerNorm_1/scale")
    np.savez(path, **(named | google(arrays, modules=NEW)))
    refused(path, tmp_path, "are both Encoder/encoderblock_0")


def npy(header, content=b""):
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "header", [b"{'descr': '(((", b"  x\n y", b"{'descr': ',', 'fortran_order': 0, 'shape': (3,)}"]
)
def test_npz_of_a_bad_header(header, tmp_path):
    """numpy reads headers as Python, and not all that it raises then is a ValueError."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", npy(header, bytes(12)))
    refused(tmp_path / "a.npz", tmp_path, "is not a readable .npz file")


def test_npz_of_impossible_sizes(tmp_path):
    """Negative lengths, and more bytes than can have been compressed: nothing is allocated for them."""
    _, arrays = network(DENSE)
    path, head = tmp_path / "a.npz", b"{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", npy(head % b"(-1, -3)", bytes(12)))
    refused(path, tmp_path, "array a.npy has 12 bytes, not those of float32 (-1, -3)")
    classes = 10**12
    large = {"head/kernel": (64, classes), "head/bias": (classes,)}
    np.savez_compressed(path, **{name: array for name, array in google(arrays).items() if name not in large})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, shape in large.items():
            header = npy(head % str(shape).encode())
            archive.writestr(f"{name}.npy", header)
            archive.getinfo(f"{name}.npy").file_size = len(header) + 4 * np.prod(shape, dtype=int)
    refused(path, tmp_path, "array head/kernel.npy claims 256,000,000,000,0")
    np.savez_compressed(path, a=np.zeros(10**7, np.float32))
    assert DenseNpz(path).shapes == {"a": (10**7,)}


def test_mutated_npz(tmp_path):
    """Some hundred mutated files: they are read, or refused with their name."""
    path, random = tmp_path / "a.npz", Random(0)
    arrays = {"cls": np.zeros((1, 1, 4), np.float32), "half": np.zeros(3, np.uint16).view("V2")}
    np.savez(path, **arrays)
    content = path.read_bytes()
    for _ in range(300):
        start = random.randrange(len(content))
        new = random.randbytes(random.randrange(5))
        path.write_bytes(content[:start] + new + content[start + random.randrange(5) :])
        try:
            opened = DenseNpz(path)
            opened.fill({name: np.empty(shape, opened.dtypes[name]) for name, shape in opened.shapes.items()})
        except ValueError as error:
            told = str(error)
        else:
            told = str(path)
        assert str(path) in told


MEASURE = """
import vismoe.cli.models.convert
from vismoe.weights import convert
return_freed()
convert(sys.argv[1], sys.argv[2] + "-small", "vmoe_pico_patch2_8_every2_e8")
before = peak()
model = convert(sys.argv[3], sys.argv[2], sys.argv[4])
sizes = [p.nbytes for p in model.parameters()]
print(peak() - before, sum(sizes), max(sizes))
"""


@pytest.mark.slow
def test_memory(written, tmp_path):
    """Converting takes the memory of the model, and beside it at most its largest tensor's and 8 MB."""
    large = "vmoe_s32_last2_e8"
    _, arrays = network(large)
    write(tmp_path / "large", nested(arrays), shards=3)
    more, model, largest = printed(MEASURE, str(written[2]), str(tmp_path / "out"), str(tmp_path / "large"), large)
    assert model > 200e6
    assert 0.9 * model < more < model + largest + 8e6

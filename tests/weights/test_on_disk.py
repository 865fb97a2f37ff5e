"""pytest tests/weights/test_on_disk.py: networks whose experts stay on disk compute the same, read what plans name, and
keep to their limit."""

import copy
import itertools
import json
import threading
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import vismoe
from vismoe.detection import make_detector
from vismoe.files.amounts import parse_bytes
from vismoe.moe import loop
from vismoe.vit import using_backend
from vismoe.weights import experts_on_disk, open_source
from vismoe.weights.folders.tensors import TensorFile
from vismoe.weights.on_disk.product import ProductOnDisk
from vismoe.weights.on_disk.store import ExpertStore

from ..memory import printed

TINY = {"img_size": 32, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
PLENTY = "64GiB"


def tiny(name="vmoe_tiny_patch16_224_every2_e8", **overrides):
    torch.manual_seed(0)
    return with_head(vismoe.create_model(name, **TINY | overrides))


def upcycled(name="vit_tiny_patch16_224", parent_args=None, **options):
    torch.manual_seed(0)
    parent = timm.create_model(name, depth=2, num_classes=5, **parent_args or {})
    return with_head(vismoe.upcycle(parent, num_experts=4, moe_layers="every-1", **options))


def with_head(model):
    """Heads and differences of low-rank experts are zero at first: all outputs would be equal."""
    for name, parameter in model.named_parameters():
        if name.startswith("head") or name.endswith(".b.weight"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def saved(model, folder: Path, dtype=torch.float32) -> Path:
    """A model folder with its weights in a type."""
    path = vismoe.save(model, folder)
    if dtype != torch.float32:
        state = load_file(path / "model.safetensors")
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def images_for(model, number=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, *model.pretrained_cfg["input_size"][:1], *image_size(model), generator=generator)


def image_size(model):
    return model.patch_embed.img_size


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_outputs_in_each_type(stored, computed, tmp_path):
    """Bit-equal to the network in memory, expert by expert (`loop`), whatever the types of file and computation."""
    path = saved(tiny(), tmp_path / "m", stored)
    expected, given = vismoe.load(path).to(computed), vismoe.load(path, max_memory=PLENTY).to(computed)
    images = images_for(expected).to(computed)
    with torch.inference_mode(), using_backend(expected, product=loop):
        assert torch.equal(given(images), expected(images))


@pytest.mark.parametrize(
    "model",
    [
        lambda: tiny("vmoe_tiny_patch16_224_every2_e32_fine"),
        lambda: tiny(router="soft"),
        lambda: tiny(router="expert-choice"),
        lambda: tiny(capacity_factor=1.0, experts_per_token=2),
        lambda: tiny(ensemble_size=2),
        lambda: tiny("vmoe_s32_every2_e8", img_size=64),
        lambda: upcycled(experts="low-rank", rank=4),
        lambda: upcycled("eva02_tiny_patch14_224", {"img_size": 28}),  # gated, norms, buffers that no file has
    ],
    ids=["sigmoid and shared", "soft", "expert choice", "drops", "ensemble", "representation", "low rank", "EVA"],
)
def test_the_same_outputs_of_each_network(model, tmp_path):
    """For every router and all kinds of experts: bit-equal to `loop`, and to compiled kernels but for rounding."""
    model = model()
    path = saved(model, tmp_path / "m")
    expected, given = vismoe.load(path), vismoe.load(path, max_memory=PLENTY)
    images = images_for(model)
    with torch.inference_mode():
        outputs = given(images)
        torch.testing.assert_close(outputs, expected(images), rtol=1e-4, atol=1e-4)
        with using_backend(expected, product=loop):
            assert torch.equal(outputs, expected(images))
    assert experts_on_disk(given).bytes_read > 0


def test_a_detector(tmp_path):
    """The same maps as in memory, bit-equal to `loop`."""
    torch.manual_seed(0)
    trunk = timm.create_model("vmoe_pico_patch4_28_every2_e8", num_classes=0, pos_embed="sincos2d")
    network = make_detector(trunk, 3, (48, 80)).eval()
    given = vismoe.load(vismoe.save(network, tmp_path / "m"), max_memory=PLENTY)
    pixels = torch.randn(2, 3, 48, 80)
    with torch.inference_mode(), using_backend(network, product=loop):
        assert all(map(torch.equal, given(pixels)[:3], network(pixels)[:3]))
    assert experts_on_disk(given).bytes_read > 0


def test_a_weights_file(tmp_path):
    """As `vismoe.load` opens one: with the name of its architecture."""
    torch.manual_seed(0)
    model = with_head(vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=5))
    file = saved(model, tmp_path / "m") / "model.safetensors"
    given = vismoe.load(file, "vmoe_pico_patch2_8_every2_e8", max_memory=PLENTY)
    images = images_for(model)
    with torch.inference_mode(), using_backend(model, product=loop):
        assert torch.equal(given(images), model(images))
    with pytest.raises(ValueError, match="name their architecture"):
        vismoe.load(file, max_memory=PLENTY)


@pytest.mark.parametrize("kept", [True, False], ids=["plenty", "hardly any"])
def test_only_named_experts_are_read(kept, tmp_path, monkeypatch):
    """Few tokens: the bytes that the system counts are those of the experts that the recorded plans name, and 2 %; with
    memory to keep them, once."""
    model = tiny("vmoe_tiny_patch16_224_every2_e32", embed_dim=192)
    path = saved(model, tmp_path / "m")
    given = vismoe.load(path, max_memory=PLENTY)
    if not kept:
        monkeypatch.setattr(ProductOnDisk, "_room", lambda product, rows: 2 * product.store.piece)
    expert = 2 * 192 * 768 * 4
    images, total = images_for(model, 4), 0
    seen: set[tuple[str, int]] = set()
    before = bytes_of_system()
    for image in images:
        with torch.inference_mode(), vismoe.record(given) as routing:
            given(image[None])
        named = {
            (name, number)
            for name, (call,) in routing.layers.items()
            for number, load in enumerate(call.load.tolist())
            if load
        }
        total += len(named - seen)
        if kept:
            seen |= named
    read = bytes_of_system() - before
    assert 0 < total < 2 * 32 * len(images) / 2
    assert total * expert <= read <= total * expert * 1.02 + 20_000  # what is read in /proc counts too
    assert experts_on_disk(given).bytes_read == total * expert


def bytes_of_system() -> int:
    """What this process has read, from files and from the system's cache."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_part_of_a_tensor_is_read_alone(tmp_path):
    """Parts along any dimensions, as slicing makes them, and not a byte more than they have."""
    tensors = {"x": torch.arange(4 * 5 * 6).view(4, 5, 6), "y": torch.tensor(3.5), "z": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "x.safetensors")
    file = Noted(tmp_path / "x.safetensors")
    starts = [slice(None), slice(1, 3), slice(2, 2), slice(3, None)]
    parts = [("x", list(part)) for part in itertools.product(starts, repeat=3)] + [("y", []), ("z", [slice(None)] * 2)]
    for name, part in parts:
        file.read_bytes = 0
        expected = tensors[name][tuple(part)]
        found = file.read_part(name, part)
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert file.read_bytes == expected.nbytes


def test_a_file_larger_than_the_memory_opens(tmp_path):
    """Linux refuses to map such a file so that it could be written to."""
    size = 1 << 40
    header = json.dumps({"x": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)  # without blocks on the disk
        except OSError:
            pytest.skip("the file system has no files of this size")
    opened = TensorFile(tmp_path / "x.safetensors")
    assert opened.read_part("x", [slice(size // 4 - 2, None)]).tolist() == [0, 0]


class Noted(TensorFile):
    """A file that notes the offsets of reads, and counts their bytes."""

    def __init__(self, path):
        super().__init__(path)
        self.offsets: list[int] = []
        self.read_bytes = 0

    def read_into(self, place, memory):
        self.offsets.append(place.offset)
        self.read_bytes += place.nbytes
        super().read_into(place, memory)


def store_of_layers(tmp_path, layers=3, experts=8):
    """A store, and the value that fills each matrix."""
    values = {f"{layer}": torch.arange(experts).view(-1, 1, 1) + 100.0 * layer for layer in range(layers)}
    state = {name: value.expand(-1, 16, 64).contiguous() for name, value in values.items()}
    save_file(state, tmp_path / "x.safetensors")
    file = Noted(tmp_path / "x.safetensors")
    return ExpertStore(file, [{name: file.places[name]} for name in state]), file


def used(store, layer, named, pieces):
    """What a layer's call reads: each expert's number and value."""
    room = pieces * store.piece
    found = {}
    for number, matrices in store.experts(layer, named, room):
        matrix = matrices[str(layer)]
        assert bool((matrix == matrix[0, 0]).all())
        found[number] = float(matrix[0, 0])
        assert store.resident_bytes <= room
    assert found == {number: number + 100.0 * layer for number in named}


def test_the_next_layer_is_read_ahead(tmp_path):
    """Where a plan named all experts, the next layer's are read before its plan; where it named few, none are."""
    for named, ahead in ((range(8), 8), ([1, 5], 0)):
        store, file = store_of_layers(tmp_path)
        for _ in range(7):  # without a layer after it; 2 % of fewer experts are less than one
            used(store, 2, range(8), 16)
        used(store, 0, named, 16)
        store._readers.shutdown()  # waits for what was begun
        following = {file.places["1"].entry(number).offset for number in range(8)}
        assert len(following & set(file.offsets)) == ahead


@pytest.mark.parametrize("pieces", [1, 2, 3, 7, 12, 24, 40])
def test_any_amount_of_memory(pieces, tmp_path):
    """Every expert has its own values, in whatever order layers are used and however much memory there is; never more
    than that; what is read for nothing is 2 % of what plans name and a layer's guesses at most."""
    store, _ = store_of_layers(tmp_path)
    generator = torch.Generator().manual_seed(pieces)
    for call in range(60):
        layer = call % 3 if call < 40 else int(torch.randint(3, (), generator=generator))
        number = 8 if call < 20 else int(torch.randint(1, 9, (), generator=generator))
        named = torch.randperm(8, generator=generator)[:number].tolist()
        used(store, layer, named, max(1, pieces - call % 2))
    assert store.bytes_read <= store.bytes_named + 0.02 * store.bytes_named + 8 * store.expert_bytes[0]
    if pieces >= 24 + 8:
        assert store.bytes_read == 24 * store.expert_bytes[0]


LIMITED = r"""
from pathlib import Path
import torch, vismoe
from safetensors.torch import load_file
from vismoe.weights import experts_on_disk
torch.set_num_threads(1)
given = load_file(sys.argv[1] + "/given.safetensors")
with torch.inference_mode():  # what libraries allocate at their first use
    vismoe.create_model("vmoe_tiny_patch16_224_every2_e8", depth=2, img_size=64)(given["images"])
limit = peak() + (70 << 20)
model = vismoe.load(sys.argv[1] + "/m", max_memory=limit)
with torch.inference_mode():
    outputs = [model(given["images"]) for _ in range(2)]
[rollup] = re.findall(r"^Rss: +(\d+)", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
equal = all(torch.allclose(each, given["outputs"], rtol=1e-4, atol=1e-4) for each in outputs)
print(limit, peak(), int(rollup) * 1024, experts_on_disk(model).bytes_named // 2, int(equal))
"""


@pytest.mark.parametrize("batch", [1, 32])
def test_the_limit_holds(batch, tmp_path):
    """A process that predicts with experts of 151 MB takes 73 MB more at most: the peak, and what mapped and anonymous
    memory are at the end, as the system counts them."""
    model = tiny("vmoe_tiny_patch16_224_every2_e32", depth=8, embed_dim=192, img_size=64, expert_init="alike")
    with torch.no_grad():  # instead of drawing each expert
        for name, parameter in model.named_parameters():
            if ".experts." in name and parameter.ndim == 3:
                parameter *= torch.linspace(0.5, 1.5, 32)[:, None, None]
    saved(model, tmp_path / "m")
    images = images_for(model, batch)
    with torch.inference_mode():
        save_file({"images": images, "outputs": model(images).clone()}, tmp_path / "given.safetensors")
    limit, peak, resident, named, equal = printed(LIMITED, str(tmp_path))
    assert resident <= peak <= limit
    assert equal
    if batch == 32:
        assert named > 120 << 20  # of which at most a third fits


def test_a_limit_that_is_too_small(tmp_path, monkeypatch):
    """When the network is loaded, and where a batch leaves no room: what is needed, and what to do."""
    path = saved(tiny(embed_dim=192), tmp_path / "m")
    with pytest.raises(ValueError, match=r"max_memory=100.00 MiB: this process has .* give at least"):
        vismoe.load(path, max_memory="100MiB")
    for module in ("load", "product"):
        monkeypatch.setattr(f"vismoe.weights.on_disk.{module}.resident_bytes", lambda: 1 << 30)
    given = vismoe.load(path, max_memory="1088MiB")
    with torch.inference_mode():
        with pytest.raises(ValueError, match=r"this batch needs about .* use smaller batches"):
            given(images_for(given, 800))
        assert given(images_for(given, 1)).shape == (1, 5)


def test_what_a_network_on_disk_cannot_do(tmp_path):
    """Saving, training and reading of its weights are refused, each with what to do."""
    given = vismoe.load(saved(tiny(), tmp_path / "m"), max_memory=PLENTY)
    with pytest.raises(RuntimeError, match="cannot be saved: it is on disk"):
        vismoe.save(given, tmp_path / "again")
    with pytest.raises(RuntimeError, match="cannot be read here"):
        vismoe.densify(given, [images_for(given)])
    with pytest.raises(RuntimeError, match="has no gradients"):
        given(images_for(given).requires_grad_())
    assert not given(images_for(given)).requires_grad


def test_what_cannot_stay_on_disk(tmp_path):
    """Networks without experts, folders with differences alone, and sources without a folder are refused."""
    dense = saved(tiny("vmoe_tiny_patch16_224_dense"), tmp_path / "dense")
    with pytest.raises(ValueError, match="no experts that could stay on disk"):
        vismoe.load(dense, max_memory=PLENTY)
    vismoe.save(vismoe.upcycle(vismoe.load(dense), num_experts=2), tmp_path / "sparse", parent=dense)
    with pytest.raises(ValueError, match="only the differences from a parent"):
        vismoe.load(tmp_path / "sparse", max_memory=PLENTY)
    with pytest.raises(ValueError, match="max_memory is for run folders"):
        open_source("vmoe_tiny_patch16_224_every2_e8", max_memory=PLENTY)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        vismoe.load(tmp_path / "gone", max_memory=PLENTY)


@pytest.mark.parametrize("change", ["missing expert", "missing norm", "extra", "shape"])
def test_a_file_that_does_not_fit(change, tmp_path):
    """The tensor is named, as when everything is loaded."""
    path = saved(tiny(), tmp_path / "m")
    state = load_file(path / "model.safetensors")
    name = {"missing norm": "blocks.0.norm1.weight", "extra": "blocks.9.norm1.weight"}.get(
        change, "blocks.1.mlp.experts.up.weight"
    )
    if change == "extra":
        state[name] = torch.zeros(32)
    elif change == "shape":
        state[name] = state[name][:4].clone()
    else:
        del state[name]
    save_file(state, path / "model.safetensors")
    with pytest.raises(ValueError, match=name):
        vismoe.load(path, max_memory=PLENTY)


def test_a_damaged_file(tmp_path):
    """Cut off before it is opened: a ValueError; afterwards: an OSError, and the network works once it is whole."""
    path = saved(tiny(), tmp_path / "m")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is not a safetensors file"):
        vismoe.load(path, max_memory=PLENTY)
    file.write_bytes(whole)
    given = vismoe.load(path, max_memory=PLENTY)
    file.write_bytes(whole[:1000])
    with torch.inference_mode():
        with pytest.raises(OSError, match="has become shorter"):
            given(images_for(given))
        file.write_bytes(whole)
        assert torch.isfinite(given(images_for(given))).all()


def test_threads_and_copies(tmp_path):
    """Several threads, and copies of the network, may use the same experts at the same time."""
    path = saved(tiny(), tmp_path / "m")
    given = vismoe.load(path, max_memory=PLENTY)
    networks = [given, given, copy.deepcopy(given)]
    images = [images_for(given) * (number + 1) for number in range(3)]
    with torch.inference_mode():
        expected = [given(each) for each in images]
    found: dict[int, bool] = {}

    def run(number: int) -> None:
        with torch.inference_mode():
            found[number] = all(torch.equal(networks[number](images[number]), expected[number]) for _ in range(5))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: True, 1: True, 2: True}


@pytest.mark.parametrize(
    ("amount", "expected"),
    [("8GiB", 8 << 30), ("1.5 KB", 1500), ("500MB", 500_000_000), ("7", 7), (12345, 12345), ("2TiB", 2 << 40)],
)
def test_amounts(amount, expected):
    assert parse_bytes(amount, "max_memory") == expected


@pytest.mark.parametrize("amount", ["", "8G", "GiB", "-1GiB", "0", 0, -5, "eight GiB", "8 gib", "nan"])
def test_amounts_that_cannot_be_read(amount):
    with pytest.raises(ValueError, match="accepted are a number of bytes"):
        parse_bytes(amount, "max_memory")

"""A detector is a network like any other: saved and loaded, upcycled and made dense again, blind to padding.

python -m pytest tests/detection/test_detector.py
"""

import pytest
import timm
import torch

import vismoe
from vismoe.detection import Detector, make_detector
from vismoe.detection.trunk import run_in_windows
from vismoe.moe import MoE

SIZE = (48, 80)


def trunk(name="vmoe_pico_patch4_28_every2_e8", **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options)


def detector(trunk, **options):
    torch.manual_seed(1)
    made = make_detector(trunk, 3, SIZE, **options).eval()
    with torch.no_grad():  # so that outputs differ from cell to cell
        for layer in (made.head.centre, made.head.box):
            layer.weight.normal_(std=0.5)
    return made


TRUNKS = {
    "convolutional stem": lambda: trunk(pos_embed="sincos2d"),
    "patches and class token": lambda: trunk(
        "vmoe_vit", patch_size=8, embed_dim=32, depth=2, num_heads=2, img_size=32, moe={"num_experts": 4}
    ),
    "timm": lambda: timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=2, embed_dim=48, num_heads=3, img_size=32
    ),
    "rotary": lambda: timm.create_model("eva02_tiny_patch14_224", num_classes=0, depth=2, img_size=28, patch_size=8),
}


def same_outputs(network, other, *inputs):
    with torch.no_grad():
        return all(map(torch.equal, network(*inputs)[:3], other(*inputs)[:3]))


@pytest.mark.parametrize("name", TRUNKS)
def test_padding_changes_no_bit_of_the_image(name):
    network = detector(TRUNKS[name]())
    pixels, mask = torch.randn(2, 3, *SIZE), torch.ones(2, *SIZE, dtype=torch.bool)
    mask[0, 32:], mask[1, :, 48:] = False, False
    spoiled = torch.where(mask[:, None], pixels, torch.nan)
    with torch.no_grad():
        clean, nan = network(pixels, mask), network(spoiled, mask)
    inside = clean.inside
    assert not inside.all()
    for one, other in zip(clean[:3], nan[:3], strict=True):
        assert torch.equal(one.movedim(1, -1)[inside], other.movedim(1, -1)[inside])


@pytest.mark.parametrize("name", TRUNKS)
def test_saved_and_loaded(name, tmp_path):
    network = detector(TRUNKS[name]())
    vismoe.save(network, tmp_path / "model", ["a", "b", "c"], problem_type="object-detection")
    loaded = vismoe.load(tmp_path / "model")
    assert isinstance(loaded, Detector)
    assert loaded.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert loaded.pretrained_cfg["problem_type"] == "object-detection"
    assert loaded.img_size == SIZE
    assert same_outputs(network, loaded, torch.randn(1, 3, *SIZE))


def test_upcycled_and_made_dense_again(tmp_path):
    """The way there changes no output; the way back gives a dense network that a folder holds too."""
    dense = detector(trunk("vmoe_pico_patch4_28_dense"))
    pixels = torch.randn(2, 3, *SIZE)
    sparse = vismoe.upcycle(dense, num_experts=4)
    with torch.no_grad():
        for one, other in zip(dense(pixels)[:3], sparse(pixels)[:3], strict=True):
            torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-3)
    vismoe.save(sparse, tmp_path / "sparse")
    loaded = vismoe.load(tmp_path / "sparse")
    assert loaded.moe.num_experts == 4
    assert same_outputs(sparse, loaded, pixels)
    again = vismoe.densify(sparse, [pixels])
    vismoe.save(again, tmp_path / "dense")
    loaded = vismoe.load(tmp_path / "dense")
    assert loaded.moe is None
    assert not any(isinstance(module, MoE) for module in loaded.modules())
    assert same_outputs(again, loaded, pixels)


def test_tokens_stand_for_the_blocks_before():
    network = detector(TRUNKS["patches and class token"]())
    pixels, mask = torch.randn(2, 3, *SIZE), torch.ones(2, *SIZE, dtype=torch.bool)
    mask[0, 30:] = False
    with torch.no_grad():
        tokens = network.tokens_before(1, pixels, mask)
        whole, rest = network(pixels, mask), network(pixels, mask, tokens, 1)
    assert all(map(torch.equal, whole[:3], rest[:3]))


@pytest.mark.parametrize(("size", "window"), [((48, 80), 2), ((48, 80), 4), ((40, 72), 4), ((48, 80), 16)])
def test_windows_equal_a_slow_oracle(size, window):
    """Each window on its own, token by token of the grid; a window as large as the image is no window at all."""
    torch.manual_seed(0)
    vit = TRUNKS["patches and class token"]()
    network = make_detector(vit, 3, size, windowed_blocks=1, window=window).eval()
    pixels = torch.randn(2, 3, *size)
    height, width = size[0] // 8, size[1] // 8
    with torch.no_grad():
        before = network.tokens_before(1, pixels)[:, 1:].unflatten(1, (height, width))
        after = torch.zeros_like(before)
        for top in range(0, height, window):
            for left in range(0, width, window):
                part = before[:, top : top + window, left : left + window]
                done = network.trunk.blocks[1](part.flatten(1, 2))
                after[:, top : top + window, left : left + window] = done.unflatten(1, part.shape[1:3])
        found = run_in_windows(network.trunk, network.tokens_before(1, pixels), 1, window, None)
        torch.testing.assert_close(found, after.flatten(1, 2), rtol=1e-4, atol=1e-5)
        whole = network(pixels)
        rest = network(pixels, None, network.tokens_before(1, pixels), 1)
    assert all(map(torch.equal, whole[:3], rest[:3]))


def test_windows_are_blind_to_padding_and_saved(tmp_path):
    network = make_detector(TRUNKS["patches and class token"](), 3, SIZE, windowed_blocks=2, window=4).eval()
    pixels, mask = torch.randn(1, 3, *SIZE), torch.ones(1, *SIZE, dtype=torch.bool)
    mask[:, 20:], mask[:, :, 50:] = False, False
    with torch.no_grad():
        one, other = network(pixels, mask), network(torch.where(mask[:, None], pixels, torch.nan), mask)
    inside = one.inside
    assert torch.equal(one.boxes.movedim(1, -1)[inside], other.boxes.movedim(1, -1)[inside])
    vismoe.save(network, tmp_path / "model")
    assert same_outputs(network, vismoe.load(tmp_path / "model"), pixels, mask)


def test_convolutional_networks_are_trunks_too():
    """The detector reads the network's own map of 16 × 16 pixels a cell."""
    resnet = timm.create_model("resnet18", num_classes=0).eval()
    network, pixels = detector(resnet), torch.randn(1, 3, *SIZE)
    assert network.stride == (8, 8)
    with torch.no_grad():
        maps = resnet.forward_intermediates(pixels, intermediates_only=True)
        (features,) = (each for each in maps if each.shape[2:] == (3, 5))
        expected, outputs = network.head(network.neck(features, pixels)), network(pixels)
    assert outputs.centres.shape == (1, 3, 6, 10)
    assert all(map(torch.equal, outputs[:3], expected[:3]))


def test_activation_recompute_changes_no_gradient():
    """And each block runs twice."""
    gradients, calls = [], []
    for recompute in (False, True):
        network = detector(TRUNKS["convolutional stem"]()).train()
        network.set_grad_checkpointing(recompute)
        for block in network.trunk.blocks:
            block.attn.register_forward_pre_hook(lambda *_, recompute=recompute: calls.append(recompute))
        torch.manual_seed(0)
        pixels = torch.randn(2, 3, *SIZE)
        network(pixels).centres.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.trunk.parameters() if parameter.grad is not None])
    assert calls.count(True) == 2 * calls.count(False) == 2 * len(network.trunk.blocks)
    assert len(gradients[0]) == len(gradients[1]) > 0
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="a mask, and activation recompute"):
        network(pixels, torch.ones(2, *SIZE, dtype=torch.bool))


def test_stacked_biases_get_no_weight_decay():
    network = detector(TRUNKS["convolutional stem"]())
    undecayed = network.no_weight_decay()
    names = {name for name, parameter in network.named_parameters() if ".experts." in name and name.endswith("bias")}
    assert names
    assert names <= undecayed


def test_bad_trunks_are_refused():
    with pytest.raises(ValueError, match="an ensemble has no feature map"):
        make_detector(trunk(ensemble_size=2), 3, SIZE)
    with pytest.raises(ValueError, match="my net is a Linear, which has no feature maps"):
        make_detector(torch.nn.Linear(1, 1), 3, SIZE, "my net")
    with pytest.raises(ValueError, match=r"image_size=\(47, 80\).*multiple of the patch size 16"):
        make_detector(TRUNKS["timm"](), 3, (47, 80), "my net")

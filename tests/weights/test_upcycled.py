"""pytest tests/weights/test_upcycled.py: upcycled networks as model folders, whole or as differences from a parent."""

import json
import shutil

import pytest
import timm
import torch
from torch import nn

import vismoe
from vismoe.moe import MoE

PARENTS = {
    "vit_tiny_patch16_224": 32,
    "eva02_tiny_patch14_224": 28,
    "vit_small_patch16_dinov3": 32,
    "vit_base_patch16_siglip_224": 32,
    "vmoe_tiny_patch16_224_dense": 32,
}
WAYS = [{}, {"experts": "low-rank", "rank": 2}, {"split": 2}]
NAMES = list("abcde")


def saved_parent(name, folder):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, img_size=PARENTS[name], depth=4, embed_dim=48, num_heads=2)
    return vismoe.save(model, folder / "parent", NAMES)


def trained(model):
    """Two steps, so that nothing is as it was drawn."""
    model.train()
    images = torch.randn(4, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        model(images).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), images


@pytest.mark.parametrize("name", PARENTS)
def test_a_folder_opens_everywhere(name, tmp_path):
    """vismoe.load, and timm's create_model with its own options; saved again, it is the same."""
    parent = vismoe.load(saved_parent(name, tmp_path))
    for number, way in enumerate(WAYS):
        sparse, images = trained(vismoe.upcycle(parent, **way))
        folder = vismoe.save(sparse, tmp_path / f"sparse-{number}")
        again = vismoe.save(vismoe.load(folder), tmp_path / f"again-{number}")
        found = [
            vismoe.load(folder),
            vismoe.load(again),
            timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
        ]
        for model in found:
            assert type(model) is type(parent)
            assert torch.equal(model(images), sparse(images))
        assert found[0].pretrained_cfg["label_names"] == NAMES
        other = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3).eval()
        assert other(images).shape == (4, 3)
        own, expected = (model.blocks[3].mlp.experts.state_dict() for model in (other, sparse))
        assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_features_only(tmp_path):
    """timm's feature extraction, for detectors and the like, wraps a folder too."""
    sparse, images = trained(vismoe.upcycle(vismoe.load(saved_parent("vit_tiny_patch16_224", tmp_path))))
    folder = vismoe.save(sparse, tmp_path / "sparse")
    trunk = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(1, 3)).eval()
    maps = trunk(images)
    expected = sparse.forward_intermediates(images, indices=(1, 3), intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))


def test_densified_it_is_a_network_of_its_parents_kind(tmp_path):
    """Its folder names the parent's architecture again, from memory and from disk."""
    for name in ("vit_tiny_patch16_224", "vmoe_tiny_patch16_224_dense"):
        sparse, images = trained(vismoe.upcycle(vismoe.load(saved_parent(name, tmp_path / name))))
        loaded = vismoe.load(vismoe.save(sparse, tmp_path / name / "sparse"))
        for number, model in enumerate((sparse, loaded)):
            dense = vismoe.densify(model, [images])
            folder = vismoe.save(dense, tmp_path / name / f"dense-{number}")
            assert json.loads((folder / "config.json").read_text())["architecture"] == name
            again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            assert not any(isinstance(module, MoE) for module in again.modules())
            assert torch.equal(again(images), dense(images))
    preset = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=5)
    folder = vismoe.save(vismoe.densify(preset, [torch.randn(2, 3, 8, 8)]), tmp_path / "preset")
    assert json.loads((folder / "config.json").read_text())["architecture"] == "vmoe_pico_patch2_8_dense"
    assert vismoe.load(folder).moe is None


def frozen_trunk(parent):
    """Low-rank experts, and nothing else, moved."""
    sparse = vismoe.upcycle(parent, experts="low-rank", rank=2)
    sparse.requires_grad_(False)
    for module in sparse.modules():
        if isinstance(module, MoE):
            for part in (module.experts.up, module.experts.down):
                part.requires_grad_(True)
    return trained(sparse)


def test_differences_alone(tmp_path):
    """The folder is a fraction of the parent's, names it and its hash, and gives the same outputs."""
    place = saved_parent("vit_small_patch16_dinov3", tmp_path)
    sparse, images = frozen_trunk(vismoe.load(place))
    folder = vismoe.save(sparse, tmp_path / "small", parent=place)
    size, whole = ((path / "model.safetensors").stat().st_size for path in (folder, place))
    assert size < whole / 5
    assert json.loads((folder / "config.json").read_text())["parent"]["source"] == str(place)
    assert torch.equal(vismoe.load(folder)(images), sparse(images))


def test_a_parent_that_changed_or_went_is_refused(tmp_path):
    """Another weight, or no folder: an error that names the parent."""
    place = saved_parent("vit_tiny_patch16_224", tmp_path)
    folder = vismoe.save(frozen_trunk(vismoe.load(place))[0], tmp_path / "small", parent=place)
    other = vismoe.load(place)
    nn.init.ones_(other.norm.bias)
    vismoe.save(other, place)
    with pytest.raises(ValueError, match="whose weights have changed:"):
        vismoe.load(folder)
    shutil.rmtree(place)
    with pytest.raises(ValueError, match="which cannot be opened"):
        vismoe.load(folder)
    with pytest.raises(ValueError, match="the model is dense: only upcycled"):
        vismoe.save(other, tmp_path / "not", parent=vismoe.save(other, place))
    assert not (tmp_path / "not").exists()


def test_a_parent_that_has_a_parent_is_refused(tmp_path):
    """The folder itself, as a circle of two, or as a chain: at once, with the file's name."""
    place = saved_parent("vit_tiny_patch16_224", tmp_path)
    sparse = frozen_trunk(vismoe.load(place))[0]
    one, other = (vismoe.save(sparse, tmp_path / name, parent=place) for name in ("one", "other"))
    for folder, source in ((one, one), (other, one), (one, other)):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"parent": {"source": str(source), "sha256": "0"}}))
        with pytest.raises(
            ValueError, match=rf"{folder.name}/config\.json: parent names .*{source.name}, which has only"
        ):
            vismoe.load(folder)


def test_a_network_without_classes_is_saved(tmp_path):
    """num_classes=0: features; there are no names to keep."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=2, embed_dim=32, num_heads=2)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(vismoe.load(vismoe.save(model.eval(), tmp_path / "model"))(images), model(images))


def test_the_entry_point_says_what_it_needs():
    with pytest.raises(ValueError, match="needs parent= and moe="):
        timm.create_model("vmoe_upcycled")

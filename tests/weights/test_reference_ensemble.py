"""Ensembles of the reference: each member's logits as it would reach them alone, and the parameters back.

python -m pytest tests/weights/test_reference_ensemble.py
"""

import numpy as np
import pytest
import torch

import vismoe
from vismoe.weights import from_reference, to_reference

from .reference_trees import configuration, logits, parameters

CLASS = "vmoe.nn.vit_moe_ensemble.VisionTransformerMoeEnsemble"


def ensemble(members=2, group_size=20, k=1, moe=None, router=None, **more):
    """Two blocks, six experts in the second, nothing dropped; groups of two images' tokens where there are two."""
    config = configuration(
        {"capacity_factor": 6.0},
        {"num_selected_experts": k} | (router or {}),
        {"num_experts": 6, "ensemble_size": members, "group_size": group_size} | (moe or {}),
        **more,
    )
    return config | {"model_class": CLASS, "deterministic": True}


def images(count=2):
    return np.random.default_rng(1).normal(size=(count, 8, 8, 3)).astype(np.float32)


def by_member(config, arrays, pictures):
    """Rows [image 0 member 0, image 0 member 1, …]: each member as a network of its own experts alone."""
    moe = config["model"]["encoder"]["moe"]
    members, rows = moe["ensemble_size"], []
    own = moe["num_experts"] // members
    for number in range(members):
        part = {
            name: array[number * own : (number + 1) * own] if "/Moe/Mlp/" in name else array
            for name, array in arrays.items()
        }
        part |= {name: array[:, number] for name, array in arrays.items() if "/Router/" in name}
        rows.append(logits(config, part, pictures))
    return np.stack(rows, 1).reshape(len(pictures) * members, -1)


def check(config, arrays):
    model, pictures = from_reference(arrays, config), images()
    expected = torch.tensor(by_member(config, arrays, pictures), dtype=torch.float32)
    with torch.no_grad():
        found = model.eval()(torch.tensor(pictures).permute(0, 3, 1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    back = to_reference(model)
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert (back[name].shape, back[name].tobytes()) == (array.shape, array.tobytes()), name
    return model


@pytest.mark.parametrize("members", [1, 2, 3])
@pytest.mark.parametrize("classifier", ["token", "gap", "map"])
@pytest.mark.parametrize("k", [1, 2])
def test_members_of_any_number(members, classifier, k):
    """Any number of members (one, too, has a kernel of its own shape), any classifier, k: the reference's logits."""
    tokens = 4 + (classifier == "token")
    config = ensemble(members, 2 * members * tokens, k, classifier=classifier)
    check(config, parameters(config))


def test_what_the_reference_does_not_read():
    """Its ensemble always learns positions and has qk-norm in the MAP head alone, whatever the fields say."""
    encoder = {"attention_qk_norm": True, "position_emb": {"name": "sincos2d"}}
    config = ensemble(2, 16, classifier="map", encoder=encoder)
    learned = ensemble(2, 16, classifier="map", encoder={"attention_qk_norm": True})
    arrays = {
        name: array for name, array in parameters(learned).items() if "_ln/" not in name or name.startswith("MapHead")
    }
    model = from_reference(arrays, config)
    expected = from_reference(arrays, learned)
    pictures = torch.tensor(images()).permute(0, 3, 1, 2)
    assert torch.equal(model(pictures), expected(pictures))
    check(learned, arrays)


def test_by_name_alone():
    """Released configurations say in the model's name what they are."""
    config = ensemble()
    config["model"]["name"] = CLASS.rpartition(".")[2]
    del config["model_class"]
    assert check(config, parameters(config)).ensemble_size == 2
    with pytest.raises(
        ValueError, match=r"model\.name='VisionTransformerMoeEnsemble' contradicts model_class='vmoe\.nn\.vit_moe\."
    ):
        from_reference(parameters(config), config | {"model_class": "vmoe.nn.vit_moe.VisionTransformerMoe"})


def test_capacity_and_noise_are_of_the_members():
    """Capacity is that of all members' tokens over all experts; noise is divided by a member's experts."""
    config = ensemble(2, 20, 2, router={"noise_std": 0.9, "dispatcher": {"capacity_factor": 1.0}})
    router = from_reference(parameters(config), config).blocks[1].mlp.router
    assert router.capacity(20) == 8  # 20 · 2 / 6 = 6.7 -> 7 -> 8
    assert router.noise_scale == pytest.approx(0.9 / 3)


def test_as_a_model_folder(tmp_path):
    """Written and opened as any other, with the predictions that were set."""
    config = ensemble()
    model = check(config, parameters(config))
    model.predictions = "mean"
    vismoe.save(model, tmp_path / "model")
    again, pictures = vismoe.load(tmp_path / "model"), torch.tensor(images()).permute(0, 3, 1, 2)
    assert torch.equal(again.eval()(pictures), model(pictures))
    probabilities = (
        torch.tensor(by_member(config, parameters(config), images())).softmax(-1).unflatten(0, (2, 2)).mean(1)
    )
    torch.testing.assert_close(again(pictures).exp(), probabilities.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ensemble(moe={"ensemble_size": None}), r"model\.encoder\.moe has no ensemble_size"),
        (ensemble() | {"model_class": "vmoe.nn.vit_moe.VisionTransformerMoe"}, "unknown fields: ensemble_size"),
        (ensemble(moe={"num_experts": 5}), "ensemble_size=2, num_experts=5"),
        (ensemble(moe={"group_size": 5}), "group_size=5, ensemble_size=2"),
    ],
)
def test_what_does_not_fit_is_named(config, message):
    """By the reference's names, as far as it has one."""
    known = ensemble()
    with pytest.raises(ValueError, match=message):
        from_reference(parameters(known), config)

"""Parameters of the reference as models: its logits, losses and gradients.

VISMOE_REFERENCE_FIGURES=FOLDER python -m pytest tests/weights/test_reference.py
"""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import vismoe

from .reference_trees import configuration, parameters

EVALUATED = ["dense_vit_eval", "vmoe_k1_eval", "vmoe_k2_eval", "vmoe_k2_drop_eval", "vmoe_k2_drop_bpr_eval"]
EVALUATED += ["vmoe_k2_gap_sincos_repr_eval", "vmoe_k2_map_qknorm_eval"]
OTHER_ROUTERS = ["vmoe_expert_choice_eval", "soft_moe_slots3_eval", "soft_moe_slots3_f32_eval"]
TRAINED = ["vmoe_k2_train_noise0", "vmoe_k2_train_noise1"]
ENSEMBLE = "eee_m2_k1_eval"


def config_of(file, name):
    """A file's configuration, with what was patched in the reference said in it."""
    config = json.loads(str(file["config_json"]))
    if name == "soft_moe_slots3_f32_eval":
        config["model"]["encoder"]["moe"]["router"]["dispatcher"] = {"bfloat16": False}
    return config


def forward(folder, name, monkeypatch):
    """The model, what it says of the file's images with the file's noise, what was recorded, and the file."""
    file = np.load(folder / f"{name}.npz")
    config = config_of(file, name)
    model = vismoe.weights.from_reference({key: file[key] for key in file.files if key.startswith("params/")}, config)
    noise = iter([torch.tensor(file[key]) for key in sorted(file.files) if key.endswith("standard_normal_noise")])
    monkeypatch.setattr(torch, "randn_like", lambda tensor: next(noise))
    images = torch.tensor(file["images"]).permute(0, 3, 1, 2).contiguous().requires_grad_()
    with vismoe.record(model) as routing:
        logits = model(images)
    return model, images, logits, routing, file


@pytest.mark.parametrize("name", [*EVALUATED, *TRAINED, ENSEMBLE])
def test_logits_and_losses(name, reference_figures, monkeypatch):
    """Logits within 1e-5, each layer's auxiliary losses of each group (and member of an ensemble) within 1e-6 of the
    reference's."""
    model, _, logits, routing, file = forward(reference_figures, name, monkeypatch)
    assert model.training == name.startswith("vmoe_k2_train")
    torch.testing.assert_close(logits, torch.tensor(file["logits"]), rtol=0, atol=1e-5)
    assert bool(routing.layers) == (name != "dense_vit_eval")
    if routing.layers:
        total = sum(call.auxiliary_loss for (call,) in routing.layers.values())
        torch.testing.assert_close(total, torch.tensor(file["metrics/auxiliary_loss"]), rtol=0, atol=1e-6)
    for layer, (call,) in routing.layers.items():
        place = f"metrics/encoderblock_{layer.split('.')[1]}"
        given = call.losses | {"auxiliary": call.auxiliary_loss}
        names = [key.removeprefix(place + "/").removesuffix("_loss") for key in file.files if key.startswith(place)]
        assert {"auxiliary", "importance", "gshard"} <= set(names)
        for loss in names:
            expected = torch.tensor(file[f"{place}/{loss}_loss"])
            torch.testing.assert_close(given[loss], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OTHER_ROUTERS)
def test_other_routers(name, reference_figures, monkeypatch):
    """Logits within 1e-5, with what is rounded to bfloat16 within 2e-4; every metric within 1e-6 in float32."""
    _, _, logits, routing, file = forward(reference_figures, name, monkeypatch)
    rounds = name == "soft_moe_slots3_eval"
    torch.testing.assert_close(logits, torch.tensor(file["logits"]), rtol=0, atol=2e-4 if rounds else 1e-5)
    assert len(routing.layers) == 2
    for layer, (call,) in routing.layers.items():
        place = f"metrics/encoderblock_{layer.split('.')[1]}/"
        names = [key.removeprefix(place) for key in file.files if key.startswith(place)]
        assert set(names) == {*call.metrics, "auxiliary_loss"}
        for metric in call.metrics:
            expected = torch.tensor(file[place + metric])
            torch.testing.assert_close(call.metrics[metric], expected.float(), rtol=0, atol=1e-4 if rounds else 1e-6)


@pytest.mark.parametrize("name", [*EVALUATED, *TRAINED, *OTHER_ROUTERS, ENSEMBLE])
def test_back(name, reference_figures):
    """The tree that a model was made of is written again, bit for bit."""
    file = np.load(reference_figures / f"{name}.npz")
    arrays = {key.removeprefix("params/"): file[key] for key in file.files if key.startswith("params/")}
    model = vismoe.weights.from_reference(arrays, json.loads(str(file["config_json"])))
    back = vismoe.weights.to_reference(model)
    assert set(back) == set(arrays)
    for place, array in arrays.items():
        assert (back[place].dtype, back[place].shape) == (array.dtype, array.shape), place
        assert back[place].tobytes() == array.tobytes(), place


@pytest.mark.parametrize("name", [*TRAINED, "soft_moe_slots3_f32_eval"])
def test_gradients(name, reference_figures, monkeypatch):
    """Gradients of every parameter and of the images: rtol 1e-3, atol 1e-6."""
    model, images, logits, routing, file = forward(reference_figures, name, monkeypatch)
    loss = F.cross_entropy(logits, torch.tensor(file["labels"]).long()) + routing.auxiliary_loss
    assert loss.item() == pytest.approx(float(file["loss/total"]), abs=1e-5)
    loss.backward()
    expected = vismoe.weights.from_reference(
        {key.removeprefix("grads/"): file[key] for key in file.files if key.startswith("grads/")},
        json.loads(str(file["config_json"])),
    )
    for (parameter_name, parameter), gradient in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(
            parameter.grad, gradient.detach(), rtol=1e-3, atol=1e-6, msg=lambda text, at=parameter_name: f"{at}: {text}"
        )
    in_their_order = images.grad.permute(0, 2, 3, 1)
    torch.testing.assert_close(in_their_order, torch.tensor(file["grads_images"]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("dispatcher", "capacity"),
    [
        ({"capacity_factor": 1.0, "batch_priority": False}, 8),  # 10 · 2 · 1 / 4 = 5 -> 8
        ({"capacity_factor": 1.1, "capacity_multiple_of": 1}, 6),  # ⌈5.5⌉
        ({"capacity_factor": 1.05, "capacity_ceil_or_round": "round", "capacity_multiple_of": None}, 5),
        ({"capacity": 3, "batch_priority": True, "name": "indices"}, 3),
    ],
)
def test_capacity_settings(dispatcher, capacity):
    """Round, multiple-of, absolute capacity, `indices` and priority are understood, in both modes alike."""
    model = vismoe.weights.from_reference(parameters(), configuration(dispatcher))
    layer = model.blocks[1].mlp
    assert layer.group_size == 10
    assert layer.router.batch_priority == dispatcher.get("batch_priority", False)
    assert layer.router.loss_weights == {"importance": 1.0, "load": 1.0, "gshard": 0.0}
    for training in (True, False):
        assert layer.router.train(training).capacity(10) == capacity


def test_representation_layer():
    """A representation layer of another width than the trunk's: tanh(linear) before the head."""
    config = configuration(representation_size=6)
    arrays = parameters(config)
    model = vismoe.weights.from_reference(arrays, config).eval()
    images = torch.randn(2, 3, 8, 8)
    features = model.forward_features(images)[:, 0]
    hidden = np.tanh(features.detach().numpy() @ arrays["pre_logits/kernel"] + arrays["pre_logits/bias"])
    expected = hidden @ arrays["head/kernel"] + arrays["head/bias"]
    torch.testing.assert_close(model(images).detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


def without(fields, *path):
    """A copy of a nested dictionary that lacks one entry."""
    first, *rest = path
    left = dict(fields)
    if rest:
        left[first] = without(left[first], *rest)
    else:
        del left[first]
    return left


def refused(arrays, config, message):
    with pytest.raises(ValueError, match=message):
        vismoe.weights.from_reference(arrays, config)


def test_fields_that_are_not_understood_are_named():
    """Unknown classes, fields and values are ValueErrors that name them, not silent differences."""
    known = configuration({"capacity_factor": 1.0})
    refused(parameters(), known | {"model_class": "vmoe.nn.Expert"}, "model_class='vmoe.nn.Expert'")
    refused(parameters(), known | {"model": known["model"] | {"colour": 1}}, "colour")


FIELDS = ["patch_size", "hidden_size", "encoder", ("encoder", "num_layers"), ("encoder", "num_heads")]


@pytest.mark.parametrize("field", [(), *FIELDS, ("encoder", "mlp_dim"), ("encoder", "moe", "num_experts")])
def test_missing_fields_are_named(field):
    """Without a field that the model cannot be built without: a ValueError that says which and where."""
    path = ("model", field) if isinstance(field, str) else ("model", *field)
    place = ".".join(path[:-1]) or "config"
    refused(
        parameters(),
        without(configuration({"capacity_factor": 1.0}), *path),
        f"^{place} has no {path[-1]}, ",
    )


def test_missing_and_superfluous_parameters_are_named():
    """Parameters that the configuration requires and that are missing, and the other way round."""
    config, arrays = configuration({"capacity_factor": 1.0}), parameters()
    for name in arrays:
        refused({other: array for other, array in arrays.items() if other != name}, config, name)
    refused(arrays | {"extra/kernel": np.zeros(2, np.float32)}, config, "does not have the parameters extra/kernel")


def test_parameters_of_another_shape_are_named():
    """Also where the number of values is right, as with heads that the configuration counts otherwise."""
    config, arrays = configuration({"capacity_factor": 1.0}), parameters()
    name = "Encoder/encoderblock_0/SelfAttention/query/kernel"
    refused(arrays | {name: np.zeros((8, 4, 2), np.float32)}, config, rf"{name} has shape \(8, 4, 2\), .* \(8, 2, 4\)")
    for name, array in arrays.items():
        refused(arrays | {name: array[None]}, config, name)

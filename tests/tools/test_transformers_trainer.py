"""Upcycled networks of transformers' in its Trainer: pytest tests/tools/test_transformers_trainer.py"""

import copy
import inspect

import pytest
import torch

import vismoe
from vismoe.moe import MoE

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}


def dense_network():
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=3)
    )


def opened(folder):
    """What transformers' Auto class makes of an upcycled network's folder."""
    vismoe.save(vismoe.upcycle(dense_network()), folder)
    return transformers.AutoModelForImageClassification.from_pretrained(folder)


def test_trainer_with_its_defaults(tmp_path):
    """The Trainer keeps the columns that the network takes, though it drops others by default; it evaluates with a loss
    and metrics, and saves what opens again with all its experts."""
    model = opened(tmp_path / "upcycled")
    samples = [{"pixel_values": torch.randn(3, 16, 16), "labels": number % 3, "note": "x"} for number in range(8)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no"
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        eval_dataset=samples,
        compute_metrics=lambda answers: {"classes": answers.predictions.shape[1]},
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    assert metrics["eval_classes"] == 3
    images = torch.randn(2, 3, 16, 16)
    logits = model.eval()(images).logits
    for again in (
        vismoe.load(tmp_path / "out" / "checkpoint-2"),
        transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "checkpoint-2"),
    ):
        torch.testing.assert_close(again.eval()(images).logits, logits)


def test_an_opened_network_is_as_its_dense_class(tmp_path):
    """Parameters of `forward`, gradient checkpointing and blocks that stay whole are those of the dense class, of a
    copy too; recomputed gradients are the same."""
    model, dense = opened(tmp_path), transformers.ViTForImageClassification
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    for network in (model, copy.deepcopy(model)):
        assert inspect.signature(type(network).forward) == inspect.signature(dense.forward)
        assert network.supports_gradient_checkpointing
        assert set(network._no_split_modules) == set(dense._no_split_modules)
    gradients = []
    for recomputes in (False, True):
        network = copy.deepcopy(model).train()
        if recomputes:
            network.activation_checkpointing_enable()
            assert network.is_activation_checkpointing
        network(pixel_values=images, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("way", [{}, {"experts": "low-rank", "rank": 2}, {"shared": True}])
def test_what_save_pretrained_wrote_has_its_experts(way, tmp_path):
    """`save_pretrained` of an upcycled network, as the Trainer calls it, then `vismoe.load`: experts and logits are
    what they were; densified, the network is dense there too."""
    model = vismoe.upcycle(dense_network(), **way).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path / "sparse")
    again = vismoe.load(tmp_path / "sparse")
    assert type(again) is type(model)
    assert again.moe == model.moe
    assert sum(isinstance(module, MoE) for module in again.modules()) == 2
    torch.testing.assert_close(again(images).logits, model(images).logits)
    if model.moe.shared:
        return
    dense = vismoe.densify(model, [images])
    dense.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(vismoe.load(tmp_path / "dense")(images).logits, dense(images).logits)


def test_weights_that_are_missing_are_an_error(tmp_path):
    """A folder whose weights are experts', and whose configuration does not say so, is refused: transformers would draw
    the MLPs at random."""
    model = vismoe.upcycle(dense_network())
    del model.config.vismoe_moe
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"weights are missing: .*the file has experts"):
        vismoe.load(tmp_path)

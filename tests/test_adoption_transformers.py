"""Hugging Face's Trainer trains an upcycled network of transformers' as it does a dense one.

python -m pytest tests/test_adoption_transformers.py
"""

import pytest
import torch

import vismoe

from .test_adoption import batches, is_even

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def test_trainer(tmp_path):
    """One changed line: the loss falls and experts stay even, gradient accumulation and all."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        num_labels=4,
    )
    model = transformers.ViTForImageClassification(config)
    model = vismoe.upcycle(model, num_experts=4)  # the one line
    examples = [
        {"pixel_values": image, "labels": label}
        for images, labels in batches(20)
        for image, label in zip(images, labels, strict=True)
    ]
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        num_train_epochs=3,
        learning_rate=2e-3,
        logging_steps=5,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] / 2
    assert is_even(trainer.model, next(batches(1, 64))[0])

"""Loops that know nothing of vismoe: `cross_entropy(model(x), y)` alone must keep the experts evenly loaded.

python -m pytest tests/test_strangers_loops.py
"""

import functools
import subprocess
import textwrap
from pathlib import Path

import pytest
import timm
import timm.optim
import timm.scheduler
import timm.utils
import torch
from jaxtyping import config
from sklearn.datasets import load_digits
from torch.nn import functional as F

import vismoe

STEPS = 100
EXPERTS = [8, pytest.param(32, marks=pytest.mark.slow)]
"""32 as well as 8 in the plain loop always, in its variants in .ci/run."""


@pytest.fixture(autouse=True, scope="module")
def unchecked():
    """Strangers check no shapes: and checks would take time at each step."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@functools.cache
def digits():
    """Every fourth digit is held out."""
    loaded = load_digits()
    images, labels = torch.tensor(loaded.images[:, None] / 8 - 1, dtype=torch.float32), torch.tensor(loaded.target)
    held_out = torch.arange(len(labels)) % 4 == 0
    return images[~held_out], labels[~held_out], images[held_out]


def skewed_model(num_experts=8, **overrides):
    """Every router sends nearly all tokens to expert 0, along a direction that all tokens share."""
    torch.manual_seed(0)
    overrides = {"num_classes": 10, "in_chans": 1, "embed_dim": 32, "num_experts": num_experts} | overrides
    model = timm.create_model("vmoe_pico_patch2_8_every2_e8", **overrides)
    for block in model.blocks[1::2]:
        direction = F.normalize(torch.randn(block.mlp.router.dim), dim=0)
        block.norm2.bias.data += 3 * direction
        block.mlp.router.weight.data[0] += 3 * direction
    return model


def batches(steps=STEPS, size=32):
    images, labels, _ = digits()
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        batch = torch.randint(len(labels), (size,), generator=generator)
        yield images[batch], labels[batch]


def unevenness(model):
    """max ÷ mean load on held-out digits, of each layer."""
    model.eval()
    with torch.no_grad(), vismoe.record(model) as routing:
        model(digits()[2])
    loads = [calls[0].load.float() for calls in routing.layers.values()]
    assert len(loads) == 2
    return [(load.max() / load.mean()).item() for load in loads]


def train(model, accumulate=1):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    size = max(16, model.blocks[1].mlp.router.num_experts)
    for step, (images, labels) in enumerate(batches(size=size), start=1):
        F.cross_entropy(model(images), labels).backward()
        if step % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return model


@functools.cache
def trained_plainly(num_experts):
    """By AdamW and cross-entropy, nothing else."""
    return train(skewed_model(num_experts))


def test_the_skew_is_real():
    """The starting point is uneven in every layer, so that what follows proves something."""
    assert min(unevenness(skewed_model(8))) > 6
    assert min(unevenness(skewed_model(32))) > 20


@pytest.mark.slow
@pytest.mark.parametrize("num_experts", EXPERTS)
def test_without_balancing_experts_stay_uneven(num_experts):
    """The control: with balancing switched off the same loop ends with max ÷ mean ≥ 2."""
    assert max(unevenness(train(skewed_model(num_experts, balance="none")))) >= 2


@pytest.mark.parametrize("num_experts", EXPERTS)
def test_plain_loop(num_experts):
    """AdamW and cross-entropy, nothing else: every layer ends with max ÷ mean < 2."""
    assert max(unevenness(trained_plainly(num_experts))) < 2


@pytest.mark.parametrize("num_experts", EXPERTS)
def test_gradient_accumulation(num_experts):
    """Every micro-batch moves the bias: accumulating gradients does not slow balancing."""
    assert max(unevenness(train(skewed_model(num_experts), accumulate=4))) < 2


@pytest.mark.slow
@pytest.mark.parametrize("num_experts", EXPERTS)
def test_activation_recompute(num_experts):
    """timm's set_grad_checkpointing: evenly loaded, and bit for bit what the loop without recompute gives."""
    plain, recomputed = trained_plainly(num_experts), skewed_model(num_experts)
    recomputed.set_grad_checkpointing()
    train(recomputed)
    for (name, expected), given in zip(plain.state_dict().items(), recomputed.state_dict().values(), strict=True):
        assert torch.equal(expected, given), name
    assert max(unevenness(recomputed)) < 2


@pytest.mark.slow
@pytest.mark.parametrize(("num_experts", "recompute"), [(8, True), (32, False)])
def test_compiled(num_experts, recompute, forked):
    """torch.compile of the whole model, with and without recompute: evenly loaded, and no graph break."""
    script = f"""
        import sys, torch
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        torch.set_num_threads(1)
        from test_strangers_loops import skewed_model, train, unevenness
        model = skewed_model({num_experts})
        model.set_grad_checkpointing({recompute})
        train(torch.compile(model, backend="aot_eager", fullgraph=True))
        print(max(unevenness(model)))
    """
    # Not in this process: shape checks under test are Python that compilers cannot trace.
    done = subprocess.run([forked, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split()[-1]) < 2


def test_parts_of_timms_training_script():
    """create_optimizer_v2, scheduler, NativeScaler, ModelEmaV3, in the order of timm's train.py: model and average of
    its weights are evenly loaded."""
    model = skewed_model(8)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.9)
    scaler = timm.utils.NativeScaler(device="cpu")
    average = timm.utils.ModelEmaV3(model, decay=0.9)
    epochs, steps = 4, 60
    scheduler, _ = timm.scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=1)
    loss_function, updates = torch.nn.CrossEntropyLoss(), 0
    for epoch in range(epochs):
        model.train()
        for images, labels in batches(steps // epochs, 16):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_function(model(images), labels)
            scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters(), need_update=True)
            optimizer.zero_grad()
            updates += 1
            average.update(model, step=updates)
        scheduler.step(epoch + 1)
    assert max(unevenness(model)) < 2
    assert max(unevenness(average.module)) < 2

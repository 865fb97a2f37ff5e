"""Scripts that train dense networks become sparse with one or two changed lines: the lines of docs/upcycling.md.

python -m pytest tests/test_adoption.py
"""

import timm
import timm.data
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.rpn import AnchorGenerator

import vismoe
from vismoe.moe import MoE

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 2}


def batches(number, size=16):
    """Squares whose brightness is their class."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(number):
        labels = torch.randint(4, (size,), generator=generator)
        noise = 0.3 * torch.randn(size, 3, 32, 32, generator=generator)
        yield labels[:, None, None, None] / 2 - 0.75 + noise, labels


def is_even(model, images):
    """Whether no expert has more than three times its share."""
    model.eval()
    with torch.no_grad(), vismoe.record(model) as routing:
        model(images)
    loads = [calls[0].load.float() for calls in routing.layers.values()]
    return all(float(load.max() / load.mean()) < 3 for load in loads)


def test_the_parts_of_timms_training_script():
    """Model, optimiser, schedule, mixup, loss, average of weights, clipping: as timm's train.py puts them together."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **SMALL)
    model = vismoe.upcycle(model, num_experts=4)  # the one line
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05, layer_decay=0.9)
    average = timm.utils.ModelEmaV3(model, decay=0.9)
    schedule, _ = timm.scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=3, updates_per_epoch=10)
    mixup = timm.data.Mixup(0.2, 0.2, num_classes=4)
    criterion, losses = timm.loss.SoftTargetCrossEntropy(), []
    model.train()
    for step, (images, labels) in enumerate(batches(30)):
        images, targets = mixup(images, labels)
        loss = criterion(model(images), targets)
        loss.backward()
        timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(model)
        schedule.step_update(step)
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert is_even(average.module, next(batches(1, 64))[0])


def test_a_detector_on_a_sparse_trunk(tmp_path):
    """torchvision's Faster R-CNN on a sparse ViT through timm's features_only: a few steps, and the experts learn."""
    torch.manual_seed(0)
    parent = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL)
    folder = vismoe.save(vismoe.upcycle(parent, num_experts=4), tmp_path / "trunk")
    trunk = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=(3,))

    class Backbone(nn.Module):
        out_channels = 48

        def __init__(self) -> None:
            super().__init__()
            self.trunk = trunk

        def forward(self, x):
            return {"0": self.trunk(x)[0]}

    detector = FasterRCNN(
        Backbone(),
        num_classes=2,
        rpn_anchor_generator=AnchorGenerator(((8, 16),), ((1.0,),)),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2),
        fixed_size=(32, 32),
        min_size=32,
        max_size=32,
    )
    layers = [module for module in detector.modules() if isinstance(module, MoE)]
    before = [layer.experts.up.weight.detach().clone() for layer in layers]
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    targets = [{"boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]), "labels": torch.tensor([1])}] * 2
    for _ in range(3):
        loss = sum(detector(list(torch.rand(2, 3, 32, 32)), targets).values())
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(layers) == 2
    assert all(not torch.equal(layer.experts.up.weight, old) for layer, old in zip(layers, before, strict=True))

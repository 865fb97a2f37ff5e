"""Two heads of a detector on one trunk, trained for the same CPU time: the centre-based head of `vismoe.detection`, and
torchvision's FCOS (Tian et al. 2019) over a simple feature pyramid (Li et al. 2022, ViTDet).

    VISMOE_BCCD=FOLDER python benchmarks/detection_heads.py --head centre --seconds 480

prints average precision on the validation split of BCCD. Both heads get the same trunk, augmentation, optimiser and
schedule; the same learning rate unless
`--learning-rate` says otherwise. docs/detection.md has the results.
"""

import argparse
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS

import vismoe
from vismoe.data import (
    Batch,
    box_evaluation_transform,
    box_training_transform,
    collate_boxes,
    evaluation_batches,
    open_data,
    training_batches,
)
from vismoe.detection import Detections, make_detector
from vismoe.tasks import Detection
from vismoe.tasks.detection.task import in_original
from vismoe.vit import evaluating
from vismoe.weights import data_config

SIZE, TRUNK, WIDTH = (240, 320), "vmoe_nano_patch16_128_dense", 128
BATCH, WARMUP, DECAY = 4, 50, 0.99


class SimplePyramid(nn.Module):
    """Maps of strides 8, 16 and 32 from a trunk's last one."""

    def __init__(self, trunk: nn.Module, dim: int):
        super().__init__()
        self.trunk, self.out_channels = trunk, WIDTH
        self.up, self.same = nn.ConvTranspose2d(dim, WIDTH, 2, stride=2), nn.Conv2d(dim, WIDTH, 1)
        self.mix = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3)])

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        (features,) = self.trunk.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        same = self.same(features)
        maps = [self.up(features), same, nn.functional.max_pool2d(same, 2, ceil_mode=True)]
        return OrderedDict((str(level), mix(one)) for level, (mix, one) in enumerate(zip(self.mix, maps, strict=True)))


class Fcos(nn.Module):
    """torchvision's FCOS on batches of `collate_boxes`: a loss in training, detections otherwise."""

    def __init__(self, trunk: nn.Module, classes: int):
        super().__init__()
        anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
        self.model = FCOS(
            SimplePyramid(trunk, trunk.embed_dim),
            classes,
            min_size=SIZE[0],
            max_size=SIZE[1],
            image_mean=[0.0] * 3,
            image_std=[1.0] * 3,
            anchor_generator=anchors,
            score_thresh=0.01,
            size_divisible=16,
        )

    def forward(self, batch: Batch) -> Any:
        images = list(batch["image"])
        if self.training:
            found = zip(batch["boxes"], batch["classes"], batch["ignored"], strict=True)
            wanted = [
                {"boxes": boxes.as_subclass(Tensor)[~ignored], "labels": classes[~ignored]}
                for boxes, classes, ignored in found
            ]
            return sum(self.model(images, wanted).values())
        return [Detections(each["boxes"], each["scores"], each["labels"]) for each in self.model(images)]


@dataclass
class Arm:
    """A network, its loss of a batch, and its detections of a batch in pixels of the input's originals."""

    network: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor]
    detect: Callable[[nn.Module, Batch], list[Detections]]


def arm(head: str, trunk: nn.Module, task: Detection) -> Arm:
    if head == "centre":
        network = make_detector(trunk, len(task.classes), SIZE)
        return Arm(network, lambda net, batch: task.loss(task.forward(net, batch), batch), task.forward)

    def detect(net: nn.Module, batch: Batch) -> list[Detections]:
        return [in_original(*image) for image in zip(net(batch), batch["size"], batch["scale"], strict=True)]

    return Arm(Fcos(trunk, len(task.classes)), lambda net, batch: net(batch), detect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=("centre", "fcos"), required=True)
    parser.add_argument("--seconds", type=float, default=480, help="CPU time of the training")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data = open_data(os.environ["VISMOE_BCCD"])
    task = Detection(data.classes)
    trunk = vismoe.create_model(TRUNK, num_classes=0, img_size=SIZE, pos_embed="sincos2d")
    config = data_config(trunk)
    made = arm(options.head, trunk, task)
    network = made.network.train()
    average = ModelEmaV3(network, DECAY, use_warmup=True)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(network, 0.05), lr=options.learning_rate)
    transform = box_training_transform(config, translate=0.1, color_jitter=0.2)
    batches = iter(training_batches(data.train, transform, BATCH, options.seed, collate=collate_boxes))
    started, step = time.process_time(), 0
    while (done := (time.process_time() - started) / options.seconds) < 1:
        rate = options.learning_rate * min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            loss = made.loss(network, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update(network, step)
        step += 1
    scorer, place = task.scorer(data.val), 0
    with torch.no_grad(), evaluating(average.module):
        began = time.process_time()
        for batch in evaluation_batches(data.val, box_evaluation_transform(config), 16, collate=collate_boxes):
            places = torch.arange(place, place + len(batch["image"]))
            scorer.update(places, made.detect(average.module, batch), batch)
            place += len(places)
        seconds = (time.process_time() - began) / place
    result = scorer.evaluation(lambda tensor: tensor, 1 / seconds, {})
    classes = ", ".join(f"{each.name} {each.ap:.3f}" for each in result.per_class)
    print(
        f"{options.head}, rate {options.learning_rate:g}, seed {options.seed}: {step} steps of {BATCH}, "
        f"map {result.metrics['map']:.4f}, map50 {result.metrics['map50']:.4f} ({classes}), "
        f"{1000 * seconds:.0f} ms of CPU time an image"
    )


if __name__ == "__main__":
    main()

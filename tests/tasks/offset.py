"""A task unlike classification, as a user would add one: how far a second image is shifted against a first.

Two named inputs, no class labels, a joint transform (mirrored together, and the target with them). This file is all
there is of it: the task, its network, its registration. `python -m tests.tasks.offset VERB …` is the vismoe command
that knows it.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.transforms import v2

from vismoe import create_model
from vismoe.cli import main
from vismoe.data import Batch, Data, ImageSet, Sample, Transform, read_image
from vismoe.tasks import Evaluation, Prediction, Scorer, Task, register_task

TABLE, OTHER = "offsets.csv", "-other.png"
default_cfgs = generate_default_cfgs(
    {"offset_pair": {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,), "crop_pct": 1.0, "num_classes": 2}}
)


class PairNetwork(nn.Module):
    """A sparse trunk that sees either image, and a linear map of both features: (B, 2), columns and rows."""

    def __init__(self, num_classes: int = 2, in_chans: int = 1):
        super().__init__()
        options = {"embed_dim": 16, "num_heads": 2, "depth": 2, "num_experts": 2}
        self.trunk = create_model("vmoe_pico_patch2_8_every2_e8", num_classes=0, in_chans=in_chans, **options)
        self.num_classes, self.num_features, self.head = num_classes, 32, nn.Linear(32, num_classes)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.head(torch.cat([self.trunk(image), self.trunk(other)], 1))

    def no_weight_decay(self) -> set[str]:
        return set()


@register_model
def offset_pair(pretrained: bool = False, **options: Any) -> nn.Module:
    return build_model_with_cfg(PairNetwork, "offset_pair", pretrained, **options)


@dataclass(frozen=True)
class OffsetPrediction(Prediction):
    image: str
    columns_and_rows: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {"image": self.image, "offset": list(self.columns_and_rows)}

    def columns(self) -> dict[str, Any]:
        return {"image": self.image, "columns": self.columns_and_rows[0], "rows": self.columns_and_rows[1]}


class OffsetScorer(Scorer):
    def __init__(self, images: ImageSet):
        self.errors = torch.zeros(len(images))

    def update(self, places: Tensor, outputs: Tensor, batch: Batch) -> None:
        self.errors[places] = (outputs.cpu() - batch["offset"].cpu()).norm(dim=1)

    def evaluation(self, total: Any, images_per_second: float, load: dict[str, list[int]]) -> Evaluation:
        errors = total(self.errors)
        metrics = {"within_one": (errors <= 1).float().mean().item(), "loss": errors.square().mean().item() / 2}
        return Evaluation(metrics, images_per_second, load)


@register_task
class Offset(Task):
    name, metric, metric_title = "offset", "within_one", "share within one pixel"

    @classmethod
    def of_training(cls, data: Data, settings: Mapping[str, Any]) -> "Offset":
        return cls()

    @classmethod
    def of_model(cls, model: nn.Module) -> "Offset":
        return cls()

    @classmethod
    def open(cls, name: str, split_seed: int | None = None, *rest: Any, **options: Any) -> Data:
        root = Path(name)
        rows = list(csv.DictReader((root / TABLE).open()))
        offsets = torch.tensor([[float(row["columns"]), float(row["rows"])] for row in rows])
        files = [row["file"] for row in rows]
        further = {"other": partial(_read, root, files, OTHER), "offset": offsets.__getitem__}
        images = ImageSet(torch.zeros(len(rows), 0, dtype=torch.bool), partial(_read, root, files, ".png"), files)
        images = replace(images, further=further)
        held_out = [place for place in range(len(rows)) if (place + (split_seed or 0)) % 4 == 0]
        rest_of = sorted(set(range(len(rows))) - set(held_out))
        return Data(name, [], images.subset(rest_of), images.subset(held_out), channels=1)

    def read(self, path: Path) -> Sample:
        return {"image": read_image(path), "other": read_image(path.with_name(path.stem + OTHER))}

    def network_options(self, data: Data) -> dict[str, Any]:
        return {"in_chans": data.channels, "num_classes": 2}

    def training_transform(self, config: dict[str, Any], augmentation: Mapping[str, float]) -> Transform:
        return partial(_mirrored, augmentation["flip"], super().training_transform(config, {}))

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        return network(batch["image"], batch["other"]).float()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(outputs, batch["offset"])

    def scorer(self, images: ImageSet) -> OffsetScorer:
        return OffsetScorer(images)

    def predictions(self, outputs: Tensor, titles: Sequence[str], topk: int) -> list[Prediction]:
        return [OffsetPrediction(title, (row[0], row[1])) for title, row in zip(titles, outputs.tolist(), strict=True)]


def _read(root: Path, files: Sequence[str], suffix: str, index: int) -> Any:
    return read_image(root / (files[index] + suffix))


def _mirrored(share: float, then: Transform, sample: Sample) -> Sample:
    """Both images mirrored, or neither; then what is further to the left is further to the right."""
    if torch.rand(()) < share:
        flip = v2.functional.horizontal_flip
        turned = sample["offset"] * torch.tensor([-1.0, 1.0])
        sample = sample | {"image": flip(sample["image"]), "other": flip(sample["other"]), "offset": turned}
    return then(sample)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

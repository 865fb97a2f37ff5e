"""Tokens of frozen blocks, computed once and saved in files, so that training runs only the blocks after them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision import tv_tensors

from vismoe.data import Data, Sample, Transform, collate_boxes
from vismoe.data.batches import Samples
from vismoe.detection import Detector
from vismoe.files.atomic import whole_file
from vismoe.tasks.detection.task import BLOCK, TOKENS
from vismoe.vit import evaluating

BATCH = 4
"""Images per forward pass."""
LOGGED_EVERY = 30
"""Seconds between two logged lines."""
ROWS = ("boxes", "classes", "ignored")
"""Values of a sample with one row for each box."""
STACKED = ("mask", "size", "scale", TOKENS, "image")
"""Values of a sample that have the same shape for each image."""
HALF = (TOKENS, "image")
"""Values that are stored in bfloat16."""


def keep_tokens(
    network: Detector,
    block: int,
    data: Data,
    transforms: tuple[Transform, Transform],
    views: int,
    seed: int,
    dtype: torch.dtype,
    folder: Path,
    identity: str,
    log: Callable[[str], None],
) -> Data:
    """Computes the tokens before a block, for several augmented views of each training image and for each validation
    image. They are saved in files, which a resumed run reads.

    **Arguments:**

    - `network`: the detector; its blocks before `block` are frozen.
    - `block`: number of the first block that is trained.
    - `data`: the training and the validation split.
    - `transforms`: the transforms of training and of evaluation.
    - `views`: number of views of each training image.
    - `seed`: decides the augmentation.
    - `dtype`: autocast dtype of the frozen blocks; tokens and pixels are stored in bfloat16.
    - `folder`: folder of the files.
    - `identity`: text with everything that the files depend on. Files with another identity are written again.
    - `log`: called with a line of text from time to time.

    **Returns:** the data set whose samples have tokens in place of images; each view is a training image.
    """
    training, validation = data.train_and_val[0], data.val
    keys = [(view, index) for view in range(views) for index in range(len(training))]
    train = _Kept(folder / "training.safetensors", block)
    train.fill(network, Samples(training, transforms[0], seed), keys, dtype, identity, log)
    val = _Kept(folder / "validation.safetensors", block)
    keys = [(0, index) for index in range(len(validation))]
    val.fill(network, Samples(validation, transforms[1]), keys, dtype, identity, log)
    repeated = training.subset(list(range(len(training))) * views)
    return replace(
        data,
        train=replace(repeated, further={name: partial(train.value, name) for name in (*ROWS, *STACKED, BLOCK)}),
        # Validation images keep their original boxes, because evaluation is in pixels of the original images.
        val=replace(
            validation,
            further={**validation.further, **{name: partial(val.value, name) for name in (*STACKED, BLOCK)}},
        ),
    )


@torch.no_grad()
def _computed(
    network: Detector,
    block: int,
    samples: Samples,
    keys: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    log: Callable[[str], None],
) -> dict[str, Tensor]:
    """The values of the N transformed samples with these keys, by name: one row per image, or one per box in the order
    of the images; "counts" (N,) is the number of boxes of each image."""
    device = next(network.parameters()).device
    last_logged = time.monotonic()
    found: dict[str, list[Tensor]] = {name: [] for name in (*ROWS, *STACKED, "counts")}
    with evaluating(network), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        for start in range(0, len(keys), BATCH):
            prepared: list[Sample] = [samples[key] for key in keys[start : start + BATCH]]
            batch = collate_boxes(prepared)
            pixels, mask = batch["image"].to(device), batch["mask"].to(device)
            tokens = network.tokens_before(block, pixels, None if bool(mask.all()) else mask)
            batch |= {TOKENS: tokens.cpu(), "counts": torch.tensor([*map(len, batch["boxes"])])}
            batch |= {name: batch[name].bfloat16() for name in HALF}
            for name, values in found.items():
                values += [value.as_subclass(Tensor) for value in batch[name]] if name in ROWS else [batch[name]]
            if time.monotonic() - last_logged > LOGGED_EVERY:
                last_logged = time.monotonic()
                log(f"tokens of {start + len(prepared):,} of {len(keys):,} views are kept")
    return {name: torch.cat(values).contiguous() for name, values in found.items()}


class _Kept:
    """A file of values, which is read image by image. It can be pickled: each process opens the file itself."""

    def __init__(self, path: Path, block: int):
        self.path, self.block = path, block

    def fill(
        self,
        network: Detector,
        samples: Samples,
        keys: Sequence[tuple[int, int]],
        dtype: torch.dtype,
        identity: str,
        log: Callable[[str], None],
    ) -> None:
        """Writes the file, unless it exists and has this identity.

        **Raises:** OSError if it cannot be written.
        """
        if self.path.exists() and safe_open(self.path, "pt").metadata() == {"identity": identity}:
            return
        values = _computed(network, self.block, samples, keys, dtype, log)
        try:
            with whole_file(self.path) as aside:
                save_file(values, aside, {"identity": identity})
        except SafetensorError as error:
            raise OSError(f"{self.path} cannot be written: {error}") from error

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, (self.path, self.block)

    @cached_property
    def _file(self) -> Any:
        return safe_open(self.path, "pt")

    @cached_property
    def _ends(self) -> list[int]:
        """The number of the row after the last box of each image."""
        ends: list[int] = self._file.get_tensor("counts").cumsum(0).tolist()
        return ends

    def value(self, name: str, index: int) -> Tensor:
        """A value of the i-th image."""
        if name == BLOCK:
            return torch.tensor(self.block)
        if name not in ROWS:
            whole: Tensor = self._file.get_slice(name)[index : index + 1][0]
            return whole.float() if name in HALF else whole
        rows: Tensor = self._file.get_slice(name)[self._ends[index - 1] if index else 0 : self._ends[index]]
        if name != "boxes":
            return rows
        height, width = self._file.get_slice("mask").get_shape()[1:]
        return tv_tensors.BoundingBoxes(rows, format="XYXY", canvas_size=(height, width))


def bytes_of_tokens(network: Detector, images: int) -> int:
    """Estimated size of the kept values of a number of images, in bytes."""
    embedding: Any = network.trunk.patch_embed
    tokens = (embedding.num_patches + 1) * cast(int, network.trunk.embed_dim)
    return images * 2 * (tokens + network.in_chans * network.img_size[0] * network.img_size[1])

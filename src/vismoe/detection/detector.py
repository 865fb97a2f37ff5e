"""A detector: a trunk, a neck and a head. `timm.create_model` builds it from the trunk's name."""

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import timm
import torch
from jaxtyping import Bool, Float
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._input import get_model_args, update_model_input_size  # under no public name
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vismoe.moe import condition
from vismoe.vit.masks import patch_mask, read_masks, zero_padding
from vismoe.vit.weight_decay import without_weight_decay
from vismoe.weights import data_config, set_image_size
from vismoe.weights.folders.upcycled import rebuilding

from .head import CentreHead, Outputs
from .neck import Neck, PixelDetail
from .trunk import as_map, detail_of, embed, map_of, remove_unused, run_blocks, run_in_windows, stride_of

DETECTOR = "vmoe_detector"
WIDTH, DEPTH, WINDOW = 128, 2, 8
PREPROCESSING = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "crop_pct": 1.0}
default_cfgs = generate_default_cfgs(
    {DETECTOR: PREPROCESSING | {"input_size": (3, 224, 224), "fixed_input_size": True, "classifier": "head.centre"}}
)


class Detector(nn.Module):
    """Finds objects: for each cell of a map, whether an object's centre is there, and the object's box.

    **Arguments:**

    - `trunk`: a vision transformer of vismoe's or timm's, or another network of timm's with feature maps, without a
      classifier. Its sparse layers, if any, stay as they are.
    - `num_classes`: number of classes, K.
    - `img_size`: (height, width) of the input, in pixels.
    - `in_chans`: number of channels of the input; default 3.
    - `width`: width of neck and head; default 128.
    - `head_depth`: number of 3 × 3 convolutions in the head; default 2.
    - `detail`: whether fine detail is added to the features: of a convolutional stem, or, without one, of the pixels;
      default True.
    - `windowed_blocks`: number of the last blocks in which a patch attends only to the patches of its window; default
      0.
    - `window`: height and width of these windows in patches; default 8.

    **Raises:** ValueError for a trunk without feature maps, for an ensemble, and for windows in another network than a
    vision transformer.
    """

    def __init__(
        self,
        trunk: nn.Module,
        num_classes: int,
        img_size: tuple[int, int],
        in_chans: int = 3,
        width: int = WIDTH,
        head_depth: int = DEPTH,
        detail: bool = True,
        windowed_blocks: int = 0,
        window: int = WINDOW,
    ):
        super().__init__()
        if getattr(trunk, "ensemble_size", 0):
            raise ValueError("an ensemble has no feature map of an image: expected a network with one member")
        self.trunk, self.num_classes, self.img_size, self.in_chans = trunk, num_classes, img_size, in_chans
        if windowed_blocks and not isinstance(trunk, VisionTransformer):
            raise ValueError(
                f"windowed_blocks={windowed_blocks}: {type(trunk).__name__} is no VisionTransformer of timm's"
            )
        self.reads_masks, self.windowed_blocks, self.window = read_masks(trunk), windowed_blocks, window
        dim, (vertical, horizontal) = stride_of(trunk)
        remove_unused(trunk)
        self.stride = (vertical / 2, horizontal / 2)
        self.num_features, self.width, self.head_depth, self.detail = width, width, head_depth, detail
        stem = detail_of(trunk)
        cell = vertical // 2, horizontal // 2
        self.reads_pixels = detail and not stem and (2 * cell[0], 2 * cell[1]) == (vertical, horizontal)
        fine = nn.Conv2d(stem, width, 1) if stem else PixelDetail(in_chans, width, cell) if self.reads_pixels else None
        self.neck = Neck(dim, fine if detail else None, width)
        self.head = CentreHead(width, num_classes, self.stride, head_depth)
        for part in (self.neck, self.head):  # as tokens lie, so nothing is copied between trunk and head
            part.to(memory_format=torch.channels_last)

    @property
    def moe(self) -> Any:
        """The configuration of the trunk's sparse layers; None: it is dense."""
        return getattr(self.trunk, "moe", None)

    @moe.setter
    def moe(self, config: Any) -> None:
        self.trunk.moe = config

    def forward(
        self,
        pixels: Float[Tensor, "B C H W"],
        mask: Bool[Tensor, "B H W"] | None = None,
        tokens: Float[Tensor, "B S d"] | None = None,
        start: int = 0,
    ) -> Outputs:
        """The outputs for a batch; `decode` makes boxes of them.

        **Arguments:**

        - `pixels`: normalised images.
        - `mask`: False for padding, which then changes no output of a cell with an image; default None: no padding.
        - `tokens`: what `tokens_before` returned for the same images; default None: they are computed. A network with a
          convolutional stem needs None: tokens do not have its fine detail.
        - `start`: the number of the block that the tokens are for; default 0.
        """
        if mask is not None and getattr(self.trunk, "grad_checkpointing", False) and self.training:
            raise ValueError(
                "a mask, and activation recompute: it runs in backward, where the mask is not known any more; train "
                "with images of the input's size, or without set_grad_checkpointing"
            )
        if mask is not None and not self.reads_masks:
            pixels = zero_padding(pixels, mask)
        detail = None
        with self._masked(mask):
            if tokens is None and isinstance(self.trunk, VisionTransformer):
                tokens, detail = embed(self.trunk, pixels)
            if tokens is None:
                features = map_of(self.trunk, pixels)
            else:
                features = as_map(self.trunk, self._after_blocks(tokens, start, mask))
        if mask is not None:
            features = torch.where(self._cells(mask, 1)[:, None], features, 0)
        if self.reads_pixels:
            detail = pixels if mask is None else zero_padding(pixels, mask)
        outputs: Outputs = self.head(self.neck(features, detail))
        return outputs._replace(inside=None if mask is None else self._cells(mask, 2))

    def _after_blocks(self, tokens: Tensor, start: int, mask: Tensor | None) -> Tensor:
        """The tokens after all blocks, from those before block `start`."""
        first = len(cast(Any, self.trunk).blocks) - self.windowed_blocks
        tokens = run_blocks(self.trunk, tokens, start, max(start, first))
        if not self.windowed_blocks:
            return tokens
        inside = None if mask is None else self._cells(mask, 1)
        return run_in_windows(self.trunk, tokens, max(start, first), self.window, inside)

    def tokens_before(
        self, block: int, pixels: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B S d"]:
        """The tokens before one of the blocks, by number.

        **Arguments:**

        - `block`: number of the block, from 0.
        - `pixels`, `mask`: as for `forward`.

        **Raises:** ValueError for a block after the first one that attends within windows.
        """
        if block > (last := len(cast(Any, self.trunk).blocks) - self.windowed_blocks):
            raise ValueError(f"block={block}: blocks from {last} on attend within windows, accepted are 0 to {last}")
        with self._masked(mask):
            return run_blocks(self.trunk, embed(self.trunk, pixels)[0], 0, block)

    def _cells(self, mask: Tensor, factor: int) -> Tensor:
        """The cells of the trunk's features with a pixel of the image, each divided into factor × factor."""
        vertical, horizontal = (round(2 * side) for side in self.stride)
        coarse = patch_mask(mask, (vertical, horizontal))
        return coarse.repeat_interleave(factor, 1).repeat_interleave(factor, 2)

    def _masked(self, mask: Tensor | None) -> Any:
        return nullcontext() if mask is None or not self.reads_masks else condition(self.trunk, mask)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that get no weight decay, besides vectors."""
        return {f"trunk.{name}" for name in without_weight_decay(self.trunk)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether the trunk's blocks are computed again in backward, which saves memory."""
        cast(Any, self.trunk).set_grad_checkpointing(enable)

    def get_classifier(self) -> nn.Module:
        """The layer that scores the classes."""
        return self.head.centre

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the layer that scores the classes by a new one. The rest of the head stays."""
        device = next(self.head.parameters()).device
        self.num_classes = num_classes
        head = CentreHead(self.width, num_classes, self.stride, self.head_depth)
        self.head.centre = head.centre.to(memory_format=torch.channels_last).to(device)

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        """Sets the size of the input, as timm's networks do. Position embeddings of the trunk are resized.

        **Arguments:**

        - `img_size`: (height, width) in pixels.

        **Raises:** ValueError if the trunk does not accept the size.
        """
        set_image_size(self.trunk, img_size, "the trunk")
        self.img_size = img_size
        update_model_input_size(self, img_size)

    def model_args(self) -> dict[str, Any]:
        """The arguments with which `timm.create_model` builds this network again."""
        described = rebuilding(
            self.trunk,
            {"architecture": _name_of(self.trunk), "model_args": get_model_args(self.trunk)},
        )
        trunk_args = {key: value for key, value in described["model_args"].items() if key != "num_classes"}
        return {
            "trunk": described["architecture"],
            "trunk_args": trunk_args,
            "img_size": list(self.img_size),
            "in_chans": self.in_chans,
            "width": self.width,
            "head_depth": self.head_depth,
            "detail": self.detail,
            "windowed_blocks": self.windowed_blocks,
            "window": self.window,
        }


@register_model
def vmoe_detector(
    pretrained: bool = False, trunk: str = "", trunk_args: Mapping[str, Any] | None = None, **arguments: Any
) -> nn.Module:
    """A detector, by the name of its trunk.

    **Arguments:**

    - `pretrained`: as in timm; default False.
    - `trunk`: timm's name of the trunk, or a preset.
    - `trunk_args`: arguments of the trunk; default: none.
    - `arguments`: arguments of `Detector`.
    """
    if not trunk:
        raise ValueError(f"{DETECTOR} needs trunk=: vismoe.detection.make_detector makes such networks")
    model: nn.Module = build_model_with_cfg(
        partial(_build, trunk, dict(trunk_args or {})), DETECTOR, pretrained, **arguments
    )
    return model


def _build(trunk: str, trunk_args: dict[str, Any], **arguments: Any) -> nn.Module:
    network = timm.create_model(trunk, **trunk_args | {"num_classes": 0})
    height, width = arguments.pop("img_size")
    return Detector(network, img_size=(height, width), **arguments)


def make_detector(
    trunk: nn.Module, num_classes: int, image_size: tuple[int, int], source: str = "the trunk", **options: Any
) -> Detector:
    """Makes a detector with the weights of a network, and a new neck and head.

    **Arguments:**

    - `trunk`: a network of vismoe's or timm's; its classifier is not used.
    - `num_classes`: number of classes.
    - `image_size`: (height, width) of the input, in pixels. Position embeddings are resized.
    - `source`: the name of the trunk in error messages; default "the trunk".
    - `options`: further arguments of `Detector`.

    **Returns:** the detector, with the preprocessing of the trunk.

    **Raises:** ValueError for a trunk that cannot be used, or another image size than it accepts.
    """
    network = cast(Any, trunk)
    if not hasattr(network, "pretrained_cfg") or not hasattr(network, "forward_intermediates"):
        raise ValueError(
            f"{source} is a {type(trunk).__name__}, which has no feature maps: accepted are networks of vismoe and timm"
        )
    set_image_size(network, image_size, source)
    described = rebuilding(network, {"architecture": _name_of(network), "model_args": get_model_args(network)})
    config, channels = data_config(network), int(data_config(network)["input_size"][0])
    detector = timm.create_model(
        DETECTOR,
        trunk=described["architecture"],
        trunk_args=described["model_args"],
        num_classes=num_classes,
        img_size=image_size,
        in_chans=channels,
        **options,
    )
    names = set(detector.trunk.state_dict())
    detector.trunk.load_state_dict({name: value for name, value in network.state_dict().items() if name in names})
    detector.pretrained_cfg |= {name: config[name] for name in ("mean", "std", "interpolation")}
    detector.pretrained_cfg |= {"input_size": (channels, *image_size)}
    if "max_level" in config:
        detector.pretrained_cfg |= {"max_level": config["max_level"]}
    return cast(Detector, detector)


def _name_of(network: nn.Module) -> str:
    return str(cast(Any, network).pretrained_cfg["architecture"])

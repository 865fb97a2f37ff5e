"""The convolutional stem: timm's stack of convolutions as a patch embedding."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from timm.layers import HybridEmbed, LayerNorm2d, to_2tuple
from timm.layers.format import nchw_to
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from vismoe.moe.condition import Conditions

from .masks import MaskedEmbedding, patch_mask, zero_padding


def check_patch_size(patch_size: int | tuple[int, int], stem: str = "conv") -> int:
    """The number of convolutions of the stem.

    **Raises:** ValueError for another stem, and for a patch size that it cannot have.
    """
    height, width = to_2tuple(patch_size)
    depth = height.bit_length() - 1
    if stem != "conv" or height != width or height != 2**depth or not 1 <= depth <= 5:
        given = height if height == width else patch_size
        raise ValueError(f'stem={stem!r}, patch_size={given}: accepted are "patch", and "conv" for 2, 4, 8, 16 or 32')
    return depth


class ConvEmbed(MaskedEmbedding, HybridEmbed):
    """timm's stack of convolutions as a patch embedding (Xiao et al. 2021, *Early Convolutions Help Transformers See
    Better*). Each convolution halves height and width, rounded up, so an image may have any size. The norms are layer
    norms, so an image's result does not depend on its batch.

    It answers as timm's `PatchEmbed`: `patch_size` is how many pixels one token stands for, in height and width.
    (timm's `HybridEmbed` has the patch size of the convolutions' output there, 1.)

    **Arguments:**

    - `img_size`: height and width of an image, in pixels.
    - `patch_size`: 2, 4, 8, 16 or 32.
    - `in_chans`: number of channels.
    - `embed_dim`: width of a token.
    - `dynamic_img_pad`: has no effect: sides that are no multiple of the patch size are always rounded up.
    - `options`: other arguments of timm's `HybridEmbed`.

    **Raises:** ValueError for another patch size.
    """

    backbone: ConvStem

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        dynamic_img_pad: bool = False,
        **options: Any,
    ) -> None:
        depth = check_patch_size(patch_size)
        backbone = ConvStem(
            in_chans=in_chans,
            depth=depth,
            channels=embed_dim,
            stride=(2,) * depth,
            norm_layer=LayerNorm2d,
            act_layer=nn.GELU,
            device=options.get("device"),
            dtype=options.get("dtype"),
        )
        super().__init__(backbone, img_size, in_chans=in_chans, embed_dim=embed_dim, proj=False, **options)
        self.patch_size = self.feature_ratio = to_2tuple(patch_size)
        self.conditions, self.prefix_tokens = Conditions(), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.as_tokens(self.maps(x)[-1])

    def maps(self, x: Float[Tensor, "B C H W"]) -> list[Tensor]:
        """The output of each convolution. The last one is the patch embedding, as a map; those before have more
        detail."""
        mask, maps = self.pixel_mask(x), []
        # Each convolution sees zeros beyond the image, as beyond the border: so padding is set to 0 before each.
        x = x if mask is None else zero_padding(x, mask)
        for convolution in self.backbone.children():
            x = convolution(x)
            if mask is not None:
                mask = patch_mask(mask, (2, 2))
                x = zero_padding(x, mask)
            maps.append(x)
        return maps

    def as_tokens(self, x: Float[Tensor, "B d h w"]) -> Tensor:
        """The patch embedding as the network reads it: rows of tokens, unless `output_fmt` says otherwise."""
        return x.flatten(2).mT if self.flatten else nchw_to(x, self.output_fmt)

    def feat_ratio(self, as_scalar: bool = True) -> tuple[int, int] | int:
        """How many pixels one token stands for: (height, width), or the larger one."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """The grid of tokens of an image: height and width, in tokens."""
        (height, width), (patch_height, patch_width) = img_size, self.patch_size
        return -(-height // patch_height), -(-width // patch_width)

    def set_input_size(
        self,
        img_size: int | Sequence[int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        """Changes the image size. Only the grid of tokens changes, no weights.

        **Raises:** ValueError for another patch size.
        """
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise ValueError(
                f"patch_size={patch_size}: the convolutional stem has {self.patch_size[0]}, one convolution for each "
                "halving: build the network with another patch size"
            )
        if img_size is not None:
            self.img_size = to_2tuple(img_size)
            self.feature_size = self.grid_size = self.dynamic_feat_size(self.img_size)
            self.num_patches = self.grid_size[0] * self.grid_size[1]

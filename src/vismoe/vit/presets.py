"""Architectures by name: one table of sizes, combined with the sparse blocks and the numbers of experts."""

from dataclasses import dataclass, field
from typing import Any

PAPER_MOE = {
    "experts_per_token": 2,
    "balance": "loss",
    "noise_std": 1.0,
    "loss_weights": {"importance": 0.005, "load": 0.005},
    "capacity_factor": 1.05,
    "eval_capacity_factor": "none",
}
"""The paper's options (Riquelme et al. 2021, appendix B)."""


def fine_grained(mlp_dim: int) -> dict[str, Any]:
    """Fine-grained experts (Dai et al. 2024, *DeepSeekMoE*): each has a quarter of the MLP's width; a token uses three
    of them, and one that all tokens share. So a token costs as much as with the MLP. The gates are sigmoids that sum to
    1, as in DeepSeek-V3."""
    quarter = mlp_dim // 4
    fields = {"router": "sigmoid", "experts_per_token": 3, "combine": "renormalized", "expert_hidden_dim": quarter}
    return fields | {"shared": True, "shared_hidden_dim": quarter}


CONV_STEM_AND_MEAN = {"stem": "conv", "class_token": False, "global_pool": "avg"}
"""Arguments that help small networks in short trainings (docs/training.md, Fashion-MNIST)."""


@dataclass(frozen=True)
class Size:
    """The shape of a trunk.

    - `dim`, `depth`, `heads`, `mlp_dim`: width, number of blocks, attention heads, hidden width of the MLPs.
    - `patch`, `image`: side of a patch and of an image, in pixels.
    - `placements`: which blocks are sparse, one preset each (see `MoEConfig.moe_layers`).
    - `experts`: numbers of experts, one preset each.
    - `paper`: whether the presets have the paper's options.
    - `pos_embed_std`: standard deviation of the initial position embedding.
    - `parts`: further arguments of the network.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    patch: int
    image: int
    placements: tuple[str, ...] = ("every-2", "last-2")
    experts: tuple[int, ...] = (8, 32)
    paper: bool = False
    pos_embed_std: float = 0.02
    parts: dict[str, Any] = field(default_factory=dict)


SIZES = {
    # The paper's sizes (Riquelme et al. 2021, table 2 and appendix B). Its S is not timm's S.
    "s32": Size(512, 8, 8, 2048, 32, 224, paper=True),
    "b32": Size(768, 12, 12, 3072, 32, 224, paper=True),
    "b16": Size(768, 12, 12, 3072, 16, 224, paper=True),
    "l32": Size(1024, 24, 16, 4096, 32, 224, paper=True),
    "l16": Size(1024, 24, 16, 4096, 16, 224, paper=True),
    "h14": Size(1280, 32, 16, 5120, 14, 224, ("every-2", "last-5"), paper=True),
    # Depth, sparse blocks, E and k are published, the widths are not: these give the published 14.7 B parameters.
    "15b": Size(1408, 48, 16, 6400, 14, 224, ("every-2",), (32,), paper=True),
    # timm's sizes.
    "tiny_patch16_224": Size(192, 12, 3, 768, 16, 224),
    "small_patch16_224": Size(384, 12, 6, 1536, 16, 224),
    "base_patch16_224": Size(768, 12, 12, 3072, 16, 224),
    # For small images on a CPU.
    "pico_patch2_8": Size(64, 4, 4, 256, 2, 8, ("every-2",), pos_embed_std=1.0),
    "pico_patch4_28": Size(64, 4, 4, 256, 4, 28, ("every-2",), pos_embed_std=1.0, parts=CONV_STEM_AND_MEAN),
    "nano_patch4_32": Size(128, 6, 4, 512, 4, 32, pos_embed_std=1.0),
    "nano_patch8_64": Size(128, 6, 4, 512, 8, 64, pos_embed_std=1.0, parts=CONV_STEM_AND_MEAN),
    "nano_patch16_128": Size(128, 6, 4, 512, 16, 128, pos_embed_std=1.0, parts=CONV_STEM_AND_MEAN),
}


@dataclass(frozen=True)
class Preset:
    """A named architecture. Images are normalised with mean and std 0.5.

    - `name`: name of the preset.
    - `image`: height and width of an image, in pixels.
    - `arguments`: arguments of `SparseVisionTransformer`.
    """

    name: str
    image: int
    arguments: dict[str, Any] = field(default_factory=dict)


def _arguments(size: Size) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "img_size": size.image,
        "patch_size": size.patch,
        "embed_dim": size.dim,
        "depth": size.depth,
        "num_heads": size.heads,
        "mlp_ratio": size.mlp_dim / size.dim,
        # Xavier, as in the reference. timm's default is too small for narrow models; sparse and dense need one scheme.
        "weight_init": "jax",
    }
    arguments |= size.parts
    if size.pos_embed_std != 0.02:
        arguments["pos_embed_std"] = size.pos_embed_std
    if size.paper:
        arguments |= {"act_layer": "gelu_tanh", "representation_size": size.dim}
    return arguments


def _presets() -> dict[str, Preset]:
    presets = []
    for name, size in SIZES.items():
        presets.append(Preset(f"vmoe_{name}_dense", size.image, _arguments(size)))
        for placement in size.placements:
            for experts in size.experts:
                moe = {"moe_layers": placement, "num_experts": experts} | (PAPER_MOE if size.paper else {})
                full_name = f"vmoe_{name}_{placement.replace('-', '')}_e{experts}"
                presets.append(Preset(full_name, size.image, _arguments(size) | {"moe": moe}))
                if experts == max(size.experts) and not size.paper:
                    moe = moe | fine_grained(size.mlp_dim)
                    presets.append(Preset(f"{full_name}_fine", size.image, _arguments(size) | {"moe": moe}))
    return {preset.name: preset for preset in presets}


PRESETS = _presets()


def dense_twin(name: str) -> str:
    """The name of the preset with the same trunk and no experts."""
    return next(f"vmoe_{size}_dense" for size in SIZES if name.startswith(f"vmoe_{size}_"))

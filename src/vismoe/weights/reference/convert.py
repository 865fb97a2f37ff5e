"""Converts checkpoints of google-research/vmoe, and files of Google's dense ViTs, to model folders."""

import math
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vismoe.vit import PRESETS, MoEConfig, Preset, SparseVisionTransformer
from vismoe.vit.positions import resize_positions

from ..folders.save import save
from ..published import PUBLISHED, Published
from ..registry import create_model
from ..sources import unknown_preset
from .checkpoint import Checkpoint
from .config import MODEL_CLASS, PATCHES
from .npz import CLASS_TOKEN, POSITIONS, DenseNpz
from .places import places
from .tree import from_reference

Shapes = dict[str, tuple[int, ...]]


def convert(
    source: str | Path, destination: str | Path, preset: str | None = None, image_size: int | None = None
) -> nn.Module:
    """Converts a checkpoint of google-research/vmoe, or a file of a dense Google ViT, to a model folder.

    **Arguments:**

    - `source`: a checkpoint's prefix (see `read_reference`), of parameters or of a whole training state; or an `.npz`
      file of vit_jax, AugReg or big_vision.
    - `destination`: model folder to write.
    - `preset`: preset with what the files lack (experts per token, capacity, group size). Sizes in the files must match
      it, except image size, classes and representation layer. Default: that of a published checkpoint's name; dense
      networks need none.
    - `image_size`: height and width in pixels, for which the position embedding is resized (see `resize_positions`);
      default: that of the files.

    **Returns:** the model, in evaluation mode. Conversion needs extra memory only for the largest tensor.

    **Raises:** FileNotFoundError for missing files; ValueError for damaged ones, and, with their names, for parameters
    that are missing, unexpected or of another shape. Nothing is written then.
    """
    source = Path(source)
    file = DenseNpz(source) if source.suffix == ".npz" else Checkpoint(source)
    published = PUBLISHED.get(source.name.removesuffix(".index"))
    names = _parameters(file.shapes)
    shapes = {name: file.shapes[name_in_file] for name, name_in_file in names.items()}
    for name_in_file in names.values():
        if file.dtypes[name_in_file].kind != "f":
            raise ValueError(
                f"{source}: tensor {name_in_file!r} has type {file.dtypes[name_in_file]}, expected a float type"
            )
    target_shapes = _target_shapes(source, shapes, published, image_size)
    build = _builder(source, target_shapes, published, preset)
    try:
        with torch.device("meta"):  # no memory: errors come before any is allocated
            needed = _views(build())
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    _check_shapes(source, target_shapes, needed)
    model = build().eval()
    _read_parameters(file, names, _views(model))
    if published is not None:
        model.pretrained_cfg |= published.preprocessing
    save(model, destination)
    return model


def _views(model: SparseVisionTransformer) -> dict[str, Tensor]:
    """The model's parameters, each as a view in the reference's layout, by the reference's names."""
    return {name: view(model.get_parameter(path)) for name, (path, view) in places(model).items()}


def _parameters(shapes: Mapping[str, Any]) -> dict[str, str]:
    """Parameter names, with their names in the file. A training state has other arrays too."""
    inside = {name.removeprefix("params/"): name for name in shapes if name.startswith("params/")}
    return inside or {name: name for name in shapes}


def _target_shapes(source: Path, shapes: Shapes, published: Published | None, image_size: int | None) -> Shapes:
    """Shapes of the parameters in the model."""
    if missing := [name for name in (PATCHES, POSITIONS) if name not in shapes]:
        raise ValueError(f"{source} lacks {' and '.join(missing)}: it is not a vision transformer of the reference")
    for name, axes in ((PATCHES, "height, width, channels, dim"), (POSITIONS, "1, tokens, dim")):
        if len(shapes[name]) != axes.count(",") + 1 or 0 in shapes[name]:
            raise ValueError(f"{source}: tensor {name!r} has shape {shapes[name]}, expected ({axes})")
    target = dict(shapes)
    if image_size is not None:
        height, width = shapes[PATCHES][:2]
        if image_size < 1 or image_size % height or image_size % width:
            raise ValueError(
                f"image_size={image_size} is not a multiple of {height} × {width}, the patch size of {source}"
            )
        tokens = (image_size // height) * (image_size // width) + (CLASS_TOKEN in shapes)
        target[POSITIONS] = (shapes[POSITIONS][0], tokens, shapes[POSITIONS][2])
    if published is not None and published.members > 1:
        for name, shape in shapes.items():
            if name.endswith("/Moe/Router/dense/kernel") and len(shape) == 2:  # members are concatenated
                target[name] = (shape[0], published.members, shape[1] // published.members)
    return target


def _builder(source: Path, shapes: Shapes, published: Published | None, preset: str | None) -> Any:
    """Returns a function that builds the network, from the preset if there is one."""
    sizes, members = _sizes_of_file(shapes), _axis_length(shapes, r"/Moe/Router/dense/kernel$", 3, 1)
    preset = preset or (published.preset if published else None)
    if preset is None:
        if sizes.get("sparse blocks"):
            raise ValueError(
                f"{source} has no configuration, and its name is not that of a published checkpoint: the number of "
                "experts per token, capacity and group size are unknown; name a preset that has them (`vismoe models` "
                "lists presets)"
            )
        return partial(from_reference, _zeros(shapes), _configuration(source, sizes, shapes))
    if preset not in PRESETS:
        raise unknown_preset(preset)
    architecture = PRESETS[preset]
    if unsupported := {"stem", "class_token", "global_pool"} & set(architecture.arguments):
        raise ValueError(
            f"{source}: preset {preset} has a different {', '.join(sorted(unsupported))} than networks of the reference"
        )
    expected = _sizes_of_preset(architecture)
    if differences := [kind for kind in expected if kind in sizes and sizes[kind] != expected[kind]]:
        listed = "; ".join(f"{kind} {sizes[kind]}, the preset's {expected[kind]}" for kind in differences)
        raise ValueError(f"{source} does not fit preset {preset}: {listed}")
    arguments: dict[str, Any] = {
        "img_size": _image_size(source, shapes),
        "in_chans": shapes[PATCHES][2],
        "representation_size": _axis_length(shapes, r"^pre_logits/kernel$", 2, 1) or 0,
        "act_layer": "gelu_tanh",  # presets with timm's sizes have timm's GELU
    }
    if members:
        arguments["ensemble_size"] = members
    if published is not None:
        arguments |= published.moe
    return partial(create_model, preset, _axis_length(shapes, r"^head/kernel$", 2, 1) or 0, **arguments)


def _sizes_of_file(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the network, from the shapes in the file."""
    block = r"^Encoder/encoderblock_(\d{1,9})/"
    depth = len({match[1] for name in shapes if (match := re.match(block, name))})
    sparse = {int(match[1]) for name in shapes if (match := re.match(f"{block}Moe/", name))}
    sizes = {
        "patch": shapes[PATCHES][:2],
        "width": shapes[PATCHES][3],
        "depth": depth,
        "heads": _axis_length(shapes, rf"{block}SelfAttention/query/kernel$", 3, 1),
        "MLP width": _axis_length(shapes, rf"{block}Mlp/Dense_0/kernel$", 2, 1)
        or _axis_length(shapes, rf"{block}Moe/Mlp/Dense_0/kernel$", 3, 2),
        "experts": _axis_length(shapes, rf"{block}Moe/Mlp/Dense_0/kernel$", 3, 0),
        "sparse blocks": sorted(sparse),
    }
    return {kind: size for kind, size in sizes.items() if size is not None}


def _sizes_of_preset(preset: Preset) -> dict[str, Any]:
    arguments = preset.arguments
    sizes = {
        "patch": (arguments["patch_size"],) * 2,
        "width": arguments["embed_dim"],
        "depth": arguments["depth"],
        "heads": arguments["num_heads"],
        "MLP width": round(arguments["embed_dim"] * arguments["mlp_ratio"]),
        "sparse blocks": [],
    }
    if "moe" in arguments:
        moe = MoEConfig(**arguments["moe"])
        sizes |= {"experts": moe.num_experts, "sparse blocks": moe.blocks(arguments["depth"])}
    return sizes


def _configuration(source: Path, sizes: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The reference's configuration of a dense network of these sizes."""
    if missing := [kind for kind in ("width", "depth", "heads", "MLP width") if not sizes.get(kind)]:
        raise ValueError(f"{source} lacks the parameters that determine its {', '.join(missing)}")
    if sizes["width"] % sizes["heads"]:
        raise ValueError(f"{source}: {sizes['heads']} heads do not divide a width of {sizes['width']}")
    encoder = {"num_layers": sizes["depth"], "mlp_dim": sizes["MLP width"], "num_heads": sizes["heads"]}
    if any("/query_ln/" in name for name in shapes):
        encoder["attention_qk_norm"] = True
    pooled = "map" if "MapHead/probe" in shapes else "gap"
    model = {
        "num_classes": _axis_length(shapes, r"^head/kernel$", 2, 1),
        "patch_size": sizes["patch"],
        "hidden_size": sizes["width"],
        "classifier": "token" if CLASS_TOKEN in shapes else pooled,
        "representation_size": _axis_length(shapes, r"^pre_logits/kernel$", 2, 1),
        "encoder": encoder,
    }
    return {"model_class": MODEL_CLASS, "model": model}


def _image_size(source: Path, shapes: Shapes) -> tuple[int, int]:
    tokens = shapes[POSITIONS][1] - 1  # presets have a class token
    side = math.isqrt(tokens)
    if side < 1 or side * side != tokens:
        raise ValueError(f"{source}: {POSITIONS} of shape {shapes[POSITIONS]} does not have a square number of patches")
    return side * shapes[PATCHES][0], side * shapes[PATCHES][1]


def _axis_length(shapes: Shapes, pattern: str, axes: int, axis: int) -> int | None:
    """The length of an axis of the first parameter with this number of axes whose name matches the pattern."""
    lengths = (shape[axis] for name, shape in shapes.items() if len(shape) == axes and re.search(pattern, name))
    return next(lengths, None)


def _zeros(shapes: Shapes) -> dict[str, np.ndarray]:
    """Arrays of these shapes that use no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def _check_shapes(source: Path, shapes: Shapes, views: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names every parameter that is missing, unexpected or of another shape."""
    problems = {
        "missing": sorted(set(views) - set(shapes)),
        "unexpected": sorted(set(shapes) - set(views)),
        "of another shape": [
            f"{name} {shapes[name]}, expected {tuple(view.shape)}"
            for name, view in views.items()
            if name in shapes and shapes[name] != tuple(view.shape)
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        raise ValueError(f"{source} does not have the parameters of the network: {listed}")


@torch.no_grad()
def _read_parameters(file: Checkpoint | DenseNpz, names: Mapping[str, str], views: Mapping[str, Tensor]) -> None:
    """Reads each parameter into its view in the model; those of another shape in the file via a separate array."""
    arrays, reshaped = {}, {}
    for name, view in views.items():
        shape = file.shapes[names[name]]
        if shape != tuple(view.shape):
            reshaped[name] = np.empty(shape, np.float32)
        arrays[names[name]] = reshaped.get(name, view.detach().numpy())
    file.fill(arrays)
    for name, array in reshaped.items():
        read, view = torch.from_numpy(array), views[name]
        view.copy_(resize_positions(read, view.shape[1]) if name == POSITIONS else read.reshape(view.shape))

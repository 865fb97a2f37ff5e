"""Files of google-research/vmoe, and of Google's dense ViTs, as model folders."""

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
    """Writes a model folder of files that hold parameters of google-research/vmoe, or of a dense ViT of Google's.

    **Arguments:** `source`: a checkpoint's prefix, as of `read_reference`, also of a whole training state, whose
    parameters are taken; or an `.npz` file of vit_jax, AugReg or big_vision; `preset`: what the files do not say (how
    many experts a token goes to, capacity, group size); it need not be given for the published checkpoints' names, nor
    where no block is sparse. Sizes are read off the files, and must be the preset's but for image size, classes and
    representation layer; `image_size`: pixels of images, where not those of the files: the position embedding is
    resized, see `resize_positions`.

    **Returns:** the model, at evaluation. Beside it, no more memory is taken than its largest tensor needs.

    **Raises:** FileNotFoundError for files that are missing; ValueError for damaged ones, and for parameters that are
    missing, superfluous or of another shape, by name. No folder is written then.
    """
    source = Path(source)
    opened = DenseNpz(source) if source.suffix == ".npz" else Checkpoint(source)
    published = PUBLISHED.get(source.name.removesuffix(".index"))
    names = _parameters(opened.shapes)
    shapes = {name: opened.shapes[full] for name, full in names.items()}
    for full in names.values():
        if opened.dtypes[full].kind != "f":
            raise ValueError(f"{source}: tensor {full!r} is of type {opened.dtypes[full]}, which no parameter is")
    wanted = _reshaped(source, shapes, published, image_size)
    build = _builder(source, wanted, published, preset)
    try:
        with torch.device("meta"):  # without memory: what does not fit is said before any is taken
            needed = _views(build())
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    _check(source, wanted, needed)
    model = build().eval()
    _fill(opened, names, _views(model))
    if published is not None:
        model.pretrained_cfg |= published.preprocessing
    save(model, destination)
    return model


def _views(model: SparseVisionTransformer) -> dict[str, Tensor]:
    """The model's parameters, each as a view in the reference's layout, by the reference's names."""
    return {name: view(model.get_parameter(path)) for name, (path, view) in places(model).items()}


def _parameters(shapes: Mapping[str, Any]) -> dict[str, str]:
    """Names of parameters, and what they are called in the file: a training state has more than those."""
    inside = {name.removeprefix("params/"): name for name in shapes if name.startswith("params/")}
    return inside or {name: name for name in shapes}


def _reshaped(source: Path, shapes: Shapes, published: Published | None, image_size: int | None) -> Shapes:
    """The shapes that the parameters are to have."""
    if missing := [name for name in (PATCHES, POSITIONS) if name not in shapes]:
        raise ValueError(f"{source} lacks {' and '.join(missing)}: it is no vision transformer of the reference's")
    for name, axes in ((PATCHES, "height, width, channels, dim"), (POSITIONS, "1, tokens, dim")):
        if len(shapes[name]) != axes.count(",") + 1 or 0 in shapes[name]:
            raise ValueError(f"{source}: tensor {name!r} has shape {shapes[name]}, expected ({axes})")
    wanted = dict(shapes)
    if image_size is not None:
        height, width = shapes[PATCHES][:2]
        if image_size < 1 or image_size % height or image_size % width:
            raise ValueError(f"image_size={image_size} is no multiple of {height} × {width}, the patch of {source}")
        tokens = (image_size // height) * (image_size // width) + (CLASS_TOKEN in shapes)
        wanted[POSITIONS] = (shapes[POSITIONS][0], tokens, shapes[POSITIONS][2])
    if published is not None and published.members > 1:
        for name, shape in shapes.items():
            if name.endswith("/Moe/Router/dense/kernel") and len(shape) == 2:  # its members side by side
                wanted[name] = (shape[0], published.members, shape[1] // published.members)
    return wanted


def _builder(source: Path, shapes: Shapes, published: Published | None, preset: str | None) -> Any:
    """A function that makes the network, of the preset where one is known."""
    found, members = _sizes(shapes), _axis(shapes, r"/Moe/Router/dense/kernel$", 3, 1)
    preset = preset or (published.preset if published else None)
    if preset is None:
        if found.get("sparse blocks"):
            raise ValueError(
                f"{source} holds no configuration, and its name is none of a published checkpoint: missing are the "
                "number of experts that a token goes to (k), capacity and group size; name a preset that has them "
                "(`vismoe models` lists presets)"
            )
        return partial(from_reference, _zeros(shapes), _configuration(source, found, shapes))
    if preset not in PRESETS:
        raise unknown_preset(preset)
    known = PRESETS[preset]
    if strange := {"stem", "class_token", "global_pool"} & set(known.arguments):
        raise ValueError(
            f"{source}: preset {preset} has another {', '.join(sorted(strange))} than the reference's networks"
        )
    expected = _sizes_of(known)
    if differences := [what for what in expected if what in found and found[what] != expected[what]]:
        told = "; ".join(f"{what} {found[what]}, the preset's {expected[what]}" for what in differences)
        raise ValueError(f"{source} does not fit preset {preset}: {told}")
    arguments: dict[str, Any] = {
        "img_size": _image_size(source, shapes),
        "in_chans": shapes[PATCHES][2],
        "representation_size": _axis(shapes, r"^pre_logits/kernel$", 2, 1) or 0,
        "act_layer": "gelu_tanh",  # presets of timm's shapes have timm's
    }
    if members:
        arguments["ensemble_size"] = members
    if published is not None:
        arguments |= published.moe
    return partial(create_model, preset, _axis(shapes, r"^head/kernel$", 2, 1) or 0, **arguments)


def _sizes(shapes: Shapes) -> dict[str, Any]:
    """What the shapes say of the network."""
    block = r"^Encoder/encoderblock_(\d{1,9})/"
    depth = len({found[1] for name in shapes if (found := re.match(block, name))})
    sparse = {int(found[1]) for name in shapes if (found := re.match(f"{block}Moe/", name))}
    sizes = {
        "patch": shapes[PATCHES][:2],
        "width": shapes[PATCHES][3],
        "depth": depth,
        "heads": _axis(shapes, rf"{block}SelfAttention/query/kernel$", 3, 1),
        "MLP width": _axis(shapes, rf"{block}Mlp/Dense_0/kernel$", 2, 1)
        or _axis(shapes, rf"{block}Moe/Mlp/Dense_0/kernel$", 3, 2),
        "experts": _axis(shapes, rf"{block}Moe/Mlp/Dense_0/kernel$", 3, 0),
        "sparse blocks": sorted(sparse),
    }
    return {what: size for what, size in sizes.items() if size is not None}


def _sizes_of(preset: Preset) -> dict[str, Any]:
    given = preset.arguments
    sizes = {
        "patch": (given["patch_size"],) * 2,
        "width": given["embed_dim"],
        "depth": given["depth"],
        "heads": given["num_heads"],
        "MLP width": round(given["embed_dim"] * given["mlp_ratio"]),
        "sparse blocks": [],
    }
    if "moe" in given:
        moe = MoEConfig(**given["moe"])
        sizes |= {"experts": moe.num_experts, "sparse blocks": moe.blocks(given["depth"])}
    return sizes


def _configuration(source: Path, sizes: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The reference's configuration of a dense network of these sizes."""
    if missing := [what for what in ("width", "depth", "heads", "MLP width") if not sizes.get(what)]:
        raise ValueError(f"{source} has no parameters that say its {', '.join(missing)}")
    if sizes["width"] % sizes["heads"]:
        raise ValueError(f"{source}: {sizes['heads']} heads do not divide a width of {sizes['width']}")
    encoder = {"num_layers": sizes["depth"], "mlp_dim": sizes["MLP width"], "num_heads": sizes["heads"]}
    if any("/query_ln/" in name for name in shapes):
        encoder["attention_qk_norm"] = True
    pooled = "map" if "MapHead/probe" in shapes else "gap"
    model = {
        "num_classes": _axis(shapes, r"^head/kernel$", 2, 1),
        "patch_size": sizes["patch"],
        "hidden_size": sizes["width"],
        "classifier": "token" if CLASS_TOKEN in shapes else pooled,
        "representation_size": _axis(shapes, r"^pre_logits/kernel$", 2, 1),
        "encoder": encoder,
    }
    return {"model_class": MODEL_CLASS, "model": model}


def _image_size(source: Path, shapes: Shapes) -> tuple[int, int]:
    tokens = shapes[POSITIONS][1] - 1  # presets have a class token
    side = math.isqrt(tokens)
    if side < 1 or side * side != tokens:
        raise ValueError(f"{source}: {POSITIONS} of shape {shapes[POSITIONS]} is of no square of patches")
    return side * shapes[PATCHES][0], side * shapes[PATCHES][1]


def _axis(shapes: Shapes, pattern: str, axes: int, axis: int) -> int | None:
    """The length of an axis of the first parameter that the pattern finds and that has so many axes."""
    lengths = (shape[axis] for name, shape in shapes.items() if len(shape) == axes and re.search(pattern, name))
    return next(lengths, None)


def _zeros(shapes: Shapes) -> dict[str, np.ndarray]:
    """Arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def _check(source: Path, shapes: Shapes, places: Mapping[str, Tensor]) -> None:
    """Raises ValueError that names every parameter that is missing, superfluous or of another shape."""
    told = {
        "missing": sorted(set(places) - set(shapes)),
        "superfluous": sorted(set(shapes) - set(places)),
        "of another shape": [
            f"{name} {shapes[name]}, expected {tuple(place.shape)}"
            for name, place in places.items()
            if name in shapes and shapes[name] != tuple(place.shape)
        ],
    }
    if any(told.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names)
        raise ValueError(f"{source} does not hold the parameters of the network: {listed}")


@torch.no_grad()
def _fill(opened: Checkpoint | DenseNpz, names: Mapping[str, str], places: Mapping[str, Tensor]) -> None:
    """Reads each parameter to its place; those that are of another shape in the file through an array of their own."""
    arrays, apart = {}, {}
    for name, place in places.items():
        shape = opened.shapes[names[name]]
        if shape != tuple(place.shape):
            apart[name] = np.empty(shape, np.float32)
        arrays[names[name]] = apart.get(name, place.detach().numpy())
    opened.fill(arrays)
    for name, array in apart.items():
        read, place = torch.from_numpy(array), places[name]
        place.copy_(resize_positions(read, place.shape[1]) if name == POSITIONS else read.reshape(place.shape))

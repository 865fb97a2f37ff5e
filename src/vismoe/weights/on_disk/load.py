"""Loads a network whose experts stay on disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from vismoe.files.amounts import as_text, parse_bytes
from vismoe.moe import MoE, StackedLinear

from ..folders.format import CONFIG, WEIGHTS, model_folder, read_config
from ..folders.load import build, check_weights, describe
from ..folders.tensors import Place, TensorFile
from ..registry import create_model
from .memory import resident_bytes
from .product import MARGIN, Converter, LinearOnDisk, ProductOnDisk
from .store import ExpertStore

LEAST = 2
"""Experts that must fit into memory beside the rest of the network: one is multiplied while the next is read."""


def load_on_disk(path: Path, preset: str | None, max_memory: int | str) -> nn.Module:
    """Loads a network, in evaluation mode, in which only the experts' matrices stay on disk.

    **Arguments:** see `vismoe.load`.

    **Raises:** as `vismoe.load`; ValueError for a network without experts, and if its other tensors and two experts do
    not fit into `max_memory`.
    """
    limit = parse_bytes(max_memory, "max_memory")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a run folder, a model folder or a .safetensors file")
    folder = model_folder(path)
    weights = path if path.is_file() else folder / WEIGHTS
    config = {} if path.is_file() else read_config(folder)
    check_weights(weights)
    if (path.is_dir() and "architecture" not in config) or "parent" in config:
        kind = "has only the differences from a parent" if "parent" in config else "is a folder of transformers'"
        raise ValueError(f"{folder} {kind}: max_memory is for folders that vismoe wrote with all weights")
    if path.is_file() and preset is None:
        raise ValueError(f"{path} has only weights: name their architecture with preset=…")
    file = TensorFile(weights)
    with torch.device("meta"):
        if path.is_file():
            head = file.places.get("head.weight")
            model = create_model(str(preset), num_classes=0 if head is None else head.shape[0])
        else:
            model = build(folder)
    if path.is_dir():
        describe(model, folder / CONFIG, config)
    layers = _stacked(model, file)
    store = ExpertStore(file, layers)
    in_memory = {name: place for name, place in file.places.items() if not any(name in stacked for stacked in layers)}
    _check_limit(limit, model, store, in_memory)
    _put_on_disk(model, store, limit)
    _load_rest(model, file, in_memory)
    return model.requires_grad_(False).eval()


def experts_on_disk(model: nn.Module) -> ExpertStore | None:
    """The experts on disk of a network that was loaded with `max_memory`; None for any other network."""
    products = (layer.product for layer in model.modules() if isinstance(layer, MoE))
    return next((product.store for product in products if isinstance(product, ProductOnDisk)), None)


def _layers(model: nn.Module) -> dict[str, MoE]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MoE)}


def _linears(prefix: str, layer: MoE) -> dict[str, StackedLinear]:
    """The experts' linear layers by the name of their weight."""
    modules = layer.experts.named_modules(prefix=f"{prefix}.experts" if prefix else "experts")
    return {f"{name}.weight": module for name, module in modules if isinstance(module, StackedLinear)}


def _stacked(model: nn.Module, file: TensorFile) -> list[dict[str, Place]]:
    """For each sparse layer, where its experts' stacked matrices are in the file.

    **Raises:** ValueError if there are none, or if one is missing or has another shape.
    """
    layers = [_linears(name, layer) for name, layer in _layers(model).items()]
    layers = [linears for linears in layers if linears]
    if not layers:
        raise ValueError(f"{file.path} has no experts that could stay on disk: leave max_memory out")
    for name, linear in ((name, linear) for linears in layers for name, linear in linears.items()):
        place, shape = file.places.get(name), tuple(linear.weight.shape)
        if place is None or place.shape != shape or not place.dtype.is_floating_point:
            given = "is missing" if place is None else f"has shape {place.shape} and type {place.dtype}"
            raise ValueError(f"{file.path} does not fit {type(model).__name__}: {name} {given}, expected {shape}")
    return [{name: file.places[name] for name in linears} for linears in layers]


def _check_limit(limit: int, model: nn.Module, store: ExpertStore, in_memory: Mapping[str, Place]) -> None:
    """Raises ValueError if the limit is too small for what has to be in memory."""
    expected = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    rest = sum(expected.get(name, place.nbytes) for name, place in in_memory.items())
    largest = max((place.nbytes for place in in_memory.values()), default=0)  # in the file's type, before conversion
    process, experts = resident_bytes(), LEAST * store.piece + 4 * _largest_matrix(store)
    needed = process + rest + max(largest, experts) + MARGIN
    if needed > limit:
        raise ValueError(
            f"max_memory={as_text(limit)}: this process has {as_text(process)}, the network without its experts "
            f"{as_text(rest)}, and {LEAST} experts and their conversion {as_text(experts)}; with a margin of "
            f"{as_text(MARGIN)}, give at least {as_text(needed)}, and more for each batch"
        )


def _largest_matrix(store: ExpertStore) -> int:
    """Number of elements of an expert's largest matrix."""
    entries = [place.entry(0) for stacked in store.layers for place in stacked.values()]
    return max(entry.nbytes // entry.dtype.itemsize for entry in entries)


def _put_on_disk(model: nn.Module, store: ExpertStore, limit: int) -> None:
    """Gives each sparse layer stacked layers without matrices, and the product that reads these."""
    linear = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    widest = max([*linear, *(place.shape[1] for stacked in store.layers for place in stacked.values())])
    convert, number = Converter(_largest_matrix(store)), 0
    for prefix, layer in _layers(model).items():
        linears = _linears(prefix, layer)
        for name, stacked in linears.items():
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            setattr(model.get_submodule(parent), child, LinearOnDisk(name, stacked))
        if linears:
            layer.product = ProductOnDisk(store, number, layer.router.experts_per_token, widest, limit, convert)
            number += 1


def _load_rest(model: nn.Module, file: TensorFile, in_memory: Mapping[str, Place]) -> None:
    """Reads all other tensors, in the types of the network.

    **Raises:** ValueError if they do not fit the network, or the network has buffers that no file has.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    state: dict[str, Tensor] = {}
    for name in in_memory:
        tensor = file.read(name)
        state[name] = tensor.to(own[name].dtype) if name in own else tensor
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{file.path} does not fit {type(model).__name__}: {error}") from error
    for name, module in model.named_modules():
        lacking = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not lacking:
            continue
        if not hasattr(module, "init_non_persistent_buffers"):  # timm's method
            raise ValueError(
                f"{name} ({type(module).__name__}) computes {lacking[0]} when it is built, which max_memory does not "
                "support: leave it out"
            )
        for key in lacking:
            setattr(module, key, torch.empty_like(getattr(module, key), device="cpu"))
        module.init_non_persistent_buffers()

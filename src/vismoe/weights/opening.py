"""Opens the network that a string names, for all commands and functions."""

from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vismoe.files.hub import download, downloading

from .folders.format import CONFIG, FILES, read_config
from .folders.load import load_local
from .folders.parent import Parent, sum_of
from .huggingface.network import as_network
from .on_disk.load import load_on_disk
from .registry import create_model
from .sources import ANSWERS_ONLY, Source, parse_source


def load(
    path: str | Path,
    preset: str | None = None,
    max_memory: int | str | None = None,
    ep: int | None = None,
    replicate: int = 1,
    static: bool = False,
    mixed_precision: Any = None,
) -> nn.Module:
    """Loads a network from a run folder, a model folder, or a folder that timm or transformers wrote with safetensors.

    With `ep` it is distributed over processes, as by `vismoe.parallelize`, and each process reads only its parts of the
    weights. (A network of transformers', and one that is stored as differences from a parent, is read whole first.)

    **Arguments:**

    - `path`: the folder, or a `.safetensors` file.
    - `preset`: the architecture of a `.safetensors` file, which has only weights; default: none.
    - `max_memory`: the most memory that this process may have, in bytes or as text, such as "8GiB". The experts'
      matrices then stay on disk, and a forward pass reads those of the experts that it needs (docs/large-models.md);
      the network can only predict. Default None: all weights are loaded.
    - `ep`: number of processes that share the experts of a layer; default None: the network is not distributed.
    - `replicate`, `static`, `mixed_precision`: see `vismoe.parallelize`; only with `ep`.

    **Returns:** the network, in evaluation mode.

    **Raises:** FileNotFoundError if the path does not exist; ValueError if it is not a model or has pickled weights;
    with `max_memory`, if it has no experts, or more besides them than fits; with `ep` also as `vismoe.parallelize`.
    """
    path = Path(path)
    if max_memory is not None:
        if ep is not None:
            raise ValueError("max_memory and ep: experts stay on disk or are distributed over processes, not both")
        return load_on_disk(path, preset, max_memory)
    if ep is None:
        if (replicate, static, mixed_precision) != (1, False, None):
            raise ValueError("replicate, static and mixed_precision are for a distributed network: give ep= too")
        return load_local(path, preset, open_parent)
    from vismoe.parallel.sharding import parallelize  # these import much of PyTorch

    from .folders.sharded import is_whole, load_distributed

    distribute = partial(parallelize, ep=ep, replicate=replicate, static=static, mixed_precision=mixed_precision)
    if is_whole(path):
        return distribute(load_local(path, preset, open_parent))
    return load_distributed(path, preset, distribute)


def load_network(path: str | Path) -> nn.Module:
    """As `load`, with transformers' networks wrapped as `TransformersNetwork`, which maps pixels to logits."""
    return as_network(load(path))


def open_source(
    source: Source | str,
    num_classes: int | None = None,
    exported: bool = False,
    max_memory: int | str | None = None,
    ep: int = 1,
) -> nn.Module:
    """Opens a network with its own classes.

    **Arguments:**

    - `source`: see `parse_source`; downloaded once if it is not on this machine.
    - `num_classes`: number of classes of a preset, whose weights are random; default 1000.
    - `exported`: whether an exported .onnx file is accepted, which can predict but not train; default False.
    - `max_memory`: see `load`; for run folders, model folders and hf:ORG/NAME. Default None.
    - `ep`: number of processes that share the experts of a layer. With more than one the network is distributed, see
      `load`. Default 1: it is not.

    **Returns:** the network, in evaluation mode, which maps pixels to logits.

    **Raises:** as `parse_source`; ValueError for a source that cannot be downloaded or opened, and for an exported file
    unless `exported`.
    """
    source = parse_source(source) if isinstance(source, str) else source
    if max_memory is not None:
        if source.kind not in ("run", "folder", "hub"):
            raise ValueError(f"{source}: max_memory is for run folders, model folders and hf:ORG/NAME")
        folder = download(source.name, FILES) if source.kind == "hub" else Path(source.name)
        return load_on_disk(folder, None, max_memory)
    if ep > 1:
        if source.kind == "exported":
            raise ValueError(f"{source}: an exported file runs in one process, and cannot share experts with others")
        from vismoe.parallel.sharding import parallelize  # these import much of PyTorch

        from .folders.sharded import is_whole

        if source.kind in ("run", "folder") and not is_whole(Path(source.name)):
            return load(source.name, ep=ep)
        return parallelize(open_source(source, num_classes), ep=ep)
    if source.kind == "exported":
        if not exported:
            raise ValueError(f"{source}: {ANSWERS_ONLY}")
        from .exported.onnx_model import OnnxModel  # needs an optional dependency

        return OnnxModel(source.name)
    if source.kind == "preset":
        return create_model(source.name, num_classes).eval()
    return as_network(_open_trained(source))


def open_trained(source: Source | str) -> nn.Module:
    """As `open_source`, but only for trained networks.

    **Raises:** as `open_source`; ValueError for a preset.
    """
    return open_source(check_trained(source))


def check_trained(source: Source | str) -> Source:
    """Parses a source that must be a trained network.

    **Raises:** as `parse_source`; ValueError for a preset and for an exported file.
    """
    source = parse_source(source) if isinstance(source, str) else source
    if not source.is_trained:
        raise ValueError(
            f"{source} is a preset with random weights: name a trained network (a run or model folder, "
            "timm:NAME, hf:ORG/NAME or PRESET.TAG)"
        )
    if source.kind == "exported":
        raise ValueError(f"{source}: {ANSWERS_ONLY}")
    return source


def open_parent(source: Source | str) -> Parent:
    """Opens a dense network as the parent of upcycled ones.

    **Raises:** as `open_trained`; ValueError if its folder has only the differences from another parent.
    """
    source = check_trained(source)
    model = _open_trained(source, is_parent=True)
    name = str(Path(source.name).resolve()) if source.is_local else source.text
    return Parent(name, sum_of(model.state_dict()), model)


def _open_trained(source: Source, is_parent: bool = False) -> nn.Module:
    """Opens a trained network as it is stored, of any source but exported files."""
    if source.kind in ("published", "timm"):
        return create_model(source.text, num_classes=None, pretrained=True).eval()
    path = Path(source.name)
    if source.kind == "hub":
        config = read_config(download(source.name, (CONFIG,)))
        if "architecture" in config and "vismoe_format" not in config:  # timm's: timm may have to rename weights
            with_weights = partial(timm.create_model, f"hf-hub:{source.name}", pretrained=True)
            return downloading(source.text, with_weights).eval()
        path = download(source.name, FILES)
    return load_local(path, None, None if is_parent else open_parent)

"""Writes model folders atomically."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from vismoe.files import whole_folder
from vismoe.moe.record import unwrap
from vismoe.parallel import join_mesh

from ..huggingface.folder import is_transformers, write_transformers
from ..huggingface.network import TransformersNetwork, as_network
from ..opening import open_parent
from .format import CONFIG, FILES, FORMAT_VERSION, WEIGHTS
from .parent import Parent, differences
from .upcycled import rebuilding


def save(
    model: nn.Module,
    path: str | Path,
    label_names: Sequence[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    problem_type: str | None = None,
    parent: str | Path | None = None,
) -> Path:
    """Writes a model folder atomically. An existing model folder is replaced.

    If the network is distributed (`vismoe.parallelize`, FSDP2), all processes must call it. Process 0 gathers the
    weights and writes the folder that a single process would write.

    **Arguments:**

    - `model`: a network from `create_model` (vismoe's or timm's), a loaded one, or one of transformers'.
    - `path`: the folder.
    - `label_names`: class names in order; default: those of a loaded model, if any.
    - `preprocessing`: entries of timm's data configuration that differ from the preset's (mean, std, interpolation, …);
      default: none.
    - `problem_type`: "multi_label_classification" (transformers' name) if an image may have several classes;
      default: that of a loaded model, if any.
    - `parent`: the dense parent of an upcycled model (a folder, timm:NAME, hf:ORG/NAME or PRESET.TAG). Only the
      differences from it are written, with its name and hash. Only `vismoe.load` opens such a folder; it reads the rest
      from the parent. Default: the whole model is written.

    **Returns:** the folder's absolute path.

    **Raises:** ValueError if `path` has anything but a model folder's files, or `label_names` does not have one name
    per class; TypeError if the network is not vismoe's, timm's or transformers'.
    """
    path, model = Path(path).resolve(), unwrap(model)

    def write() -> None:
        _write(model, path, label_names, preprocessing, problem_type, parent)

    if not _is_distributed(model):
        write()
        return path
    from vismoe.parallel.gathering import whole_in_main

    with whole_in_main(model), join_mesh() as mesh:
        mesh.run_on_main(write)
    return path


def _is_distributed(model: nn.Module) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from vismoe.parallel.gathering import is_distributed  # it imports much of PyTorch

    return is_distributed(model)


def _write(
    model: nn.Module,
    path: Path,
    label_names: Sequence[str] | None,
    preprocessing: dict[str, Any] | None,
    problem_type: str | None,
    parent: str | Path | None,
) -> None:
    network = as_network(model)
    if is_transformers(model) or isinstance(network, TransformersNetwork):
        inner: Any = network.model if isinstance(network, TransformersNetwork) else model
        if parent is not None:
            check_differences(inner)
        if label_names is not None and len(label_names) != inner.config.num_labels:
            raise ValueError(f"{len(label_names)} label_names for a network of {inner.config.num_labels} classes")
        if preprocessing is None and isinstance(network, TransformersNetwork):
            preprocessing = network.pretrained_cfg
        with whole_folder(path, FILES) as aside:
            write_transformers(inner, aside, label_names, preprocessing, problem_type)
        return
    if not hasattr(model, "pretrained_cfg"):
        raise TypeError(
            f"{type(model).__name__} was not made by create_model, so config.json cannot describe it: "
            "write its weights with safetensors.torch.save_model instead"
        )
    config = cast(dict[str, Any], model.pretrained_cfg)
    if (
        label_names is None and 0 < len(config.get("label_names") or ()) == model.num_classes
    ):  # otherwise it has a new head
        label_names, problem_type = config["label_names"], problem_type or config.get("problem_type")
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f"{len(label_names)} label_names for a network of {model.num_classes} classes")
    with whole_folder(path, FILES) as aside:
        state = _unshared(model.state_dict())
        source = None if parent is None else open_parent(str(parent))
        if source is not None:
            state = differences(state, source.sparse_state(getattr(model, "moe", None)))
        save_file(state, aside / WEIGHTS, metadata={"format": "pt"})
        save_config_for_hf(model, str(aside / CONFIG), data_config=preprocessing)
        _complete_config(aside / CONFIG, model, label_names, problem_type, source)


def check_differences(model: nn.Module) -> None:
    """Raises ValueError for a network that cannot be written as differences from a parent."""
    inner = model.model if isinstance(model, TransformersNetwork) else model
    if is_transformers(inner):
        raise ValueError(
            f"{type(inner).__name__} is a network of transformers', which can only be written whole: leave out the "
            "parent"
        )


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors to the CPU so that none share memory, which safetensors refuses."""
    tensors: dict[str, Tensor] = {}
    addresses = set()
    for name, tensor in state.items():
        copied = tensor.detach().cpu().contiguous()
        address = copied.untyped_storage().data_ptr()
        tensors[name] = copied.clone() if address in addresses else copied
        addresses.add(address)
    return tensors


def _complete_config(
    path: Path,
    model: nn.Module,
    label_names: Sequence[str] | None,
    problem_type: str | None,
    parent: Parent | None,
) -> None:
    config = json.loads(path.read_text())
    config |= rebuilding(model, config) | {"vismoe_format": FORMAT_VERSION}
    # transformers passes num_classes itself and fails if it is given twice.
    for arguments in (config["model_args"], config["model_args"].get("parent_args", {})):
        arguments.pop("num_classes", None)
    if parent is not None:
        config["parent"] = {"source": parent.source, "sha256": parent.sha256}
    max_level = cast(Any, model).pretrained_cfg.get("max_level")
    for name in ("label_names", "problem_type", "max_level"):  # stored at the top level, not in timm's entries
        config.pop(name, None)
        config.get("pretrained_cfg", {}).pop(name, None)
    if label_names is not None:
        config["label_names"] = list(label_names)
    if problem_type is not None:
        config["problem_type"] = problem_type
    if max_level is not None:
        config["max_level"] = max_level
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")

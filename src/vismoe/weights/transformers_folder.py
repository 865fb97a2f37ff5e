"""Folders of transformers' networks, upcycled ones too: what transformers writes, and what of it is sparse."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from vismoe.vit import MoEConfig, make_sparse

MOE = "vismoe_moe"


def is_transformers(model: nn.Module) -> bool:
    """Whether a network is of transformers' own classes, or of one derived from them."""
    return any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__) and hasattr(model, "config")


def of_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is one of transformers'."""
    names = config.get("architectures")
    return isinstance(config.get("model_type"), str) and isinstance(names, list) and len(names) == 1


def write_transformers(model: Any, folder: Path) -> None:
    """A dense network as transformers writes it; of a sparse one its configuration, with what is sparse as the entry
    `vismoe_moe`, and the weights under the names that they have in memory."""
    if getattr(model, "moe", None) is None:
        model.save_pretrained(folder)
        return
    config = json.loads(model.config.to_json_string(use_diff=False))
    config |= {"architectures": [_dense_class(model)], MOE: asdict(model.moe)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})  # knows tensors that are shared


def _dense_class(model: nn.Module) -> str:
    return next(cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))


def read_transformers(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """Builds the class that a folder names, sparse where it says so, and loads its weights, at evaluation.

    **Raises:** ModuleNotFoundError without transformers; ValueError for a class that it does not have, and weights that
    are not there or do not fit.
    """
    import transformers

    (name,) = config["architectures"]
    cls = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"{folder / 'config.json'}: transformers has no model class {name}")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder} has no model.safetensors: only weights in one file of safetensors are read")
    network: Any = cls
    plain = {key: value for key, value in config.items() if key != MOE}
    try:
        if MOE not in config:
            return cast(nn.Module, network.from_pretrained(folder, local_files_only=True, use_safetensors=True)).eval()
        model: nn.Module = network(network.config_class.from_dict(plain))
        make_sparse(model, MoEConfig(**config[MOE]))
        load_model(model, str(weights))
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder} does not fit {name}: {error}") from error
    return model.eval()

"""Model folders of transformers' networks, also of upcycled ones."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from vismoe.vit import MoEConfig, make_sparse
from vismoe.vit.conversion.places import ENTRY

from ..folders.format import CONFIG, WEIGHTS
from .processor import read_processor, write_processor

MOE, DENSE, UPCYCLED = ENTRY, "dense", "vismoe_upcycled"
LABELS = ("id2label", "label2id", "problem_type")
INSIDE = "upcycled."
"""Prefix of the names of weights if transformers wrote a network that one of its Auto classes had opened."""


def is_transformers(model: nn.Module) -> bool:
    """Whether a network's class is one of transformers', or a subclass of one."""
    return any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__) and hasattr(model, "config")


def write_transformers(
    model: Any,
    folder: Path,
    label_names: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    problem_type: str | None = None,
) -> None:
    """Writes a model folder. A dense network is written by transformers' `save_pretrained`. The configuration of a
    sparse network contains that of its dense parent, and its weights are named as in memory.

    **Arguments:**

    - `model`: the network.
    - `folder`: an existing folder.
    - `label_names`: class names in order; default None: those of the network's configuration.
    - `preprocessing`: timm's data configuration, written as `preprocessor_config.json`; default None: no such file.
    - `problem_type`: transformers' problem type; default None: that of the network's configuration.
    """
    model = getattr(model, INSIDE[:-1], model)
    path, sparse = folder / CONFIG, getattr(model, "moe", None) is not None
    if sparse:
        config = json.loads(model.config.to_json_string(use_diff=False))
        save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})  # accepts tensors that share memory
    else:
        model.save_pretrained(folder)
        config = json.loads(path.read_text(encoding="utf-8"))
    if label_names is not None:
        config["id2label"] = dict(enumerate(label_names))
        config["label2id"] = {name: number for number, name in enumerate(label_names)}
    if problem_type is not None:
        config["problem_type"] = problem_type
    if sparse:
        dense = _dense_class(model)
        config.pop(MOE, None)
        labels = {name: config.pop(name, None) for name in LABELS}
        config = {
            "model_type": UPCYCLED,
            "architectures": [_upcycled_class(dense)],
            **labels,
            DENSE: config | {"architectures": [dense]},
            MOE: asdict(model.moe),
        }
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if preprocessing is not None:
        write_processor(folder, preprocessing)


def _dense_class(model: nn.Module) -> str:
    return next(cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("transformers."))


def _upcycled_class(dense: str) -> str:
    """The name of vismoe's class for transformers' Auto classes, such as UpcycledForMaskedLM for BertForMaskedLM."""
    _, separator, task = dense.partition("For")
    return f"UpcycledFor{task}" if separator else "UpcycledModel"


def read_transformers(folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """Builds the network that a folder describes, dense or sparse, and loads its weights.

    **Arguments:**

    - `folder`: the model folder.
    - `config`: the content of its `config.json`.

    **Returns:** the network, in evaluation mode.

    **Raises:** ModuleNotFoundError if transformers is not installed; ValueError for an unknown class, and for weights
    that are missing or do not fit.
    """
    import transformers

    sparse, is_ours = config.get(MOE), config["model_type"] == UPCYCLED
    if is_ours:
        config = config[DENSE] | {name: config.get(name) for name in LABELS}
    (name,) = config["architectures"]
    cls = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise ValueError(f"{folder / 'config.json'}: transformers has no model class {name}")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"{folder} has no model.safetensors: only weights in one safetensors file are read")
    network: Any = cls
    class_config = {key: value for key, value in config.items() if key not in (MOE, "model_type")}
    try:
        if sparse is None:
            model = _from_pretrained(network, folder, None)
        else:
            moe = MoEConfig(**sparse)
            model = network(network.config_class.from_dict(class_config))
            make_sparse(model, moe)
            state = {name.removeprefix(INSIDE): tensor for name, tensor in load_file(weights).items()}
            if is_ours or state.keys() <= model.state_dict().keys():
                _load_weights(model, state)
            else:
                model = _from_pretrained(network, folder, moe)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise ValueError(f"{folder} does not fit {name}: {error}") from error
    model.preprocessing = read_processor(folder)
    return cast(nn.Module, model).eval()


def _from_pretrained(network: Any, folder: Path, moe: MoEConfig | None) -> Any:
    """Loads with transformers' `from_pretrained`, also a sparse network: `save_pretrained` may have renamed weights.

    **Raises:** RuntimeError if the file lacks parameters, which transformers would initialise at random.
    """

    def build(self: Any, *arguments: Any, **options: Any) -> None:
        network.__init__(self, *arguments, **options)
        if moe is not None:
            make_sparse(self, moe)

    options = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    building: Any = type(network.__name__, (network,), {"__init__": build, "__module__": network.__module__})
    model, loading = building.from_pretrained(folder, **options)
    model.__class__ = network
    if missing := sorted(loading["missing_keys"]):
        experts = any(".experts." in name for name in loading["unexpected_keys"])
        why = f"; the file has experts, but {CONFIG} does not describe them: save with vismoe.save" if experts else ""
        raise RuntimeError(f"weights are missing: {', '.join(missing[:5])}{why}")
    return model


def _load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    missing, unexpected = model.load_state_dict(state, strict=False)
    # If several names share a tensor, only one of them is in the file.
    parameters = model.state_dict(keep_vars=True)
    loaded = {parameters[name].data_ptr() for name in state if name in parameters}
    if wrong := [name for name in missing if parameters[name].data_ptr() not in loaded] + unexpected:
        raise RuntimeError(f"missing or unknown weights: {', '.join(wrong[:5])}")

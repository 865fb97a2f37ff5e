"""Reads MLPs of other libraries, which are recognised by the class of the MLP or of the block around it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .mlp import MLP


@dataclass(frozen=True)
class MLPStructure:
    """Where the parts of an MLP are in a module. Paths are those of submodules.

    **Arguments:**

    - `up`, `down`: paths of the two linear layers.
    - `activation`: path of the activation, or a function.
    - `gate`: path of a gated MLP's third layer, as in activation(gate(x)) · up(x); default "": not gated, or packed.
    - `packed`: which half of `up` is the gate: "gate-first" or "gate-last"; default "no": neither.
    - `norm`: path of a LayerNorm before `down`; default "": none.
    - `dropout`: paths of the dropout layers of hidden units and of outputs, which must have the same rate; default:
      none.
    - `place`: path of the submodule that a sparse layer replaces; `down` is then replaced by an Identity, so that the
      rest of the module works as before. Default "": the whole module is the MLP.
    """

    up: str
    down: str
    activation: str | Callable[[Tensor], Tensor]
    gate: str = ""
    packed: Literal["no", "gate-first", "gate-last"] = "no"
    norm: str = ""
    dropout: tuple[str, ...] = ()
    place: str = ""


_FC = MLPStructure("fc1", "fc2", "activation_fn")
_PROJ = MLPStructure("up_proj", "down_proj", "act_fn")
_GATED_PROJ = MLPStructure("up_proj", "down_proj", "act_fn", gate="gate_proj")
_TIMM: dict[str, Any] = {"down": "fc2", "activation": "act", "norm": "norm", "dropout": ("drop1", "drop2")}


def _glu(module: Any) -> MLPStructure:
    return MLPStructure("fc1", **_TIMM, packed="gate-last" if module.gate_last else "gate-first")


STRUCTURES: dict[str, MLPStructure | Callable[[nn.Module], MLPStructure]] = {
    # timm
    "Mlp": MLPStructure("fc1", **_TIMM),
    "GluMlp": _glu,
    "SwiGLU": MLPStructure("fc1_x", gate="fc1_g", **_TIMM),
    # torchvision
    "MLPBlock": MLPStructure("0", "3", "1", dropout=("2", "4")),
    # transformers
    **dict.fromkeys(("ASTMLP", "BeitMLP", "CLIPMLP", "DeiTMLP", "SiglipMLP", "Siglip2MLP", "ViTMLP"), _FC),
    **dict.fromkeys(("Dinov2MLP", "Dinov2WithRegistersMLP"), _FC),
    **dict.fromkeys(("Dinov2SwiGLUFFN", "Dinov2WithRegistersSwiGLUFFN", "DINOv3ViTGatedMLP"), _GATED_PROJ),
    "DINOv3ViTMLP": _PROJ,
    "BertLayer": MLPStructure(
        "intermediate.dense", "output.dense", "intermediate.intermediate_act_fn", place="intermediate"
    ),
}
"""Structures, or functions (module) -> structure, by the name of the class of the MLP or of the block around it."""


def register_mlp(cls: type[nn.Module], structure: MLPStructure | Callable[[nn.Module], MLPStructure]) -> None:
    """Registers the class of an MLP, or of a block with an MLP, for `vismoe.upcycle`.

    **Arguments:**

    - `cls`: the class; subclasses are known too.
    - `structure`: where its parts are, or a function (module) -> structure.
    """
    STRUCTURES[cls.__name__] = structure


def structure_of(module: nn.Module) -> MLPStructure | None:
    """The structure of an MLP of a known class or a subclass of one; None for any other module."""
    for cls in type(module).__mro__:
        if cls.__name__ in STRUCTURES:
            structure = STRUCTURES[cls.__name__]
            return structure if isinstance(structure, MLPStructure) else structure(module)
    return None


def read_mlp(module: nn.Module) -> MLP:
    """Copies an MLP of a known class, `module`, into an `MLP`.

    **Raises:** ValueError for an unknown class, and for parts that do not fit the structure.
    """
    if isinstance(module, MLP):
        copy = module.empty_like()
        copy.load_state_dict(module.state_dict())
        return copy.train(module.training)
    structure = structure_of(module)
    if structure is None:
        raise ValueError(
            f"{type(module).__name__} is not an MLP of a known class ({', '.join(STRUCTURES)}): "
            "register it with vismoe.register_mlp(class, vismoe.MLPStructure(up=…, down=…, activation=…))"
        )
    linears = _linears(module, structure)
    norm = module.get_submodule(structure.norm) if structure.norm else nn.Identity()
    if not isinstance(norm, nn.Identity | nn.LayerNorm):
        raise ValueError(f"{type(module).__name__}.{structure.norm} is {norm}: accepted are LayerNorm and Identity")
    shares = {cast(Any, module.get_submodule(path)).p for path in structure.dropout}
    if len(shares) > 1:
        raise ValueError(f"{type(module).__name__} has dropout rates {sorted(shares)}: accepted is one rate")
    activation: Any = structure.activation
    if isinstance(activation, str):
        owner, _, name = activation.rpartition(".")
        activation = getattr(module.get_submodule(owner), name)
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        raise ValueError(
            f"{type(module).__name__} has an activation with parameters: accepted are activations without parameters"
        )
    down, up = linears["down"], linears["up"]
    hidden_dim, dim = down.in_features, up.in_features
    packed = structure.packed != "no"
    if up.out_features != hidden_dim * (1 + packed) or down.out_features != dim:
        raise ValueError(
            f"{type(module).__name__} maps {dim} to {up.out_features} and {hidden_dim} to {down.out_features}"
        )
    mlp = MLP.undrawn(
        up.weight,
        dim,
        hidden_dim,
        activation=activation,
        gated=packed or "gate" in linears,
        bias=any(linear.bias is not None for linear in linears.values()),
        norm=isinstance(norm, nn.LayerNorm),
        norm_eps=norm.eps if isinstance(norm, nn.LayerNorm) else 1e-6,
        dropout=shares.pop() if shares else 0.0,
    )
    _copy(mlp, module, structure, into_module=False)
    return mlp.train(module.training)


def write_mlp(mlp: MLP, module: nn.Module) -> None:
    """Copies the parameters of `mlp` into `module`, which has a known class: the inverse of `read_mlp`.

    **Raises:** ValueError if `mlp` has a bias that is not 0 and the module has none.
    """
    structure = structure_of(module)
    assert structure is not None
    _copy(mlp, module, structure, into_module=True)


@torch.no_grad()
def _copy(mlp: MLP, module: nn.Module, structure: MLPStructure, into_module: bool) -> None:
    """Copies the parameters of `mlp` into the module, or those of the module into `mlp`."""
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    linears = _linears(module, structure)
    for name in ("weight", "bias"):
        module_tensors: dict[str, Any] = {part: getattr(linear, name) for part, linear in linears.items()}
        if structure.packed != "no" and module_tensors["up"] is not None:
            first, second = module_tensors["up"].chunk(2)
            module_tensors |= (
                {"gate": first, "up": second} if structure.packed == "gate-first" else {"gate": second, "up": first}
            )
        pairs += [
            (getattr(getattr(mlp, part), name), module_tensors.get(part))
            for part in ("up", "gate", "down")
            if getattr(mlp, part) is not None
        ]
    if mlp.norm is not None:
        norm = cast(nn.LayerNorm, module.get_submodule(structure.norm))
        pairs += [(mlp.norm.weight, norm.weight), (mlp.norm.bias, norm.bias)]
    for mlp_tensor, module_tensor in pairs:
        if into_module and module_tensor is not None and mlp_tensor is not None:
            module_tensor.copy_(mlp_tensor)
        elif (
            into_module
            and module_tensor is None
            and mlp_tensor is not None
            and not mlp_tensor.is_meta
            and bool(mlp_tensor.any())
        ):
            raise ValueError(f"{type(module).__name__} has no bias, but the MLP has one that is not zero")
        elif not into_module and mlp_tensor is not None:
            mlp_tensor.zero_() if module_tensor is None else mlp_tensor.copy_(module_tensor)


def _linears(module: nn.Module, structure: MLPStructure) -> dict[str, nn.Linear]:
    """The linear layers of a module by their part: up, gate, down."""
    linears = {}
    for part in ("up", "gate", "down"):
        if path := getattr(structure, part):
            try:
                linear = module.get_submodule(path)
            except AttributeError as error:
                raise ValueError(f"{type(module).__name__} has no {path}, the {part} of its structure") from error
            if reason := _why_unreadable(linear):
                raise ValueError(f"{type(module).__name__}.{path} is {reason}")
            linears[part] = cast(nn.Linear, linear)
    return linears


def _why_unreadable(linear: nn.Module) -> str:
    """Why the weight of a layer cannot be read, and what to do; "" if it can be read."""
    cls = type(linear)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if hasattr(linear, "base_layer"):  # PEFT's name of the layer inside an adapter
        return f"{name}, an adapter that is not merged: merge it first (`model.merge_and_unload()` in PEFT)"
    quantised = "quantised or sharded: upcycle the plain network, then quantise or shard the result"
    if "quantized" in name:
        return f"{name}, {quantised}"
    if not isinstance(linear, nn.Linear):
        return f"a {name}: expected a Linear layer"
    if is_traceable_wrapper_subclass(linear.weight):
        return f"a Linear layer whose weight is a {type(linear.weight).__name__}, {quantised}"
    return ""

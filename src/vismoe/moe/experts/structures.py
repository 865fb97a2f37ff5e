"""The MLPs of other libraries, known by the classes that they, or the blocks around them, are of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .mlp import MLP


@dataclass(frozen=True)
class MLPStructure:
    """Where the parts of an MLP lie in a module, as paths of submodules: `up` and `down`, linear layers, and
    `activation`, a path or a function; in a gated MLP, activation(gate(x)) · up(x), also `gate`, or `packed`, which
    half of `up` it is; a LayerNorm `norm` before `down`; `dropout` of hidden units and of outputs, one share for both.

    `place`: the submodule whose place a sparse layer takes; `down` then becomes an Identity, so that what the module
    does around its MLP stays as it is. "": the whole module is the MLP.
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
"""By name of the class of the MLP, or of the block around it; or a function of the module that gives it."""


def register_mlp(cls: type[nn.Module], structure: MLPStructure | Callable[[nn.Module], MLPStructure]) -> None:
    """Makes the MLPs of a class, or of blocks of a class, known to `vismoe.upcycle`."""
    STRUCTURES[cls.__name__] = structure


def structure_of(module: nn.Module) -> MLPStructure | None:
    """The structure of an MLP of a known class, or of one derived from it; None for what is none."""
    for cls in type(module).__mro__:
        if cls.__name__ in STRUCTURES:
            known = STRUCTURES[cls.__name__]
            return known if isinstance(known, MLPStructure) else known(module)
    return None


def read_mlp(module: nn.Module) -> MLP:
    """A copy of an MLP of a known class.

    **Raises:** ValueError for one of another class (it says how to make that known), or whose parts are not what its
    structure says.
    """
    if isinstance(module, MLP):
        copied = module.empty_like()
        copied.load_state_dict(module.state_dict())
        return copied.train(module.training)
    structure = structure_of(module)
    if structure is None:
        raise ValueError(
            f"{type(module).__name__} is no MLP of a known class ({', '.join(STRUCTURES)}): "
            "vismoe.register_mlp(its class, vismoe.MLPStructure(up=…, down=…, activation=…)) makes it one"
        )
    linears = _linears(module, structure)
    norm = module.get_submodule(structure.norm) if structure.norm else nn.Identity()
    if not isinstance(norm, nn.Identity | nn.LayerNorm):
        raise ValueError(f"{type(module).__name__}.{structure.norm} is {norm}: accepted are LayerNorm and Identity")
    shares = {cast(Any, module.get_submodule(path)).p for path in structure.dropout}
    if len(shares) > 1:
        raise ValueError(f"{type(module).__name__} has dropout of {sorted(shares)}: accepted is one share for all")
    activation: Any = structure.activation
    if isinstance(activation, str):
        owner, _, name = activation.rpartition(".")
        activation = getattr(module.get_submodule(owner), name)
    if isinstance(activation, nn.Module) and any(True for _ in activation.parameters()):
        raise ValueError(f"{type(module).__name__} has an activation with parameters: experts share theirs")
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
    """Gives a module of a known class the parameters of `mlp`: the inverse of `read_mlp`.

    **Raises:** ValueError where a bias of `mlp` has no place in the module.
    """
    structure = structure_of(module)
    assert structure is not None
    _copy(mlp, module, structure, into_module=True)


@torch.no_grad()
def _copy(mlp: MLP, module: nn.Module, structure: MLPStructure, into_module: bool) -> None:
    """Between a module's parameters, or halves of them, and those of `mlp`."""
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    linears = _linears(module, structure)
    for name in ("weight", "bias"):
        theirs: dict[str, Any] = {part: getattr(linear, name) for part, linear in linears.items()}
        if structure.packed != "no" and theirs["up"] is not None:
            first, second = theirs["up"].chunk(2)
            theirs |= (
                {"gate": first, "up": second} if structure.packed == "gate-first" else {"gate": second, "up": first}
            )
        pairs += [
            (getattr(getattr(mlp, part), name), theirs.get(part))
            for part in ("up", "gate", "down")
            if getattr(mlp, part) is not None
        ]
    if mlp.norm is not None:
        norm = cast(nn.LayerNorm, module.get_submodule(structure.norm))
        pairs += [(mlp.norm.weight, norm.weight), (mlp.norm.bias, norm.bias)]
    for ours, its in pairs:
        if into_module and its is not None and ours is not None:
            its.copy_(ours)
        elif into_module and its is None and ours is not None and not ours.is_meta and bool(ours.any()):
            raise ValueError(f"{type(module).__name__} has no place for a bias that is not zero")
        elif not into_module and ours is not None:
            ours.zero_() if its is None else ours.copy_(its)


def _linears(module: nn.Module, structure: MLPStructure) -> dict[str, nn.Linear]:
    found = {}
    for part in ("up", "gate", "down"):
        if path := getattr(structure, part):
            try:
                linear = module.get_submodule(path)
            except AttributeError as error:
                raise ValueError(f"{type(module).__name__} has no {path}, where its structure has {part}") from error
            if not isinstance(linear, nn.Linear):
                raise ValueError(
                    f"{type(module).__name__}.{path} is a {type(linear).__name__}: expected a Linear layer"
                )
            found[part] = linear
    return found

"""Finds the MLPs of a network, replaces them and puts them back."""

import copy
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import nn
from torch.nn.utils import prune

from vismoe.moe import MLP, MLPStructure, MoE, structure_of, write_mlp

from ..config import MoEConfig

ENTRY = "vismoe_moe"
"""The entry with the fields of `MoEConfig` in a configuration of transformers'."""


@dataclass(frozen=True)
class Origin:
    """What a sparse layer replaced.

    - `structure`: where the parts of the MLP are.
    - `modules`: the replaced modules, by their path inside the module that `structure` describes. They are on the meta
      device, without values.
    - `hidden_dim`: width of the MLP's hidden layer.
    """

    structure: MLPStructure
    modules: dict[str, nn.Module]
    hidden_dim: int


def find_mlps(model: nn.Module, blocks: str | None = None) -> list[str]:
    """Returns the paths of the MLPs of a transformer's blocks, in order. Each block must have one MLP of a known class.

    **Arguments:**

    - `model`: a dense transformer.
    - `blocks`: path of its list of blocks, if there are several; default None: the only one.

    **Raises:** ValueError if there is no such list, or several; if the class of an MLP is unknown; and if a block is
    sparse already.
    """
    stacks = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    if blocks is not None and blocks not in stacks:
        raise ValueError(f"block_list={blocks!r}: there is no such list of blocks; lists are at {', '.join(stacks)}")
    mlps_by_list = {
        path: [_mlps_in(block) for block in stack] for path, stack in stacks.items() if blocks in (None, path)
    }
    candidates = {
        path: mlps for path, mlps in mlps_by_list.items() if mlps and all(len(of_block) == 1 for of_block in mlps)
    }
    if len(candidates) == 1:
        ((stack, mlps),) = candidates.items()
        names = [name for name, _ in stacks[stack].named_children()]
        paths = [_join(stack, name, mlp) for name, (mlp,) in zip(names, mlps, strict=True)]
        if sparse_path := next((path for path in paths if isinstance(model.get_submodule(path), MoE)), None):
            raise ValueError(f"{sparse_path} is sparse already: upcycle the dense model")
        return paths
    if candidates:
        listed = ", ".join(f"{path!r} ({len(mlps)})" for path, mlps in candidates.items())
        raise ValueError(f"several lists have blocks with MLPs: name one with block_list=: {listed}")
    raise ValueError(_describe_unknown({path: stacks[path] for path in mlps_by_list}, mlps_by_list))


def find_blocks(model: nn.Module) -> str | None:
    """The path of the longest list of modules of one class; the first of several; None if there is none."""
    lists = {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(part) for part in module}) == 1
    }
    return max(lists, key=lambda path: lists[path], default=None)


def _mlps_in(block: nn.Module) -> list[str]:
    """Paths, inside a block, of sparse layers and of MLPs of a known class; without those inside another one."""
    paths: list[str] = []
    for path, module in block.named_modules():
        known = isinstance(module, MLP | MoE) or structure_of(module) is not None
        if known and not any(path == outer or path.startswith(f"{outer}.") or not outer for outer in paths):
            paths.append(path)
    return paths


def _describe_unknown(
    stacks: dict[str, nn.ModuleList | nn.Sequential], mlps_by_list: dict[str, list[list[str]]]
) -> str:
    """Describes the first block with an unknown MLP, in the longest list of blocks of one class."""
    uniform = {path: stack for path, stack in stacks.items() if len({type(block) for block in stack}) == 1}
    if not uniform:
        return f"{', '.join(stacks) or 'the model'}: expected a list of blocks of one class, as in a transformer"
    path = max(uniform, key=lambda path: len(uniform[path]))
    number = next(number for number, mlps in enumerate(mlps_by_list[path]) if len(mlps) != 1)
    block, mlps = uniform[path][number], mlps_by_list[path][number]
    where = f"{path}.{number} ({type(block).__name__})"
    if mlps:
        return f"{where} has {len(mlps)} MLPs ({', '.join(mlps)}): expected one MLP per block"
    parts = ", ".join(f"{name}: {type(part).__name__}" for name, part in block.named_children())
    return (
        f"{where}: none of its modules is an MLP of a known class ({parts}); register its class with "
        "vismoe.register_mlp(class, vismoe.MLPStructure(up=…, down=…, activation=…))"
    )


def replace_mlp(model: nn.Module, path: str, layer: MoE) -> None:
    """Replaces the MLP at `path` by a sparse layer, at the place that the MLP's structure names."""
    module = model.get_submodule(path)
    structure = structure_of(module) or MLPStructure("up", "down", "activation")
    replaced = [structure.place, structure.down] if structure.place else [""]
    hidden_dim = cast(nn.Linear, module.get_submodule(structure.down)).in_features
    layer.origin = Origin(structure, {part: _shape_of(module.get_submodule(part)) for part in replaced}, hidden_dim)
    if structure.place:
        model.set_submodule(f"{path}.{structure.down}", nn.Identity())
    model.set_submodule(_join(path, structure.place), layer)


def restore_mlp(model: nn.Module, path: str, mlp: MLP) -> None:
    """Replaces the sparse layer at `path` by an MLP of the class that the layer replaced."""
    layer = cast(MoE, model.get_submodule(path))
    origin = layer.origin
    if not isinstance(origin, Origin):
        raise ValueError(f"{path} did not replace an MLP: the class of the MLP is not known")
    outer = path.removesuffix(f".{origin.structure.place}") if origin.structure.place else path
    for part, module in origin.modules.items():
        weight = mlp.up.weight
        restored = copy.deepcopy(module).to_empty(device=weight.device).to(weight.dtype).train(layer.training)
        model.set_submodule(_join(outer, part), restored)
    write_mlp(mlp, model.get_submodule(outer))


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a network.

    **Raises:** ValueError for modules with pruning masks, which PyTorch cannot copy.
    """
    pruned = [name or "the network" for name, module in model.named_modules() if _is_pruned(module)]
    if pruned:
        raise ValueError(
            f"{', '.join(pruned[:5])}{', …' * (len(pruned) > 5)}: pruned, with masks that are applied in each forward; "
            'make the pruning permanent first: torch.nn.utils.prune.remove(module, "weight") for each of them'
        )
    return copy.deepcopy(model)


def _is_pruned(module: nn.Module) -> bool:
    return any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values())


def remember(model: nn.Module, config: MoEConfig | None) -> None:
    """Sets `model.moe`, the configuration of the sparse part; None: the network is dense. In networks of transformers'
    it is also set in the network's own configuration, so that `save_pretrained` writes it."""
    network: Any = model
    network.moe = config
    of_transformers = getattr(model, "config", None)
    if not hasattr(of_transformers, "save_pretrained"):
        return
    if config is not None:
        setattr(of_transformers, ENTRY, asdict(config))
    elif hasattr(of_transformers, ENTRY):
        delattr(of_transformers, ENTRY)


def sparse_layers(model: nn.Module) -> dict[str, MoE]:
    """The sparse layers of a network by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, MoE)}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _shape_of(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("meta")

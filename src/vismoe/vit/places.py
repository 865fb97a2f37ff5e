"""Where the MLPs of a network are, and putting something else there."""

import copy
from dataclasses import dataclass
from typing import cast

from torch import nn

from vismoe.moe import MLP, MLPStructure, MoE, structure_of, write_mlp


@dataclass(frozen=True)
class Origin:
    """What a sparse layer took the place of: modules by their path below the one that `structure` describes, without
    their parameters (on the meta device); the width of the MLP's hidden layer."""

    structure: MLPStructure
    modules: dict[str, nn.Module]
    hidden_dim: int


def find_mlps(model: nn.Module, blocks: str | None = None) -> list[str]:
    """The paths of the MLPs of a transformer's blocks, in their order: of each block of its one list of blocks, of
    which every one has one MLP of a known class. `blocks`: the path of that list, where there are several.

    **Raises:** ValueError where no such list is there, or several are, or a block's MLP is not known or sparse already.
    """
    stacks = {
        path: module for path, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)
    }
    if blocks is not None and blocks not in stacks:
        raise ValueError(f"block_list={blocks!r}: there is no such list of blocks; lists are at {', '.join(stacks)}")
    inside = {path: [_mlps_in(block) for block in stack] for path, stack in stacks.items() if blocks in (None, path)}
    found = {path: mlps for path, mlps in inside.items() if mlps and all(len(each) == 1 for each in mlps)}
    if len(found) == 1:
        ((stack, mlps),) = found.items()
        names = [name for name, _ in stacks[stack].named_children()]
        paths = [_join(stack, name, mlp) for name, (mlp,) in zip(names, mlps, strict=True)]
        if already := next((path for path in paths if isinstance(model.get_submodule(path), MoE)), None):
            raise ValueError(f"{already} is sparse already: upcycle the dense model")
        return paths
    if found:
        there = ", ".join(f"{path!r} ({len(mlps)})" for path, mlps in found.items())
        raise ValueError(f"blocks with MLPs are in several lists: say in which one with block_list=: {there}")
    raise ValueError(_unknown({path: stacks[path] for path in inside}, inside))


def find_blocks(model: nn.Module) -> str | None:
    """The path of the longest list of modules of one class, the first of several; None where there is none."""
    lists = {
        path: len(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(part) for part in module}) == 1
    }
    return max(lists, key=lambda path: lists[path], default=None)


def _mlps_in(block: nn.Module) -> list[str]:
    """Paths, below a block, of sparse layers and of MLPs of a known class; not of those within others."""
    found: list[str] = []
    for path, module in block.named_modules():
        known = isinstance(module, MLP | MoE) or structure_of(module) is not None
        if known and not any(path == outer or path.startswith(f"{outer}.") or not outer for outer in found):
            found.append(path)
    return found


def _unknown(stacks: dict[str, nn.ModuleList | nn.Sequential], inside: dict[str, list[list[str]]]) -> str:
    """Names the first block, of the list of most blocks of one class, whose MLP is not known."""
    uniform = {path: stack for path, stack in stacks.items() if len({type(block) for block in stack}) == 1}
    if not uniform:
        return f"{', '.join(stacks) or 'the model'}: no list of blocks of one class, as a transformer has it"
    path = max(uniform, key=lambda path: len(uniform[path]))
    number = next(number for number, mlps in enumerate(inside[path]) if len(mlps) != 1)
    block, mlps = uniform[path][number], inside[path][number]
    where = f"{path}.{number} ({type(block).__name__})"
    if mlps:
        return f"{where} has {len(mlps)} MLPs ({', '.join(mlps)}): a sparse layer takes the place of one"
    parts = ", ".join(f"{name}: {type(part).__name__}" for name, part in block.named_children())
    return (
        f"{where}: which of its parts is the MLP is not known ({parts}); vismoe.register_mlp(class of that part, "
        "vismoe.MLPStructure(up=…, down=…, activation=…)) says it"
    )


def replace_mlp(model: nn.Module, path: str, layer: MoE) -> None:
    """Puts a sparse layer in the place of the MLP at `path`, as its structure says where that is."""
    module = model.get_submodule(path)
    structure = structure_of(module) or MLPStructure("up", "down", "activation")
    replaced = [structure.place, structure.down] if structure.place else [""]
    hidden_dim = cast(nn.Linear, module.get_submodule(structure.down)).in_features
    layer.origin = Origin(structure, {part: _shape_of(module.get_submodule(part)) for part in replaced}, hidden_dim)
    if structure.place:
        model.set_submodule(f"{path}.{structure.down}", nn.Identity())
    model.set_submodule(_join(path, structure.place), layer)


def restore_mlp(model: nn.Module, path: str, mlp: MLP) -> None:
    """Puts an MLP back in the place of the sparse layer at `path`, as the class that was there."""
    layer = cast(MoE, model.get_submodule(path))
    origin = layer.origin
    if not isinstance(origin, Origin):
        raise ValueError(f"{path} did not take the place of an MLP: what to put back is not known")
    outer = path.removesuffix(f".{origin.structure.place}") if origin.structure.place else path
    for part, module in origin.modules.items():
        weight = mlp.up.weight
        put = copy.deepcopy(module).to_empty(device=weight.device).to(weight.dtype).train(layer.training)
        model.set_submodule(_join(outer, part), put)
    write_mlp(mlp, model.get_submodule(outer))


def sparse_layers(model: nn.Module) -> dict[str, MoE]:
    """The sparse layers of a network by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, MoE)}


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _shape_of(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to("meta")

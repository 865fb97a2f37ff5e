"""The experts that the options ask for."""

from typing import Any

from torch import nn

from vismoe.moe import MoE
from vismoe.vit import upcycle

from .options import EXPERTS, NUM_EXPERTS, Options


def is_sparse(network: nn.Module) -> bool:
    """Whether a network has a sparse layer."""
    return any(isinstance(module, MoE) for module in network.modules())


def refuse_other_experts(options: Options, network: Any) -> None:
    """Checks that a sparse network has the experts that the options ask for; a dense one can get any.

    **Raises:** ValueError if they ask for a dense network or for other experts. The message says how to get them.
    """
    if not is_sparse(network):
        return
    if options.sparse is False:
        raise ValueError(f"{options.source} is sparse: `vismoe densify` makes a dense model of it")
    numbers = sorted({module.router.num_experts for module in network.modules() if isinstance(module, MoE)})
    asked = [name for name in options.of_experts if name != "freeze_router"]
    if not asked or (asked == ["num_experts"] and numbers == [options.num_experts]):
        return
    given = ", ".join(f"{name}={getattr(options, name)!r}" for name in asked)
    name = options.source or network.pretrained_cfg["architecture"]
    has = f"{name} is sparse already, with {' and '.join(map(str, numbers))} experts per layer, which do not change"
    if not options.trained:
        raise ValueError(f"{given}: {has}: leave it out; `vismoe train` has --num-experts and --model-options")
    dense = (
        f"`vismoe densify {name} DENSE --data {options.data}` makes it dense; --from DENSE then gives it new experts"
    )
    fewer = "num_experts" in asked and options.num_experts is not None and options.num_experts < min(numbers)
    remedy = f"`vismoe densify … --num-experts {options.num_experts}` keeps that many of them; or " if fewer else ""
    raise ValueError(f"{given}: {has}: {remedy}{dense}")


def upcycled(model: nn.Module, options: Options, moe_layers: str) -> nn.Module:
    """A dense network made sparse as the options say.

    **Arguments:**

    - `model`: the network, changed in place.
    - `options`: the options.
    - `moe_layers`: the sparse blocks if the options name none.

    **Raises:** ValueError if it cannot be made sparse.
    """
    try:
        return upcycle(
            model,
            NUM_EXPERTS if options.num_experts is None else options.num_experts,
            moe_layers if options.moe_layers is None else options.moe_layers,
            experts=EXPERTS if options.experts is None else options.experts,
            seed=options.seed,
            inplace=True,
        )
    except ValueError as error:
        raise ValueError(f"{options.source} cannot be made sparse ({error}): --dense trains it as it is") from error

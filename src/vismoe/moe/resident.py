"""The values of a parameter that this process has. PyTorch multiplies by a parameter on the meta device without an
error, and the result is undefined; of a parameter that is distributed over processes, products need this one's part."""

from typing import Any

from torch import Tensor, nn


def local(parameter: Any) -> Any:
    """The part of a parameter that this process has: of a distributed one (DTensor) its shard, otherwise itself."""
    kind = type(parameter)
    return parameter if kind in (nn.Parameter, Tensor) or not hasattr(kind, "to_local") else parameter.to_local()


def resident(parameter: Tensor, x: Tensor) -> Tensor:
    """Returns this process's part of `parameter`, before it is used with `x`.

    **Raises:** RuntimeError if it is on the meta device and `x` is not.
    """
    if parameter.is_meta and not x.is_meta:
        shape = f"a parameter of shape {tuple(parameter.shape)}"
        raise RuntimeError(
            f"{shape} is on the meta device, where it has no values, and its input is on {x.device}: load the weights "
            "(load_state_dict(…, assign=True)), or initialise them (to_empty(device=…), then reset_parameters) first"
        )
    part: Tensor = local(parameter)
    return part

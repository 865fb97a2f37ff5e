"""Checks that a parameter has values: PyTorch multiplies by a parameter on the meta device without an error, and the
result is undefined."""

from torch import Tensor


def resident(parameter: Tensor, x: Tensor) -> Tensor:
    """Returns `parameter`, before it is used with `x`.

    **Raises:** RuntimeError if it is on the meta device and `x` is not.
    """
    if parameter.is_meta and not x.is_meta:
        shape = f"a parameter of shape {tuple(parameter.shape)}"
        raise RuntimeError(
            f"{shape} is on the meta device, where it has no values, and its input is on {x.device}: load the weights "
            "(load_state_dict(…, assign=True)), or initialise them (to_empty(device=…), then reset_parameters) first"
        )
    return parameter

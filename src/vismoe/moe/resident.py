"""Whether a parameter has values: PyTorch multiplies by one on the meta device without an error, and answers with
whatever the memory held."""

from torch import Tensor


def resident(parameter: Tensor, x: Tensor) -> Tensor:
    """`parameter` itself, which is about to be used with `x`.

    **Raises:** RuntimeError where it is on the meta device and `x` is not.
    """
    if parameter.is_meta and not x.is_meta:
        shape = f"a parameter of shape {tuple(parameter.shape)}"
        raise RuntimeError(
            f"{shape} is on the meta device, where it has no values, and its input is on {x.device}: load the weights "
            "(load_state_dict(…, assign=True)), or draw them (to_empty(device=…), then reset_parameters) first"
        )
    return parameter

"""Whether an exported graph computes what its network does."""

from dataclasses import dataclass
from typing import cast

import onnxruntime
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.moe import TopKRouter, record

TOLERANCE = 1e-4
"""Largest difference of logits that an export may have."""
TIE = 1e-5
"""Where two experts' logits lie closer than this, another order of summation may choose the other one."""
DRAWS = 10


@dataclass(frozen=True)
class Agreement:
    """`difference`: the largest, of logits; `images` that were compared; `left_out`: those with a choice too close to
    call."""

    difference: float
    images: int
    left_out: int


@torch.no_grad()
def compare(
    model: nn.Module, session: onnxruntime.InferenceSession, input_size: tuple[int, ...], batch_size: int | None
) -> Agreement:
    """Feeds both the same random images: in batches of 1, 2 and 7, or of the only `batch_size` that the graph takes.

    **Raises:** ValueError where no image could be compared.
    """
    batches = (1, 2, 7) if batch_size is None else (batch_size,) * -(-10 // batch_size)
    generator = torch.Generator().manual_seed(0)
    difference, images, left_out = 0.0, 0, 0
    for _ in range(DRAWS):
        for batch in batches:
            pixels = torch.randn(batch, *input_size, generator=generator)
            with record(model) as routing:
                expected = model(pixels)
            found = torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
            clear = torch.ones(batch, dtype=torch.bool)
            for call in (call for calls in routing.layers.values() for call in calls):
                bias = cast(TopKRouter, call.router).balance_bias
                logits = call.routing.logits if bias is None else call.routing.logits + bias
                clear &= choice_gap(logits, cast(TopKRouter, call.router).k, batch) >= TIE
            worst = (found - expected).abs().amax(1)[clear]
            difference = max([difference, *worst.nan_to_num(torch.inf).tolist()])
            images, left_out = images + len(worst), left_out + batch - len(worst)
        if images:
            return Agreement(difference, images, left_out)
    raise ValueError(
        f"in each of {left_out} random images some router's choice between two experts is closer than {TIE}, so the "
        "exported network cannot be compared: are its routers trained?"
    )


def choice_gap(logits: Float[Tensor, "G S E"], k: int, batch: int) -> Float[Tensor, " B"]:
    """How far, in each image's closest case, the k-th choice is from the next one."""
    if k == logits.shape[-1]:
        return torch.full((batch,), torch.inf)
    best = logits.topk(k + 1, -1).values
    return (best[..., k - 1] - best[..., k]).reshape(batch, -1).amin(1)

"""Compares the logits of an exported graph with those of its network."""

from dataclasses import dataclass
from typing import cast

import onnxruntime
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vismoe.moe import TopKRouter, record

TOLERANCE = 1e-4
"""The largest accepted difference of logits."""
TIE = 1e-5
"""If the logits of two experts are closer than this, rounding may decide which one is chosen."""
DRAWS = 10


@dataclass(frozen=True)
class Agreement:
    """Result of a comparison.

    - `difference`: max absolute difference of the logits.
    - `images`: number of images compared.
    - `left_out`: number of images left out, because a router's choice was too close to call.
    """

    difference: float
    images: int
    left_out: int


@torch.no_grad()
def compare(
    model: nn.Module, session: onnxruntime.InferenceSession, input_size: tuple[int, ...], batch_size: int | None
) -> Agreement:
    """Compares the logits of a network and of its exported graph on random images.

    **Arguments:**

    - `model`: the network, in evaluation mode.
    - `session`: the exported graph.
    - `input_size`: (channels, height, width).
    - `batch_size`: the graph's fixed batch size; None: any, batches of 1, 2 and 7 are compared.

    **Raises:** ValueError if no image could be compared.
    """
    batches = (1, 2, 7) if batch_size is None else (batch_size,) * -(-10 // batch_size)
    generator = torch.Generator().manual_seed(0)
    difference, images, left_out = 0.0, 0, 0
    for _ in range(DRAWS):
        for batch in batches:
            pixels = torch.randn(batch, *input_size, generator=generator)
            with record(model) as routing:
                expected = model(pixels)
            exported_logits = torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
            is_clear = torch.ones(batch, dtype=torch.bool)
            for call in (call for calls in routing.layers.values() for call in calls):
                bias = cast(TopKRouter, call.router).balance_bias
                logits = call.routing.logits if bias is None else call.routing.logits + bias
                is_clear &= choice_gap(logits, cast(TopKRouter, call.router).k, batch) >= TIE
            differences = (exported_logits - expected).abs().amax(1)[is_clear]
            difference = max([difference, *differences.nan_to_num(torch.inf).tolist()])
            images, left_out = images + len(differences), left_out + batch - len(differences)
        if images:
            return Agreement(difference, images, left_out)
    raise ValueError(
        f"in each of {left_out} random images some router's choice between two experts is closer than {TIE}, so the "
        "exported network cannot be compared: export a network with trained routers"
    )


def choice_gap(logits: Float[Tensor, "G S E"], k: int, batch: int) -> Float[Tensor, " B"]:
    """The gap between the logits of the k-th choice and the next, minimum over each image's tokens."""
    if k == logits.shape[-1]:
        return torch.full((batch,), torch.inf)
    best = logits.topk(k + 1, -1).values
    return (best[..., k - 1] - best[..., k]).reshape(batch, -1).amin(1)

"""Compares the logits of an exported graph with those of its network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

import onnxruntime
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vismoe.moe import Recording, TopKRouter, record

TOLERANCE = 1e-4
"""The largest accepted difference of logits, and of scores."""
TIE = 1e-5
"""If the logits of two experts are closer than this, rounding may decide which one is chosen."""
DRAWS = 10
EXPERTS = "a router's choice between two experts"
"""The decision that leaves an image out of the comparison."""


@dataclass(frozen=True)
class Agreement:
    """Result of a comparison.

    - `difference`: max absolute difference of the logits; of a detector, of the scores.
    - `images`: number of images compared.
    - `left_out`: number of images left out, because a decision was too close to call.
    - `close_calls`: the same number by decision.
    """

    difference: float
    images: int
    left_out: int
    close_calls: dict[str, int] = field(default_factory=dict)


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
    generator = torch.Generator().manual_seed(0)
    difference, images, left_out = 0.0, 0, 0
    for _ in range(DRAWS):
        for batch in batches(batch_size):
            pixels = torch.randn(batch, *input_size, generator=generator)
            with record(model) as routing:
                expected = model(pixels)
            exported_logits = torch.from_numpy(session.run(["logits"], {"pixels": pixels.numpy()})[0])
            differences = (exported_logits - expected).abs().amax(1)[clear_choices(routing, batch)]
            difference = max([difference, *differences.nan_to_num(torch.inf).tolist()])
            images, left_out = images + len(differences), left_out + batch - len(differences)
        if images:
            return Agreement(difference, images, left_out, {EXPERTS: left_out} if left_out else {})
    raise ValueError(
        f"in each of {left_out} random images some router's choice between two experts is closer than {TIE}, so the "
        "exported network cannot be compared: export a network with trained routers"
    )


def named_calls(close_calls: Mapping[str, int]) -> str:
    """Decisions with their numbers of images, as text."""
    return ", ".join(f"{decision} (in {number})" for decision, number in close_calls.items())


def batches(batch_size: int | None) -> tuple[int, ...]:
    """The batch sizes that are compared: 1, 2 and 7, or the graph's only one until there are ten images."""
    return (1, 2, 7) if batch_size is None else (batch_size,) * -(-10 // batch_size)


def clear_choices(routing: Recording, batch: int) -> Bool[Tensor, " B"]:
    """In which images no router's choice is too close to call."""
    is_clear = torch.ones(batch, dtype=torch.bool)
    for call in (call for calls in routing.layers.values() for call in calls):
        bias = cast(TopKRouter, call.router).balance_bias
        logits = call.routing.logits if bias is None else call.routing.logits + bias
        is_clear &= choice_gap(logits, cast(TopKRouter, call.router).k, batch, call.routing.mask) >= TIE
    return is_clear


def choice_gap(
    logits: Float[Tensor, "G S E"], k: int, batch: int, mask: Bool[Tensor, "G S"] | None = None
) -> Float[Tensor, " B"]:
    """The gap between the logits of the k-th choice and the next, minimum over each image's tokens without padding."""
    if k == logits.shape[-1]:
        return torch.full((batch,), torch.inf)
    best = logits.topk(k + 1, -1).values
    gap = best[..., k - 1] - best[..., k]
    if mask is not None:
        gap = torch.where(mask, gap, torch.inf)
    return gap.reshape(batch, -1).amin(1)

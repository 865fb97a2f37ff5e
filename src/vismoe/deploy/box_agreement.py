"""Compares the objects that an exported detector finds with those of its network."""

from collections import Counter
from dataclasses import dataclass

import onnxruntime
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from vismoe.detection import Detections, Outputs, decode
from vismoe.detection.decode import (
    CANDIDATES,
    LOWEST,
    MOST,
    OVERLAP,
    candidates,
    centre_probabilities,
    kept_candidates,
    peak_scores,
)
from vismoe.moe import record
from vismoe.weights.exported.description import DETECTOR

from .agreement import DRAWS, EXPERTS, TIE, Agreement, batches, clear_choices, named_calls

BOX_TOLERANCE = 1e-3
"""The largest accepted difference of a box, in pixels of the input; of a box with a side of more than 100 pixels, for
each 100 pixels of its longer side, as rounding is relative to it."""
LONG = 100
ROUNDING = 2 * torch.finfo(torch.float32).eps
CENTRE, SCORE, RANK, OVERLAPPING, ORDER = (
    "which of two neighbouring cells has an object's centre",
    f"whether a score is at least {LOWEST}",
    f"which boxes are among the best {CANDIDATES} or {MOST}",
    f"whether two boxes overlap by more than {OVERLAP}",
    "which of two overlapping boxes has the higher score",
)
"""Decisions that leave an image out of the comparison."""


@dataclass(frozen=True)
class BoxAgreement(Agreement):
    """Result of a comparison of detectors.

    - `box_difference`: max absolute difference of the boxes, in pixels of the input (of a box with a side of more than
      100 pixels, for each 100 pixels of its longer side); infinite if in an image another number of objects was found,
      or objects of other classes.
    - `objects`: number of objects compared.
    """

    box_difference: float = 0.0
    objects: int = 0


@torch.no_grad()
def compare_boxes(
    model: nn.Module, session: onnxruntime.InferenceSession, input_size: tuple[int, ...], batch_size: int | None
) -> BoxAgreement:
    """Compares the objects that a detector and its exported graph find in random images: rectangles and noise, with
    padding on two sides of some. Each object of one is matched with one of the other.

    **Arguments:**

    - `model`: the detector, in evaluation mode.
    - `session`: the exported graph.
    - `input_size`: (channels, height, width).
    - `batch_size`: the graph's fixed batch size; None: any, batches of 1, 2 and 7 are compared.

    **Raises:** ValueError if no image could be compared.
    """
    generator = torch.Generator().manual_seed(0)
    differences, images, objects, close = [(0.0, 0.0)], 0, 0, Counter[str]()
    for _ in range(DRAWS):
        for batch in batches(batch_size):
            pixels, mask = random_images(batch, input_size, generator)
            with record(model) as routing:
                outputs = model(pixels, mask)
            given = dict(zip(DETECTOR[0], (pixels.numpy(), mask.numpy()), strict=True))
            exported = decode(tuple(torch.from_numpy(values) for values in session.run(list(DETECTOR[1]), given)))
            is_clear = clear_choices(routing, batch).tolist()
            for number, (expected, found) in enumerate(zip(decode(outputs), exported, strict=True)):
                call = first_close_call(_one(outputs, number)) if is_clear[number] else EXPERTS
                if call is not None:
                    close[call] += 1
                    continue
                differences.append(difference_of(expected, found))
                images, objects = images + 1, objects + len(expected)
        if objects:
            break
    if not images:
        raise ValueError(
            f"in each of {close.total()} random images a decision is too close to call ({named_calls(close)}), so the "
            "exported network cannot be compared: export a trained network"
        )
    scores, boxes = (max(column) for column in zip(*differences, strict=True))
    return BoxAgreement(scores, images, close.total(), dict(close), boxes, objects)


def random_images(
    batch: int, input_size: tuple[int, ...], generator: torch.Generator
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
    """Rectangles of random colours on noise, and masks: an image fills the input, or leaves up to half of its rows or
    columns at the bottom or on the right as padding."""
    channels, height, width = input_size
    pixels = torch.randn(batch, *input_size, generator=generator)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    limits = torch.tensor([height, height, width, width])
    for image in pixels:
        for places in torch.rand(6, 4, generator=generator):
            one, two, three, four = (places * limits).tolist()
            shown = (rows >= min(one, two)) & (rows < max(one, two))
            shown = shown & (columns >= min(three, four)) & (columns < max(three, four))
            colour = torch.randn(channels, 1, 1, generator=generator)
            image.copy_(torch.where(shown, colour + image / 4, image))
    sides = (torch.rand(2, batch, 1, 1, generator=generator) + 0.5).clamp_max(1)
    mask = (rows < sides[0] * height) & (columns < sides[1] * width)
    return torch.where(mask[:, None], pixels, 0), mask


def difference_of(expected: Detections, found: Detections) -> tuple[float, float]:
    """The max absolute differences of scores and of boxes, after each object is matched with the nearest one of its
    class; infinite if that is not one to one."""
    if len(expected) != len(found):
        return torch.inf, torch.inf
    if not len(expected):
        return 0.0, 0.0
    distances = (expected.boxes[:, None] - found.boxes).abs().amax(2)
    distances = torch.where(expected.labels[:, None] == found.labels, distances, torch.inf).nan_to_num(torch.inf)
    nearest, match = distances.min(1)
    if len(match.unique()) != len(match):
        return torch.inf, torch.inf
    scores = (expected.scores - found.scores[match]).abs().nan_to_num(torch.inf)
    sides = (expected.boxes[:, 2:] - expected.boxes[:, :2]).amax(1)
    return float(scores.max()), float((nearest / (sides / LONG).clamp_min(1)).max())


def first_close_call(outputs: Outputs) -> str | None:
    """A decision about one image that is too close to call, because rounding may change it; None if there is none.

    Scores and probabilities are too close if a difference of 1e-5 between logits can explain it; overlaps, if their
    difference is below 1e-5.
    """
    boxes, scores, labels = (values[0] for values in candidates(outputs))
    ranked = peak_scores(outputs).flatten().sort(descending=True).values
    cut = float(ranked[CANDIDATES - 1]) if len(ranked) > CANDIDATES else 0.0
    if _has_close_centre(outputs, max(LOWEST, cut)):
        return CENTRE
    if _is_close(scores, scores.new_tensor(LOWEST)).any():
        return SCORE
    kept = kept_candidates(boxes[None], scores[None], labels[None], outputs.centres.shape[1])[0]
    best = scores[kept]
    if cut >= LOWEST and _is_close(ranked[CANDIDATES - 1], ranked[CANDIDATES]):
        return RANK
    if len(best) > MOST and _is_close(best[MOST - 1], best[MOST]):
        return RANK
    # A box is left out only because of a kept one of its class with a higher score.
    pairs = (kept[:, None] & (scores >= LOWEST) & (labels[:, None] == labels)).triu(1)
    overlaps = box_iou(boxes, boxes)
    if (pairs & ((overlaps - OVERLAP).abs() < TIE)).any():
        return OVERLAPPING
    return ORDER if (pairs & (overlaps > OVERLAP) & _is_close(scores[:, None], scores)).any() else None


def _is_close(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs() < (TIE + ROUNDING) * other


def _has_close_centre(outputs: Outputs, lowest: float) -> bool:
    """Whether a cell with at least this score, or a neighbour, has the larger centre probability only by rounding."""
    centres = centre_probabilities(outputs)[0]
    height, width = centres.shape[1:]
    windows = F.unfold(F.pad(centres[:, None], (1, 1, 1, 1)), 3)  # (K, 9, h · w)
    around = windows[:, [0, 1, 2, 3, 5, 6, 7, 8]].amax(1).view(-1, height, width)
    noise = TIE * centres * (1 - centres) + ROUNDING * centres
    scores = (centres * outputs.quality[0].sigmoid()).sqrt()
    return bool(((scores >= lowest * (1 - TIE)) & ((centres - around).abs() <= noise)).any())


def _one(outputs: Outputs, number: int) -> Outputs:
    """The outputs for one image of the batch."""
    centres, quality, boxes, inside, stride = outputs
    place = slice(number, number + 1)
    return Outputs(centres[place], quality[place], boxes[place], None if inside is None else inside[place], stride)

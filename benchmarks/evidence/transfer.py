"""What a trunk that learned to tell pictures apart is worth elsewhere: emoji of another drawing style, by category."""

import copy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vismoe.data import ImageSet
from vismoe.features import features, linear_probe, nearest_neighbours

from .kept import kept
from .pictures import emoji, picture_of, small

SHOWN, ASKED = ("google", "twitter"), "fluent"


def transfer(network: nn.Module, root: Path) -> dict[str, float]:
    """The accuracy of nearest neighbours and of a linear classifier, both on the mean of the trunk's tokens, on emoji
    of one style, given those of the two others."""
    known, asked, network = _emoji(SHOWN, root), _emoji((ASKED,), root), copy.deepcopy(network)
    network.representation = network.head = nn.Identity()
    known_x, asked_x = features(network, known), features(network, asked)
    votes = nearest_neighbours(known_x, known.labels, asked_x, int(known.labels.max()) + 1)
    weight, bias = linear_probe(known_x, known.labels)
    scores = {"neighbours": votes, "probe": asked_x @ weight.T + bias}
    return {name: round((found.argmax(1) == asked.labels).float().mean().item(), 5) for name, found in scores.items()}


def _emoji(styles: tuple[str, ...], root: Path) -> ImageSet:
    """All emoji of some styles, on white as the networks were trained, and their categories."""
    found = [(file, category) for style, file, _, category in emoji(root) if style in styles]
    names = sorted({category for _, category in found})
    pixels = kept(
        root / f"emoji-{'-'.join(styles)}.npy", lambda: np.stack([np.asarray(small(file)) for file, _ in found])
    )
    labels = torch.tensor([names.index(category) for _, category in found])
    return ImageSet(labels, partial(picture_of, pixels))

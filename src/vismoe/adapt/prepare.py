"""The network as its training begins: with a head that is fitted, and with experts."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vismoe.features.features import classifiers, features
from vismoe.features.probe import linear_probe
from vismoe.inference import evaluate
from vismoe.moe import MoE
from vismoe.tasks import classification_of
from vismoe.training.run import INITIAL
from vismoe.vit import upcycle
from vismoe.weights import load_network
from vismoe.weights.folders.layout import CONFIG

from .claim import claim
from .options import Options
from .parts import Parts
from .start import SCRATCH, open_start


def prepare(
    options: Options, parts: Parts, path: Path, device: torch.device, workers: int
) -> tuple[Any, dict[str, float] | None]:
    """The network to train and how its head alone does on test part and, where there is one, validation part, where it
    knows something; made once a run."""
    data, kept = parts.fitting, path / INITIAL
    if (kept / CONFIG).exists():
        start: Any = load_network(kept)
    else:
        torch.manual_seed(options.seed)
        start = open_start(options.source, options.makes_sparse, len(data.classes), options.image_size, device)
        sparse = any(isinstance(module, MoE) for module in start.modules())
        if sparse and options.sparse is False:
            raise ValueError(f"{options.source} is sparse: `vismoe densify` makes a dense model of it")
        if sparse and (idle := [name for name in options.of_experts if name != "freeze_router"]):
            told = ", ".join(f"{name}={getattr(options, name)!r}" for name in idle)
            name = options.source or SCRATCH[True]
            raise ValueError(f"{told}: {name} is sparse already, and its experts stay as they are")
        if options.trained:
            _fit_head(start.to(device), parts, workers)
        if options.makes_sparse and not sparse:
            start = _upcycled(start, options)
        claim(options, path)
        classification_of(data).save(start.cpu(), kept)
    if not options.trained:
        return start, None
    held_out = {"test": parts.test.val} | ({"validation": data.val} if parts.validated else {})
    return start, {name: evaluate(start.to(device), part, workers=workers).score for name, part in held_out.items()}


def _upcycled(model: nn.Module, options: Options) -> nn.Module:
    try:
        return upcycle(
            model, options.num_experts, options.layers, experts=options.experts, seed=options.seed, inplace=True
        )
    except ValueError as error:
        raise ValueError(f"{options.source} cannot be made sparse ({error}): --dense trains it as it is") from error


@torch.no_grad()
def _fit_head(model: nn.Module, parts: Parts, workers: int) -> None:
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise ValueError(f"the classifier of {type(model).__name__} is no one linear layer, which could be fitted")
    train = parts.fitting.parts[0]
    weight, bias = linear_probe(features(model, train, workers=workers), train.labels)
    heads[0].weight.copy_(weight)
    if heads[0].bias is not None:
        heads[0].bias.copy_(bias)

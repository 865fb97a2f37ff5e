"""The initial network of a fine-tuning: with a head fitted by logistic regression, and upcycled on request."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vismoe.features.features import classifiers, features
from vismoe.features.probe import linear_probe
from vismoe.inference import evaluate
from vismoe.tasks import ClassEvaluation, classification_of
from vismoe.vit.presets import CONV_STEM_AND_MEAN
from vismoe.weights import create_model, open_trained, set_image_size, set_max_level

from ..budget import choose_dtype
from ..experts import is_sparse, refuse_other_experts, upcycled
from ..freezing import SHARES, choose_trained
from ..initial_model import made_once
from ..options import LAYERS, Options
from ..splits import Splits
from .calibrate import ENOUGH, divide_logits, fit_temperature
from .rules import FEWEST_EPOCHS, Work, choose_image_size, is_better, larger_image_size, scratch_preset


def initial_model(
    options: Options, splits: Splits, path: Path, device: torch.device, workers: int, log: Callable[[str], None]
) -> tuple[Any, dict[str, float] | None]:
    """Returns the network to train, and the scores of its linear classifier on the test split and, if there is one, on
    the validation split (None for a network without trained weights). It is made once per run, and then loaded.

    **Raises:** ValueError for options that do not fit the network.
    """
    data = splits.fitting

    def make() -> nn.Module:
        if options.source is not None and options.trained:
            network = _with_new_head(options.source, len(data.classes))
        else:
            network = _untrained(options, len(data.classes), splits.image_side)
        if options.max_level is not None:
            set_max_level(network, options.max_level)
        refuse_other_experts(options, network)
        if options.trained:
            network = _fitted_at_best_size(network, options, splits, device, workers, log)
        return upcycled(network, options, LAYERS) if options.makes_sparse and not is_sparse(network) else network

    network = made_once(options, path, classification_of(data), make)
    if not options.trained:
        return network, None
    scored = {"test": splits.test.val} | ({"validation": data.val} if splits.validated else {})
    return network, {name: evaluate(network.to(device), part, workers=workers).score for name, part in scored.items()}


def _fitted_at_best_size(
    network: Any, options: Options, splits: Splits, device: torch.device, workers: int, log: Callable[[str], None]
) -> nn.Module:
    """The network with a fitted head, at the image size in the options; without one, at the size, of two, at which a
    linear classifier is better."""
    source, first = str(options.source), options.image_size or choose_image_size(network, device)
    second = None if options.image_size else larger_image_size(network, first, splits.image_side)
    if second is None or not splits.validated:
        set_image_size(network, first, source)
        _fit_head(network.to(device), splits, workers)
        return cast(nn.Module, network)
    larger = copy.deepcopy(network)
    set_image_size(network, first, source)
    set_image_size(larger, second, source)
    work = Work.of(larger, splits, SHARES[choose_trained(options, larger, device)], trained=True)
    epochs = work.affordable(device, choose_dtype(options, device)) / len(splits.fitting.train_and_val[0])
    if epochs < FEWEST_EPOCHS:
        log(
            f"images are scaled from {splits.image_side} to {first} pixels (shorter side): in the time limit of a CPU, "
            f"{second} pixels allow {epochs:.1f} epochs, and at least {FEWEST_EPOCHS} are needed; "
            f"--image-size {second} --epochs N trains at {second} pixels all the same"
        )
        _fit_head(network.to(device), splits, workers)
        return cast(nn.Module, network)
    candidates = {first: network, second: larger}
    evaluations = {size: _fit_head(model.to(device), splits, workers) for size, model in candidates.items()}
    chosen = second if is_better(evaluations[second].right, evaluations[first].right) else first
    log(
        f"{chosen} × {chosen} pixels: on the validation split a linear classifier on the frozen network has "
        f"{evaluations[first].score:.4f} at {first} pixels, {evaluations[second].score:.4f} at {second}: "
        + (
            "better by more than one standard error"
            if chosen == second
            else "not better by more than one standard error, and the smaller size is faster"
        )
    )
    return cast(nn.Module, candidates[chosen])


@torch.no_grad()
def _fit_head(model: nn.Module, splits: Splits, workers: int) -> ClassEvaluation:
    """Fits the classifier by logistic regression. If it is overconfident on the validation split, its logits are
    divided by a temperature, because large logits make the first training steps too large. Returns its evaluation on
    the validation split."""
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(heads[0], nn.Linear):
        raise ValueError(f"the classifier of {type(model).__name__} is not one linear layer, so it cannot be fitted")
    train = splits.fitting.train_and_val[0]
    weight, bias = linear_probe(features(model, train, workers=workers), train.labels)
    heads[0].weight.copy_(weight)
    if heads[0].bias is not None:
        heads[0].bias.copy_(bias)
    evaluation = evaluate(model, splits.fitting.val, workers=workers, task=classification_of(splits.fitting))
    assert isinstance(evaluation, ClassEvaluation)
    if splits.validated and len(evaluation.labels) >= ENOUGH:
        divide_logits(model, max(1.0, fit_temperature(evaluation.scores, evaluation.labels)))
    return evaluation


def open_start(source: str, num_classes: int, image_size: int | None, device: torch.device) -> nn.Module:
    """Opens a trained network with a new head.

    **Arguments:**

    - `source`: the network, see `vismoe.weights.parse_source`.
    - `num_classes`: number of classes of the head.
    - `image_size`: height and width in pixels; None: that of `choose_image_size`.
    - `device`: device of the training, for the default size.

    **Raises:** ValueError for a source that cannot be opened, and for a network whose classifier cannot be replaced.
    """
    model = _with_new_head(source, num_classes)
    set_image_size(model, image_size or choose_image_size(model, device), source)
    return model


def _with_new_head(source: str, num_classes: int) -> nn.Module:
    """The trained network that `source` names, with a new head, at its own image size."""
    model: Any = open_trained(source)
    if not hasattr(model, "reset_classifier"):
        raise ValueError(f"{source} is a {type(model).__name__}: its classifier cannot be replaced")
    model.reset_classifier(num_classes)
    return cast(nn.Module, model)


def _untrained(options: Options, num_classes: int, image_side: int) -> nn.Module:
    """The preset in the options; without one, a small preset that fits the size of the images."""
    if options.source is not None:
        size: dict[str, Any] = {} if options.image_size is None else {"img_size": options.image_size}
        return create_model(options.source, num_classes=num_classes, **size)
    preset, image_size = scratch_preset(image_side, options.image_size, options.makes_sparse)
    stem: dict[str, Any] = CONV_STEM_AND_MEAN
    return create_model(preset, num_classes=num_classes, img_size=image_size, **stem)

"""Two networks for the same task, such as a sparse one and its dense twin, side by side."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vismoe.inference import Predictor, measure_speed
from vismoe.kernels import native
from vismoe.tasks import ClassPrediction, Prediction
from vismoe.tasks.detection import BoxPrediction
from vismoe.vit import cost, reason_against

SECONDS = 0.5
"""About how long each network's speed is measured."""


@dataclass(frozen=True)
class Side:
    """One of two networks.

    - `name`: its name.
    - `parameters`, `active_parameters`, `macs`: see `vismoe.vit.Cost`.
    - `milliseconds`: median time of a forward pass of one image, measured in turn with the other network, both
      optimized where they can be.
    """

    name: str
    parameters: int
    active_parameters: int
    macs: int
    milliseconds: float


@dataclass(frozen=True)
class Difference:
    """An image for which two networks have different answers: of classifiers the most probable class, of detectors the
    number of objects of each class with a score of at least 0.3.

    - `number`: number of the image, from 0.
    - `image`: its path or title.
    - `label`: names of its true classes; "" if they are not known.
    - `answers`: both answers as text.
    """

    number: int
    image: str
    label: str
    answers: tuple[str, str]


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images.

    - `sides`: the two networks.
    - `images`: number of images.
    - `differences`: the images for which they have different answers.
    """

    sides: tuple[Side, Side]
    images: int
    differences: list[Difference]


def compare_networks(
    predictors: tuple[Predictor, Predictor],
    names: tuple[str, str],
    images: Sequence[Image.Image],
    titles: Sequence[str],
    labels: Sequence[str] = (),
) -> Comparison:
    """Compares two networks for the same task on images.

    **Arguments:**

    - `predictors`: the networks, not optimized.
    - `names`: their names.
    - `images`: the images, decoded one by one.
    - `titles`: path or title of each image.
    - `labels`: names of the true classes of each image; default: they are not known.

    **Raises:** ValueError for networks of different tasks or classes.
    """
    one, other = predictors
    kinds = [(each.task.name, list(getattr(each.task, "classes", ()))) for each in predictors]
    if kinds[0] != kinds[1]:
        shown = [f"{name} ({len(classes)} classes)" for name, classes in kinds]
        raise ValueError(
            f"{names[0]} is for {shown[0]}, {names[1]} for {shown[1]}: compare two networks with the same classes"
        )
    answers: list[list[str]] = []
    keys: list[list[str]] = []
    for predictor in (one, other):
        own: list[Prediction] = []
        for start in range(0, len(images), predictor.batch_size):
            chunk = [images[place] for place in range(start, min(start + predictor.batch_size, len(images)))]
            own += predictor.predict(chunk, topk=1)
        answers.append([answer_of(prediction) for prediction in own])
        keys.append([_key(prediction) for prediction in own])
    differences = [
        Difference(number, title, labels[number] if labels else "", (first, second))
        for number, (title, first, second) in enumerate(zip(titles, *answers, strict=True))
        if keys[0][number] != keys[1][number]
    ]
    timed = {f"{n}": (optimized_copy(each) or each).model for n, each in enumerate(predictors)}
    speeds = measure_speed(timed, 1, SECONDS, one.device)
    sides = [_side(name, each, speeds[f"{n}"]) for n, (name, each) in enumerate(zip(names, predictors, strict=True))]
    return Comparison((sides[0], sides[1]), len(images), differences)


def answer_of(prediction: Prediction) -> str:
    """An answer as text: "cat 0.93", or "2 cells, 1 platelet"."""
    if isinstance(prediction, ClassPrediction):
        return f"{prediction.names[0]} {prediction.probabilities[0]:.2f}"
    assert isinstance(prediction, BoxPrediction)
    names = [box.name for box in prediction.above(0.3).boxes]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names))) or "nothing"


def optimized_copy(predictor: Predictor) -> Predictor | None:
    """The same network in the form that `Predictor(SOURCE)` and `vismoe serve` run, with packed weights, for measuring
    its time; None where there is no such form: without compiled kernels, and on other devices than the CPU."""
    if native() is None or predictor.device.type != "cpu" or reason_against(predictor.model) is not None:
        return None
    return Predictor(copy.deepcopy(predictor.model), predictor.task, batch_size=predictor.batch_size, optimized=True)


def _key(prediction: Prediction) -> str:
    """What two answers must share to count as the same."""
    return prediction.names[0] if isinstance(prediction, ClassPrediction) else answer_of(prediction)


def _side(name: str, predictor: Predictor, speed: Any) -> Side:
    channels, height, width = predictor.config["input_size"]
    own = cost(predictor.model, (channels, height, width))
    return Side(name, own.parameters, own.active_parameters, own.macs, speed.milliseconds)

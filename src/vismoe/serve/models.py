"""The models of a service: opened once, tried out, and exchanged while requests run."""

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from vismoe.adapt import open_unfinished
from vismoe.data import Sample
from vismoe.detection import Detector
from vismoe.explain import has_capacity
from vismoe.explain.tokens import short_name
from vismoe.inference import Predictor
from vismoe.moe import ExpertChoiceRouter, MoE
from vismoe.moe.record import layers_of
from vismoe.parallel import resolve_device
from vismoe.tasks import ClassPrediction
from vismoe.tasks.detection import BoxPrediction
from vismoe.training import Run
from vismoe.vit import cost
from vismoe.weights import data_config, open_source, open_trained
from vismoe.weights.sources import LOCAL, ONNX, short_source

from .requests.errors import ServiceError
from .requests.logs import log

MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, eq=False)  # compared by identity: a reloaded model is another one
class Served:
    """A model that answers.

    - `name`: its name, without the folders that it lies in.
    - `predictor`: runs it.
    - `facts`: its entry in /v1/model.
    - `run`: the run that it comes from; None for other models.
    - `largest_batch`: images in a batch, at most; None: as many as the service puts in one. 1 for a network whose
      answer for an image depends on the others in its batch, because their tokens compete for places.
    """

    name: str
    predictor: Predictor
    facts: dict[str, Any]
    run: Run | None
    largest_batch: int | None

    @property
    def is_exported(self) -> bool:
        """Whether it is an ONNX file."""
        return not self.facts["parameters"]


def open_served(
    source: str,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 16,
    running: Sequence[Served] = (),
) -> Served:
    """Opens a trained model, and runs it on one image.

    **Arguments:**

    - `source`: a run folder, a model folder, an .onnx file, or another name of a trained model. Of a run that is still
      in training, or was interrupted, the newest checkpoint is opened.
    - `device`: "auto", "cpu", "cuda", …; default "auto".
    - `dtype`: type of weights and products on a CPU; default "float32".
    - `batch_size`: images per forward pass, at most; default 16.
    - `running`: models that answer meanwhile; default: none.

    **Raises:** FileNotFoundError, ValueError if it cannot be opened, or its answer is not finite.
    """
    path = Path(source.removeprefix(LOCAL))
    run, step = (Run.of(path) if path.exists() else None), None  # other names say nothing of the current folder
    is_exported = path.suffix == ONNX and path.is_file()
    if run is not None and run.path == path and not run.has_model:
        network, step = open_unfinished(run, lambda text: log(text, logging.WARNING))
    else:
        network = open_source(source, exported=True) if is_exported else open_trained(source)
    channels, height, width = data_config(network)["input_size"]
    with ExitStack() as stack:
        for other in running:  # PyTorch's counter of operations hooks into the modules of all threads
            stack.enter_context(other.predictor.paused())
        # Before the weights are packed.
        counted = None if is_exported else cost(network, (channels, height, width))
    if not is_exported:
        network.to(resolve_device(device))
    layers = layers_of(network)
    predictor = Predictor(network, batch_size=batch_size, optimized=True, dtype=dtype)
    predictor.task.check_model(predictor.model)
    name = short_source(source)
    facts = {
        "name": name,
        "task": predictor.task.name,
        "classes": list(getattr(predictor.task, "classes", [])),
        "input_size": [channels, height, width],
        "parameters": counted and counted.parameters,
        "active_parameters": counted and counted.active_parameters,
        "macs": counted and counted.macs,
        "sparse": bool(layers),
        "layers": [_layer(name, layer) for name, layer in layers.items()],
        "capacity": has_capacity(network),
        "embedding": not is_exported and not isinstance(network, Detector),
        "run": run is not None and (run.path / "metrics.jsonl").is_file(),
        "step": step,
    }
    served = Served(name, predictor, facts, run, 1 if competes(network) else None)
    _try(served)
    return served


def competes(model: nn.Module) -> bool:
    """Whether tokens of different images of a batch may compete for places in experts."""
    layers = [module for module in model.modules() if isinstance(module, MoE)]
    return any(
        (layer.group_size != "none" or not layer.router.groups_by_image)
        and (
            isinstance(layer.router, ExpertChoiceRouter)
            or getattr(layer.router, "eval_capacity_factor", "none") != "none"
        )
        for layer in layers
    )


def _layer(name: str, layer: Any) -> dict[str, Any]:
    return {
        "name": short_name(name),
        "experts": layer.router.num_experts,
        "k": getattr(layer.router, "k", None),
    }


def _try(served: Served) -> None:
    """Raises ValueError if the answer for a grey image is not finite, or of a kind that the service does not have."""
    channels, height, width = served.facts["input_size"]
    sample: Sample = {"image": Image.new(MODES.get(channels, "RGB"), (width, height), 127)}
    predictor = served.predictor
    with torch.no_grad():
        outputs = predictor.run(predictor.collate([predictor.prepare(sample)]))
        (prediction,) = predictor.task.predictions(outputs, ["image"], 1)
    if isinstance(prediction, BoxPrediction):
        found = [box.score for box in prediction.boxes]
    elif isinstance(prediction, ClassPrediction):
        found = list(prediction.probabilities)
    else:
        raise ValueError(
            f"{served.name}: its task is {predictor.task.name}: the service answers for classifiers and detectors"
        )
    if not torch.tensor(found, dtype=torch.float64).isfinite().all():
        raise ValueError(f"{served.name}: its answer for a grey image is not finite: the weights are damaged")


class Models:
    """The models that a service answers with, in order.

    **Arguments:**

    - `sources`: their names.
    - `options`: arguments of `open_served`.

    **Raises:** as `open_served`.
    """

    def __init__(self, sources: Sequence[str], **options: Any):
        self._sources, self._options = tuple(sources), options
        self._reloading = threading.Lock()
        self.current: tuple[Served, ...] = ()
        self.current = self._open()

    def _open(self) -> tuple[Served, ...]:
        return tuple(open_served(source, running=self.current, **self._options) for source in self._sources)

    def __getitem__(self, number: int) -> Served:
        """A model by its place. **Raises:** ServiceError."""
        models = self.current
        if not 0 <= number < len(models):
            raise ServiceError("no_model", f"model: accepted are 0 to {len(models) - 1}")
        return models[number]

    def reload(self) -> None:
        """Opens all models again. New requests get the new models; those that wait already are answered by the old
        ones. If one cannot be opened, the old ones stay.

        **Raises:** ServiceError.
        """
        if not self._reloading.acquire(blocking=False):
            raise ServiceError("reload_failed", "the models are being loaded already: wait")
        try:
            self.current = self._open()
            log("reloaded", models=[served.name for served in self.current])
        except Exception as error:
            log("the models cannot be loaded again; the old ones stay", logging.ERROR, error)
            raise ServiceError(
                "reload_failed", "the new model cannot be loaded, so the old one stays: the service's log says why"
            ) from error
        finally:
            self._reloading.release()

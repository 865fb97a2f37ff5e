"""An exported .onnx file as a network."""

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..sources import ANSWERS_ONLY
from .description import CLASSIFIER, DETECTOR, KEY, Description


def open_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """Opens a session of ONNX Runtime on the CPU, with the number of threads of torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxModel(nn.Module):
    """A file of `export_onnx`, run by ONNX Runtime on the CPU, without gradients: a classifier maps pixels to logits, a
    detector maps pixels and a mask to boxes, scores and labels.

    Evaluation and prediction use it like a network: it has `num_classes` and, in `pretrained_cfg`, the preprocessing,
    `label_names` and `problem_type`. If the batch size is fixed, the last batch is padded with zeros.

    **Raises:** FileNotFoundError; ValueError if the file is not an ONNX file, or has no description.
    """

    def __init__(self, path: str | Path):
        super().__init__()
        self.path = path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            self.session = open_session(path)
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ValueError(f"{path} cannot be opened as an ONNX file: {error}") from error
        self.is_detector = _names(self.session) == DETECTOR
        self.description = _read_description(path, self.session)
        batch = self.session.get_inputs()[0].shape[0]
        self.batch_size: int | None = batch if isinstance(batch, int) else None
        self.num_classes: int = (
            len(self.description.label_names or []) if self.is_detector else self.session.get_outputs()[0].shape[1]
        )
        self.pretrained_cfg: dict[str, Any] = {
            **self.description.preprocessing,
            "architecture": self.description.architecture,
            "label_names": self.description.label_names,
            "problem_type": self.description.problem_type,
            "num_classes": self.num_classes,
        }
        # A parameter, because callers read the network's device from its parameters.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(
        self, pixels: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B classes"] | tuple[Tensor, ...]:
        """The outputs for normalised images.

        **Arguments:**

        - `pixels`: the images.
        - `mask`: for a detector, False where an image is padding; default None: no padding.

        **Returns:** logits; of a detector boxes (B, 100, 4), scores (B, 100) and labels (B, 100), see
        `vismoe.detection.PaddedDetections`.
        """
        inputs = [pixels.detach().float().cpu()]
        if self.is_detector:
            no_padding = torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.bool)
            inputs.append(no_padding if mask is None else mask.detach().cpu())
        elif mask is not None:
            raise ValueError(f"{self.path} is a classifier, which takes no mask: leave it out")
        images = len(pixels)
        batches = [self._run(*parts) for parts in zip(*(self._split(value) for value in inputs), strict=True)]
        outputs = tuple(torch.cat(parts)[:images].to(pixels.device) for parts in zip(*batches, strict=True))
        return outputs if self.is_detector else outputs[0]

    def _split(self, values: Tensor) -> list[Tensor]:
        """Batches of the size that the file takes."""
        if self.batch_size is None:
            return [values]
        missing = -len(values) % self.batch_size
        return list(torch.cat([values, values.new_zeros(missing, *values.shape[1:])]).split(self.batch_size))

    def get_classifier(self) -> nn.Module:
        """A method of timm's networks, which an exported file does not support.

        **Raises:** ValueError.
        """
        raise ValueError(f"{self.path}: {ANSWERS_ONLY}")

    def _run(self, *inputs: Tensor) -> list[Tensor]:
        names, outputs = DETECTOR if self.is_detector else CLASSIFIER
        given = {name: value.contiguous().numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(values) for values in self.session.run(list(outputs), given)]


def _names(session: onnxruntime.InferenceSession) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    return tuple(value.name for value in inputs), tuple(value.name for value in outputs)


def _read_description(path: Path, session: onnxruntime.InferenceSession) -> Description:
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None or _names(session) not in (CLASSIFIER, DETECTOR):
        raise ValueError(
            f"{path} was not written by `vismoe export`, so its preprocessing is unknown: run it with onnxruntime "
            "directly"
        )
    try:
        description = Description.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path} has no valid description of its preprocessing: {error}") from error
    if missing := [
        name for name in ("mean", "std", "interpolation", "crop_pct") if name not in description.preprocessing
    ]:
        raise ValueError(
            f"{path} does not have all its preprocessing (missing: {', '.join(missing)}): export the model again with "
            "preprocessing="
        )
    if _names(session) == DETECTOR and not description.label_names:
        raise ValueError(f"{path} is a detector without class names: export the model again")
    return description

"""An exported .onnx file as a network."""

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..sources import ANSWERS_ONLY
from .description import KEY, Description


def open_session(model: bytes | Path) -> onnxruntime.InferenceSession:
    """Opens a session of ONNX Runtime on the CPU, with the number of threads of torch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OnnxModel(nn.Module):
    """A file of `export_onnx`, run by ONNX Runtime on the CPU. It maps pixels to logits, without gradients.

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
        self.description = _read_description(path, self.session)
        batch, classes = self.session.get_inputs()[0].shape[0], self.session.get_outputs()[0].shape[1]
        self.batch_size: int | None = batch if isinstance(batch, int) else None
        self.num_classes: int = classes
        self.pretrained_cfg: dict[str, Any] = {
            **self.description.preprocessing,
            "architecture": self.description.architecture,
            "label_names": self.description.label_names,
            "problem_type": self.description.problem_type,
            "num_classes": classes,
        }
        # A parameter, because callers read the network's device from its parameters.
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B classes"]:
        """Logits of normalised images."""
        images = pixels.detach().float().cpu()
        if self.batch_size is None:
            return self._run(images).to(pixels.device)
        parts = [
            self._run(F.pad(part, (0, 0, 0, 0, 0, 0, 0, self.batch_size - len(part))))
            for part in images.split(self.batch_size)
        ]
        return torch.cat(parts)[: len(images)].to(pixels.device)

    def get_classifier(self) -> nn.Module:
        """A method of timm's networks, which an exported file does not support.

        **Raises:** ValueError.
        """
        raise ValueError(f"{self.path}: {ANSWERS_ONLY}")

    def _run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"pixels": images.contiguous().numpy()})[0])


def _read_description(path: Path, session: onnxruntime.InferenceSession) -> Description:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None or [value.name for value in (*inputs, *outputs)] != ["pixels", "logits"]:
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
    return description

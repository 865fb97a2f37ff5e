"""pytest tests/deploy/test_docs_lines.py: the lines of docs/export.md that need no vismoe."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from vismoe.deploy import export_onnx
from vismoe.inference import predict
from vismoe.weights.exported.onnx_model import OnnxModel

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
NAMES = ["cat", "dog", "owl", "eel"]


class Pixels(nn.Module):
    """A linear map of all pixels: nothing of how an image was prepared is lost."""

    def __init__(self, channels):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(channels * 64, len(NAMES))
        self.num_classes = len(NAMES)
        preparation = {"mean": (0.4,) * channels, "std": (0.3,) * channels, "crop_pct": 0.9, "interpolation": "bicubic"}
        self.pretrained_cfg = {"input_size": (channels, 8, 8), "label_names": NAMES, **preparation}

    def forward(self, pixels):
        return self.linear(pixels.flatten(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    return {channels: export_onnx(Pixels(channels), place / f"{channels}.onnx").path for channels in (1, 3)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of every kind that people have, none of them square but one."""
    place, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)

    def noise(mode, *size):
        return Image.fromarray(random.integers(0, 256, (*size, len(mode)), np.uint8).squeeze())

    noise("RGB", 8, 8).save(place / "square.png")
    noise("RGB", 61, 17).save(place / "tall.png")
    noise("RGB", 13, 40).save(place / "wide.png")
    noise("L", 30, 20).save(place / "grey.png")
    noise("RGBA", 21, 33).save(place / "transparent.png")
    noise("LA", 19, 12).convert("LA").save(place / "grey-transparent.png")
    noise("RGB", 25, 31).quantize(40).save(place / "palette.png")
    noise("RGB", 25, 31).quantize(40).save(place / "palette-transparent.png", transparency=3)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise("RGB", 25, 31).save(place / "turned.jpg", exif=turned)
    return sorted(place.iterdir())


def lines(file="digits.onnx"):
    blocks = PAGE.read_text().split("```python\n")[1:]
    (block,) = [block.partition("```")[0] for block in blocks if f'onnxruntime.InferenceSession("{file}")' in block]
    assert "vismoe" not in block.replace('custom_metadata_map["vismoe"]', "")
    return block


@pytest.mark.parametrize(
    ("channels", "changes"),
    [
        (3, {}),
        (1, {}),
        (3, {"crop_pct": 1.0, "interpolation": "bilinear"}),
        (3, {"crop_mode": "squash"}),
        (3, {"problem_type": "multi_label_classification"}),
    ],
    ids=str,
)
def test_the_lines_say_what_predict_says(exported, images, tmp_path, capsys, channels, changes):
    """Of each image, each class has the probability that `vismoe predict FILE.onnx` gives it."""
    model = onnx.load(exported[channels])
    (entry,) = model.metadata_props
    about = json.loads(entry.value)
    about["problem_type"] = changes.get("problem_type")
    about["preprocessing"] |= {name: value for name, value in changes.items() if name != "problem_type"}
    entry.value = json.dumps(about)
    onnx.save(model, tmp_path / "model.onnx")
    network = OnnxModel(tmp_path / "model.onnx")
    for image in images:
        code = lines().replace("digits.onnx", str(tmp_path / "model.onnx")).replace("seven.png", str(image))
        found: dict = {}
        exec(code, found)
        (expected,) = predict(network, image, topk=len(NAMES))
        ours = dict(zip(NAMES, found["probabilities"].tolist(), strict=True))
        # A palette becomes grey by another rounding, of one level of 255.
        atol = 0.02 if channels == 1 and "palette" in image.name else 1e-5
        assert ours == pytest.approx(dict(expected.classes), abs=atol), image.name
        assert capsys.readouterr().out.split()[0] == expected.classes[0][0]

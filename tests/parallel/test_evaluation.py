"""pytest tests/parallel/test_evaluation.py: several processes evaluate a number of images that does not divide."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from PIL import Image

from vismoe.data import ImageSet
from vismoe.inference import evaluate
from vismoe.parallel import join_mesh
from vismoe.parallel.sharding import parallelize

from ..ranks import in_processes
from .equality import CLASSES, pico, processes

pytestmark = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="needs gloo and a file store between processes"
)
IMAGES = 513


def grey(number: int) -> Image.Image:
    """An image that is like no other."""
    shade = torch.Generator().manual_seed(number)
    pixels = torch.randint(256, (8, 8), generator=shade, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy()).convert("RGB")


def images() -> ImageSet:
    return ImageSet(torch.arange(IMAGES) % CLASSES, grey)


def figures(model: Any, mesh: Any = None) -> dict[str, Any]:
    found = evaluate(model, images(), mesh=mesh)
    return {**found.metrics, "load": found.load}


def work(rank: int, folder: str) -> None:
    with processes(rank, folder, 2), join_mesh() as mesh:
        torch.manual_seed(rank)
        found = figures(parallelize(pico(), ep=2), mesh)
        Path(folder, f"{rank}.json").write_text(json.dumps(found))


def test_an_odd_number_of_images(tmp_path):
    """513 images are two batches in one process of two and one in the other, whose experts the first needs: nobody
    waits in vain, and all figures are those of one process."""
    in_processes(2, work, str(tmp_path))
    torch.manual_seed(0)
    expected = figures(pico())
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found.pop("load") == expected["load"]
        assert found.keys() == expected.keys() - {"load"}
        for name, value in found.items():
            assert math.isclose(value, expected[name], rel_tol=1e-5), (rank, name)

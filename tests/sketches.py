"""Figures of a report that take no time: drawing one takes longer than the few steps of most trainings here.

A test of what is drawn has the mark `figures`, and fixtures of a module or session draw too, unless they ask
for `sketched` (conftest.py).
"""

import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

VARIABLE = "VISMOE_TESTS_SKETCH"
"""Set, commands that tests fork (forks.py) sketch too."""

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg==")
"""One white pixel."""


def _file(*arguments: Any, **options: Any) -> bool:
    """In place of a function whose last positional argument is the file to draw."""
    arguments[-1].write_bytes(PNG)
    return True


def _routing(predictor: Any, images: Any, classes: Any, folder: Path, note: str = "") -> Path | None:
    """In place of routing_images: of a dense model there is nothing to draw."""
    from vismoe import MoE

    if not any(isinstance(module, MoE) for module in predictor.model.modules()):
        return None
    path = folder / "routing.png"
    path.write_bytes(PNG)
    return path


SKETCHES: dict[tuple[str, str], Callable[..., Any]] = {
    ("vismoe.training.report", "draw_curves"): _file,
    ("vismoe.tasks.classification", "draw_confusion"): _file,
    ("vismoe.training.report", "routing_images"): _routing,
    ("vismoe.adapt.classification.adaptation", "routing_images"): _routing,
    ("vismoe.adapt.classification.outcome", "draw_calibration"): _file,
    ("vismoe.adapt.classification.outcome", "draw_mistakes"): _file,
    ("vismoe.tasks.detection.report", "draw_precision_recall"): _file,
    ("vismoe.tasks.detection.report", "draw_errors"): _file,
    ("vismoe.tasks.detection.report", "draw_worst"): _file,
}
"""By module and name, as the module that calls it knows it."""


def sketch(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Puts the sketches in place, in modules that have been imported. A name that is gone is an error."""
    for (module, name), sketched in SKETCHES.items():
        if module in sys.modules:
            getattr(sys.modules[module], name)
            set_attribute(sys.modules[module], name, sketched)

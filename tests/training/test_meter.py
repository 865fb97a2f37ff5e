"""pytest tests/training/test_meter.py: speed is that of training alone, and of the time since the last status."""

import time

import pytest
import torch

from vismoe.training.loop.meter import Meter
from vismoe.training.step import Outcome

from .tiny import tiny


def test_pauses_count_once(monkeypatch):
    """Ten seconds of evaluation in the first interval are no part of the second one's speed."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    meter = Meter(tiny(batch_size=8))
    speeds = []
    for step, paused in ((1, 10.0), (2, 0.0)):
        meter.outcomes.append(Outcome(torch.tensor(1.0), torch.tensor(0.5), None))
        with meter.paused():
            now[0] += paused
        now[0] += 2.0
        speeds.append(meter.status(step, {}, None).images_per_second)
    assert speeds == pytest.approx([4.0, 4.0])

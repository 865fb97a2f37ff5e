"""Promise: the benchmark of networks that are larger than memory writes a folder that loads, leaves nothing behind, and
says why it cannot run."""

import shutil
from collections import namedtuple

import larger_than_memory
import pytest
import torch
from table import Table

import vismoe
from vismoe.kernels import native

pytestmark = pytest.mark.benchmarks

PRESET = "vmoe_pico_patch2_8_every2_e8"


def test_the_folder_is_a_network_and_is_removed(tmp_path):
    """All tensors are there, in bfloat16, with values that keep activations finite and name several experts."""
    with larger_than_memory.random_folder(PRESET, tmp_path) as folder:
        model = vismoe.load(folder)
        images = torch.rand(2, 3, 8, 8)
        with torch.inference_mode(), vismoe.record(model) as routing:
            assert torch.isfinite(model(images)).all()
        assert all(int((call.load > 0).sum()) > 2 for calls in routing.layers.values() for call in calls)
        assert float(model.blocks[1].mlp.experts.up.weight.detach().std()) == pytest.approx(64**-0.5, rel=0.05)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(native() is None or not native().has_bfloat16(), reason="no kernels for bfloat16")
def test_a_row(tmp_path):
    """What was read is at most what plans named and 2 %, in a time that is positive."""
    with larger_than_memory.random_folder(PRESET, tmp_path) as folder:
        larger_than_memory.measure(folder, PRESET, "16GiB", 2, tmp_path / "rows.csv")
    [row] = Table(tmp_path / "rows.csv").rows()
    assert 0 < float(row["read_gb"]) * 1000 <= float(row["experts_gb"]) * 1000
    assert float(row["seconds"]) > 0
    assert 0 < float(row["peak_gib"]) < 16


def test_a_machine_that_is_too_small(tmp_path, capsys, monkeypatch):
    """Skipped, with what is needed and what is free; nothing is written."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**9))
    monkeypatch.setattr(larger_than_memory, "available_memory", lambda: 9 << 30)
    larger_than_memory.main(folder=tmp_path)
    assert "skipped: vmoe_15b_every2_e32 needs 31.5 GB" in capsys.readouterr().out
    monkeypatch.setattr(larger_than_memory, "available_memory", lambda: 7 << 30)
    larger_than_memory.main(folder=tmp_path)
    assert "skipped: max_memory=8GiB, but only 7.0 GiB of memory are available" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())

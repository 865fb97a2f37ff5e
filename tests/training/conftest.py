"""Runs of a few steps, made once for all tests of this room."""

import pytest

from vismoe.training import fit
from vismoe.training.loop import balance

from .tiny import tiny


@pytest.fixture(autouse=True)
def few_batches(monkeypatch):
    """An EMA is balanced by few batches: 32 of them, which it is otherwise before each evaluation, take longer than all
    the steps of most runs here."""
    monkeypatch.setattr(balance, "REBALANCE_BATCHES", 2)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished sparse run."""
    return fit(tiny(), tmp_path_factory.mktemp("runs") / "sparse")


@pytest.fixture(scope="session")
def dense_run(tmp_path_factory):
    """Its dense twin's."""
    return fit(tiny(model="vmoe_pico_patch2_8_dense"), tmp_path_factory.mktemp("runs") / "dense")

"""Checks every jaxtyping annotation of the package while tests run, and finds the reference's figures and files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from .forks import starter

# Before torch is imported, here and in processes that tests start: tests run side by side, on small tensors, where
# threads that wait for each other take the cores from other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_hook = install_import_hook("vismoe", "beartype.beartype")
_hook.__enter__()


@pytest.fixture(scope="session")
def reference_figures() -> Path:
    """The folder of figures made by the reference implementation."""
    place = os.environ.get("VISMOE_REFERENCE_FIGURES")
    if not place:
        pytest.skip("VISMOE_REFERENCE_FIGURES is not set: no figures of the reference to compare with")
    return Path(place)


@pytest.fixture(scope="session")
def reference_checkpoints() -> Path:
    """The folder of checkpoints that the reference's own writer made."""
    place = os.environ.get("VISMOE_REFERENCE_CHECKPOINTS")
    if not place:
        pytest.skip("VISMOE_REFERENCE_CHECKPOINTS is not set: no checkpoints of the reference to read")
    return Path(place)


@pytest.fixture(scope="session")
def forked() -> Iterator[Path]:
    """A command to be used as Python's (forks.py); bin/vismoe lies beside it."""
    with starter() as command:
        yield command

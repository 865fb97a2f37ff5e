"""What every test has: shapes checked, figures sketched, the reference's figures and files, forked commands."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from . import forks, sketches

# Before torch is imported, here and in processes that tests start: tests run side by side, on small tensors, where
# threads that wait for each other take the cores from other tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Every jaxtyping annotation is checked while tests run. Putting the checks into the whole package takes ten seconds of
# each process: `make test` has them in moe, whose tensors have the most dimensions, .ci/run everywhere.
CHECKED = "vismoe" if os.environ.get("VISMOE_CHECK_SHAPES") == "1" else "vismoe.moe"
install_import_hook(CHECKED, "beartype.beartype").__enter__()


@pytest.fixture(autouse=True)
def _figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are sketched, but for a test with the mark `figures`, and for fixtures that several tests share, unless
    they ask for `sketched`."""
    if "figures" not in request.keywords:
        sketches.sketch(monkeypatch.setattr)
        monkeypatch.setenv(sketches.VARIABLE, "1")


@pytest.fixture(scope="module")
def sketched() -> Iterator[None]:
    """Asked for by a fixture of a module, it sketches that one's reports too."""
    with pytest.MonkeyPatch.context() as patch:
        sketches.sketch(patch.setattr)
        patch.setenv(sketches.VARIABLE, "1")
        yield


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
def forked() -> Path:
    """A command to be used as Python's (forks.py); bin/vismoe lies beside it."""
    return forks.command()


def pytest_configure(config: pytest.Config) -> None:
    """Where tests run side by side, one process forks for all of them."""
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[forks.VARIABLE] = str(forks.command())

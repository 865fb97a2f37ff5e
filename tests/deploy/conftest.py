"""Exported shapes are symbols, which the run-time checks of signatures cannot tell apart: they are off here."""

import pytest
from jaxtyping import config


@pytest.fixture(autouse=True, scope="package")
def unchecked():
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)

"""What an import needs, and what the promised names say of themselves."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

import vismoe

EXTRAS = ("sklearn", "matplotlib", "torchmetrics", "tyro", "rich")

# What is imported lazily comes after the extras are gone.
WITHOUT_EXTRAS = f"""
import runpy, sys, torch, vismoe
layer = vismoe.MoE(vismoe.TopKRouter(8, 4), vismoe.MLPExperts(8, 16, 4))
layer(torch.randn(2, 3, 8)).sum().backward()
print([name for name in {EXTRAS} if name in sys.modules])
sys.modules.update(dict.fromkeys({EXTRAS}))
for name in ("train", "predict"):
    try:
        getattr(vismoe, name)
    except ModuleNotFoundError as error:
        print(error)
sys.argv[1:] = ["models"]
runpy.run_module("vismoe", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def without_extras() -> subprocess.CompletedProcess[str]:
    """From a real Python: what tests fork has all extras."""
    return subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False)


def test_import_needs_no_extra(without_extras):
    """`import vismoe` and a layer need torch, timm, safetensors and jaxtyping alone."""
    assert without_extras.stdout.startswith("[]\n"), without_extras.stdout + without_extras.stderr


def test_a_missing_extra_is_named(without_extras):
    """Without the extra, train, predict and `python -m vismoe` give one line that says what to install."""
    _, *errors = without_extras.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in errors] == ["pip install 'vismoe[train]'"] * 2, without_extras.stderr
    assert without_extras.returncode == 2
    assert len(without_extras.stderr.splitlines()) == 1
    assert "pip install 'vismoe[all]'" in without_extras.stderr


class Documented:
    """Something."""


class Inheriting(Documented):
    pass


@dataclasses.dataclass
class Listing:
    name: str


def own_docstring(thing: Any) -> str | None:
    """What it says of itself: not what it inherits, nor the list of fields that a dataclass without words gets."""
    text = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    return None if text is None or text.startswith(f"{thing.__name__}(") else text.strip()


def test_public_names_are_documented():
    """Everything that is promised is there and says itself what it is."""
    assert own_docstring(Documented) == "Something."
    assert own_docstring(Inheriting) is own_docstring(Listing) is None
    assert [name for name in vismoe.__all__ if not own_docstring(getattr(vismoe, name))] == []

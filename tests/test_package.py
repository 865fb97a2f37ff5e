"""What an import needs, and what the promised names say of themselves."""

import dataclasses
import subprocess
import sys
from typing import Any

import vismoe

EXTRAS = ("sklearn", "matplotlib", "torchmetrics", "tyro", "rich")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_import_needs_no_extra():
    """`import vismoe` and a layer need torch, timm, safetensors and jaxtyping alone."""
    done = python(
        f"import sys, torch, vismoe; layer = vismoe.MoE(vismoe.TopKRouter(8, 4), vismoe.MLPExperts(8, 16, 4));"
        f"layer(torch.randn(2, 3, 8)).sum().backward(); print([name for name in {EXTRAS} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_missing_extra_is_named():
    """Without the extra, train, predict and the command give one line that says what to install."""
    done = python(
        f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "import vismoe\n"
        "from vismoe.cli import main\n"
        "for name in ('train', 'predict'):\n"
        "    try:\n"
        "        getattr(vismoe, name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error)\n"
        "sys.exit(main(['models']))"
    )
    said = done.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in said] == ["pip install 'vismoe[train]'"] * 2, done.stderr
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "pip install 'vismoe[all]'" in done.stderr


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

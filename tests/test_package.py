"""What an import needs, and which room may import which."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import vismoe

SOURCE = Path(vismoe.__file__).parent
ROOMS = (
    "cli",
    "deploy",
    "adapt",
    "recipes",
    "training",
    "explain",
    "data",
    "weights",
    "vit",
    "parallel",
    "moe",
)  # from the top down
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


def test_public_names_are_documented():
    """Everything that is promised is there and says what it is."""
    for name in vismoe.__all__:
        assert inspect.getdoc(getattr(vismoe, name)), name


def test_rooms_import_downwards():
    """A room imports only rooms below it."""
    for file in SOURCE.rglob("*.py"):
        room = file.relative_to(SOURCE).parts[0]
        if room not in ROOMS:
            continue
        below = set(ROOMS[ROOMS.index(room) :])
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vismoe.") and node.level == 0:
                assert node.module.split(".")[1] in below, f"{file}: {node.module}"
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"} == set(ROOMS)

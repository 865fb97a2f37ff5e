"""pytest tests/test_rooms.py: rooms import downwards, files in no circle, and a floor has at most a dozen of them."""

import ast
import inspect
from pathlib import Path

import vismoe

SOURCE = Path(vismoe.__file__).parent
ROOMS = (
    "files",
    "kernels",
    "moe",
    "parallel",
    "vit",
    "weights",
    "detection",
    "data",
    "tasks",
    "inference",
    "explain",
    "features",
    "training",
    "recipes",
    "adapt",
    "deploy",
    "scale",
    "serve",
    "vismoe",  # its own __init__.py: what is promised
    "cli",
)
"""From the bottom up."""
MOST_FILES = 12
EXCEPTIONS: frozenset[tuple[str, str]] = frozenset()
"""Imports (of a module, of what) that are against the order, and are to go."""


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in SOURCE.rglob("*.py")}


def imported(module: str, source: str, is_package: bool) -> set[str]:
    """The modules of vismoe that a module imports, at its top or in functions, by whatever form of import."""
    above = module.split(".") if is_package else module.split(".")[:-1]
    targets = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = above[: len(above) + 1 - node.level] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            targets += [name if name in FILES else base for name in names]
    return {target for target in targets if target.split(".")[0] == "vismoe"}


IMPORTS = {
    module: imported(module, file.read_text(), file.name == "__init__.py") for module, file in sorted(FILES.items())
}


def room_of(module: str) -> str:
    _, *rest = module.split(".")
    return "cli" if rest == ["__main__"] else rest[0] if rest else "vismoe"


def against(order: tuple[str, ...], imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports of a room that comes later in the order, as pairs of modules."""
    height = {room: number for number, room in enumerate(order)}
    arrows = [(module, target) for module, targets in imports.items() for target in sorted(targets)]
    return [(one, other) for one, other in arrows if height[room_of(other)] > height[room_of(one)]]


def circles(imports: dict[str, set[str]]) -> list[set[str]]:
    """Modules from each of which every other one is reached."""
    reached = {module: _reached(module, imports) for module in imports}
    groups = {frozenset(other for other in reached[one] if one in reached[other]) for one in imports}
    return [set(group) for group in groups if group]


def _reached(module: str, imports: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


def test_every_form_of_import_is_seen():
    """What the tests below rest on: absolute, relative, of a module or of names in it, in a function, in a circle."""
    source = """
import vismoe.data.images as images, torch
from . import step, Recipe
from .step import Trainer
from .. import weights
from ..moe.moe import MoE
from vismoe.vit import upcycle

def later():
    import vismoe.cli
"""
    assert imported("vismoe.training.loop", source, is_package=False) == {
        "vismoe.data.images",
        "vismoe.training.step",
        "vismoe.training",
        "vismoe.weights",
        "vismoe.moe.moe",
        "vismoe.vit",
        "vismoe.cli",
    }
    assert imported("vismoe.training", "from .step import Trainer", is_package=True) == {"vismoe.training.step"}
    graph = {"vismoe.moe.a": {"vismoe.moe.b"}, "vismoe.moe.b": {"vismoe.moe.c"}, "vismoe.moe.c": {"vismoe.moe.a"}}
    assert circles(graph | {"vismoe.data": {"vismoe.moe.a"}}) == [set(graph)]
    assert circles({"vismoe.moe.a": {"vismoe.moe.a"}, "vismoe.data": {"vismoe.moe.a"}}) == [{"vismoe.moe.a"}]
    assert against(("moe", "data"), {"vismoe.data": {"vismoe.moe"}, "vismoe.moe.a": {"vismoe.data"}}) == [
        ("vismoe.moe.a", "vismoe.data")
    ]


def test_rooms_import_downwards():
    """A file imports from its own room and rooms below it."""
    rooms = {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert rooms == set(ROOMS) - {"vismoe"}
    assert set(against(ROOMS, IMPORTS)) == EXCEPTIONS


def test_files_import_in_no_circle():
    """Each can be read, and imported, after those that it needs."""
    assert circles(IMPORTS) == []


def test_a_floor_has_at_most_a_dozen_files():
    """What a reader can hold in view."""
    floors = {file.parent for file in FILES.values()}
    counts = {str(floor.relative_to(SOURCE)): len(list(floor.glob("*.py"))) for floor in floors}
    assert {floor: count for floor, count in counts.items() if count > MOST_FILES} == {}


def test_no_function_is_called_like_a_room():
    """`vismoe.NAME` is a room or a function, wherever one looks: after an import of the room it would be the room."""
    promised = {name for name in vismoe.__all__ if not inspect.ismodule(getattr(vismoe, name))}
    assert promised & {path.name for path in SOURCE.iterdir()} == set()
    assert inspect.ismodule(vismoe.weights)


def test_the_page_names_every_file():
    """The tree in docs/design.md is the tree: a newcomer finds each file there, with a phrase."""
    page = (SOURCE.parents[1] / "docs" / "design.md").read_text()
    tree = page.partition("## Rooms")[2].partition("```text\n")[2].partition("```")[0]
    folders: list[str] = []
    files, bare = set(), set()
    for line in tree.splitlines():
        name, _, phrase = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if not name.endswith("/"):
            files.add("/".join(folders))
            bare |= {"/".join(folders)} if not phrase.strip() else set()
    names = {file.relative_to(SOURCE).with_suffix("").as_posix() for file in SOURCE.rglob("*/*.py")}
    assert files == {name for name in names if not name.endswith("__init__")}
    assert all(name.startswith("cli/") for name in bare)  # verbs say themselves what they are

"""docs/from-vmoe.md says of each feature of the reference where it is and what proves it: both are there.

python -m pytest tests/weights/test_reference_features.py
"""

import ast
import inspect
import re
from collections import Counter
from importlib import import_module

import pytest

import vismoe
from vismoe.weights.reference import config as reference_config
from vismoe.weights.reference.config import ENSEMBLE_CLASS, MODEL_CLASS, PATCHES, POSITIONS, Fields, read_config

from .reference_features import FIELDS, TESTS, differences, features, functions, table

ROWS = [*features(), *differences()]


def find(name):
    """What stands below `vismoe.`."""
    found = vismoe
    for part in name.split("."):
        found = getattr(found, part) if hasattr(found, part) else import_module(f"{found.__name__}.{part}")
    return found


def arguments(found):
    """What it takes by name, with what it hands on to the classes it is made of."""
    taken = set()
    for owner in inspect.getmro(found) if inspect.isclass(found) else (found,):
        parameters = inspect.signature(owner).parameters.values()
        taken |= {parameter.name for parameter in parameters}
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            break
    return taken


def test_the_page_holds_what_the_command_prints():
    """The tables of the page are made, not written."""
    page = (TESTS.parent / "docs" / "from-vmoe.md").read_text()
    assert page.endswith(table()), "python -m tests.weights.reference_features prints other tables than the page's"


def test_places_are_there():
    """Each place can be imported, and takes the arguments that are named."""
    for place in (place for row in ROWS for place in row.places):
        name, _, named = place.removesuffix(")").partition("(")
        found = find(name)
        if missing := set(filter(None, named.split(", "))) - (arguments(found) if named else set()):
            pytest.fail(f"vismoe.{name} takes no {', '.join(missing)}")


def test_tests_are_there():
    """Each test is a function of the file that is named."""
    for test in {test for row in ROWS for test in row.tests}:
        file, _, function = test.partition("::")
        assert function.startswith("test_"), test
        assert function in functions(file), test


def test_rows_are_whole():
    """What has a place has a proof, what has neither has a reason, and nothing is said twice."""
    for row in ROWS:
        assert row.tests or not row.places, row
        assert row.note or row.places, row
    twice = [name for name, count in Counter((row.section, row.names) for row in ROWS).items() if count > 1]
    assert not twice


def configuration(router, position="learned", model_class=MODEL_CLASS, **moe):
    moe = {"layers": [1], "num_experts": 4, "group_size": 8, "router": router} | moe
    encoder = {"num_layers": 2, "num_heads": 2, "mlp_dim": 16, "position_emb": {"name": position}, "moe": moe}
    return {"model_class": model_class, "model": {"patch_size": 4, "hidden_size": 8, "encoder": encoder}}


def test_every_field_has_a_row(monkeypatch):
    """Each field of a configuration that is read, of any router and either class, is in the table, and no other is."""
    read = set()

    def watching(plain, several):
        def method(fields, *names):
            read.update(f"{fields.place}.{name}" for name in (names if several else names[:1]))
            return plain(fields, *names)

        return method

    for method in ("take", "need", "expect", "ignore"):
        monkeypatch.setattr(Fields, method, watching(getattr(Fields, method), method == "ignore"))
    dispatcher = {"dispatcher": {"capacity_factor": 1.0}}
    for config in (
        configuration(dispatcher),
        configuration(dispatcher, model_class=ENSEMBLE_CLASS, ensemble_size=2),
        configuration(dispatcher | {"name": "NoisyTopItemsPerExpertRouter"}, "sincos2d"),
        configuration({"name": "SoftRouter"}),
    ):
        read_config(config, {PATCHES: (4, 4, 3, 8), POSITIONS: (1, 5, 8)})
    named = [name for row in features() if row.section == FIELDS for name in re.findall("`(.+?)`", row.names)]
    assert sorted(read - {"config.model"}) == sorted(f"model.{name}" for name in named)

    # And these configurations reach whatever the file reads.
    written = ast.walk(ast.parse(inspect.getsource(reference_config)))
    calls = [node for node in written if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    asked = [call for call in calls if call.func.attr in ("take", "need", "expect", "ignore", "inner")]
    names = {
        argument.value
        for call in asked
        for argument in (call.args if call.func.attr == "ignore" else call.args[:1])
        if isinstance(argument, ast.Constant)
    }
    assert len(names) > 40
    assert names <= {place.rpartition(".")[2] for place in read}

"""pytest tests/files/test_renamed.py: old names work for one version, with a warning that names the new one."""

import pytest

import vismoe.data
from vismoe.adapt import Options
from vismoe.data import open_data
from vismoe.tasks import Classification
from vismoe.training import Run
from vismoe.vit import Cost


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("check_shares", "check_batch_size"),
        ("hold_out", "split_data"),
        ("memory_of", "cache_bytes"),
        ("tell", "format_summary"),
        ("tell_classes", "format_classes"),
        ("tell_imbalance", "format_imbalance"),
        ("tell_reasons", "format_reasons"),
        ("tell_unnamed_groups", "format_group_column"),
        ("unnamed_groups", "find_group_column"),
        ("without", "without_files"),
    ],
)
def test_functions_of_data(old, new):
    with pytest.warns(DeprecationWarning, match=f"vismoe.data.{old} is called {new} now"):
        assert getattr(vismoe.data, old) is getattr(vismoe.data, new)


def test_an_unknown_name_stays_an_error():
    with pytest.raises(AttributeError, match=r"module 'vismoe\.data' has no attribute 'nothing'"):
        vismoe.data.nothing  # noqa: B018


def test_methods_and_properties():
    data = open_data("digits")
    with pytest.warns(DeprecationWarning, match="Data.parts is called train_and_val now"):
        assert data.parts == [data.train, data.val]
    with pytest.warns(DeprecationWarning, match="Data.numbered_as is called align_classes now"):
        assert data.numbered_as(data.classes).classes == data.classes
    task = Classification(data.classes)
    with pytest.warns(DeprecationWarning, match="Classification.known_to_model is called align_classes now"):
        assert task.known_to_model(data).classes == data.classes
    with pytest.warns(DeprecationWarning, match="Cost.multiplications is called macs now"):
        assert Cost(4, 3, 2).multiplications == 2


def test_methods_of_a_run(tmp_path):
    with pytest.warns(DeprecationWarning, match="Run.refuse is called check_free now"):
        Run.refuse(tmp_path / "new")
    with pytest.warns(DeprecationWarning, match="Run.alone is called lock now"), Run(tmp_path).alone():
        pass


def test_arguments():
    """The blocks that become sparse have one name, as in `create_model`."""
    parent = vismoe.create_model("timm:vit_tiny_patch16_224", depth=4, embed_dim=16, num_heads=2)
    with pytest.warns(DeprecationWarning, match=r"upcycle\(layers=…\) is called moe_layers now") as warned:
        sparse = vismoe.upcycle(parent, 2, layers=[0])
    assert warned[0].filename == __file__
    assert sparse.moe == vismoe.upcycle(parent, 2, moe_layers=[0]).moe == vismoe.upcycle(parent, 2, [0]).moe
    with pytest.raises(TypeError, match="layers is the old name of moe_layers: give moe_layers alone"):
        vismoe.upcycle(parent, layers=[0], moe_layers=[0])
    with pytest.warns(DeprecationWarning, match=r"Options\(layers=…\) is called moe_layers now"):
        options = Options("digits", layers="1,3")
    assert options == Options("digits", moe_layers="1,3")
    with pytest.warns(DeprecationWarning, match=r"Options.layers is called moe_layers now"):
        assert options.layers == "1,3"


def test_a_task_that_overrides_an_old_name():
    with pytest.warns(DeprecationWarning, match="Mine.known_to_model is called align_classes now"):

        class Mine(Classification):
            def known_to_model(self, data):
                return "mine"

    assert Mine(["ant", "bee"]).align_classes(None) == "mine"

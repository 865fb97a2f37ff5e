"""pytest tests/vit/test_errors.py"""

import subprocess

import pytest
import timm
from timm.layers import GluMlp

import vismoe

SPARSE, DENSE = "vmoe_pico_patch2_8_every2_e8", "vmoe_pico_patch2_8_dense"


@pytest.mark.parametrize("create", [vismoe.create_model, timm.create_model])
@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (SPARSE, {"img_size": 9}, r"image size 9 × 9 is not a multiple of the patch size 2 × 2"),
        (SPARSE, {"img_size": (8, 7)}, r"image size 8 × 7 is not a multiple"),
        (SPARSE, {"patch_size": 3}, r"image size 8 × 8 is not a multiple of the patch size 3 × 3"),
        ("vmoe_l16_dense", {"img_size": 250}, r"image size 250 × 250 is not a multiple of the patch size 16 × 16"),
        (DENSE, {"num_experts": 4}, r"num_experts: this model is dense and has no experts; choose a sparse preset"),
        (DENSE, {"moe_layers": "last-1"}, r"moe_layers: this model is dense"),
        (SPARSE, {"router": "top-p"}, r"router='top-p': accepted are 'top-k', "),
        (
            SPARSE,
            {"moe_layers": "first-2"},
            r"moe_layers='first-2': accepted are \"every-N\", \"last-N\" and block numbers",
        ),
        (SPARSE, {"moe_layers": [4]}, r"moe_layers=\[4\]: accepted are block numbers 0 to 3"),
        (SPARSE, {"moe_layers": "last-3"}, r"moe_layers='last-3' asks for more than the 4 blocks have"),
        (SPARSE, {"experts_per_token": 9}, r"k=9 experts per token, but there are only num_experts=8"),
        (SPARSE, {"experts_per_token": 0}, r"k=0 experts per token"),
        (SPARSE, {"num_experts": 0}, r"num_experts=0"),
        (SPARSE, {"combine": "renormalized"}, r"combine=\"renormalized\" with k=1"),
        (SPARSE, {"eval_capacity_factor": -1.0}, r"eval_capacity_factor=-1.0: accepted are"),
        (SPARSE, {"group_size": 0}, r"group_size=0: accepted are"),
        (SPARSE, {"mlp_layer": GluMlp}, r"mlp_layer=GluMlp: accepted is Mlp"),
        (SPARSE, {"noise_std": -1.0}, r"noise_std=-1.0: accepted are numbers"),
        (SPARSE, {"loss_weights": {"fairness": 1.0}}, r"loss_weights=.*fairness.*: accepted are"),
    ],
)
def test_what_does_not_fit_is_said(create, name, overrides, message):
    """An option that does not fit is one ValueError that says what was given and what is accepted, in both doors."""
    with pytest.raises(ValueError, match=message) as caught:
        create(name, **overrides)
    assert "\n" not in str(caught.value)


# The type checks of this suite would catch these before the library does.
UNTYPED = """
import vismoe
for given, name in (
    ({"balance": "magic"}, "balance='magic': accepted are"),
    ({"combine": "sum"}, "combine='sum': accepted are"),
    ({"capacity_factor": 0}, "capacity_factor=0: accepted are"),
    ({"capacity_factor": "same"}, "capacity_factor='same': accepted are"),
    ({"group_size": "all"}, "group_size='all': accepted are"),
    ({"expert_init": "equal"}, "expert_init='equal': accepted are"),
    ({"qk_norm": "shift"}, "qk_norm='shift': accepted are"),
):
    try:
        vismoe.create_model("vmoe_pico_patch2_8_every2_e8", **given)
    except ValueError as error:
        assert str(error).startswith(name) and "\\n" not in str(error), error
    else:
        raise AssertionError(given)
"""


def test_values_of_another_kind_are_said_too(forked):
    """Without type checks, as in a user's process, a value that is not among those accepted is a ValueError as well."""
    run = subprocess.run([forked, "-c", UNTYPED], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

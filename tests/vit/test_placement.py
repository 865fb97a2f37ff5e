"""pytest tests/vit/test_placement.py"""

import pytest
import timm

import vismoe
from vismoe.moe import MoE
from vismoe.vit import MoEConfig


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        # Every-2 of a B is 1, 3, 5, 7, 9, 11 (google-research/vmoe, configs: `layers=np.arange(1, 12, 2)`).
        ("every-2", 12, [1, 3, 5, 7, 9, 11]),
        ("every-1", 3, [0, 1, 2]),
        ("every-3", 8, [2, 5]),
        ("every-8", 8, [7]),
        # "last n" are the last n of the odd blocks: Last-2 of a B is 9 and 11, Last-5 of an H is 23, …, 31.
        ("last-2", 12, [9, 11]),
        ("last-5", 32, [23, 25, 27, 29, 31]),
        ("last-2", 8, [5, 7]),
        ("last-2", 9, [5, 7]),
        ("last-1", 2, [1]),
        ([3, 0], 4, [0, 3]),
        ((1, 1), 4, [1]),
        ("3,0", 4, [0, 3]),
        ("2", 4, [2]),
    ],
)
def test_which_blocks(layers, depth, expected):
    """Placements mean the reference's blocks, counted from 0."""
    assert MoEConfig(moe_layers=layers).blocks(depth) == expected


@pytest.mark.parametrize(
    ("layers", "depth"),
    [
        ("first-2", 4),
        ("every-0", 4),
        ("every2", 4),
        ("every-5", 4),
        ("last-0", 4),
        ("last-3", 4),
        ("last--1", 4),
        ("", 4),
        ([], 4),
        ([4], 4),
        ([-1], 4),
        ("1,4", 4),
        ("1,,2", 4),
        ("1, 2", 4),
    ],
)
def test_placements_that_are_not_there(layers, depth):
    """What cannot be read, or asks for blocks that do not exist, is an error that names it."""
    with pytest.raises(ValueError, match="moe_layers="):
        MoEConfig(moe_layers=layers).blocks(depth)


@pytest.mark.parametrize("layers", ["every-2", "last-1", [0, 2]])
def test_the_network_is_sparse_exactly_there(layers):
    """The chosen blocks' `mlp` is a sparse layer, all else is timm's own class."""
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", moe_layers=layers)
    chosen = MoEConfig(moe_layers=layers).blocks(4)
    theirs = timm.create_model("vit_tiny_patch16_224", depth=1).blocks[0]
    for number, block in enumerate(model.blocks):
        assert type(block) is type(theirs)
        assert type(block.mlp) is (MoE if number in chosen else type(theirs.mlp))

"""torch.export, saved and loaded: pytest tests/tools/test_torch_export.py"""

import pytest
import torch

from vismoe import MLPExperts, MoE
from vismoe.moe import ROUTERS


@pytest.mark.parametrize("router", ["top-k", pytest.param("expert-choice", marks=pytest.mark.slow)])
def test_a_program_exported_with_gradients_on_loads(router, tmp_path):
    """People export without `torch.no_grad()`: what is saved then can be loaded, and answers as the layer does."""
    torch.manual_seed(0)
    layer, x = MoE(ROUTERS[router](8, 4), MLPExperts(8, 16, 4)).eval(), torch.randn(2, 6, 8)
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "layer.pt2")
    program = torch.export.load(tmp_path / "layer.pt2").module()
    torch.testing.assert_close(program(x), layer(x))

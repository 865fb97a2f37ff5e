"""torch.utils.flop_counter: pytest tests/tools/test_flop_counter.py"""

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vismoe.vit import cost

from .networks import IMAGES, sparse_network


def test_experts_are_counted_forward_and_backward():
    """FlopCounterMode sees experts: forward as `vismoe.vit.cost` counts, with backward three times as much (but for the
    image's own gradient, which nobody asks for)."""
    model, image = sparse_network(), IMAGES[:1]
    macs = cost(model, tuple(image[0].shape)).macs
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        logits = model(image)
        assert counter.get_total_flops() // 2 == macs
        logits.sum().backward()
    stem = model.patch_embed.proj
    of_image = 4 * stem.weight.numel()
    assert counter.get_total_flops() // 2 == 3 * macs - of_image

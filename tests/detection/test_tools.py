"""PyTorch's tools take a detector as they take other networks.

python -m pytest tests/detection/test_tools.py
"""

import copy
import pickle
import subprocess
import textwrap
from pathlib import Path

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import vismoe
from vismoe.detection import Detector, make_detector
from vismoe.vit import cost

SIZE = (24, 32)
PIXELS = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(2, *SIZE, dtype=torch.bool)
MASK[0, 16:] = False


def detector(seed: int = 0, **options: int) -> Detector:
    torch.manual_seed(seed)
    trunk = vismoe.create_model("vmoe_pico_patch4_28_every2_e8", num_classes=0, depth=2, embed_dim=32, num_heads=2)
    return make_detector(trunk, 3, SIZE, **options).eval()


def copied_by_loading(network: Detector) -> Detector:
    other = detector(seed=1)
    other.load_state_dict(network.state_dict(), strict=True)
    return other


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copied_by_loading, lambda network: pickle.loads(pickle.dumps(network))]
)
def test_copies_have_the_same_outputs(copied):
    network = detector()
    for ours, theirs in zip(copied(network)(PIXELS, MASK)[:3], network(PIXELS, MASK)[:3], strict=True):
        assert torch.equal(ours, theirs)


def test_outputs_are_pickled():
    outputs = detector()(PIXELS, MASK)
    copied = pickle.loads(pickle.dumps(outputs))
    assert all(map(torch.equal, copied[:4], outputs[:4]))
    assert copied.stride == outputs.stride == (2.0, 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half])
def test_narrow_types(dtype):
    """Outputs are float32: a box in bfloat16 would be wrong by pixels."""
    network = detector()
    with torch.no_grad():
        expected, found = network(PIXELS, MASK), copy.deepcopy(network).to(dtype)(PIXELS.to(dtype), MASK)
    assert found.boxes.dtype == found.centres.dtype == torch.float32
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.05)


def test_macs_are_counted():
    """As PyTorch's counter does on a device, with attention that it knows."""
    network = detector()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(PIXELS[:1])
    assert counter.get_total_flops() // 2 == cost(network, (3, *SIZE)).macs


def test_gradients_of_each_image():
    """`vmap(grad)` gives each image's gradient, and `functional_call` the outputs with other parameters."""
    network, other = detector(), detector(seed=1)
    with torch.no_grad():
        outputs = functional_call(network, dict(other.named_parameters()), (PIXELS, MASK))
        assert all(map(torch.equal, outputs[:3], other(PIXELS, MASK)[:3]))
    parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(parameters, pixels):
        return functional_call(network, parameters, (pixels[None],)).centres.square().mean()

    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no rule for vmap
        gradients = vmap(grad(loss), (None, 0))(parameters, PIXELS)
        network(PIXELS[1:]).centres.square().mean().backward()
    for name, parameter in network.named_parameters():
        if name.startswith("head.box"):  # which the loss does not read
            assert parameter.grad is None
        else:
            torch.testing.assert_close(gradients[name][1], parameter.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("windowed_blocks", [0, 1])
def test_compiled(windowed_blocks, forked):
    """One graph has the outputs of the network, without a mask and with any."""
    script = f"""
        import torch
        from tests.detection.test_tools import MASK, PIXELS, detector
        torch.set_num_threads(1)
        network = detector(windowed_blocks={windowed_blocks}, window=4)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        for mask in (None, MASK, MASK.flip(0, 2)):
            with torch.no_grad():
                ours, expected = compiled(PIXELS, mask), network(PIXELS, mask)
            torch.testing.assert_close(tuple(ours[:3]), tuple(expected[:3]), rtol=1e-4, atol=1e-4)
            assert mask is None or torch.equal(ours.inside, expected.inside)
            assert ours.stride == expected.stride
    """
    # Not in this process: shape checks under test are Python that compilers cannot trace.
    command, root = [forked, "-c", textwrap.dedent(script)], Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

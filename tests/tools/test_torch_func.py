"""torch.func's transforms: pytest tests/tools/test_torch_func.py"""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from vismoe import MLPExperts, MoE, TopKRouter
from vismoe.moe import ROUTERS

from .networks import IMAGES, LABELS, sparse_network


@pytest.fixture(autouse=True)
def _plain_attention():
    """PyTorch's fused attention has no rule for vmap, and says that it is slow."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def loss_of(model):
    """The loss of one image as a function of the parameters."""

    def loss(parameters, image, label):
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    return loss, {name: parameter.detach() for name, parameter in model.named_parameters()}


def gradients_one_by_one(model):
    for image, label in zip(IMAGES, LABELS, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        yield {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("router", ROUTERS)
def test_gradients_of_each_image(router):
    """`grad`, and `vmap(grad)`, give each image's gradient, as a loop over images does: influence functions and
    differentially private training need them."""
    model = sparse_network(router=router)
    loss, parameters = loss_of(model)
    together = vmap(grad(loss), (None, 0, 0))(parameters, IMAGES, LABELS)
    first = grad(loss)(parameters, IMAGES[0], LABELS[0])
    for number, alone in enumerate(gradients_one_by_one(model)):
        for name, gradient in alone.items():
            torch.testing.assert_close(together[name][number], gradient, rtol=0, atol=1e-5)
            if number == 0:
                torch.testing.assert_close(first[name], gradient, rtol=0, atol=1e-5)


def test_training_counts_each_image_once():
    """While training, per-sample gradients move the bias as one forward of all images does."""
    transformed, plain = sparse_network().train(), sparse_network().train()
    loss, parameters = loss_of(transformed)
    for _ in range(2):
        vmap(grad(loss), (None, 0, 0))(parameters, IMAGES, LABELS)
        plain(IMAGES)
    for mine, theirs in zip(transformed.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.any()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")  # PyTorch's own formulas
def test_forward_mode_and_second_derivatives():
    """`jvp` and `hessian` of a layer agree with its gradients."""
    torch.manual_seed(0)
    layer = MoE(TopKRouter(4, 2, balance="none"), MLPExperts(4, 8, 2)).eval()
    x, direction = torch.randn(1, 3, 4), torch.randn(1, 3, 4)

    def total(x):
        return layer(x).square().sum()

    gradient = grad(total)(x)
    x.requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(total(x), x)[0])
    x.requires_grad_(False)
    torch.testing.assert_close(jvp(total, (x,), (direction,))[1], (gradient * direction).sum())
    product = jvp(grad(total), (x,), (direction,))[1]
    second = hessian(total)(x).flatten(3).flatten(0, 2)
    torch.testing.assert_close(second @ direction.flatten(), product.flatten())


def test_an_ensemble_of_stacked_networks():
    """`vmap` over networks, as torch.func's tutorial on ensembles has it, answers as each network does."""
    models = [sparse_network() for _ in range(2)]
    for parameter in models[1].parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    state = stack_module_state(models)
    answers = vmap(lambda *state: functional_call(models[0], state, (IMAGES,)))(*state)
    for model, answer in zip(models, answers, strict=True):
        torch.testing.assert_close(answer, model(IMAGES), rtol=0, atol=1e-5)

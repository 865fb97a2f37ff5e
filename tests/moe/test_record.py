"""`record` sees what routers did and changes nothing. Run: pytest tests/moe/test_record.py"""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vismoe import MLPExperts, MoE, TopKRouter, record

LOSSES = {"balance": "loss", "loss_weights": {"importance": 0.3, "z": 0.2}}


def tiny(**options) -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(8, 4, k=2, **options), MLPExperts(8, 16, 4))


def tokens(number):
    return list(torch.randn(number, 2, 6, 8, generator=torch.Generator().manual_seed(1)))


def test_fields():
    """An entry holds plan, gates, load before drops, dropped share and losses, by shape and by value."""
    layer = tiny(**LOSSES, capacity_factor=0.5, capacity_multiple_of=1)
    (x,) = tokens(1)
    with record(layer) as routing:
        layer(x)
    (call,) = routing.layers[""]
    gates = torch.softmax(x.flatten(0, 1) @ layer.router.weight.T, -1)[None]
    torch.testing.assert_close(call.gates, gates)
    assert call.load.tolist() == torch.bincount(gates.topk(2).indices.flatten(), minlength=4).tolist()
    # 12 tokens · 2 · 0.5 ÷ 4 experts
    assert call.plan.count.tolist() == call.load.clamp_max(3).tolist()
    assert call.dropped_share.item() == pytest.approx(1 - call.plan.count.sum().item() / 24)
    assert call.dropped_share > 0.4
    assert {name: loss.shape for name, loss in call.losses.items()} == dict.fromkeys(
        ("importance", "gshard", "z"), (1,)
    )
    torch.testing.assert_close(call.auxiliary_loss, 0.3 * call.losses["importance"] + 0.2 * call.losses["z"])


def test_names_and_order():
    """`layers` goes by module name, "" for a bare layer, with a layer's calls in their order, inside and after."""
    first, second = tiny(balance="none"), tiny(balance="none")
    network = nn.ModuleDict({"a": nn.Sequential(first), "b": second})
    x, y, z = tokens(3)
    with record(network) as routing:
        assert routing.layers == {"a.0": [], "b": []}
        first(x)
        second(y)
        assert [len(calls) for calls in routing.layers.values()] == [1, 1]
        first(z)
        inside = routing.layers["a.0"]
    assert routing.layers["a.0"] == inside
    assert routing.layers.keys() == {"a.0", "b"}
    with record(first) as again:
        first(x)
        first(z)
    for ours, expected in zip(routing.layers["a.0"], again.layers[""], strict=True):
        assert torch.equal(ours.gates, expected.gates)
    assert not torch.equal(inside[0].gates, inside[1].gates)


def test_nothing_after_the_block():
    """Calls after the block are not in it, and the layer keeps nothing alive."""
    layer = tiny(balance="none")
    x, y = tokens(2)
    with record(layer) as routing:
        layer(x)
    layer(y)
    assert len(routing.layers[""]) == 1
    assert layer.tape.newest is None


def test_call_without_tokens():
    """A batch of nothing has a loss of 0 and a gradient of 0, not NaN."""
    layer = tiny(**LOSSES)
    with record(layer) as routing:
        y = layer(torch.zeros(0, 6, 8))
    (y.sum() + routing.auxiliary_loss).backward()
    assert routing.auxiliary_loss == 0
    assert not layer.router.weight.grad.any()


def test_auxiliary_loss():
    """Mean over groups, mean over a layer's calls, sum over layers, with gradient, inside and after the block."""
    torch.manual_seed(0)
    a = MoE(TopKRouter(8, 4, k=2, **LOSSES), MLPExperts(8, 16, 4), group_size=4)
    b = MoE(TopKRouter(8, 4, k=1, **LOSSES), MLPExperts(8, 16, 4))
    silent = tiny(balance="none")
    x, y = tokens(2)
    network = nn.ModuleList([a, b, silent])
    with record(network) as routing:
        a(x), a(y), b(x), silent(x)
        inside = routing.auxiliary_loss
    in_groups = torch.stack([call.auxiliary_loss for call in routing.layers["0"]])
    assert in_groups.shape == (2, 3)
    expected = in_groups.mean() + routing.layers["1"][0].auxiliary_loss.mean()
    torch.testing.assert_close(routing.auxiliary_loss, expected)
    torch.testing.assert_close(inside, expected)
    assert routing.auxiliary_loss.shape == ()
    routing.auxiliary_loss.backward()
    assert a.router.weight.grad.abs().max() > 0
    assert silent.router.weight.grad is None


@pytest.mark.parametrize("balance", ["bias", "none"])
def test_auxiliary_loss_without_losses(balance):
    """Where no router has a loss it is 0, and may be added to any loss; where nothing was called too."""
    layer = tiny(balance=balance)
    with record(layer) as routing:
        assert routing.auxiliary_loss == 0
        y = layer(tokens(1)[0])
    assert routing.auxiliary_loss == 0
    (y.sum() + routing.auxiliary_loss).backward()


@pytest.mark.parametrize("options", [{}, LOSSES, {"noise_std": 1.0}], ids=["bias", "loss", "noise"])
def test_recording_changes_nothing(options):
    """Outputs, gradients, buffers and random state are those of unrecorded training."""

    def train(recorded):
        layer = tiny(**options)
        torch.manual_seed(2)
        for x in tokens(3):
            if recorded:
                with record(layer) as routing:
                    layer(x).square().sum().backward()
                assert len(routing.layers[""]) == 1
                routing.layers[""][0].losses  # noqa: B018
            else:
                layer(x).square().sum().backward()
        found = [parameter.grad for parameter in layer.parameters()]
        return [*found, *layer.buffers(), torch.get_rng_state()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of balance="loss" without a record: test_warns_once
        plain = train(False)
    for ours, expected in zip(train(True), plain, strict=True):
        assert torch.equal(ours, expected)


def test_nested():
    """Of nested records each sees the calls inside its own block."""
    layer = tiny(balance="none")
    x, y, z = tokens(3)
    with record(layer) as outer:
        layer(x)
        with record(layer) as inner:
            layer(y)
        assert len(inner.layers[""]) == 1
        layer(z)
    assert len(outer.layers[""]) == 3
    assert [call.gates.sum() for call in inner.layers[""]] == [outer.layers[""][1].gates.sum()]
    assert torch.equal(inner.layers[""][0].gates, outer.layers[""][1].gates)


def test_overlapping():
    """Records that end in another order than they began each see what happened while they were open."""
    layer = tiny(balance="none")
    x, y, z = tokens(3)
    first, second = record(layer), record(layer)
    of_first = first.__enter__()
    layer(x)
    of_second = second.__enter__()
    layer(y)
    first.__exit__(None, None, None)
    layer(z)
    second.__exit__(None, None, None)
    assert len(of_first.layers[""]) == 2
    assert len(of_second.layers[""]) == 2
    assert torch.equal(of_first.layers[""][1].gates, of_second.layers[""][0].gates)


def test_threads_see_their_own():
    """Records in two threads at a time each see the calls of their own thread."""
    layer = tiny(balance="none").eval()
    inputs, both_inside, seen = tokens(2), threading.Barrier(2, timeout=30), {}

    def run(number):
        with record(layer) as routing:
            both_inside.wait()
            for _ in range(number + 1):
                layer(inputs[number])
            both_inside.wait()
        seen[number] = routing.layers[""]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(seen[number]) == number + 1
        expected = torch.softmax(inputs[number].flatten(0, 1) @ layer.router.weight.T, -1)[None]
        for call in seen[number]:
            torch.testing.assert_close(call.gates, expected)


@pytest.mark.parametrize("backward_inside", [True, False], ids=["inside", "after"])
def test_recompute(backward_inside):
    """A recompute is not recorded twice, and the auxiliary loss has its gradient under recompute too."""
    (x,) = tokens(1)
    plain = tiny(**LOSSES)
    with record(plain) as routing:
        y = plain(x)
    (y.square().sum() + routing.auxiliary_loss).backward()

    layer = tiny(**LOSSES)
    with record(layer) as routing:
        y = checkpoint(layer, x, use_reentrant=False)
        if backward_inside:
            (y.square().sum() + routing.auxiliary_loss).backward()
    assert len(routing.layers[""]) == 1
    if not backward_inside:
        (y.square().sum() + routing.auxiliary_loss).backward()
    assert len(routing.layers[""]) == 1
    for ours, expected in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_warns_once():
    """A layer balanced by losses that nobody records warns once when it is trained, and names the ways out."""
    layer = tiny(**LOSSES)
    (x,) = tokens(1)
    with pytest.warns(UserWarning, match=r'routing\.auxiliary_loss(.|\n)*balance="bias"') as caught:
        layer(layer(x))
    assert len(caught) == 1


def test_no_warning_where_none_is_due():
    """Nobody is warned at evaluation, without gradient, inside a record, or where no loss is needed."""
    (x,) = tokens(1)
    layer = tiny(**LOSSES)
    with record(layer):
        layer(x)
    with torch.no_grad():
        layer(x)
    layer.eval()(x)
    tiny()(x)
    tiny(balance="none")(x)
    assert not layer._warned

"""[VISMOE_REFERENCE_FIGURES=<folder>] pytest tests/features/test_ridge.py"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from vismoe.features import ridge
from vismoe.features.ridge import BIAS


def whitened(x):
    x = x.double()
    return x.mean(0), x.std(0, correction=0) + 1e-5


@pytest.mark.parametrize(("number", "dim"), [(60, 16), (15, 32)])
def test_it_is_ridge_regression(number, dim):
    """More images than features, and fewer: the scores are those of scikit-learn's Ridge on the same features."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(number, dim, generator=generator) * 3 + 5, torch.arange(number) % 5
    weight, bias = ridge(x, labels, 5, (1e-3, 10.0))
    mean, std = whitened(x)
    inputs = np.pad(((x.double() - mean) / std).numpy(), ((0, 0), (0, 1)), constant_values=BIAS)
    targets = 2 * np.eye(5)[labels.numpy()] - 1
    for w, b, l2 in zip(weight, bias, (1e-3, 10.0), strict=True):
        expected = Ridge(l2, fit_intercept=False, solver="svd").fit(inputs, targets).predict(inputs)
        np.testing.assert_allclose(x.double() @ w.T + b, expected, atol=1e-6)


def test_constant_features_and_single_images():
    """A feature that never varies, and one image a class: finite weights, every class right."""
    x = torch.cat([torch.eye(4), torch.ones(4, 1)], 1)
    weight, bias = ridge(x, torch.arange(4), 4, (2.0**-20,))
    assert weight.isfinite().all()
    assert torch.equal((x.double() @ weight[0].T + bias[0]).argmax(1), torch.arange(4))
    with pytest.raises(ValueError, match="must be above 0"):
        ridge(x, torch.arange(4), 4, (0.0,))


@pytest.mark.parametrize("case", [0, 1])
def test_reference(reference_figures, case):
    """Weights at three regularisations and accuracies at thirty are the reference's, as far as its float32 goes: what
    is minimised agrees to 1e-5 and is never less at its weights; accuracies are equal, but where little is regularised
    for one image, whose two best scores (0.0018 apart) are nearer than its float32 errs in scores (0.0055)."""
    figures = dict(np.load(reference_figures / "fewshot_linear_regression.npz"))
    figures = {k.removeprefix(f"case{case}/"): torch.from_numpy(v) for k, v in figures.items() if f"case{case}/" in k}
    x, labels, l2 = figures["x_train"], figures["y_train"], figures["l2_regs"].tolist()
    weight, bias = ridge(x, labels, 5, l2)
    scores = figures["x_test"].double() @ weight.mT + bias[:, None]
    found = (scores.argmax(-1) == figures["y_test"]).double().mean(1)
    different = (found - figures["accuracy"]).abs() > 1e-6
    best = scores.topk(2).values
    close = (best[..., 0] - best[..., 1]).min(1).values < 2e-3
    assert torch.equal(different & close & (figures["l2_regs"] < 1), different)
    torch.testing.assert_close(found, figures["accuracy"], rtol=0, atol=1 / 200 + 1e-6)

    mean, std = whitened(x)
    inputs = torch.nn.functional.pad((x.double() - mean) / std, (0, 1), value=BIAS)
    targets = 2 * torch.nn.functional.one_hot(labels, 5) - 1.0
    for name in (name for name in figures if name.startswith("weights")):
        place = min(range(len(l2)), key=lambda place: abs(l2[place] - float(name.rpartition("_")[2])))
        constant = (bias[place] + weight[place] @ mean) / BIAS
        ours, theirs = torch.cat([weight[place] * std, constant[:, None]], 1).T, figures[name].double()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
        least, reached = (
            ((inputs @ w - targets).square().sum() + l2[place] * w.square().sum()).item() for w in (ours, theirs)
        )
        assert least <= reached * (1 + 1e-9)
        assert least == pytest.approx(reached, rel=1e-5, abs=1e-5)

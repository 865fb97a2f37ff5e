"""pytest tests/training/test_fit.py: a recipe and its seed decide a training."""

import traceback

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vismoe
from vismoe.data import open_data
from vismoe.inference import evaluate
from vismoe.parallel import Mesh
from vismoe.tasks import Evaluation, task_for
from vismoe.training import TrainingDivergedError, fit
from vismoe.training.loop import balance, fitting
from vismoe.training.state import begin, build
from vismoe.training.step import Trainer

from .tiny import tiny


def weights(path):
    return vismoe.load(path).state_dict()


def test_the_same_recipe_gives_the_same_bits(run, tmp_path):
    """Weights, balancing state and metrics of a repeated run are bit-equal, wherever the global generators stand."""
    torch.manual_seed(99)
    again = fit(tiny(), tmp_path / "again")
    first, second = weights(run.path), weights(again.path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert run.metrics == again.metrics


def test_another_seed_gives_another_run(run, tmp_path):
    """The seed is not ignored."""
    other = weights(fit(tiny(seed=1), tmp_path / "other").path)
    assert not torch.equal(weights(run.path)["head.weight"], other["head.weight"])


def test_watching_changes_nothing(run, tmp_path):
    """A progress display does not disturb what it shows."""
    seen = []
    watched = fit(tiny(), tmp_path / "watched", seen.append)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(run.path).values(), weights(watched.path).values(), strict=True)
    )
    assert [(status.step, status.steps) for status in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].seconds_left == 0


def test_twins_see_the_same_batches(tmp_path, monkeypatch):
    """The sparse model and its dense twin are trained on equal images in equal order."""
    seen = {}
    plain = Trainer._micro_step

    for model in ("vmoe_pico_patch2_8_every2_e8", "vmoe_pico_patch2_8_dense"):

        def watched(trainer, batch, *rest):
            seen.setdefault(trainer.recipe.model, []).append((batch["image"].clone(), batch["label"].clone()))
            return plain(trainer, batch, *rest)

        monkeypatch.setattr(Trainer, "_micro_step", watched)
        fit(tiny(model=model, steps=3), tmp_path / model)
    sparse, dense = seen.values()
    assert len(sparse) == len(dense) == 3
    for (images, labels), (others, other_labels) in zip(sparse, dense, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)


def test_twins_start_from_the_same_trunk():
    """What both twins have, they have with the same initial values, bit for bit."""
    data = open_data("digits")
    sparse = build(tiny(), data).state_dict()
    dense = build(tiny(model="vmoe_pico_patch2_8_dense"), data).state_dict()
    shared = [name for name in dense if name in sparse]
    assert any("attn.qkv.weight" in name for name in shared)
    for name in shared:
        assert torch.equal(sparse[name], dense[name]), name


def test_training_learns(tmp_path):
    """The loop descends: sixty steps on digits are far above chance, which is 0.1."""
    run = fit(tiny(steps=60, batch_size=16, warmup_steps=5, learning_rate=3e-3), tmp_path / "run")
    assert run.summary["top1"] > 0.4


def test_auxiliary_losses_are_trained_on(tmp_path, monkeypatch):
    """With balance="loss" the gradient is that of cross-entropy plus the auxiliary loss, not of cross-entropy alone."""
    recipe = tiny(balance="loss", steps=1, warmup_steps=0, label_smoothing=0.0)
    gradients, batches = {}, []
    plain, clip = Trainer._micro_step, torch.nn.utils.clip_grad_norm_

    def watched(trainer, batch, *rest):
        batches.append((batch["image"], batch["label"]))
        return plain(trainer, batch, *rest)

    def before_clipping(parameters, norm):
        gradients["fit"] = [parameter.grad.clone() for parameter in parameters]
        return clip([], norm)

    monkeypatch.setattr(Trainer, "_micro_step", watched)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", before_clipping)
    fit(recipe, tmp_path / "run")
    images, labels = batches[0]
    for wanted in ("both", "cross-entropy"):
        model = build(recipe, open_data("digits")).train()
        torch.manual_seed(recipe.seed)
        with vismoe.record(model) as routing:
            loss = F.cross_entropy(model(images), labels)
        assert routing.auxiliary_loss > 0
        (loss + routing.auxiliary_loss if wanted == "both" else loss).backward()
        gradients[wanted] = [parameter.grad for parameter in model.parameters()]
    for mine, expected in zip(gradients["fit"], gradients["both"], strict=True):
        torch.testing.assert_close(mine, expected)
    assert not all(torch.allclose(a, b) for a, b in zip(gradients["fit"], gradients["cross-entropy"], strict=True))


def test_a_training_that_diverges_stops(tmp_path):
    """A loss that is no number any more ends the run with an error that says what to try, and leaves no model."""
    with pytest.raises(TrainingDivergedError, match=r"3 steps in a row were skipped: try a smaller"):
        fit(tiny(learning_rate=1e30, warmup_steps=0, steps=6, max_skipped=3), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_bfloat16_keeps_float32_weights(tmp_path):
    """dtype="bfloat16" computes in half the bits and stores full ones."""
    run = fit(tiny(dtype="bfloat16", steps=2), tmp_path / "run")
    assert {tensor.dtype for tensor in weights(run.path).values() if tensor.is_floating_point()} == {torch.float32}


def test_evaluations_come_as_often_as_asked(tmp_path):
    """evaluate_every=2 of 5 steps: after 2, 4 and the last."""
    run = fit(tiny(steps=5, evaluate_every=2), tmp_path / "run")
    assert [line["step"] for line in run.metrics if "top1" in line] == [2, 4, 5]


def test_the_load_of_a_step_is_that_of_all_its_micro_batches():
    """With gradient accumulation every choice of the batch is counted."""
    recipe, data = tiny(accumulate=4), open_data("digits")
    task = task_for(recipe.task, data, recipe.to_json())
    trainer = Trainer(recipe, begin(build(recipe, data), recipe), task, Mesh(), print)
    trainer.state.step = 1
    outcome = trainer.step({"image": torch.randn(8, 1, 8, 8), "label": torch.arange(8)}, log_now=True)
    assert {name: int(load.sum()) for name, load in outcome.load.items()} == dict.fromkeys(outcome.load, 8 * 17)
    assert len(outcome.load) == 2


class Waits(TorchDispatchMode):
    """Counts the reads of a tensor's value, which wait for the device. (Adam reads its counters of steps, which are on
    the CPU.)"""

    def __init__(self):
        super().__init__()
        self.places = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select"):
            stack = [frame.filename for frame in traceback.extract_stack()]
            if not any("torch/optim" in file for file in stack):
                self.places.append([file for file in stack if "vismoe" in file][-1])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("changes", [{}, {"average_decay": 0.9, "accumulate": 2, "class_weights": 0.5}])
def test_a_step_waits_for_the_device_once(changes):
    """Whether loss and gradient are finite is read together; nothing else is, except for the log."""
    recipe, data = tiny(**changes), open_data("digits")
    task = task_for(recipe.task, data, recipe.to_json())
    trainer = Trainer(recipe, begin(build(recipe, data), recipe), task, Mesh(), print)
    batch = {"image": torch.randn(8, 1, 8, 8), "label": torch.arange(8)}
    for trainer.state.step in (1, 2):
        with Waits() as waits:  # the first step makes the state of the optimiser
            trainer.step(dict(batch), log_now=False)
    assert [place.rpartition("/")[2] for place in waits.places] == ["step.py"]


@pytest.mark.parametrize(
    ("evaluations", "patience", "kept", "steps"),
    [
        ([(0.5, 1.0), (0.5, 0.8), (0.5, 0.9), (0.4, 0.1), (0.5, 0.8)], 0, 2, 5),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.8), (0.5, 0.7), (0.6, 0.6)], 3, 4, 4),
        ([(0.5, 1.0), (0.5, 0.8), (0.6, 2.0), (0.6, 2.0), (0.5, 0.1)], 0, 3, 5),
        ([(0.5, None), (0.5, None), (0.4, None)], 0, 1, 3),
    ],
    ids=["lower loss", "patience counts scores", "score first, earlier among equals", "no loss"],
)
def test_of_equal_scores_the_lower_loss_is_kept(tmp_path, monkeypatch, evaluations, patience, kept, steps):
    """keep="best": the highest score, then the lowest loss, then the earliest step. A lower loss alone does not delay
    early stopping."""
    seen = []

    def scripted(network, *args, **options):
        score, loss = evaluations[len(seen)] if len(seen) < steps else (0.0, 0.0)  # the last: the weights that are kept
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return Evaluation({"top1": score} if loss is None else {"top1": score, "loss": loss}, 1.0, {})

    monkeypatch.setattr(balance, "evaluate", scripted)
    monkeypatch.setattr(fitting, "write_report", lambda *args: None)
    run = fit(
        tiny(steps=len(evaluations), evaluate_every=1, keep="best", patience=patience, keep_checkpoints=1),
        tmp_path / "run",
    )
    assert [line["step"] for line in run.metrics if "top1" in line] == list(range(1, steps + 1))
    saved = weights(run.path)
    equal = [all(torch.equal(saved[name], value) for name, value in each.items()) for each in seen[:steps]]
    assert [step for step, same in enumerate(equal, start=1) if same] == [kept]


def test_further_sets_are_evaluated_beside_the_held_out_part(tmp_path):
    """extra_eval={"name": images}: the same metrics under its name, whenever the validation split is evaluated; the
    training is as without."""
    data = open_data("digits")
    few = data.val.subset(range(40))
    run = fit(tiny(steps=5, evaluate_every=2), tmp_path / "run", extra_eval={"few": few})
    lines = [line for line in run.metrics if "top1" in line]
    assert [line["step"] for line in lines if "few/top1" in line] == [2, 4, 5]
    found = evaluate(run.load_model(), few).logged
    assert {name: lines[-1][f"few/{name}"] for name in found} == pytest.approx(found, abs=1e-5)
    alone = weights(fit(tiny(steps=5, evaluate_every=2), tmp_path / "alone").path)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in weights(run.path).items())

"""pytest tests/training/test_resume.py: a run that is killed and resumed ends as one that never was.

The runs are processes of their own, really killed.
"""

import json
import os
import random
import signal
import subprocess
import textwrap

import pytest
import torch

from vismoe.data import open_data
from vismoe.tasks import Classification
from vismoe.training import Run, fit
from vismoe.training.state import build
from vismoe.training.step import Trainer

from .tiny import tiny

STEPS = 12
EVERYTHING = {
    "steps": STEPS,
    "checkpoint_every": 3,
    "evaluate_every": 5,
    "noise_std": 1.0,
    "drop_path": 0.2,
    "mixup": 0.2,
    "cutmix": 0.5,
    "flip": 0.5,
    "average_decay": 0.9,
    "accumulate": 2,
}
MOMENTUM = {
    "optimizer": "momentum",
    "schedule": "warmup-polynomial",
    "power": 2.0,
    "end_learning_rate": 1e-4,
    "weight_decay": ((r"^head\.", 3.0), (r"\.weight$", 0.03)),
    "learning_rates": ((r"^head\.", 4e-3),),
    "frozen": r"^blocks\.0\.",
    "clip_norm": 0.0,
    "loss": "sigmoid",
    "model_options": (("capacity_factor", 1.5),),
}

# Forks one child a run: each is killed, or ends, on its own.
DRIVER = """
    import json, os, signal, sys
    from pathlib import Path
    import torch
    from vismoe.training import Recipe, fit
    from vismoe.training import checkpointer
    from vismoe.training.loop import balance
    from vismoe.training.step import Trainer
    torch.set_num_threads(1)
    balance.REBALANCE_BATCHES = 2
    plain, sync, synced = Trainer.step, checkpointer.sync, []

    def run(recipe, out, kill_in):
        def step(trainer, *rest, **options):
            outcome = plain(trainer, *rest, **options)
            if trainer.state.step == kill_in:
                os.kill(os.getpid(), signal.SIGKILL)
            return outcome
        def sync_or_die(path):
            synced.append(path)
            if kill_in == -len(synced):
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)
        Trainer.step, checkpointer.sync = step, sync_or_die
        fit(Recipe.from_json(recipe), Path(out), resume=True)

    for recipe, out, kill_in in json.loads(sys.argv[1]):
        child = os.fork()
        if not child:
            run(recipe, out, kill_in)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


# A run and its workers, to which signals are sent together: it says how their group is called.
GROUP = """
import os, sys
from vismoe.cli import main
os.setsid()
print(os.getpid(), flush=True)
"""


@pytest.fixture(scope="module")
def drive(forked):
    """Exit codes of runs, one after the other: (recipe, folder, step to be killed in, or minus the number of the file
    to be killed at while a checkpoint is written, or None)."""

    def driven(*runs):
        wanted = json.dumps([(recipe.to_json(), str(out), kill_in) for recipe, out, kill_in in runs])
        command = [forked, "-c", textwrap.dedent(DRIVER), wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return list(map(int, done.stdout.split())), done.stderr

    return driven


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(drive, tmp_path_factory):
    """The run that was never killed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert drive((tiny(**EVERYTHING), folder, None))[0] == [0]
    return Run(folder)


@pytest.mark.parametrize(
    ("workers", "then"),
    [pytest.param(0, 0, marks=pytest.mark.slow), pytest.param(2, 0, marks=pytest.mark.slow), (0, 2)],
)
def test_killed_at_random_steps(tmp_path, workers, then, drive, whole):
    """kill -9 in the middle of two random steps of one run, or ten: bit-equal in the end, with workers, and when
    their number changes.

    With balancing, router noise, stochastic depth, mixup, cutmix, flips, affine maps, an average of weights and
    accumulation.
    """
    kills = sorted(random.Random(workers).sample(range(1, STEPS + 1), 10 if workers == then == 0 else 2))
    numbers = [workers, *[then] * len(kills)]
    runs = zip(numbers, [*kills, None], strict=True)
    codes, errors = drive(*((tiny(**EVERYTHING, workers=number), tmp_path / "run", kill) for number, kill in runs))
    assert codes == [-signal.SIGKILL] * len(kills) + [0], errors
    assert weights(tmp_path / "run") == weights(whole.path), f"killed in steps {kills}"
    assert Run(tmp_path / "run").summary["top1"] == whole.summary["top1"]


@pytest.mark.slow
def test_killed_with_momentum(tmp_path, drive):
    """The same with SGD, a decay by name, frozen parameters (which stay as they began), no clipping."""
    recipe, whole, out = tiny(**EVERYTHING | MOMENTUM), tmp_path / "whole", tmp_path / "run"
    codes, errors = drive((recipe, whole, None), (recipe, out, 8), (recipe, out, None))
    assert codes == [0, -signal.SIGKILL, 0], errors
    assert weights(out) == weights(whole)
    begun, ended = build(recipe, open_data("digits", 0)).state_dict(), Run(out).load_model().state_dict()
    frozen = [name for name in begun if name.startswith("blocks.0.")]
    assert all(torch.equal(begun[name], ended[name]) for name in frozen)
    assert not torch.equal(begun["blocks.1.norm1.weight"], ended["blocks.1.norm1.weight"])


@pytest.mark.parametrize("synced", [[5], pytest.param([1, 4, 7, 10], marks=pytest.mark.slow)])
def test_killed_while_a_checkpoint_is_written(tmp_path, synced, drive, whole):
    """Whichever of its files was just written, what is there is whole, and the run ends bit-equal."""
    recipe, runs = tiny(**EVERYTHING), []
    for number in synced:
        runs += [(recipe, tmp_path / f"{number}", -number), (recipe, tmp_path / f"{number}", None)]
    codes, errors = drive(*runs)
    assert codes == [-signal.SIGKILL, 0] * len(synced), errors
    assert "damaged" not in errors
    for number in synced:
        assert weights(tmp_path / f"{number}") == weights(whole.path)
        names = {path.name for path in (tmp_path / f"{number}" / "checkpoints").iterdir()}
        assert all(name.startswith("step-") for name in names)


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, drive, whole):
    """The checkpoint before it is used, a line says which file was damaged, and the end is bit-equal."""
    recipe = tiny(**EVERYTHING)
    codes, _ = drive((recipe, tmp_path / "run", 11))
    assert codes == [-signal.SIGKILL]
    damaged = tmp_path / "run" / "checkpoints" / "step-000009" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    codes, errors = drive((recipe, tmp_path / "run", None))
    assert codes == [0]
    assert sum("checkpoints/step-000009/tensors.safetensors" in line for line in errors.splitlines()) == 1
    assert weights(tmp_path / "run") == weights(whole.path)


def test_nothing_to_resume_is_a_beginning(tmp_path):
    """resume=True where there is no run, and where there is one without a checkpoint."""
    for _ in range(2):
        run = fit(tiny(), tmp_path / "run", resume=True)
        assert run.metrics[-1]["step"] == 4
    assert sum("top1" in line for line in run.metrics) == 1


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    """One that somebody put there: it is said, and nothing is trained."""
    fit(tiny(model="vmoe_pico_patch2_8_dense", checkpoint_every=4), tmp_path / "other")
    run = Run.create(tmp_path / "run", tiny(), open_data("digits", 0))
    (tmp_path / "other" / "checkpoints").rename(run.path / "checkpoints")
    with pytest.raises(ValueError, match="another network"):
        fit(tiny(), run.path, resume=True)
    assert not run.has_model


def test_killed_while_it_began(tmp_path, run):
    """Whatever of its first files a run had written, it begins anew; with anything else there, nothing is touched."""
    for names in ((), (".environment.json",), ("environment.json", ".data.json"), ("environment.json", "data.json")):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        out.mkdir()
        for name in names:
            (out / name).write_text("{")
        assert weights(fit(tiny(), out, resume=True).path) == weights(run.path)
        assert not list(out.glob(".*"))


def test_a_run_that_is_being_written_is_left_alone(run, forked):
    """A second process that resumes it is refused in one line; what the first one does goes on, and its lock ends."""
    arguments = ["train", "digits", "--steps", "4", "--batch-size", "8", "--out", str(run.path), "--resume", "auto"]
    arguments += ["--warmup-steps", "1", "--device", "cpu"]
    before = (run.path / "metrics.jsonl").read_bytes()
    with Run(run.path).lock():
        done = subprocess.run([forked, "-m", "vismoe", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "is being written by another process" in done.stderr
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert not (run.path / ".lock").exists()


def test_another_recipe_is_not_resumed(tmp_path, run):
    """What decides the result must be as it was; the error names what is not. Workers decide nothing."""
    with pytest.raises(ValueError, match=r"learning_rate=0\.002 before, 0\.5 now"):
        fit(tiny(learning_rate=0.5), run.path, resume=True)
    assert Run.reopen(run.path, tiny(workers=1), open_data("digits", 0)).path == run.path
    with pytest.raises(
        ValueError, match=r"digits has changed since .* was started: 1347 training and 450 validation images then"
    ):
        Run.reopen(run.path, tiny(), open_data("digits", 1))
    with pytest.raises(FileExistsError):
        fit(tiny(), run.path)


@pytest.mark.parametrize("cooldown", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_run_goes_on_for_longer(tmp_path, cooldown):
    """A finished run at a constant rate, gone on with for more steps, with a cooldown or without, ends bit-equal to one
    that was to be so long from the start; its recipe says so."""
    short = {"schedule": "constant", "average_decay": 0.9, "average_warmup": True, "checkpoint_every": 2}
    long = short | {"steps": 8, "cooldown_steps": cooldown}
    fit(tiny(**short), tmp_path / "run")
    went_on = fit(tiny(**long), tmp_path / "run", resume=True)
    at_once = fit(tiny(**long), tmp_path / "other")
    for name, tensor in at_once.load_model().state_dict().items():
        assert torch.equal(tensor, went_on.load_model().state_dict()[name]), name
    assert went_on.recipe == at_once.recipe
    speed = {"images_per_second": None}
    assert went_on.summary | speed == at_once.summary | speed
    assert [line["step"] for line in went_on.metrics if "loss" in line] == list(range(1, 9))


def test_a_run_whose_steps_would_have_been_others_does_not_go_on(tmp_path, run):
    """A cosine of another length, a cooldown that has begun, fewer steps than are done: refused, nothing changed."""
    fit(tiny(checkpoint_every=2), tmp_path / "cosine")
    with pytest.raises(ValueError, match=r"step 2 had learning rate 0\.00171 and would have had 0\.00192"):
        fit(tiny(checkpoint_every=2, steps=8), tmp_path / "cosine", resume=True)
    cooled = {"schedule": "constant", "checkpoint_every": 2}
    before = fit(tiny(**cooled, cooldown_steps=2), tmp_path / "cooled").recipe
    with pytest.raises(ValueError, match=r"step 4 had learning rate 0\.001 and would have had 0\.002"):
        fit(tiny(**cooled, steps=8), tmp_path / "cooled", resume=True)
    with pytest.raises(ValueError, match="has already done 4 steps, more than steps=2"):
        fit(tiny(**cooled, steps=2), tmp_path / "cooled", resume=True)
    assert Run(tmp_path / "cooled").recipe == before
    with pytest.raises(ValueError, match="steps=4 before, 8 now"):
        fit(tiny(steps=8), run.path, resume=True)  # it has no checkpoint to go on from


@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGTERM, 143, 2), (signal.SIGINT, 130, 2), (signal.SIGINT, 130, 0)]
)
def test_asked_to_stop(tmp_path, number, code, workers, forked):
    """SIGTERM and Ctrl-C to every process of the run, as terminals and systems that shut down send them: a checkpoint
    after the step, one line, a code of its own, no process left."""
    options = ["--steps", "100000", "--batch-size", "8", "--workers", str(workers), "--out", str(tmp_path / "run")]
    command = [forked, "-c", GROUP + "sys.exit(main(sys.argv[1:]))", "train", "digits", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    group = int(process.stdout.readline())
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    os.killpg(group, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert len(errors.splitlines()) == 1
    assert f"{number.name}: stopped after step" in errors
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_training_that_crashes_leaves_no_worker(tmp_path, forked):
    """An error that nobody foresaw, in the middle of a step: the workers end with their parent."""
    script = f"""
        from pathlib import Path
        from vismoe.training import Recipe, fit
        from vismoe.training.step import Trainer

        def fail(*arguments, **options):
            raise AttributeError("a mistake")

        Trainer.step = fail
        fit(Recipe(steps=5, batch_size=8, workers=2, device="cpu"), Path({str(tmp_path / "run")!r}))
    """
    command = [forked, "-c", GROUP + textwrap.dedent(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    group = int(process.stdout.readline())
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.endswith("AttributeError: a mistake\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_step_that_is_not_finite_leaves_no_statistics(tmp_path, monkeypatch):
    """A batch with a NaN in one image: a batch norm's running statistics are those of the step before."""
    plain, before = Trainer._micro_step, []

    def spoiled(trainer, batch, *rest):
        if trainer.state.step == 2:
            before.extend(buffer.clone() for buffer in trainer.statistics)
            images = batch["image"].clone()
            images[0, 0, 0, 0] = float("nan")
            batch = batch | {"image": images}
        if trainer.state.step == 3:
            assert all(torch.equal(a, b) for a, b in zip(trainer.statistics, before, strict=True))
        return plain(trainer, batch, *rest)

    monkeypatch.setattr(Trainer, "_micro_step", spoiled)
    run = fit(tiny(model="timm:mobilenetv3_small_050", image_size=32), tmp_path / "run")
    assert len(before) > 50
    assert run.summary["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in run.load_model().state_dict().values())


def test_what_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    """A loss that is NaN at one step: the step is skipped, counted and named, the run goes on as if it had not been."""
    plain, calls = Classification.loss, []

    def sometimes_nan(*arguments):
        loss = plain(*arguments)
        calls.append(1)
        return loss * float("nan") if len(calls) == 2 else loss

    monkeypatch.setattr(Classification, "loss", sometimes_nan)
    run = fit(tiny(), tmp_path / "run")
    assert [line for line in run.metrics if "skipped" in line] == [{"step": 2, "skipped": "the loss is nan"}]
    assert run.summary["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for tensor in run.load_model().state_dict().values())

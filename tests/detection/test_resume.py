"""A training of a detector that is killed or stopped, and resumed, ends as one that never was, bit for bit.

python -m pytest tests/detection/test_resume.py
"""

import json
import random
import signal
import subprocess
import textwrap

import pytest

from vismoe.training import Run

from .scenes import tiny, write_scenes

STEPS = 6
EVERYTHING = {
    "steps": STEPS,
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "noise_std": 1.0,
    "drop_path": 0.2,
    "average_decay": 0.9,
    "accumulate": 2,
    "translate": 0.1,
    "color_jitter": 0.2,
    "noise": 0.05,
    "erase": 0.5,
}

# Forks one child a run: each gets a signal, or ends, on its own.
DRIVER = """
    import json, os, sys
    from pathlib import Path
    import torch
    from vismoe.training import Recipe, TrainingStoppedError, fit
    from vismoe.training.loop import balance
    from vismoe.training.step import Trainer
    torch.set_num_threads(1)
    balance.REBALANCE_BATCHES = 2
    plain = Trainer.step

    def run(recipe, out, number, signalled_in):
        def step(trainer, *rest, **options):
            outcome = plain(trainer, *rest, **options)
            if trainer.state.step == signalled_in:
                os.kill(os.getpid(), number)
            return outcome
        Trainer.step = step
        try:
            fit(Recipe.from_json(recipe), Path(out), resume=True)
        except TrainingStoppedError:
            return 99
        return 0

    for arguments in json.loads(sys.argv[1]):
        child = os.fork()
        if not child:
            os._exit(run(*arguments))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def drive(forked):
    """Exit codes of runs, one after the other: (recipe, folder, signal, step in which it is sent or None)."""

    def driven(*runs):
        wanted = json.dumps([(recipe.to_json(), str(out), *rest) for recipe, out, *rest in runs])
        command = [forked, "-c", textwrap.dedent(DRIVER), wanted]
        return list(map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()))

    return driven


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def whole(scenes, drive, tmp_path_factory):
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert drive((tiny(scenes, **EVERYTHING), folder, 0, None)) == [0]
    return Run(folder)


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        pytest.param(2, signal.SIGKILL, marks=pytest.mark.slow),
        (0, signal.SIGTERM),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_signalled_in_two_steps(workers, number, scenes, whole, drive, tmp_path):
    """With boxes in lists, balancing, router noise, stochastic depth, all augmentation, an average of weights and
    accumulation; the number of workers changes on the way. What is compared are the weights' bytes and every metric."""
    stops = sorted(random.Random(workers + number).sample(range(1, STEPS), 2))
    plans = zip([workers, 2 - workers, workers], [*stops, None], strict=True)
    runs = [(tiny(scenes, **EVERYTHING, workers=count), tmp_path / "run", int(number), step) for count, step in plans]
    stopped = -signal.SIGKILL if number == signal.SIGKILL else 99
    assert drive(*runs) == [stopped, stopped, 0]
    run = Run(tmp_path / "run")
    ours, theirs = ((each.path / "model" / "model.safetensors").read_bytes() for each in (run, whole))
    assert ours == theirs, f"stopped in steps {stops}"
    assert run.metrics == whole.metrics
    assert {"images_per_second"} >= {name for name, value in run.summary.items() if value != whole.summary[name]}

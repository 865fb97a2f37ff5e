"""pytest tests/cli/test_progress.py: what the lines of a training say."""

import io
from dataclasses import replace

from rich.console import Console

from vismoe.cli.shared.progress import TrainingProgress
from vismoe.training import Status, fit

from ..training.tiny import tiny

STATUS = Status(
    step=10,
    steps=100,
    loss=0.5,
    accuracy=0.25,
    score=0.75,
    images_per_second=12.0,
    seconds_left=65,
    load={"blocks.9.mlp": [0.25, 0.5, 0.25, 0.0], "blocks.11.mlp": [1.0, 0.0, 0.0, 0.0]},
    score_step=8,
)


def shown(status, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with TrainingProgress("mine", console) as progress:
        progress(status)
    return console.file.getvalue()


def test_a_line_says_what_its_figures_are():
    """The step of the validation, unless it is that of the line; the blocks and the meaning of the load."""
    load = "; expert load in blocks 9, 11, largest ÷ mean (1 is even): 2.0, 4.0"
    line = "mine: step 10/100, loss 0.500, training accuracy 0.250, validation 0.7500{}, 12 images/s, 1:05 left{}\n"
    assert shown(STATUS) == line.format(" (of step 8)", load)
    assert shown(replace(STATUS, score_step=10)) == line.format("", load)
    one = {"blocks.3.mlp": [0.5, 0.5]}
    assert "; expert load in block 3, largest ÷ mean (1 is even): 1.0" in shown(replace(STATUS, load=one))
    assert "load" not in shown(replace(STATUS, load={}))
    assert "validation" not in shown(replace(STATUS, score=None, score_step=None))
    text = shown(replace(STATUS, score_split="training"))
    assert ", score on the training split 0.7500 (of step 8)," in text
    assert "validation" not in text


def test_a_terminal_shows_the_same():
    """In its table."""
    text = shown(STATUS, terminal=True)
    for words in ("0.7500 (of step 8)", "validation", "block 9", "expert load, largest ÷ mean", "2.0"):
        assert words in text
    text = shown(replace(STATUS, score_split="training"), terminal=True)
    assert "score on the training split" in text
    assert "validation" not in text


def test_the_step_of_a_validation_is_that_of_its_evaluation(tmp_path):
    """As metrics.jsonl has it, in every status after it."""
    statuses = []
    run = fit(tiny(steps=10, evaluate_every=4), tmp_path / "run", statuses.append)
    scores = {line["step"]: line["top1"] for line in run.metrics if "top1" in line}
    assert list(scores) == [4, 8, 10]
    assert [status.score_step for status in statuses] == [None] * 3 + [4] * 4 + [8] * 2 + [10]
    assert all(status.score == scores[status.score_step] for status in statuses[3:])

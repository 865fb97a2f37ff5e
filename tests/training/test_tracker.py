"""pytest tests/training/test_tracker.py: figures in TensorBoard's files, and in trackers that have wandb's calls."""

import sys
from types import SimpleNamespace

import pytest

from vismoe.training import fit, tracker

from .tiny import tiny


def read_scalars(folder):
    """What TensorBoard itself finds: {name: [(step, value)]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore")  # of TensorBoard's own
def test_tensorboard_has_the_metrics(tmp_path):
    """Every number of metrics.jsonl is there, at its step; the load as one curve an expert."""
    run = fit(tiny(track="tensorboard"), tmp_path / "run")
    found = read_scalars(run.path / "tensorboard")
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in run.metrics:
        for name, value in line.items():
            if name == "load":
                for layer, shares in value.items():
                    for expert, share in enumerate(shares):
                        expected.setdefault(f"load/{layer}/{expert}", []).append((line["step"], share))
            elif name != "step":
                expected.setdefault(name, []).append((line["step"], value))
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in curve], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in curve]), name


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_with_wandb_s_calls(name, tmp_path, monkeypatch):
    """init with the recipe, log with the step, finish, also where the training fails."""
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)),
        log=lambda values, step: calls.append(("log", values, step)),
        finish=lambda: calls.append(("finish",)),
    )
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(tracker, "find_spec", lambda wanted: SimpleNamespace(origin="there"))
    run = fit(tiny(track=name), tmp_path / "run")
    assert calls[0][1]["config"] == run.recipe.to_json()
    assert calls[-1] == ("finish",)
    logged = [call for call in calls if call[0] == "log"]
    assert [step for _, _, step in logged] == [line["step"] for line in run.metrics]
    assert [values.get("loss") for _, values, _ in logged] == [line.get("loss") for line in run.metrics]


@pytest.mark.parametrize("found", [None, SimpleNamespace(origin=None)])
def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch, found):
    """Said with what to install, before anything is written; a folder of its name, as wandb leaves, is none."""
    monkeypatch.setattr(tracker, "find_spec", lambda wanted: found)
    with pytest.raises(ValueError, match="track=wandb: wandb is not installed: pip install wandb"):
        fit(tiny(track="wandb"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []

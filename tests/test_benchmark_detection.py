"""pytest tests/test_benchmark_detection.py: which runs the study of detectors makes, and what its table says."""

import subprocess
import sys
from types import SimpleNamespace

import detection_study
import pytest
from table import Table

pytestmark = pytest.mark.benchmarks

MAP50 = {0: 0.5, 1: 0.7, 2: 0.9}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Runs the study with a `finetune` that only makes a folder; returns the options of each call."""
    made = []

    def finetune(options, out, log, on_status):
        out.mkdir()
        made.append((options.data, options.source, options.sparse, options.seed))
        metrics = {"map": MAP50[options.seed] / 2, "map50": MAP50[options.seed]}
        report = {
            "validation": None,
            "test": metrics,
            "classes": [{"class": "red", "ap50": 0.25}, {"class": "blue", "ap50": 0.75}],
            "images": {"train": 12, "test": 4},
        }
        return SimpleNamespace(run=SimpleNamespace(recipe=SimpleNamespace(steps=7, batch_size=4)), report=report)

    monkeypatch.setattr(detection_study, "finetune", finetune)
    monkeypatch.setattr(detection_study, "speed", lambda run, data: {"input_size": "48 × 64", "milliseconds": 3.0})
    monkeypatch.setattr(detection_study, "in_processes", lambda jobs, run, calls: (run(*call) for call in calls))

    def run(*arms, **options):
        made.clear()
        detection_study.main(
            (tmp_path / "cells",), tmp_path / "vit", arms, runs=tmp_path / "runs", csv=tmp_path / "rows.csv", **options
        )
        return list(made)

    return run


def test_each_run_is_made_once(study, tmp_path, capsys):
    """Also after a kill: what is left of its folder is removed. The table has means and ranges over the seeds."""
    left = tmp_path / "runs" / "cells-vit-sparse-1"
    left.mkdir(parents=True)
    data, vit = str(tmp_path / "cells"), str(tmp_path / "vit")
    assert study("scratch-dense", "vit-sparse", seeds=(0, 1)) == [
        (data, source, sparse, seed) for seed in (0, 1) for source, sparse in ((None, False), (vit, True))
    ]
    assert study("vit-sparse", seeds=(0, 1, 2)) == [(data, vit, True, 2)]
    assert study("vit-sparse", seeds=(0, 1, 2)) == []
    assert "| cells | vit-sparse | 3 | 48 × 64 | 0.350 (0.250–0.450) | 0.700 (0.500–0.900) |" in capsys.readouterr().out
    assert study("vit-sparse", seeds=(0,), epochs=1) == [(data, vit, True, 0)]
    rows = Table(tmp_path / "rows.csv").rows()
    assert len(rows) == 6
    assert {row["ap50_of_classes"] for row in rows} == {"red 0.2500; blue 0.7500"}


def test_two_commands_share_the_runs(study, tmp_path, capsys):
    """A run that another process is making is skipped, and said."""
    (tmp_path / "runs").mkdir()
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-S", "-c", code, str(tmp_path / "runs" / "cells-scratch-dense-0.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert [seed for *_, seed in study("scratch-dense", seeds=(0, 1))] == [1]
        assert "skipped" in capsys.readouterr().out
        other.communicate(b"\n")
    assert [seed for *_, seed in study("scratch-dense", seeds=(0, 1))] == [0]


def test_kept_tokens_are_timed_until_the_first_status(monkeypatch):
    minutes = detection_study.CPUMinutes()
    clock = iter((2.0, 5.0, 9.0))
    monkeypatch.setattr(detection_study.CPUMinutes, "now", property(lambda self: next(clock)))
    minutes.log("split: 12 training, 4 validation images")
    minutes.log("the first 10 blocks are not trained: they run once, and their tokens are kept")
    minutes.on_status(None)
    minutes.on_status(None)
    assert minutes.kept == 3.0


def test_an_arm_that_needs_a_parent_says_so(tmp_path):
    with pytest.raises(SystemExit, match="need --parent"):
        detection_study.main((tmp_path / "cells",), arms=("vit-dense",), csv=tmp_path / "rows.csv")
    with pytest.raises(SystemExit, match="unknown arms: vit; accepted are scratch-dense"):
        detection_study.main((tmp_path / "cells",), arms=("vit",), csv=tmp_path / "rows.csv")

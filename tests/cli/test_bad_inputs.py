"""pytest tests/cli/test_bad_inputs.py: messy folders, full disks and steps that are no numbers, end to end."""

import json

import pytest

import vismoe
from vismoe.training import Run

from .bad_inputs import CASES, full_disk, not_finite, run


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_what_a_folder_gets(case, tmp_path):
    """The code, one line of stderr at most, and no run folder where it was refused; else a model, and a list of all
    that was left out."""
    code, errors, folder, out = run(case, tmp_path)
    assert code == case.code, errors
    assert len(errors.splitlines()) == bool(case.says)
    assert case.says in errors.replace(str(folder), "FOLDER").replace(str(out), "OUT")
    assert out.exists() == (code == 0)
    if code == 0:
        left_out = json.loads((out / "data.json").read_text())["unreadable"]
        assert len(left_out) == int(case.says.split()[0] if case.says else 0)
        assert all(entry["file"] and entry["reason"] for entry in left_out)
        vismoe.load(out)


def test_a_full_disk(tmp_path):
    """One line that says so, code 2, and nothing half-written."""
    found = full_disk(tmp_path)
    if found is None:
        pytest.skip("no small disk can be mounted here")
    code, errors = found
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert "No space left on device" in errors


def test_a_step_that_is_no_number(tmp_path):
    """Once: skipped, counted, named; the run ends well."""
    assert not_finite(tmp_path, 5) == (0, "")
    assert Run(tmp_path / "run").summary["skipped_steps"] == 1


def test_steps_that_are_no_numbers(tmp_path):
    """Ten in a row: code 3 and a line that says what to try; no model."""
    code, errors = not_finite(tmp_path, *range(3, 15))
    assert code == 3
    assert "the loss is nan at step 12, 10 steps in a row were skipped: try a smaller learning rate" in errors
    assert not (tmp_path / "run" / "model").exists()

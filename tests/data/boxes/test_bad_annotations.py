"""pytest tests/data/boxes/test_bad_annotations.py: broken annotations get the messages of docs/boxes.md."""

from pathlib import Path

import pytest

from .bad_annotations import CASES, row

PAGE = Path(__file__).parents[3] / "docs" / "boxes.md"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.fault}")
def test_a_broken_folder_gets_the_message_of_the_page(tmp_path, case):
    """The message names the file, and the line, record or object; the page shows it as it is."""
    assert row(case, tmp_path) in PAGE.read_text().split("\n")


def test_the_page_has_no_other_messages():
    """A message that no folder gets any more is not left on the page."""
    rows = [line for line in PAGE.read_text().split("\n") if line.startswith("|") and "`FOLDER" in line]
    assert len(rows) == len(CASES)

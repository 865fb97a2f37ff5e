"""pytest tests/files/test_tables.py: CSV files that programs and spreadsheets read, and numbers with their nouns."""

import csv
import io

import pytest

from vismoe.files import counted, save_table, write_table


def written(rows, **options):
    file = io.StringIO(newline="")
    write_table(rows, file, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-lamp", "@home", "\tx", "=cmd|' /C calc'!A0", "-1+2"])
def test_text_is_no_formula(name):
    """A name that a spreadsheet would run as a formula gets an apostrophe, as a cell and in the header."""
    ((header,), (cell,)) = csv.reader(io.StringIO(written([{name: name}]), newline=""))
    assert header == cell == f"'{name}"


@pytest.mark.parametrize("value", [-1, -0.25, 1e-20, -1e20, "-1", "+2.5", "-.5e3", "cat", "a=b", "it's", "", "a-b@c"])
def test_other_cells_are_unchanged(value):
    """Numbers stay numbers, also negative ones and those in text."""
    assert written([{"x": value, "y": 0}]) == f"x,y\n{value},0\n"


def test_numbers():
    """Fractions are rounded only on request; what is undefined is an empty cell."""
    rows = [{"class": "a", "ap": 0.123456, "objects": 12}, {"class": "b, c", "ap": float("nan"), "objects": 0}]
    assert written(rows) == 'class,ap,objects\na,0.123456,12\n"b, c",,0\n'
    assert written(rows, digits=4) == 'class,ap,objects\na,0.1235,12\n"b, c",,0\n'


def test_files(tmp_path):
    """UTF-8; a file name that is none is written all the same."""
    save_table([{"file": "größe.png"}, {"file": "a\udcff.png"}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_bytes() == "file\ngröße.png\na\\udcff.png\n".encode()


@pytest.mark.parametrize(("number", "text"), [(0, "0 boxes"), (1, "1 box"), (1234, "1,234 boxes")])
def test_counted(number, text):
    """One has no plural."""
    assert counted(number, "box", "boxes") == text
    assert counted(number, "image") == text.replace("boxes", "images").replace("box", "image")

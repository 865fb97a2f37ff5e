"""pytest tests/test_benchmark_table.py: the CSV files that benchmarks leave behind."""

import csv
from pathlib import Path

import pytest
from table import Table

pytestmark = pytest.mark.benchmarks

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path / "results" / "new.csv")


def test_rows_are_appended_under_one_header(table):
    """The format: columns as the first row has them, minimal quoting, lines that end in a line feed."""
    assert table.rows() == []
    table.append({"arm": "sparse, low-rank", "seed": 0, "top1": 0.5})
    table.append({"top1": 0.25, "arm": "dense", "seed": 1})
    assert table.path.read_bytes() == b'arm,seed,top1\n"sparse, low-rank",0,0.5\ndense,1,0.25\n'
    with table.path.open(newline="") as file:
        assert table.rows() == list(csv.DictReader(file))
    assert table.done("arm", "seed") == {("sparse, low-rank", "0"), ("dense", "1")}
    with pytest.raises(ValueError, match="has the columns arm, seed, top1"):
        table.append({"arm": "dense", "seed": 2})


def test_a_line_that_was_cut_off_is_left_out_and_said(table, capsys):
    """Wherever a kill cut the file, whole rows are read, and the next row is appended to them alone."""
    table.append({"arm": "a", "seed": 0})
    table.append({"arm": "b", "seed": 1})
    whole = table.path.read_bytes()
    for length in range(len(whole)):
        table.path.write_bytes(whole[:length])
        kept = max(0, whole[:length].count(b"\n") - 1)
        assert [row["arm"] for row in table.rows()] == ["a", "b"][:kept]
        assert bool(capsys.readouterr().err) == (length > 0 and not whole[:length].endswith(b"\n"))
        table.append({"arm": "c", "seed": 2})
        capsys.readouterr()
        assert [row["arm"] for row in table.rows()] == [*["a", "b"][:kept], "c"]


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("results/*.csv")), ids=lambda path: path.stem)
def test_written_again_a_file_is_the_same(table, path):
    """The committed files are of this format, byte for byte."""
    table.write(type(table)(path).rows())
    assert table.path.read_bytes() == path.read_bytes()

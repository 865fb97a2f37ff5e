"""Checkpoint files of the reference that are damaged, or want to do damage: one error, no crash, bounded memory.

python -m pytest tests/weights/test_damaged_checkpoints.py            # -m slow: 10,000 mutated files
"""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vismoe.weights import read_reference
from vismoe.weights.reference.messagepack import unpack

from .reference_writer import MARKER, BFloat16, Ext, pack, packed_leaf, packed_slice, piece, write

WHOLE = ((0, 2), (0, 3))
ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
DATA = "p.data-00000-of-00001"


def index(leaf=None, **entries):
    leaf = packed_leaf((2, 3), "float32", [WHOLE], [0]) if leaf is None else leaf
    return {"shard_count": 1, "index": {"a": {"w": leaf}}, "version": "20220622"} | entries


def chunk(array=ARRAY, kind="float32", cell=WHOLE):
    return [[piece(array.reshape(-1), kind)], Ext(6, packed_slice(cell))]


def raw_leaf(shape, kind, slices, shards):
    return Ext(8, pack([pack([shape, kind, False, {}]), slices, shards]))


def refused(folder, about, data, message, file=DATA, tensor="a/w"):
    (folder / "p.index").write_bytes(about if isinstance(about, bytes) else pack(about))
    (folder / DATA).write_bytes(data if isinstance(data, bytes) else pack(data))
    with pytest.raises(ValueError, match=message) as error:
        read_reference(folder / "p")
    told = str(error.value)
    assert str(folder / file) in told
    assert tensor in told
    assert "\n" not in told


GOOD = {MARKER: True, "0": [chunk()]}
ONE, ROWS = [packed_slice(WHOLE)], [((0, 1), (0, 3)), ((1, 2), (0, 3))]
BAD_INDICES = [
    (index(version="20300101"), "version '20300101'", ""),
    (index(version=None), "version None", ""),
    (index(shard_count="1"), "shard_count is '1'", ""),
    (index(shard_count=True), "shard_count is True", ""),
    (index(shard_count=0), "shard_count is 0", ""),
    ({"shard_count": 1}, "not a map with shard_count and index", ""),
    ([1, 2], "not a map with shard_count and index", ""),
    (pack(index()) + b"\xc0", "1 bytes follow", ""),
    (pack(index())[:-30], "too early", ""),
    (index(index={"a": {"w": 3}}), "has type int", "a/w"),
    (index(index={"a": {"w": [1]}}), "has type list", "a/w"),
    (index(Ext(9, b"")), "ext code 9, expected 8", "a/w"),
    (index(Ext(1, pack([[1], "float32", bytes(4)]))), "ext code 1, expected 8", "a/w"),
    (index(Ext(8, b"\xc1")), "not valid MessagePack", "a/w"),
    (index(Ext(8, pack([1, 2]))), "expected a list of 3", "a/w"),
    (index(raw_leaf([2, 3], "float8_e4m3fn", ONE, [0])), "type is 'float8_e4m3fn'", "a/w"),
    (index(raw_leaf([2, -3], "float32", ONE, [0])), "its shape is", "a/w"),
    (index(raw_leaf([2, True], "float32", ONE, [0])), "its shape is", "a/w"),
    (index(raw_leaf([1] * 40, "float32", ONE, [0])), "its shape is", "a/w"),
    (index(raw_leaf([2**40, 2**40], "float32", ONE, [0])), "exceeds any memory", "a/w"),
    (index(raw_leaf([0, 2**60, 2**60], "float32", [], [])), "exceeds any memory", "a/w"),
    (index(raw_leaf([2, 3], "float32", ONE, [])), "one data file per slice", "a/w"),
    (index(raw_leaf([2, 3], "float32", ONE, [1])), "data file is 1, but there are 1", "a/w"),
    (index(raw_leaf([2, 3], "float32", ONE, [-1])), "data file is -1", "a/w"),
    (index(raw_leaf([2, 3], "float32", [7], [0])), "has type int, expected bytes", "a/w"),
    (index(raw_leaf([2, 3], "float32", [pack([pack([0, 2, None])])], [0])), "expected a list of 2", "a/w"),
    (index(raw_leaf([2], "float32", [pack([pack([0, 2, 2])])], [0])), "step 2", "a/w"),
    (index(raw_leaf([2], "float32", [pack([pack([1, 0, 1])])], [0])), "from 1 to 0", "a/w"),
    (index(raw_leaf([2], "float32", [pack([pack([0, 3, 1])])], [0])), "not within an axis of 2", "a/w"),
    (index(raw_leaf([2], "float32", [pack([pack([-1, 2, 1])])], [0])), "not within an axis of 2", "a/w"),
    (index(raw_leaf([2], "float32", [pack([pack([0.0, 2, 1])])], [0])), "not within an axis of 2", "a/w"),
    (index(packed_leaf((2, 3), "float32", ROWS[:1], [0])), "slices have 3 elements", "a/w"),
    (index(packed_leaf((2, 3), "float32", [*ROWS, ROWS[0]], [0] * 3)), "slices have 9 elements", "a/w"),
    (index(packed_leaf((2, 3), "float32", [ROWS[0]] * 2, [0] * 2)), "overlaps", "a/w"),
    (index(packed_leaf((2, 2), "int8", [((0, 1), (0, 2)), ((0, 2), (0, 1))], [0] * 2)), "overlaps", "a/w"),
    (index(packed_leaf((), "float32", [], [])), "slices have 0 elements", "a/w"),
    (index(packed_leaf((), "float32", [(), ()], [0, 0])), "slices have 2 elements", "a/w"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "message", "tensor"), BAD_INDICES)
def test_indices(about, message, tensor, tmp_path):
    """What an index must not say: a ValueError that names it, and the tensor."""
    refused(tmp_path, about, GOOD, message, "p.index", tensor)


SLICE = Ext(6, packed_slice(WHOLE))
PIECE = piece(ARRAY.reshape(-1), "float32")
BAD_DATA = [
    (pack(GOOD)[:20], "smaller than p.index requires"),
    (pack(GOOD)[:-1], "too early"),
    (pack(GOOD) + b"\0", "1 bytes follow"),
    ({"0": [chunk()]}, "not a data file of a checkpoint"),
    ({MARKER: False, "0": [chunk()]}, "not a data file of a checkpoint"),
    ({MARKER: True, "0": [chunk()], "1": [chunk()]}, "'1' is not the number of one of 1 tensors"),
    ({MARKER: True, "00": [chunk()]}, "'00' is not the number"),
    ({MARKER: True, "a/w": [chunk()]}, "'a/w' is not the number"),
    ({MARKER: True, "0": [], "padding": bytes(99)}, "'padding' is not the number"),
    (pack({MARKER: True, "0": [chunk()]}).replace(b"\x82", b"\x83", 1) + pack("0") + pack([]), "duplicate key '0'"),
    ({MARKER: True, "0": 5, "1": bytes(99)}, r"expected a list of parts \(array\), found int"),
    ({MARKER: True, "0": []}, r"the part \[0:2, 0:3\] is missing"),
    ({MARKER: True, "0": [[[PIECE], SLICE], [[PIECE], SLICE]]}, "twice"),
    ({MARKER: True, "0": [chunk(cell=((0, 2), (0, 2)))]}, "24 bytes, expected 16"),
    ({MARKER: True, "0": [chunk(ARRAY[:1], cell=ROWS[0]), chunk(ARRAY[1:], cell=ROWS[1])]}, r"no part \[0:1, 0:3\]"),
    ({MARKER: True, "0": [chunk(cell=((0, 2),))], "": bytes(9)}, "expected a list of 2"),
    ({MARKER: True, "0": [chunk(ARRAY.view(np.int32), "int32")]}, "has type b'int32', expected 'float32'"),
    ({MARKER: True, "0": [chunk(ARRAY.astype(np.float64), "float64")]}, "has type b'float64'"),
    ({MARKER: True, "0": [chunk(np.arange(5, dtype=np.float32))], "": bytes(9)}, "20 bytes, expected 24"),
    ({MARKER: True, "0": [[[Ext(1, pack([[2, 3], "float32", ARRAY.tobytes()]))], SLICE]]}, "one-dimensional array"),
    ({MARKER: True, "0": [[[Ext(1, pack([[7], "float32", ARRAY.tobytes()]))], SLICE]]}, "7 elements has 24 bytes"),
    ({MARKER: True, "0": [[[Ext(1, pack([[6], "float32", ARRAY.tobytes()]) + b"\0")], SLICE]]}, "6 elements has 24"),
    ({MARKER: True, "0": [[[Ext(3, PIECE.payload)], SLICE]]}, r"expected a piece \(ext 1\), found ext 3"),
    ({MARKER: True, "0": [[[PIECE], Ext(5, SLICE.payload)]]}, r"expected a slice \(ext 6\), found ext 5"),
    ({MARKER: True, "0": [[[PIECE], SLICE.payload]]}, r"expected a slice \(ext\), found bin"),
    ({MARKER: True, "0": [[[PIECE, 1], SLICE]]}, r"expected a piece \(ext\), found int"),
    ({MARKER: True, "0": [[[PIECE]]]}, "1 items"),
    ({MARKER: True, "0": [[PIECE.payload, SLICE]]}, r"expected a list of pieces \(array\), found bin"),
    ({MARKER: True, "padding": bytes(99)}, "'padding' is not the number"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BAD_DATA)
def test_data_files(data, message, tmp_path):
    """What a data file must not hold: a ValueError that names it, and the tensor where one is meant."""
    refused(tmp_path, index(), data, message, tensor="")


def test_tensor_is_named(tmp_path):
    """A file that ends in the middle, lacks a part, or has one of another type: file and tensor are named."""
    halves = index(packed_leaf((2, 3), "float32", ROWS, [0, 0]))
    first = {MARKER: True, "0": [chunk(ARRAY[:1], cell=ROWS[0])]}
    refused(tmp_path, halves, pack(first) + bytes(40), "bytes follow", tensor="after tensor 'a/w'")
    refused(tmp_path, index(), pack(GOOD)[:-1], "too early", tensor="tensor 'a/w'")
    refused(tmp_path, index(), pack(GOOD)[:20], "smaller than", tensor="tensor 'a/w'")
    bools = {MARKER: True, "0": [chunk(np.full((2, 3), 2, np.uint8), "bool")]}
    refused(tmp_path, index(packed_leaf((2, 3), "bool", [WHOLE], [0])), bools, "neither 0 nor 1")
    two = index(index={"a": {"w": packed_leaf((2,), "int8", [((0, 1),), ((1, 2),)], [0, 0])}})
    part = {MARKER: True, "0": [chunk(np.zeros(1, np.int8), "int8", ((1, 2),))]}
    refused(tmp_path, two, part, r"the part \[0:1\] is missing")
    same = index(index={"a": {"w": packed_leaf((), "int8", [()], [0])}, "a/w": packed_leaf((), "int8", [()], [0])})
    refused(tmp_path, same, GOOD, "duplicate tensor", "p.index")


def test_missing_files(tmp_path):
    """FileNotFoundError that names the file, and what is in it."""
    with pytest.raises(FileNotFoundError, match=r"p\.index: no such file"):
        read_reference(tmp_path / "p")
    write(tmp_path / "p", {"a": {"w": ARRAY}}, shards=2, cut=False)
    for shard in range(2):
        path = tmp_path / f"p.data-0000{shard}-of-00002"
        content = path.read_bytes()
        path.unlink()
        holds = "a/w" if len(content) > 60 else "no tensors"
        with pytest.raises(
            FileNotFoundError, match=f"0000{shard}-of-00002: no such file; p.index requires it.*{holds}"
        ):
            read_reference(tmp_path / "p")
        path.write_bytes(content)
    (tmp_path / "p.index").write_bytes(pack(index(shard_count=2**60)))
    with pytest.raises(FileNotFoundError, match="00000-of-1152921504606846976"):
        read_reference(tmp_path / "p")


@pytest.mark.parametrize("prefix", ["", ".", "/"])
def test_a_prefix_without_a_name(prefix):
    """A folder in place of a prefix is answered with what is looked for."""
    with pytest.raises(FileNotFoundError, match=r"\.index: no such file; a reference checkpoint is PREFIX\.index and"):
        read_reference(prefix)


def test_empty_parts(tmp_path):
    """Parts without elements need not be there."""
    cells = [((0, 0), (0, 3)), WHOLE]
    (tmp_path / "p.index").write_bytes(pack(index(packed_leaf((2, 3), "float32", cells, [0, 0]))))
    (tmp_path / DATA).write_bytes(pack(GOOD))
    assert (read_reference(tmp_path / "p")["a/w"] == ARRAY).all()


def test_cuts_that_form_no_grid(tmp_path):
    """Parts that cover an array without forming a grid are read too."""
    cells = [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 1)), ((1, 2), (1, 3))]
    parts = [chunk(ARRAY[a:b, c:d], cell=((a, b), (c, d))) for (a, b), (c, d) in cells]
    (tmp_path / "p.index").write_bytes(pack(index(packed_leaf((2, 3), "float32", cells, [0] * 4))))
    (tmp_path / DATA).write_bytes(pack({"0": parts, MARKER: True}))
    assert (read_reference(tmp_path / "p")["a/w"] == ARRAY).all()


TREE = {
    "step": np.int32(7)[...],
    "params": {"w": ARRAY, "b": BFloat16(np.arange(5, dtype=np.uint16)), "none": None, "flag": np.array([True, False])},
    "opt": {"0": {}, "1": np.zeros((0, 3), np.complex64), "10": np.ones((2, 2, 2), np.float16)},
}
MOST = 4_000_000
"""Bytes that reading such a file may take; the files have some hundred."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A good checkpoint of two data files: its folder, and its files' bytes."""
    folder = tmp_path_factory.mktemp("fuzz")
    write(folder / "p", TREE, shards=2)
    assert len(read_reference(folder / "p")) == 6
    return folder, {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


SPECIAL = [b"", b"\xc0", b"\xc1", b"\x91" * 300, b"\xcf" + b"\xff" * 8, b"\xd3" + b"\xff" * 8]
SPECIAL += [first + b"\xff\xff\xff\xff\x08" for first in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf")]
lengths = st.integers(0, 9) | st.integers(0, 500)
# Which file, where in it, how many bytes are replaced there, and what by.
mutation = st.tuples(st.integers(0, 2), st.floats(0, 1), lengths, st.binary(max_size=4) | st.sampled_from(SPECIAL))
mutations = st.lists(mutation, min_size=1, max_size=3)


def survive(files, changes):
    """Reads mutated files: they are read, or refused by the reader's own errors, in little memory."""
    folder, contents = files
    changed = dict(contents)
    for file, where, length, new in changes:
        name = list(contents)[file]
        start = round(where * len(changed[name]))
        changed[name] = changed[name][:start] + new + changed[name][start + length :]
    for name, content in changed.items():
        (folder / name).write_bytes(content)
    told = ""
    try:
        assert all(array.nbytes < MOST for array in read_reference(folder / "p").values())
    except (ValueError, FileNotFoundError) as error:
        told = str(error)
    assert not told or str(folder / "p.") in told


def bombs():
    """Files that claim far more than they hold."""
    for length in (b"\xff" * 4, b"\x7f" + b"\xff" * 3, b"\x00\xff\xff\xff"):
        for first in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf", b"\xdd" + length + b"\xdd", b"\x81\xa10\xdd"):
            yield pack(index()), first + length
            yield first + length, pack(GOOD)
    for length in (2**20, 2**28, 2**31, 2**40, 2**60):
        cell = ((0, length),)
        yield pack(index(packed_leaf((length,), "float32", [cell], [0]))), pack(GOOD)
        claim = Ext(1, pack([[length], "float32", b"abcd"]).replace(b"\xc4\x04", b"\xc6\xff\xff\xff\xff"))
        claimed = {MARKER: True, "0": [[[claim], Ext(6, packed_slice(cell))]]}
        yield pack(index(packed_leaf((length,), "float32", [cell], [0]))), pack(claimed)
    parts = [((row, row + 1), (0, 2**30)) for row in range(500)]
    yield pack(index(packed_leaf((500, 2**30), "int8", parts, [0] * 500))), pack(GOOD)
    steps = [((step, step + 1),) * 6 for step in range(40)]
    yield pack(index(packed_leaf((40,) * 6, "int8", steps, [0] * 40))), pack(GOOD)


def test_claims_take_no_memory(tmp_path):
    """What is claimed is not allocated: the error comes first."""
    for about, data in bombs():
        (tmp_path / "p.index").write_bytes(about)
        (tmp_path / DATA).write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError, match=r"p\.(index|data)"):
                read_reference(tmp_path / "p")
            assert tracemalloc.get_traced_memory()[1] < MOST
        finally:
            tracemalloc.stop()


@given(changes=mutations)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_mutated_files(files, changes):
    """A few hundred mutated checkpoints."""
    survive(files, changes)


@pytest.mark.slow
@given(changes=mutations)
@settings(max_examples=10_000, deadline=None)
def test_many_mutated_files(files, changes):
    """Ten thousand mutated checkpoints, others each time."""
    survive(files, changes)


def test_good_files_of_the_mutations(files):
    """Without a mutation they hold what was written."""
    survive(files, [(0, 0.0, 0, b"")])
    folder, _ = files
    assert unpack((folder / "p.index").read_bytes())["shard_count"] == 2
    assert (read_reference(folder / "p")["params/w"] == ARRAY).all()

"""Checkpoint files of the reference: what they hold, in whatever way it is cut and counted.

VISMOE_REFERENCE_CHECKPOINTS=FOLDER python -m pytest tests/weights/test_read_reference.py
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vismoe
from vismoe.weights import read_reference
from vismoe.weights.reference.messagepack import Extension, unpack

from ..memory import printed
from .reference_writer import BFloat16, Ext, numbered, pack, write

TYPES = ("bool", "complex64", "complex128", "float16", "float32", "float64")
TYPES += tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
quick = settings(max_examples=40, deadline=None, derandomize=True)


def widened(leaf):
    """What a leaf is read as: of bfloat16's bits, the upper half of a float32's."""
    return (leaf.bits.astype(np.uint32) << 16).view(np.float32) if isinstance(leaf, BFloat16) else leaf


def equal(arrays, expected):
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape), name
        assert arrays[name].tobytes() == array.tobytes(), name


@st.composite
def leaves(draw):
    kind = draw(st.sampled_from((*TYPES, "bfloat16")))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 999)))
    if kind == "bfloat16":
        return BFloat16(random.integers(0, 2**16, shape, np.uint16))
    # Any bits, so NaN too; of bool the two that there are.
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(random.integers(0, 2 if kind == "bool" else 256, size, np.uint8).tobytes(), kind).reshape(
        shape
    )


keys = st.text("ab-0.12_é", max_size=4)
LIST = {str(number): np.full(2, number, np.float32) for number in range(12)}
trees = st.dictionaries(
    keys,
    st.recursive(
        leaves() | st.none() | st.just(LIST), lambda inner: st.dictionaries(keys, inner, max_size=4), max_leaves=12
    ),
    max_size=5,
)


@given(tree=trees, shards=st.integers(1, 4), version=st.booleans(), random=st.randoms(use_true_random=False))
@quick
def test_what_is_written_is_read(tree, shards, version, random, tmp_path_factory):
    """Any tree, cut along any axes into any files and pieces, comes back bit for bit: 0-d, of no elements, bfloat16,
    bool, complex, lists of twelve; empty maps and nils have no arrays."""
    prefix = tmp_path_factory.mktemp("round") / "ckpt_10"
    write(prefix, tree, shards, version, random)
    equal(read_reference(prefix), {"/".join(path): widened(leaf) for path, leaf in numbered(tree, version)})


@pytest.mark.parametrize("version", [True, False])
def test_numbers_of_leaves(version, tmp_path):
    """With a version, keys are counted level by level as sorted strings (10 before 2, a-b behind a); without one, as
    they stand in the file. All leaves are alike, so that a wrong count would be silent."""
    names = ["b", "a0", "a-b", "a", "encoderblock_2", "encoderblock_10", "2", "10"]
    tree = {name: {"x": np.full(3, number, np.float32)} for number, name in enumerate(names)}
    write(tmp_path / "p", tree, version=version, cut=False)
    data = unpack((tmp_path / "p.data-00000-of-00001").read_bytes())
    first = unpack(data["0"][0][0][0].payload, raw=True)[2]
    assert np.frombuffer(first, "<f4")[0] == (names.index("10") if version else 0)
    equal(read_reference(tmp_path / "p"), {f"{name}/x": tree[name]["x"] for name in names})


def test_text_for_bytes(tmp_path):
    """Old writers knew no bytes: in documents within documents text may stand for them, and the other way round."""
    old = pack([[2], b"float32", np.arange(2, dtype=np.float32).tobytes().decode("latin1").encode("latin1")])
    cell = pack([pack([0, None, 1])])
    about = pack([[2], b"float32", False, {}])
    index = {"shard_count": 1, "index": {"w": Ext(8, pack([about, [cell], [0]]))}}
    data = {"0": [[[Ext(1, old.replace(b"\xc4\x08", b"\xa8"))], Ext(6, cell)]], "__msgpack_array_chunk_a87ca2__": True}
    (tmp_path / "p.index").write_bytes(pack(index))
    (tmp_path / "p.data-00000-of-00001").write_bytes(pack(data))
    equal(read_reference(str(tmp_path / "p")), {"w": np.arange(2, dtype=np.float32)})
    equal(read_reference(tmp_path / "p.index"), {"w": np.arange(2, dtype=np.float32)})


documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=30,
)


@given(documents)
@quick
def test_messagepack(value):
    """Any document is read as msgpack-python wrote it, and as this suite's own writer does."""
    msgpack = pytest.importorskip("msgpack")
    assert unpack(msgpack.packb(value)) == value == unpack(pack(value))
    assert msgpack.unpackb(pack(value)) == value


def test_forms_of_messagepack():
    """Bytes of the specification, one of each form of number, text, container and extension."""
    for packed, value in {
        "7f": 127, "e0": -32, "cc80": 128, "cd0100": 256, "ce00010000": 65536, "cf0000000100000000": 2**32,
        "d080": -128, "d18000": -(2**15), "d280000000": -(2**31), "d38000000000000000": -(2**63),
        "ca3f800000": 1.0, "cb3ff0000000000000": 1.0, "c0": None, "c2": False, "c3": True,
        "a161": "a", "d90161": "a", "da000161": "a", "db0000000161": "a", "c40161": b"a", "c5000161": b"a",
        "c60000000161": b"a", "9101": [1], "dc000101": [1], "dd0000000101": [1], "81a16101": {"a": 1},
        "de0001a16101": {"a": 1}, "df00000001a16101": {"a": 1}, "d4ff00": Extension(-1, b"\0"),
        "d5060000": Extension(6, b"\0\0"), "d608" + "00" * 4: Extension(8, bytes(4)),
        "d708" + "00" * 8: Extension(8, bytes(8)),
        "d808" + "00" * 16: Extension(8, bytes(16)), "c70301000000": Extension(1, bytes(3)),
        "c8000301000000": Extension(1, bytes(3)), "c90000000301000000": Extension(1, bytes(3)),
    }.items():  # fmt: skip
        assert unpack(bytes.fromhex(packed)) == value
    for wrong in ("c1", "", "9201", "8101a0", "81a16101a0", "82a16101a16102", "a1ff", "91" * 200 + "c0"):
        with pytest.raises(ValueError, match=r"."):
            unpack(bytes.fromhex(wrong))


@pytest.mark.parametrize("name", ["edge_v1/edge_v1", "edge_unknown/params", "edge_unknown/list12"])
def test_samples(name, reference_checkpoints):
    """Files of the reference's own writer: a training state with all types, and files without a version."""
    prefix = reference_checkpoints / name
    file = np.load(prefix.with_name("expected.npz") if name == "edge_v1/edge_v1" else f"{prefix}.expected.npz")
    expected = {
        key.removesuffix(":bfloat16"): widened(BFloat16(file[key]) if ":" in key else file[key]) for key in file
    }
    equal(read_reference(prefix), expected)


def test_sample_of_a_model(reference_checkpoints, reference_figures):
    """A model whose experts lie in several files: its parameters bit for bit, its logits within 1e-5."""
    arrays = read_reference(reference_checkpoints / "vmoe_k2_eval" / "vmoe_k2_eval")
    file = np.load(reference_figures / "vmoe_k2_eval.npz")
    equal(arrays, {key.removeprefix("params/"): file[key] for key in file if key.startswith("params/")})
    model = vismoe.weights.from_reference(arrays, json.loads(str(file["config_json"])))
    logits = model(torch.tensor(file["images"]).permute(0, 3, 1, 2))
    torch.testing.assert_close(logits.detach(), torch.tensor(file["logits"]), rtol=0, atol=1e-5)


MEASURE = """
from vismoe.weights import read_reference
return_freed()
before = peak()
arrays = read_reference(sys.argv[1])
print(peak() - before, sum(a.nbytes for a in arrays.values()), max(a.nbytes for a in arrays.values()))
"""


def test_memory(tmp_path):
    """Reading three files of 40 MB takes the memory of the arrays, and less than the largest one and 8 MB beside it,
    though they are cut along the last axis and one is bfloat16."""
    random = np.random.default_rng(0)
    tree = {f"w{number}": random.random((1024, 2048), np.float32) for number in range(14)}
    write(tmp_path / "p", tree | {"half": BFloat16(np.zeros((1024, 1024), np.uint16))}, shards=3)
    more, arrays, largest = printed(MEASURE, str(tmp_path / "p"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 100e6
    assert 0.9 * arrays < more < arrays + largest + 8e6

"""pytest tests/training/test_checkpoint.py: whole or not at all, never believed without their sums."""

import random
import subprocess
import textwrap

import pytest
import torch

from vismoe.training.checkpoint import (
    DamagedCheckpointError,
    keep_checkpoints,
    list_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

FILES = ["manifest.json", "state.json", "tensors.safetensors"]


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(3, 4, generator=generator)
    return {"a": shared, "b": shared, "c.d": torch.arange(5), "e": torch.zeros((), dtype=torch.bfloat16)}


def same(ours, expected):
    return ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)


def test_there_and_back(tmp_path):
    """Tensors, shared ones too, and values come back bit for bit; nothing else lies beside."""
    path = write_checkpoint(tmp_path, 30, tensors(), {"step": 30, "best": None})
    assert path == tmp_path / "step-000030"
    assert sorted(file.name for file in path.iterdir()) == FILES
    found, values = read_checkpoint(path)
    assert same(found, tensors())
    assert values == {"step": 30, "best": None}
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_byte_is_found_by_name(tmp_path):
    """At fifty random places of a checkpoint's files: refused, naming the file; the one before it is used."""
    write_checkpoint(tmp_path, 1, tensors(1), {"step": 1})
    newest = write_checkpoint(tmp_path, 2, tensors(2), {"step": 2})
    places = [(name, number) for name in FILES for number in range((newest / name).stat().st_size)]
    for name, number in random.Random(0).sample(places, 50):
        content = bytearray((newest / name).read_bytes())
        content[number] ^= 1 << number % 8
        (newest / name).write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=rf"^checkpoints/step-000002/{name} is damaged$"):
            read_checkpoint(newest)
        told = []
        found = newest_checkpoint(tmp_path, told.append)
        assert found is not None
        assert found[1] == {"step": 1}
        assert same(found[0], tensors(1))
        assert len(told) == 1
        assert f"checkpoints/step-000002/{name}" in told[0]
        content[number] ^= 1 << number % 8
        (newest / name).write_bytes(content)
    assert read_checkpoint(newest)[1] == {"step": 2}


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_off_files_are_found_by_name(name, tmp_path):
    """As after a crash of the whole machine."""
    path = write_checkpoint(tmp_path, 7, tensors(), {})
    content = (path / name).read_bytes()
    for damage in (lambda: (path / name).write_bytes(content[:-1]), lambda: (path / name).unlink()):
        damage()
        with pytest.raises(DamagedCheckpointError, match=name):
            read_checkpoint(path)
    assert newest_checkpoint(tmp_path, lambda text: None) is None


def test_no_space_left(tmp_path, forked):
    """A file that the system does not let grow: one error that names the checkpoint, the one before it untouched."""
    write_checkpoint(tmp_path, 1, tensors(), {"step": 1})
    script = f"""
        import resource, signal, torch
        from pathlib import Path
        from vismoe.training.checkpoint import write_checkpoint
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write_checkpoint(Path({str(tmp_path)!r}), 2, {{"a": torch.zeros(1_000_000)}}, {{}})
        except OSError as error:
            print(error)
    """
    done = subprocess.run([forked, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "step-000002 could not be written" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert read_checkpoint(tmp_path / "step-000001")[1] == {"step": 1}


def test_the_newest_and_the_best_are_kept(tmp_path):
    """The last two and the best of six."""
    for step in range(1, 7):
        write_checkpoint(tmp_path, step, tensors(), {})
        keep_checkpoints(tmp_path, step, last=2, best_step=3)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000003", "step-000005", "step-000006"]


def test_what_lies_ahead_is_removed_before_what_was_just_written(tmp_path):
    """A run that went back behind damaged checkpoints keeps its new ones; files and links that have the name of one go,
    what is called otherwise stays."""
    for step in (200, 250):
        write_checkpoint(tmp_path, step, tensors(), {})
    (tmp_path / "step-000300").write_text("a file")
    (tmp_path / "step-000350").symlink_to("step-000250")
    (tmp_path / "step-000200-mine").mkdir()
    for step in (50, 100):
        write_checkpoint(tmp_path, step, tensors(), {})
        keep_checkpoints(tmp_path, step, last=1, best_step=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000100", "step-000200-mine"]

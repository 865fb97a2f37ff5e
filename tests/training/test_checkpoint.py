"""pytest tests/training/test_checkpoint.py: whole or not at all, never believed without their sums; old ones open."""

import hashlib
import json
import random
import subprocess
import textwrap
import threading

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vismoe.data import open_data
from vismoe.parallel import Mesh
from vismoe.training import Run, fit
from vismoe.training import checkpointer as module
from vismoe.training.checkpointer import Checkpointer, DamagedCheckpointError
from vismoe.training.optimizer import load_named_state, named_state
from vismoe.training.state import State, begin, build

from .tiny import tiny

FILES = ["manifest.json", "state.json", "tensors.safetensors"]


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(3, 4, generator=generator)
    return {"a": shared, "b": shared, "c.d": torch.arange(5), "e": torch.zeros((), dtype=torch.bfloat16), "f": shared.T}


def same(ours, expected):
    """Two dictionaries of tensors and other values, bit for bit, types of both kinds included."""
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert type(ours[name]) is type(value), name
        equal = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        assert equal, name
        assert getattr(ours[name], "dtype", None) == getattr(value, "dtype", None), name
    return True


def test_no_checkpoint_is_left(tmp_path):
    """A damaged one with none before it: a line says that the run starts again; one that is missing is called so."""
    lines = []
    checkpointer = Checkpointer(tmp_path, warn=lines.append)
    for step in (1, 2):
        checkpointer.save(step, tensors())
        (tmp_path / f"step-00000{step}" / "tensors.safetensors").unlink()
    assert checkpointer.newest() is None
    missing = "checkpoints/step-00000{}/tensors.safetensors is missing; {}"
    ends = [(2, "using the previous checkpoint"), (1, "there is no earlier one: starting at step 0")]
    assert lines == [missing.format(step, then) for step, then in ends]


def test_there_and_back(tmp_path):
    """Tensors, shared and transposed ones too, and values come back bit for bit; nothing else lies beside."""
    state = tensors() | {"step": 30, "best": None, "x.y": [0.1, {"k": "ä"}], "often": True}
    Checkpointer(tmp_path).save(30, state)
    path = tmp_path / "step-000030"
    assert sorted(file.name for file in path.iterdir()) == FILES
    assert same(Checkpointer(tmp_path).load(30), state)
    assert list(tmp_path.iterdir()) == [path]


class Other(Mesh):
    """The mesh of a process that is not the main one."""

    is_main = False


def test_only_the_main_process_writes(tmp_path):
    """All processes save alike; the files are written once, and a damaged one is named once."""
    main, other = Checkpointer(tmp_path), Checkpointer(tmp_path, mesh=Other())
    other.save(1, tensors())
    assert not list(tmp_path.iterdir())
    main.save(1, tensors())
    assert same(other.newest(), tensors())
    (tmp_path / "step-000001" / "state.json").write_text("")
    lines = []
    main.warn = other.warn = lines.append
    assert main.newest() is None
    assert other.newest() is None
    assert len(lines) == 1


def test_what_can_be_written_as_it_is_is_not_copied(tmp_path, monkeypatch):
    """A state several times as large as the network is not held twice: only what shares its storage is copied."""
    given = []
    monkeypatch.setattr(module, "save_file", lambda stored, path: given.append(stored) or save_file(stored, path))
    state = tensors()
    Checkpointer(tmp_path).save(1, state)
    copied = [name for name in state if given[0][name].data_ptr() != state[name].data_ptr()]
    assert copied == ["b", "f"]


def test_what_json_does_not_have_is_refused_by_name(tmp_path):
    """Nothing is dropped: the error names the value and its type, before anything is written."""
    checkpointer = Checkpointer(tmp_path)
    for name, value, named in (
        ("optimizer.head.weight.history", [1, torch.ones(2)], r"optimizer\.head\.weight\.history\[1\] is a Tensor"),
        ("optimizer.head.weight.betas", (0.9, 0.99), r"optimizer\.head\.weight\.betas is a tuple"),
        ("x", {"deep": {1: 2}}, r"x\['deep'\] is a dict whose keys are not all strings"),
        ("x", 1j, "x is a complex"),
    ):
        with pytest.raises(ValueError, match=f"{named}.*accepted are tensors.*another optimizer"):
            checkpointer.save(1, {name: value})
    assert not list(tmp_path.iterdir())


def test_a_flipped_byte_is_found_by_name(tmp_path):
    """At fifty random places of a checkpoint's files, and at every one that says its format: refused, naming the file;
    the one before it is used."""
    lines = []
    checkpointer = Checkpointer(tmp_path, warn=lines.append)
    checkpointer.save(1, tensors(1) | {"step": 1})
    checkpointer.save(2, tensors(2) | {"step": 2})
    newest = tmp_path / "step-000002"
    places = [(name, number) for name in FILES for number in range((newest / name).stat().st_size)]
    number_of_format = (newest / "manifest.json").read_bytes().index(b'"format": 4') + len(b'"format": ')
    flips = [(name, number, 1 << number % 8) for name, number in random.Random(0).sample(places, 50)]
    flips += [("manifest.json", number_of_format, 1 << bit) for bit in range(8)]
    for name, number, flip in flips:
        content = bytearray((newest / name).read_bytes())
        content[number] ^= flip
        (newest / name).write_bytes(content)
        with pytest.raises(DamagedCheckpointError, match=rf"^checkpoints/step-000002/{name} is damaged$"):
            checkpointer.load(2)
        assert same(checkpointer.newest(), tensors(1) | {"step": 1})
        assert len(lines) == 1
        assert f"checkpoints/step-000002/{name}" in lines.pop()
        content[number] ^= flip
        (newest / name).write_bytes(content)
    assert checkpointer.load(2)["step"] == 2


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_off_files_are_found_by_name(name, tmp_path):
    """As after a crash of the whole machine."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(7, tensors())
    path = tmp_path / "step-000007"
    content = (path / name).read_bytes()
    for damage in (lambda: (path / name).write_bytes(content[:-1]), lambda: (path / name).unlink()):
        damage()
        with pytest.raises(DamagedCheckpointError, match=name):
            checkpointer.load(7)
    assert checkpointer.newest() is None


def test_no_space_left(tmp_path, forked):
    """A file that the system does not let grow: one error that names the checkpoint, the one before it untouched."""
    Checkpointer(tmp_path).save(1, tensors() | {"step": 1})
    script = f"""
        import resource, signal, torch
        from pathlib import Path
        from vismoe.training.checkpointer import Checkpointer
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            Checkpointer(Path({str(tmp_path)!r}), keep=1).save(2, {{"a": torch.zeros(1_000_000)}})
        except OSError as error:
            print(error)
    """
    done = subprocess.run([forked, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert "step-000002 could not be written" in done.stdout, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    assert Checkpointer(tmp_path).load(1)["step"] == 1


def test_an_asynchronous_checkpoint_has_what_was_there(tmp_path, monkeypatch):
    """`save` returns before anything is written; what training changes meanwhile is not in the checkpoint."""
    write, changed = module.save_file, threading.Event()

    def waiting(*arguments):
        assert changed.wait(20)
        write(*arguments)

    monkeypatch.setattr(module, "save_file", waiting)
    state = tensors() | {"step": 1}
    with Checkpointer(tmp_path, asynchronous=True) as checkpointer:
        checkpointer.save(1, state)
        assert checkpointer.steps() == []
        state["a"].fill_(9)
        state["c.d"].fill_(9)
        changed.set()
        assert same(checkpointer.load(1), tensors() | {"step": 1})
        checkpointer.save(2, state)
    assert checkpointer.steps() == [1, 2]


def test_an_asynchronous_checkpoint_that_cannot_be_written(tmp_path):
    """The next call raises the error, and the end does; beside another error it is a warning."""
    (tmp_path / "checkpoints").write_text("not a folder")
    lines = []
    checkpointer = Checkpointer(tmp_path / "checkpoints", warn=lines.append, asynchronous=True)
    for call in (checkpointer.wait, lambda: checkpointer.save(2, tensors()), lambda: checkpointer.__exit__(None)):
        checkpointer.save(1, tensors())
        with pytest.raises(OSError, match="step-000001 could not be written"):
            call()
    checkpointer.save(1, tensors())
    with pytest.raises(KeyboardInterrupt), checkpointer:
        raise KeyboardInterrupt
    assert len(lines) == 1
    assert "step-000001 could not be written" in lines[0]


def test_the_newest_and_the_best_are_kept(tmp_path):
    """The last two and the best of six."""
    checkpointer = Checkpointer(tmp_path, keep=2)
    for step in range(1, 7):
        checkpointer.save(step, tensors(), best_step=3)
    assert checkpointer.steps() == [3, 5, 6]


def test_what_lies_ahead_is_removed_before_what_was_just_written(tmp_path):
    """A run that went back behind damaged checkpoints keeps its new ones; files and links that have the name of one go,
    what is called otherwise stays."""
    for step in (200, 250):
        Checkpointer(tmp_path).save(step, tensors())
    (tmp_path / "step-000300").write_text("a file")
    (tmp_path / "step-000350").symlink_to("step-000250")
    (tmp_path / "step-000200-mine").mkdir()
    for step in (50, 100):
        Checkpointer(tmp_path, keep=1).save(step, tensors())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000100", "step-000200-mine"]


def write_by_hand(path, version, stored, values):
    """A checkpoint as vismoe wrote them up to format 2; the sums of its manifest cover no format."""
    path.mkdir(parents=True)
    save_file({name: tensor.clone() for name, tensor in stored.items()}, path / "tensors.safetensors")
    (path / "state.json").write_text(json.dumps(values, indent=1))
    names = ("tensors.safetensors", "state.json")
    sums = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    own = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    manifest = {"format": version, "files": sums, "sha256": own}
    (path / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1))


@pytest.mark.parametrize(("version", "options"), [(2, {}), (1, {"optimizer": "momentum", "frozen": r"^blocks\.0\."})])
def test_a_checkpoint_of_an_older_format_goes_on(tmp_path, version, options):
    """Formats 1 and 2, with numbers in the order of the optimiser's groups where later ones have names: a run that goes
    on from one ends bit-equal."""
    recipe = tiny(checkpoint_every=2, average_decay=0.9, layer_decay=0.8, **options)
    whole, old = fit(recipe, tmp_path / "whole"), tmp_path / "old"
    saved = Checkpointer(whole.path / "checkpoints").load(2)
    model = build(recipe, open_data("digits"))
    optimizer = begin(model, recipe).optimizer
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    by_name = dict(model.named_parameters())
    stored = {name: value for name, value in saved.items() if name.startswith(("model.", "average."))}
    numbered = 0
    for number, parameter in enumerate(ordered):
        name = next(name for name in by_name if by_name[name] is parameter)
        prefix = f"optimizer.{name}."
        entries = {key.removeprefix(prefix): saved[key] for key in saved if key.startswith(prefix)}
        stored |= {f"optimizer.{number}.{entry}": tensor for entry, tensor in entries.items()}
        numbered += len(entries)
    assert numbered >= len(ordered)
    values = {name: saved[name] for name in ("step", "skipped", "in_a_row", "best_score", "best_step")}
    if version == 1:
        values["best_top1"] = values.pop("best_score")
    Run.create(old, recipe, open_data("digits"))
    write_by_hand(old / "checkpoints" / "step-000002", version, stored, values)
    run = fit(recipe, old, resume=True)
    assert [line["step"] for line in run.metrics if "loss" in line] == [3, 4]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (run.path, whole.path)]
    assert weights[0] == weights[1]


def test_a_checkpoint_of_a_later_format_is_not_taken_for_damaged(tmp_path):
    """The run does not begin anew: the error says which formats are read, and to update."""
    Checkpointer(tmp_path).save(1, tensors())
    manifest = tmp_path / "step-000001" / "manifest.json"
    manifest.write_bytes(module._manifest(json.loads(manifest.read_text())["files"], 5))
    with pytest.raises(ValueError, match=r"has format 5: .* reads formats 1 to 4; update vismoe"):
        Checkpointer(tmp_path).newest()


class Counting(torch.optim.Optimizer):
    """Keeps more than tensors of a parameter's type: a count, a running number, a list, an integer tensor, a memory;
    and a number of its group."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "betas": (0.9, 0.99), "seen": 0})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["seen"] += 1
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                state["scale"] = state.get("scale", 1.0) * 0.9 + 0.1 / 3
                state["recent"] = [*state.get("recent", []), state["scale"]][-2:]
                state["ticks"] = state.get("ticks", torch.tensor(2**24, dtype=torch.int64)) + 1  # no float32 has it
                state["memory.of.it"] = state.get("memory.of.it", torch.zeros_like(parameter)) + parameter
                change = state["scale"] * state["memory.of.it"] / state["count"] + sum(state["recent"])
                parameter -= group["lr"] / group["seen"] * change


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_what_is_no_tensor_in_an_optimiser_s_state_is_kept(tmp_path):
    """Counts, numbers, lists and tensors of another type, of parameters and of groups: saved, read and loaded they are
    bit-equal, and so are the weights some steps later."""
    states = [State(model, Counting(model.parameters()), None) for model in (network(), network())]
    for _ in range(3):
        states[0].optimizer.step()
    Checkpointer(tmp_path).save(3, states[0].state_dict())
    states[1].load_state_dict(Checkpointer(tmp_path).load(3))
    assert same(states[1].state_dict(), states[0].state_dict())
    assert states[1].optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    for _ in range(3):
        for state in states:
            state.optimizer.step()
    assert same(states[1].state_dict(), states[0].state_dict())


def test_lbfgs_s_history_is_refused_by_name(tmp_path):
    """Its lists of tensors are what a checkpoint cannot hold: not dropped, but named."""
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters())

    def loss():
        optimizer.zero_grad()
        value = model(torch.ones(5, 3)).square().sum()
        value.backward()
        return value

    for _ in range(2):
        optimizer.step(loss)
    with pytest.raises(ValueError, match=r"optimizer\.0\.weight\.\w+\[0\] is a Tensor"):
        Checkpointer(tmp_path).save(1, State(model, optimizer, None).state_dict())


def test_a_state_finds_its_parameters_by_name():
    """In whatever order and groups the optimiser has them: each parameter gets its own state and its group's options;
    a name that no parameter has is refused."""
    model = network()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    first = Counting(model.parameters())
    for _ in range(2):
        first.step()
    weights, biases = ([layer.get_parameter(kind) for layer in model] for kind in ("weight", "bias"))
    second = Counting([{"params": biases[::-1]}, {"params": weights[::-1], "seen": 9}])
    state = named_state(model, first)
    load_named_state(model, second, state)
    for parameter in model.parameters():
        expected = {key: state[f"{names[id(parameter)]}.{key}"] for key in first.state[parameter]}
        assert same(second.state[parameter], expected)
    assert [group["seen"] for group in second.param_groups] == [2, 2]
    with pytest.raises(ValueError, match=r"another network than the recipe's: 2\.weight\.count belongs to no"):
        load_named_state(model, second, {"2.weight.count": 1})

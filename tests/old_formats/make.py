"""Makes the files beside it. It was run once, with commit 1558405, and is here to say how they came to be.

    OMP_NUM_THREADS=1 PYTHONPATH=src python tests/old_formats/make.py        # in a checkout of that commit

Do not run it with later code: then the files would not be old. Everything is as that commit wrote it, except:

- pictures (curves.png, …), classes.csv and environment.json are left out: no code reads them;
- differences/config.json has the name of the folder beside it as parent, in place of an absolute path;
- run_momentum/format_1 is written by hand: format 1 called best_score best_top1. end.safetensors beside it has the
  weights of the same run without a stop;
- configurations.json has the config.json of several folders, with the names, types and shapes of their weights.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn

import vismoe
from vismoe.cli import main
from vismoe.training.step import Trainer

HERE = Path(__file__).resolve().parent
CLASSES, COUNT, SIDE = ("1", "4", "7"), 20, 8
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
PRESET = "vmoe_pico_patch2_8_every2_e8"
TRAIN = (
    "train digits --num-experts 2 --model-options embed_dim 16 depth 2 num_heads 2 mlp_ratio 2 --steps 100 "
    "--batch-size 32 --evaluate-every 50 --device cpu --out run "
)
COMMANDS = {
    "run_adamw": f"{TRAIN} --learning-rate 0.01 --average-decay 0.8 --checkpoint-every 96 --keep-checkpoints 2",
    "run_momentum": f"{TRAIN} --learning-rate 0.3 --optimizer momentum --balance loss",
    "finetune": "finetune --data pictures --from parent --sparse --num-experts 2 --experts full --layers 1 --epochs 6 "
    "--batch-size 16 --learning-rate 0.003 --seed 6 --dtype float32 --device cpu --out run",
}
MIDDLE = {"run_adamw": 96, "run_momentum": 96, "finetune": 12}
"""The steps of the checkpoints that a training is to go on from."""
CONFIGURATIONS = {
    "top-k": {"experts_per_token": 2, "balance": "loss", "noise_std": 1.0, "capacity_factor": 1.05}
    | {"eval_capacity_factor": "none", "batch_priority": True, "loss_weights": {"importance": 0.005, "load": 0.005}},
    "top-k that drops": {"capacity_factor": 0.5, "group_size": 34},
    "sigmoid": {"router": "sigmoid", "experts_per_token": 2, "combine": "renormalized", "expert_hidden_dim": 8}
    | {"shared": True, "shared_hidden_dim": 8},
    "image": {"router": "image"},
    "expert-choice": {"router": "expert-choice", "capacity_factor": 1.0},
    "soft": {"router": "soft", "slots_per_expert": 2},
    "hash": {"router": "hash"},
    "random": {"router": "random", "experts_per_token": 2},
    "conv stem": {"stem": "conv", "class_token": False, "global_pool": "avg"},
    "parts of the paper": {"representation_size": 16, "qk_norm": "scale", "pos_embed": "sincos2d"}
    | {"act_layer": "gelu_tanh"},
}


def write_strip(path: Path) -> None:
    """One picture: a row for each class, of so many digits."""
    digits = load_digits()
    pixels = (255 - digits.images * (255 / 16)).round().astype(np.uint8)
    rows = [np.concatenate(pixels[digits.target == int(name)][:COUNT], 1) for name in CLASSES]
    Image.fromarray(np.concatenate(rows)).save(path)


def write_pictures(strip: Path, folder: Path) -> None:
    """The strip cut into class folders of pictures."""
    whole = Image.open(strip)
    for row, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for column in range(COUNT):
            left, top = column * SIDE, row * SIDE
            whole.crop((left, top, left + SIDE, top + SIDE)).save(folder / name / f"{column:02d}.png")


def pixels_of(size: tuple[int, int, int]) -> Tensor:
    return torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def drawn(tensors: dict[str, tuple[str, list[int]]]) -> dict[str, Tensor]:
    """Weights for names, types and shapes: uniform, whose bits are the same on all machines, but for whole numbers."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(shape, generator=generator) - 0.5 for name, (_, shape) in sorted(tensors.items())}
    return {name: tensor.to(getattr(torch, tensors[name][0])) for name, tensor in drawn.items()}


@torch.no_grad()
def moved(model: nn.Module, which: str = "", by: float = 0.3) -> nn.Module:
    """The model with noise on the parameters whose names have `which`: new ones give the same for all pictures."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if which in name:
            parameter += by * (2 * torch.rand(parameter.shape, generator=generator) - 1)
    return model.eval()


@torch.inference_mode()
def answers(folder: Path, size: tuple[int, int, int]) -> dict[str, Any]:
    """Logits of fixed pixels, and what is on one picture of each class."""
    model = vismoe.load(folder)
    found = model(pixels_of(size))
    pictures = [f"pictures/{name}/00.png" for name in CLASSES]
    predictions = [prediction.classes for prediction in vismoe.predict(model, pictures, topk=3)]
    return {"input_size": size, "logits": getattr(found, "logits", found).tolist(), "predictions": predictions}


@contextlib.contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Inside, a training gets SIGTERM in that step."""
    plain = Trainer.step

    def step(trainer: Any, *arguments: Any, **options: Any) -> Any:
        if trainer.state.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(trainer, *arguments, **options)

    Trainer.step = step
    try:
        yield
    finally:
        Trainer.step = plain


def run(arguments: list[str], code: int = 0) -> str:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        found = main(arguments)
    assert found == code, (arguments, found, told.getvalue())
    return told.getvalue()


def keep_run(destination: str) -> Path:
    """Moves the run folder `run` among the files, but for what no code reads."""
    path = Path("made") / destination
    shutil.move("run", path)
    for file in [*path.glob("*.png"), *path.glob("classes.csv"), path / "environment.json"]:
        file.unlink()
    return path


def evaluated(path: Path) -> dict[str, Any]:
    """What `vismoe eval` says of a run, but for its speed."""
    figures = json.loads(run(["eval", str(path), "--json", "--device", "cpu"]))
    return {name: figures[name] for name in ("part", "images", "top1", "loss", "per_class", "load")}


def make_runs(expected: dict[str, Any]) -> None:
    made, commands = Path("made"), {name: command.split() for name, command in COMMANDS.items()}
    # Finished, with a checkpoint in the middle and one at the end.
    run(commands["run_adamw"])
    path = keep_run("run_adamw")
    expected["run_adamw"] = end_of("run_adamw", path) | {"evaluation": evaluated(path)}
    # Stopped, and what its end would have been.
    run(commands["run_momentum"])
    expected["run_momentum"] = end_of("run_momentum", Path("run"))
    Path("run/model/model.safetensors").rename("end.safetensors")
    shutil.rmtree("run")
    with stopped_after(MIDDLE["run_momentum"]):
        run(commands["run_momentum"], 128 + signal.SIGTERM)
    path = keep_run("run_momentum")
    Path("end.safetensors").rename(path / "end.safetensors")
    write_format_1(path / "checkpoints" / f"step-{MIDDLE['run_momentum']:06d}", path / "format_1")
    # The same of finetune.
    run(commands["finetune"])
    path = keep_run("finetune_finished")
    report = json.loads((path / "report.json").read_text())
    assert report["trained"] == "last-third"  # not the linear classifier that it begins with
    shutil.copytree(path, "run")
    expected["finetune"] = end_of("finetune", path) | {"evaluation": evaluated(Path("run"))}
    shutil.rmtree("run")
    with stopped_after(MIDDLE["finetune"]):
        run(commands["finetune"], 128 + signal.SIGTERM)
    keep_run("finetune_stopped")
    for name, channels in (("run_adamw", 1), ("finetune_finished", 3), ("finetune_stopped", 3)):
        expected[name] = expected.get(name, {}) | {"model": answers(made / name, (channels, SIDE, SIDE))}


def end_of(name: str, path: Path) -> dict[str, Any]:
    """The command of a run, the step that it is to go on from, and how it ended."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((path / "summary.json").read_text())
    return {
        "command": COMMANDS[name].split(),
        "middle": MIDDLE[name],
        "steps": [line["step"] for line in lines],
        "end": {figure: summary[figure] for figure in ("top1", "val_loss")},
    }


def write_format_1(checkpoint: Path, folder: Path) -> None:
    """What of a checkpoint was otherwise in format 1: the tensors are the same."""
    folder.mkdir()
    values = json.loads((checkpoint / "state.json").read_text())
    old = {"best_top1" if name == "best_score" else name: value for name, value in values.items()}
    (folder / "state.json").write_text(json.dumps(old, indent=1))
    sums = {
        "tensors.safetensors": hashlib.sha256((checkpoint / "tensors.safetensors").read_bytes()).hexdigest(),
        "state.json": hashlib.sha256((folder / "state.json").read_bytes()).hexdigest(),
    }
    own = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
    content = {"format": 1, "files": sums, "sha256": own}
    (folder / "manifest.json").write_bytes(json.dumps(content, sort_keys=True, indent=1).encode())


def make_models(expected: dict[str, Any]) -> None:
    made, names, grey = Path("made"), list("0123456789"), {"in_chans": 1, "num_classes": 10}
    torch.manual_seed(0)
    few = SMALL | grey
    vismoe.save(moved(vismoe.create_model("vmoe_pico_patch2_8_dense", **few)), made / "dense", names)
    members = vismoe.create_model(PRESET, num_experts=4, ensemble_size=2, **few)
    vismoe.save(moved(members), made / "ensemble", names)
    parent = vismoe.load("parent")
    low_rank = moved(vismoe.upcycle(parent, 2, "last-1", experts="low-rank", rank=2), by=0.1)
    vismoe.save(low_rank, made / "low_rank")
    different = moved(vismoe.upcycle(parent, 2, "last-1", experts="low-rank", rank=2), "mlp.experts.down.b")
    vismoe.save(different, made / "differences", parent=made / "parent")
    make_transformers(made / "transformers")
    channels = {"dense": 1, "ensemble": 1, "parent": 3, "low_rank": 3, "differences": 3, "transformers": 3}
    for name, number in channels.items():
        expected[name] = {"model": answers(made / name, (number, SIDE, SIDE))}
    config = json.loads((made / "differences" / "config.json").read_text())
    config["parent"]["source"] = "parent"
    (made / "differences" / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def make_transformers(path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.ViTConfig(**sizes, image_size=SIDE, patch_size=4, num_labels=3)
    sparse = vismoe.upcycle(transformers.ViTForImageClassification(config), 2, "last-1")
    preprocessing = {"input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    vismoe.save(moved(sparse), path, ["ant", "bee", "cat"], preprocessing)


def make_configurations(expected: dict[str, Any]) -> None:
    told: dict[str, Any] = {}
    for name, options in CONFIGURATIONS.items():
        model = vismoe.create_model(PRESET, **SMALL | {"num_experts": 4, "in_chans": 1, "num_classes": 5} | options)
        config = json.loads((vismoe.save(model, "one") / "config.json").read_text())
        kinds = {key: (str(value.dtype).split(".")[1], list(value.shape)) for key, value in model.state_dict().items()}
        told[name] = {"config": config, "tensors": kinds}
        model.load_state_dict(drawn(kinds))
        with torch.inference_mode():
            logits = model.eval()(pixels_of((1, SIDE, SIDE)))
        expected.setdefault("configurations", {})[name] = {"input_size": (1, SIDE, SIDE), "logits": logits.tolist()}
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in told.items()]
    Path("made/configurations.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make_onnx(expected: dict[str, Any]) -> None:
    run(["export", "made/run_adamw", "made/run_adamw.onnx", "--dynamic-batch"])
    pictures = [f"pictures/{name}/00.png" for name in CLASSES]
    found = json.loads(run(["predict", "made/run_adamw.onnx", *pictures, "--topk", "3", "--format", "json"]))
    expected["onnx"] = [[(each["name"], each["probability"]) for each in image["classes"]] for image in found]


def make() -> None:
    torch.set_num_threads(1)
    Path("made").mkdir()
    write_strip(Path("made/digits.png"))
    write_pictures(Path("made/digits.png"), Path("pictures"))
    # The dense parent is a timm network of little more knowledge than none. Pictures of folders have three channels.
    options = tuple((SMALL | {"img_size": SIDE, "patch_size": 4}).items())
    vismoe.train(
        *("digits", "parent_run"),
        **{"model": "timm:vit_tiny_patch16_224", "model_options": options, "data": "pictures", "device": "cpu"},
        **{"steps": 30, "batch_size": 16, "learning_rate": 3e-3, "evaluate_every": 30},
    )
    shutil.copytree("parent_run/model", "parent")
    shutil.copytree("parent", "made/parent")
    expected: dict[str, Any] = {}
    make_models(expected)
    make_configurations(expected)
    make_runs(expected)
    make_onnx(expected)
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in expected.items()]
    Path("made/expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    print("made with", vismoe.__file__)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make()
        for file in Path("made").rglob("*.safetensors"):
            file.chmod(0o644)
        for entry in Path("made").iterdir():
            target = HERE / entry.name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            shutil.move(entry, target)

"""vismoe finetune"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.adapt import Finetuned, Options, finetune
from vismoe.tasks import Group, group_lines

from ..shared.progress import TrainingProgress

FIGURES = ("mistakes.png", "confusion.png", "calibration.png", "curves.png", "routing.png")


def finetune_folder(
    data: str,
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    sparse: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False,
    dense: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False,
    out: Path | None = None,
    train: Literal["auto", "all", "last-third", "experts", "head"] = "auto",
    freeze_router: bool = False,
    num_experts: int = 8,
    layers: str = "last-2",
    experts: Literal["full", "low-rank"] = "low-rank",
    image_size: int | None = None,
    max_level: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    class_weights: float = 0.0,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    group_column: str | None = None,
    max_unreadable: float = 0.1,
    workers: int = 0,
    device: str = "auto",
) -> None:
    """Make a classifier of your own images: looks at them, splits, trains, tests, and writes all into a run folder.

    Interrupted, it leaves a model; the same command again goes on. Example: vismoe finetune --data digits --epochs 2

    Args:
        data: A folder with a folder of images for each class, or with a metadata.csv; a zip of one; or a named set.
        source: What to start from: a run or model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG (download); a preset has
            random weights. Without it a small network is trained from scratch: a trained one does much better.
        sparse: Upcycle a dense network; so does any option of experts. From scratch: a sparse network, the default.
        dense: From scratch a dense network; a trained one stays dense unless said.
        out: Run folder; by default the first free one of runs/finetune, runs/finetune-2, …
        train: all; last-third, of the blocks, and the head; experts, and the head; head, by logistic regression on
            features; auto: last-third of a trained network on a CPU, else all.
        freeze_router: Routers and their balancing stay as they are.
        num_experts: Experts of each layer that is upcycled.
        layers: Blocks that are upcycled: last-N (of the odd ones), every-N, or numbers from 0 with commas between.
        experts: low-rank, the MLP frozen and low-rank differences, which train less and did no worse; full, copies of
            the MLP, the default of `vismoe upcycle`, which can be perturbed, cut and merged.
        image_size: Pixels; by default up to 112 on a CPU, 224 elsewhere.
        max_level: White in images of 16 bits of grey, such as 4095 for those of 12; by default the network's own, or
            65535.
        epochs: Times that each image is trained on, up to whole steps; by default at most 12 (80 from scratch), and
            no more than some 8 minutes of two cores.
        batch_size: Images of a step; 32, from scratch 64, unless said.
        learning_rate: Peak rate; 2e-4, from scratch 2e-3, unless said.
        class_weights: How much more rare classes count in the loss, as a power of their rarity: with 0.5 they are found
            more often, common ones less.
        dtype: Of products while training; auto: bfloat16 where the device multiplies it natively.
        seed: Seed of the split, new weights, order and augmentation. Where --from is a run on the same images, its
            split is kept.
        group_column: Column of metadata.csv whose values are groups of images (of one patient, video, site): each group
            stays in one split.
        max_unreadable: Largest share of files that may be damaged; they are named and left out.
        workers: Processes that prepare images; 0 for none.
        device: auto, cpu, cuda or mps.
    """
    if sparse and dense:
        raise ValueError("--sparse and --dense: one of them")
    options = Options(
        data,
        source,
        sparse=True if sparse else False if dense else None,
        train=train,
        freeze_router=freeze_router,
        num_experts=num_experts,
        layers=layers,
        experts=experts,
        image_size=image_size,
        max_level=max_level,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        class_weights=class_weights,
        dtype=dtype,
        seed=seed,
        group_column=group_column,
    )
    with TrainingProgress("finetune") as progress:
        finetuned = finetune(
            options,
            out=out,
            device=device,
            workers=workers,
            max_unreadable=max_unreadable,
            on_status=progress,
            log=progress.log,
        )
    if finetuned.run.writes:
        _tell(finetuned, options)


def _tell(finetuned: Finetuned, options: Options) -> None:
    """Prints the result, where it is, and what to do next."""
    report = finetuned.report
    name, test, (low, high) = report["score"], report["test"], report["interval"]
    print(
        f"test split: {name.replace('_', ' ')} {test[name]:.4f}, right on {report['right']} of "
        f"{report['pictures']['test']} (95 % interval {low:.4f} to {high:.4f}), "
        f"calibration error {test['calibration_error']:.4f}"
    )
    if report["groups"]:
        print(*group_lines(report["group_column"], [Group(**group) for group in report["groups"]]), sep="\n")
    path = finetuned.run.path
    written = [name for name in ("model/", "report.json", "classes.csv", *FIGURES) if (path / name).exists()]
    print(f"everything is in {path}: {', '.join(written)}, …")
    if report["weakness"] is None:
        print(f"next: vismoe predict {path} IMAGES; vismoe export {path} model.onnx")
    else:
        print(f"warning: {report['weakness']}")
        source = "" if options.trained else " --from a trained network,"
        print(f"next:{source} more images, --epochs N; {path}/mistakes.png shows what it takes for what")


def main(arguments: list[str]) -> None:
    tyro.cli(finetune_folder, args=arguments, prog="vismoe finetune")

"""vismoe finetune"""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.adapt import Finetuned, Options, finetune

from ..shared.progress import TrainingProgress

FIGURES = (
    "mistakes.png",
    "confusion.png",
    "calibration.png",
    "worst_images.png",
    "precision_recall.png",
    "false_positives.png",
    "curves.png",
    "routing.png",
)


def finetune_folder(
    data: str,
    source: Annotated[str | None, tyro.conf.arg(name="from")] = None,
    sparse: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False,
    dense: Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")] = False,
    out: Path | None = None,
    train: Literal["auto", "all", "last-third", "last-two", "experts", "head"] = "auto",
    freeze_router: bool = False,
    num_experts: int | None = None,
    moe_layers: Annotated[str | None, tyro.conf.arg(aliases=["--layers"])] = None,
    experts: Literal["full", "low-rank"] | None = None,
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
    expert_parallel: int = 1,
) -> None:
    """Train a classifier, or with boxes a detector, on your own images: check them, split them, train, test, and write
    everything to a run folder.

    To continue an interrupted run, give the same command again.

    Example: vismoe finetune --data digits --epochs 2

    Args:
        data: Folder with one folder of images per class, or of images with a metadata.csv (file_name, label);
            or of images with boxes: COCO JSON, Pascal VOC XML, YOLO text files, metadata.jsonl with objects.
            A zip of such a folder, digits and fashion-mnist are accepted too.
        source: Network to start from: a run or model folder, timm:NAME, hf:ORG/NAME, PRESET.TAG, or a preset.
            Without it, a small network is trained from scratch, which is usually much less accurate.
        sparse: Replace MLPs of a dense network by experts (upcycling), or train a sparse network from scratch.
        dense: Train a dense network. This is the default, unless the network is sparse or options of experts are given.
        out: Run folder; default: the first free one of runs/finetune, runs/finetune-2, …
        train: Trained weights: all; last-third (last third of the blocks, and the head); last-two (blocks, and the
            head); experts (and the head); head.
            auto: for a trained network on a CPU last-third, of a detector last-two; otherwise all.
            Without a trained network, only auto and all are accepted.
        freeze_router: Freeze the routers and their load balancing.
        num_experts: Number of experts per sparse layer when upcycling; default: 8.
        moe_layers: Blocks to upcycle: last-N (of the odd blocks), every-N, or block numbers from 0 such as 8,10.
            Default: last-2; of a detector, the last two blocks.
        experts: low-rank: each expert adds a trained low-rank difference to the frozen MLP.
            full: each expert is a trained copy of the MLP. Default: low-rank.
        image_size: Height and width in pixels; default: at most 112 on a CPU and 224 elsewhere.
            If the images are larger, up to twice that, if a linear classifier is better there.
            Of a detector the longer side; default: where small objects have enough pixels, at most 448 on a CPU.
        max_level: White level of 16-bit grey images, such as 4095 for 12-bit data; default: the network's, or 65535.
        epochs: Number of epochs; default: at most 12 (from scratch 80), on a CPU limited to about 8 minutes of 2 cores.
            Of a detector 100, or 5,000 images if these are more, on a CPU limited to about 8 minutes of one core.
        batch_size: Images per step; default: 32, from scratch 64, of a detector 4 to 32.
        learning_rate: Peak learning rate; default: 2e-4, from scratch 2e-3.
            Of a detector 2e-3; a trained trunk gets a twentieth of it.
        class_weights: Class weights in the loss: (mean class size / class size) to this power; 0: all weigh the same.
            With 0.5, rare classes are found more often and common ones less often. Detectors have none.
        dtype: Autocast dtype in training; auto: bfloat16 if the device has instructions for it.
        seed: Seed of the split, new weights, order and augmentation.
            If --from is a run on the same images, its split is kept.
        group_column: Column of metadata.csv with groups (patient, video, site): each group stays in one split.
        max_unreadable: Largest fraction of unreadable files, 0 to 1; they are listed and left out.
        workers: Number of data loading worker processes; 0: the main process.
        device: Device: auto, cpu, cuda or mps.
        expert_parallel: Number of processes, started by torchrun, that share the experts of each layer.
    """
    if sparse and dense:
        raise ValueError("--sparse and --dense: give only one of them")
    options = Options(
        data,
        source,
        sparse=True if sparse else False if dense else None,
        train=train,
        freeze_router=freeze_router,
        num_experts=num_experts,
        moe_layers=moe_layers,
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
            expert_parallel=expert_parallel,
            on_status=progress,
            log=progress.log,
        )
    if finetuned.run.writes:
        _print_result(finetuned, options)


def _print_result(finetuned: Finetuned, options: Options) -> None:
    """Prints the result, where it is, and the next commands."""
    report = finetuned.report
    print(*finetuned.lines, sep="\n")
    path = finetuned.run.path
    written = [name for name in ("model/", "report.json", "classes.csv", *FIGURES) if (path / name).exists()]
    print(f"everything is in {path}: {', '.join(written)}, …")
    if report["weakness"] is None:
        print(f"next: vismoe predict {path} IMAGES; vismoe serve {path}; vismoe export {path} model.onnx")
    else:
        print(f"warning: {report['weakness']}")
        source = "" if options.trained else " --from a trained network,"
        print(f"next:{source} more images or --epochs N; {path} has figures of the mistakes")


def main(arguments: list[str]) -> None:
    tyro.cli(finetune_folder, args=arguments, prog="vismoe finetune")

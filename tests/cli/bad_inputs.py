"""What a person may hand to `vismoe train`, and what they get. Prints the table of docs/training.md:

python -m tests.cli.bad_inputs
"""

import contextlib
import io
import os
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vismoe.cli import main
from vismoe.tasks import Classification
from vismoe.training.step import Trainer


@dataclass(frozen=True)
class Case:
    """`make` gets an empty folder and fills it; `code` and `says` (a part of stderr, with FOLDER and OUT for the two
    paths; "" where nothing is said) are what comes of training on it."""

    title: str
    make: Callable[[Path], None]
    code: int
    says: str
    options: tuple[str, ...] = ()


def images(folder: Path, number: int = 20, classes: tuple[str, ...] = ("cat", "dog")) -> list[Path]:
    """So many images of each class, light and dark."""
    random, made = np.random.default_rng(0), []
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(number):
            made.append(folder / name / f"{place}.png")
            pixels = random.integers(0, 80, (9, 11, 3), np.uint8) + np.uint8(90 * (index % 2))
            Image.fromarray(pixels).save(made[-1])
    return made


def bomb() -> bytes:
    """20,000 × 20,000 grey pixels in about 400 KB: a whole PNG file, one row and its repetitions deflated."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9, wbits=-15)
    hundred = rows.compress(b"\0" * 20_001 * 100) + rows.flush(zlib.Z_FULL_FLUSH)  # what follows may repeat it
    checksum = struct.pack(">HH", 20_001 * 20_000 % 65_521, 1)  # Adler-32 of zeros
    data = b"\x78\xda" + hundred * 200 + rows.flush() + checksum
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def unreadable(share: float) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        made = images(folder)
        for path in made[:: round(1 / share)] if share < 0.5 else made[: round(share * len(made))]:
            path.write_bytes(path.read_bytes()[:60])

    return make


def one_class(folder: Path) -> None:
    images(folder, classes=("cat",))


def class_without_images(folder: Path) -> None:
    images(folder)
    (folder / "owl").mkdir()


def strange_names(folder: Path) -> None:
    images(folder, classes=("a cat", 'the "dog"', "new\nline", "кот", "猫 🐈", "it's, 50 %"))


def tiny_and_huge(folder: Path) -> None:
    made = images(folder)
    Image.new("L", (1, 1), 200).save(made[0])
    Image.new("L", (1, 30_000), 200).save(made[1])
    made[2].write_bytes(bomb())


def text_as_image(folder: Path) -> None:
    images(folder)[0].write_text("I am a letter, not an image.")


def empty_file(folder: Path) -> None:
    images(folder)[0].write_bytes(b"")


def name_that_is_no_text(folder: Path) -> None:
    images(folder)
    with open(os.fsencode(folder / "cat") + b"/\xff\xfe.png", "w") as file:
        file.write("no image")


def links(folder: Path) -> None:
    made = images(folder)
    (folder / "dog" / "passwd.png").symlink_to("/etc/passwd")
    (folder / "dog" / "root").symlink_to("/")
    (folder / "dog" / "same.png").symlink_to(made[-1].name)


def linked_class(folder: Path) -> None:
    images(folder)
    (folder.parent / "elsewhere").mkdir()
    (folder / "owl").symlink_to("../elsewhere")


def unknown_splits(folder: Path) -> None:
    for split in ("seg_train", "seg_test"):
        images(folder / split)


def lost_label(folder: Path) -> None:
    images(folder)
    lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in folder.rglob("*.png")]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines, "../secret.png,cat", "gone.png,dog"]))


def metadata_without_names(folder: Path) -> None:
    images(folder)
    (folder / "metadata.csv").write_text("image,label\ncat/0.png,cat\n")


CASES = [
    Case("an empty folder", lambda folder: None, 2, "FOLDER has no class folders"),
    Case("one class", one_class, 2, "one class, cat"),
    Case("a class without images", class_without_images, 2, "class folders owl"),
    Case("unreadable files, 5 %", unreadable(0.05), 0, "2 of 40 files cannot be used and are left out: OUT/data.json"),
    Case("unreadable files, 60 %", unreadable(0.6), 2, "24 of 40 files cannot be used"),
    Case("the same with --max-unreadable 0.7", unreadable(0.6), 2, "training images of", ("--max-unreadable", "0.7")),
    Case("names with spaces, quotes, newlines, commas, other alphabets", strange_names, 0, ""),
    Case("1 × 1, 1 × 30,000, and 20,000 × 20,000 pixels in 100 KB", tiny_and_huge, 0, "1 of 40 files cannot be used"),
    Case("a text file named .png", text_as_image, 0, "1 of 40 files cannot be used"),
    Case("a file of no bytes", empty_file, 0, "1 of 40 files cannot be used"),
    Case("the same, its name no UTF-8", name_that_is_no_text, 0, "1 of 41 files cannot be used"),
    Case("links out of the folder, one inside it", links, 0, "2 of 43 files cannot be used"),
    Case("a class folder that is a link out of the folder", linked_class, 2, "so its class would be lost"),
    Case("splits of unknown names", unknown_splits, 2, "look like splits: name them train, val and test"),
    Case("metadata.csv that names ../ and what is not there", lost_label, 0, "2 of 42 files cannot be used"),
    Case("metadata.csv without file_name", metadata_without_names, 2, "expected the columns file_name and label"),
]  # fmt: skip


def run(case: Case, place: Path) -> tuple[int, str, Path, Path]:
    """Trains three steps: exit code, stderr, data and run folder."""
    folder, out = place / "data", place / "run"
    folder.mkdir()
    case.make(folder)
    options = ["--steps", "3", "--batch-size", "8", "--device", "cpu", *case.options]
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = main(["train", "digits", "--data", str(folder), "--out", str(out), *options])
    return code, errors.getvalue(), folder, out


def full_disk(place: Path) -> tuple[int, str] | None:
    """Trains with a run folder on a disk of one megabyte: exit code and stderr; None where none can be mounted."""
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    options = ["--steps", "9", "--batch-size", "8", "--device", "cpu", "--checkpoint-every", "2"]
    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
            code = main(["train", "digits", *options, "--out", str(disk / "run")])
        assert not list((disk / "run" / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return code, errors.getvalue()


@contextlib.contextmanager
def nan_at(*steps: int):
    """Inside, the loss of these steps is NaN."""
    plain, step, now = Classification.loss, Trainer.step, [0]

    def counted(trainer, *arguments, **options):
        now[0] = trainer.state.step
        return step(trainer, *arguments, **options)

    def loss(task, outputs, batch):
        return plain(task, outputs, batch) * (float("nan") if now[0] in steps else 1)

    Trainer.step, Classification.loss = counted, loss
    try:
        yield
    finally:
        Trainer.step, Classification.loss = step, plain


def not_finite(place: Path, *steps: int) -> tuple[int, str]:
    """Trains 14 steps, of which some have a loss that is no number: exit code and stderr."""
    options = ["--steps", "14", "--batch-size", "8", "--device", "cpu", "--out", str(place / "run")]
    with nan_at(*steps), contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        return main(["train", "digits", *options]), errors.getvalue()


def table() -> None:
    print("| what | exit code | stderr |\n| --- | --- | --- |")

    def row(title: str, code: int, errors: str, *names: tuple[Path, str]) -> None:
        for path, name in names:
            errors = errors.replace(str(path), name)
        print(f"| {title} | {code} | {' '.join(errors.split()) or '–'} |")

    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            code, errors, folder, out = run(case, Path(place))
            row(case.title, code, errors, (folder, "FOLDER"), (out, "OUT"))
    with tempfile.TemporaryDirectory() as place:
        if found := full_disk(Path(place)):
            row("a full disk", *found, (Path(place) / "disk" / "run", "OUT"))
    for title, steps in (("NaN in the loss of one step", (5,)), ("NaN in every loss from step 3 on", range(3, 15))):
        with tempfile.TemporaryDirectory() as place:
            row(title, *not_finite(Path(place), *steps))


if __name__ == "__main__":
    table()

"""Every distinct picture of five collections: what "which picture is this?" asks about.

    PYTHONPATH=benchmarks python -m evidence.pictures      # some three minutes

Emoji in three drawing styles, the drawings of openclipart, the stamps of Tux Paint; of pictures that are alike one is
kept: which ones is in distinct.npy beside this file. Leaves pictures.npy, (N, 64, 64, 4) RGBA, and pictures.csv, where
each is from.
"""

import csv
import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from table import Table

import vismoe
from vismoe.data import ImageSet, find_duplicates, fingerprint, read_image
from vismoe.features import features

from .packages import unpacked

SIDE = 64
ALIKE = 0.98
"""Cosine of a trained ViT-S/14's class tokens from which two pictures count as one. Chosen by looking at nearest pairs:
from 0.98 most are versions of one picture (a flag of two styles, an icon drawn twice); from 0.97 one in six is."""
DISTINCT, FOUND = Path(__file__).with_name("distinct.npy"), 14443
COLUMNS = ("collection", "file", "name", "category")


def emoji(root: Path) -> Iterator[tuple[str, Path, str, str]]:
    """Collection, file, name and category of each, skin tones left out."""
    entries = {
        style: json.loads((unpacked(style, root) / "package/emoji.json").read_text()) for style in ("google", "twitter")
    }
    for style, known in entries.items():
        for entry in known:
            if entry[f"has_img_{style}"] and entry["category"] != "Component":
                file = unpacked(style, root) / "package/img" / style / "64" / entry["image"]
                yield style, file, entry["name"].lower(), entry["category"]
    named = {_plain(entry["unified"]): entry for entry in entries["google"]}
    for file in sorted((unpacked("fluent", root) / "package/assets").glob("*.webp")):
        entry = named.get(_plain(file.stem))
        if entry is not None and entry["category"] != "Component":
            yield "fluent", file, entry["name"].lower(), entry["category"]


def _plain(code: str) -> str:
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def drawings(root: Path) -> Iterator[tuple[str, Path, str, str]]:
    folder = unpacked("openclipart", root) / "usr/share/openclipart/png"
    for file in sorted(folder.rglob("*.png")):
        yield "openclipart", file, file.stem.replace("_", " "), file.relative_to(folder).parts[0]


def stamps(root: Path) -> Iterator[tuple[str, Path, str, str]]:
    folder = unpacked("stamps", root) / "usr/share/tuxpaint/stamps"
    for file in sorted(folder.rglob("*.png")):
        told = file.with_suffix(".txt")
        name = told.read_text(encoding="utf-8").splitlines()[0] if told.exists() else file.stem
        yield "stamps", file, name, file.relative_to(folder).parts[0]


def small(file: Path, side: int = SIDE) -> Image.Image:
    """A picture in the middle of a transparent square."""
    picture = read_image(file).convert("RGBA")
    bounds = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox()
    if bounds is None:
        raise ValueError(f"{file} is transparent all over")
    picture = picture.crop(bounds)
    factor = side / max(picture.size)
    width, height = (max(1, round(length * factor)) for length in picture.size)
    # Premultiplied, so that no colour of what is transparent bleeds in.
    picture = (
        picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0).convert("RGBA")
    )
    square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square


def picture_of(pixels: np.ndarray, index: int) -> Image.Image:
    return Image.fromarray(np.asarray(pixels[index]))


def distinct(pixels: np.ndarray, parent: Path) -> list[int]:
    """Of pictures that are alike, by hash or by a trained network's features, the first."""
    images = ImageSet(torch.zeros(len(pixels), dtype=torch.int64), partial(picture_of, pixels))
    seen = find_duplicates([fingerprint(images.image(index)) for index in range(len(images))])
    model: Any = vismoe.load(parent)
    model.set_input_size(img_size=112)
    preparation = {"input_size": (3, 112, 112), "crop_pct": 1.0}
    vectors = torch.nn.functional.normalize(features(model, images, preparation=preparation), dim=1)
    kept: list[int] = []
    groups: set[int] = set()
    for index, group in enumerate(seen.groups):
        if group in groups or (kept and (vectors[kept] @ vectors[index]).max() >= ALIKE):
            continue
        groups.add(group)
        kept.append(index)
    return kept


def main(root: Path = Path("runs/evidence"), parent: Path | None = None) -> None:
    """Fetch, shrink, and keep what is distinct.

    Args:
        root: Where packages, pictures and runs go.
        parent: Model folder of the trained ViT-S/14 (vit_s14_parent.py makes it), to find anew what is distinct, in ten
            minutes more, and write it down.
    """
    rows, found, left_out = [], [], 0
    for make in (emoji, drawings, stamps):
        for collection, file, name, category in make(root):
            try:
                found.append(np.asarray(small(file)))
            except ValueError:
                left_out += 1
                continue
            rows.append((collection, file.relative_to(root).as_posix(), name, category))
    print(f"{len(found)} pictures, {left_out} cannot be used: empty, or too large to decode", flush=True)
    if len(found) != FOUND:
        raise SystemExit(f"the study was made with {FOUND} pictures: another version of Pillow reads others")
    pixels = np.stack(found)
    if parent is not None:
        np.save(DISTINCT, np.isin(np.arange(FOUND), distinct(pixels, parent)))
    kept = np.load(DISTINCT).nonzero()[0]
    np.save(root / ".pictures.npy", pixels[kept])
    os.replace(root / ".pictures.npy", root / "pictures.npy")
    Table(root / "pictures.csv").write([dict(zip(COLUMNS, rows[index], strict=True)) for index in kept])
    print(f"{len(kept)} distinct; SHA-256 of their pixels {digest(pixels[kept])}")


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def opened(root: Path) -> tuple[Any, list[dict[str, str]]]:
    """The pixels, not read yet, and the rows of pictures.csv; made where they are not there."""
    if not (root / "pictures.csv").exists():
        main(root)
    with (root / "pictures.csv").open(encoding="utf-8", newline="") as file:
        return np.load(root / "pictures.npy", mmap_mode="r"), list(csv.DictReader(file))


if __name__ == "__main__":
    tyro.cli(main)

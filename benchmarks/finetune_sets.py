"""The two sets of the fine-tuning study, from packages that Debian's and npm's registries hold.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb openclipart
    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0   # tar xzf each, into a folder of its own
    python benchmarks/finetune_sets.py --openclipart openclipart/usr/share/openclipart/png --google google/package \
        --twitter twitter/package --out sets

`sets/openclipart/CLASS/N.png`: a random 2,000 of the drawings (public domain), in their 22 classes. `sets/emoji/train`
and `…/val`: emoji in Google's drawing style (Apache-2.0) to train on, in Twitter's (CC-BY-4.0) to test on, by category.
"""

import json
import random
import shutil
from pathlib import Path

import tyro

DRAWINGS = 2000


def main(openclipart: Path, google: Path, twitter: Path, out: Path) -> None:
    """Copy the pictures.

    Args:
        openclipart: Folder of the drawings' class folders.
        google: The unpacked package.
        twitter: The unpacked package.
        out: Where the sets go; must not exist.
    """
    if out.exists():
        raise SystemExit(f"{out} exists")
    files = sorted(openclipart.rglob("*.png"))
    for number, file in enumerate(random.Random(0).sample(files, DRAWINGS)):
        _copy(file, out / "openclipart" / file.relative_to(openclipart).parts[0] / f"{number}.png")
    for part, style, package in (("train", "google", google), ("val", "twitter", twitter)):
        for emoji in json.loads((package / "emoji.json").read_text()):
            if emoji[f"has_img_{style}"] and emoji["category"] != "Component":
                source = package / "img" / style / "64" / emoji["image"]
                _copy(source, out / "emoji" / part / emoji["category"] / emoji["image"])


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


if __name__ == "__main__":
    tyro.cli(main)

"""How many near duplicates are found, and how many other pairs are wrongly called near duplicates.

    python benchmarks/near_duplicates.py --folder FOLDER --limit 2000

Uses images below FOLDER with at least 64 pixels per side, drawn by a seed. Reported are

- the fraction of images whose changed version is found to be a near duplicate, for each change: recompressed as JPEG of
  quality 50; half the size; cropped by 2 %; 8 % brighter; half the size as JPEG.
- the pairs of originals that are called near duplicates although they are not exact copies. Some of these are versions
  of one image: `--show pairs.png` draws them.

Folders in the table: Debian's packages tuxpaint-stamps-default and openclipart-png (with its 1,378 stars, rings of thin
lines, as a separate folder); tiles of 96 × 96 pixels of scikit-image's and scikit-learn's photographs, many of them
plain sky or paper; the first 2,000 images of Fashion-MNIST at 112 × 112.
"""

import io
import random
from pathlib import Path

import tyro
from PIL import Image
from table import Table

from vismoe.data import find_duplicates, fingerprint, flatten_alpha, list_images, read_image
from vismoe.data.images import eight_bits

RESULTS = Path(__file__).parent / "results" / "near_duplicates.csv"
SMALLEST, LARGEST = 64, 4_000_000
CELL, ROWS, DRAWN = 96, 10, 100


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "jpeg", quality=50)
    return Image.open(file)


def changed(image: Image.Image) -> dict[str, Image.Image]:
    """The image on a white background, changed in each way."""
    plain = flatten_alpha(eight_bits(image)).convert("RGB")
    width, height = plain.size
    half = plain.resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    left, top = max(1, round(width * 0.01)), max(1, round(height * 0.01))
    return {
        "jpeg_q50": jpeg(plain),
        "half": half,
        "crop_2_percent": plain.crop((left, top, width - left, height - top)),
        "brighter_8_percent": plain.point(lambda level: min(255, int(level * 1.08))),
        "half_jpeg_q50": jpeg(half),
    }


def chosen(folder: Path, limit: int) -> list[tuple[Path, Image.Image]]:
    files, found = list_images(folder)[0], []
    random.Random(0).shuffle(files)
    for file in files:
        try:
            image = read_image(file)
        except ValueError:
            continue
        if len(found) < limit and min(image.size) >= SMALLEST and image.width * image.height <= LARGEST:
            found.append((file, image))
    return found


def draw(pairs: list[tuple[Image.Image, Image.Image]], file: Path) -> None:
    """Draws pairs side by side, ROWS per column; at most DRAWN pairs, chosen by a seed."""
    pairs = random.Random(0).sample(pairs, min(DRAWN, len(pairs)))
    columns = -(-len(pairs) // ROWS)
    sheet = Image.new("RGB", (columns * (2 * CELL + 16), ROWS * (CELL + 8)), "gold")
    for number, pair in enumerate(pairs):
        for side, image in enumerate(pair):
            shown = flatten_alpha(eight_bits(image)).convert("RGB").resize((CELL, CELL))
            sheet.paste(shown, (number // ROWS * (2 * CELL + 16) + side * CELL, number % ROWS * (CELL + 8)))
    sheet.save(file)


def main(folder: Path, limit: int = 2000, show: Path | None = None, out: Path = RESULTS) -> None:
    """Measure one folder; print the result and write it to the table."""
    images = chosen(folder, limit)
    prints = [fingerprint(image) for _, image in images]
    again: dict[str, int] = {}
    for print_, (_, image) in zip(prints, images, strict=True):
        for change, other in changed(image).items():
            again[change] = again.get(change, 0) + (len(set(find_duplicates([print_, fingerprint(other)]).groups)) == 1)
    first = {print_.digest: index for index, print_ in reversed(list(enumerate(prints)))}
    kinds = sorted(first.values())
    near = [
        (a, b)
        for place, a in enumerate(kinds)
        for b in kinds[place + 1 :]
        if (prints[a].phash ^ prints[b].phash).bit_count() <= 16 and find_duplicates([prints[a], prints[b]]).near
    ]
    row = {"folder": folder.name, "pictures": len(images), "copies": len(images) - len(kinds)}
    row |= {"pairs": len(kinds) * (len(kinds) - 1) // 2, "pairs_called_near": len(near)}
    row |= {f"found_{change}": round(count / len(images), 3) for change, count in again.items()}
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    if show is not None and near:
        draw([(images[a][1], images[b][1]) for a, b in near], show)
    table = Table(out)
    others = [line for line in table.rows() if line["folder"] != folder.name]
    table.write([*others, row])


if __name__ == "__main__":
    tyro.cli(main)

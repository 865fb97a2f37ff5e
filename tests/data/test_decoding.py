"""pytest tests/data/test_decoding.py: what is in files, as the network sees it, and files that are no images."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from vismoe.data import evaluation_transform, list_images, read_image

COLOUR = {"input_size": (3, 4, 4), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "nearest", "crop_pct": 1.0}
GREY = COLOUR | {"input_size": (1, 4, 4), "mean": (0,), "std": (1,)}


def seen(path, config=COLOUR) -> np.ndarray:
    """A file's pixels as they reach the network, 0…255."""
    return (evaluation_transform(config)({"image": read_image(path)})["image"] * 255).round().to(torch.uint8).numpy()


def png_header(width, height) -> bytes:
    """A file of 60 bytes that claims to be a large image."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (3, 3)), (6, (3, 0)), (8, (0, 3))])
def test_images_stand_upright(tmp_path, orientation, corner):
    """A camera's orientation tag is obeyed: the stored top left pixel goes to (x, y) = `corner`, after the standard."""
    pixels = np.zeros((4, 4), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    x, y = corner
    assert np.argwhere(np.asarray(read_image(tmp_path / "x.png"))).tolist() == [[y, x]]


def test_a_palette_is_resolved(tmp_path):
    """A palette's numbers become its colours."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "x.png")
    assert seen(tmp_path / "x.png")[:, 0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (255, 0, 0, 255), [255, 0, 0]),
        ("RGBA", (255, 0, 0, 51), [255, 204, 204]),
        ("LA", (0, 0), [255, 255, 255]),
    ],
)
def test_transparency_is_on_white(tmp_path, mode, pixel, expected):
    """What is transparent shows white paper: α·colour + (1 − α)·255."""
    Image.new(mode, (4, 4), pixel).save(tmp_path / "x.png")
    assert seen(tmp_path / "x.png")[:, 0, 0].tolist() == expected


def test_a_transparent_palette_entry_is_white(tmp_path):
    """Transparency that a palette declares counts as alpha does."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "x.png", transparency=1)
    assert seen(tmp_path / "x.png")[:, 0, 0].tolist() == [255, 255, 255]


def test_grey_and_colour_become_what_the_network_takes(tmp_path):
    """Grey fills three channels; colour becomes grey by ITU-R 601's luma, 0.299 R + 0.587 G + 0.114 B."""
    Image.new("L", (4, 4), 90).save(tmp_path / "grey.png")
    Image.new("RGB", (4, 4), (200, 100, 50)).save(tmp_path / "colour.png")
    assert seen(tmp_path / "grey.png")[:, 0, 0].tolist() == [90, 90, 90]
    assert seen(tmp_path / "colour.png", GREY)[:, 0, 0].tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_shades(tmp_path, suffix):
    """Sixteen bits are scaled to eight, v / 257, not cut off at white."""
    values = np.array([[0, 257, 1000, 25700], [30000, 40000, 60000, 65535]] * 2, np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert seen(tmp_path / f"x.{suffix}", GREY)[0].tolist() == (values / 257).round().astype(int).tolist()
    assert seen(tmp_path / f"x.{suffix}")[2].tolist() == (values / 257).round().astype(int).tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_unknown_range_is_refused(tmp_path, dtype):
    """32-bit grey could mean anything: it is refused, not cut off at 255."""
    Image.fromarray(np.arange(16, dtype=dtype).reshape(4, 4)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="the range of its 32-bit grey levels is unknown"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_refused(channels):
    """Image files come as grey or colour: a network for something else says what it is to be given."""
    transform = evaluation_transform(COLOUR | {"input_size": (channels, 4, 4)})
    with pytest.raises(ValueError, match=rf"takes {channels} channels, but PIL images have 1 \(grey\) or 3"):
        transform({"image": Image.new("L", (4, 4))})


def test_a_text_file_is_no_image(tmp_path):
    """A name does not make an image; the error names the file."""
    (tmp_path / "x.png").write_text("hello")
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jfif", "jpg", "png", "ppm", "webp"])
def test_a_cut_off_file_is_no_image(tmp_path, suffix):
    """Half a download is an error that names the file, never an image that is half grey."""
    path = tmp_path / f"x.{suffix}"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"x\.{suffix} cannot be read as an image"):
        read_image(path)


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_001), (50_000, 50_000)])
def test_a_bomb_is_not_decoded(tmp_path, monkeypatch, width, height):
    """A tiny file whose header claims more than MAX_PIXELS is refused by its header alone."""
    (tmp_path / "x.png").write_bytes(png_header(width, height))

    def decode(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(Image.core, "zip_decoder", decode)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image: .*pixels"):
        read_image(tmp_path / "x.png")


def test_a_large_image_within_the_bound_is_no_warning(tmp_path):
    """Up to MAX_PIXELS an image is taken without a word: it fails only for what it lacks, its pixels."""
    (tmp_path / "x.png").write_bytes(png_header(9_000, 11_111))
    with pytest.raises(ValueError, match="truncated"):
        read_image(tmp_path / "x.png")


def test_jpeg_files_may_be_called_jfif(tmp_path):
    """As browsers on Windows save them: they are listed and read as other JPEG files."""
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "photo.JFIF", "JPEG")
    images, left_out = list_images(tmp_path)
    assert (images, left_out) == ([tmp_path / "photo.JFIF"], [])
    assert read_image(images[0]).size == (4, 4)

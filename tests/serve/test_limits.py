"""pytest tests/serve/test_limits.py: each limit of a request has its own status and code, and leaks nothing."""

import asyncio
import base64
import io
import json
import struct
import threading
import zlib

import pytest
from PIL import Image

from vismoe.serve import Settings
from vismoe.serve.requests.bodies import BodyLimit
from vismoe.serve.requests.decoding import MAX_PIXELS, MAX_SCANS, START_OF_SCAN, decode_image
from vismoe.serve.requests.errors import ServiceError

from .conftest import IMAGES, encoded, files, refusal
from .test_batching import Squares, wait_until

PNG = encoded(IMAGES[0])


def png_of(width: int, height: int) -> bytes:
    """A PNG file whose header declares a size, with the pixels of one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * (width + 1)))
        + chunk(b"IEND", b"")
    )


def animated(kind: str, frames: int) -> bytes:
    still = [Image.new("RGB", (4, 4), (80 * number, 0, 0)) for number in range(frames)]
    return encoded(still[0], kind, save_all=True, append_images=still[1:], duration=10)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_accepted_formats(shared, kind):
    image = Image.new("RGB", (9, 7), "red")
    assert shared.post("/v1/predict", files=files(encoded(image, kind))).status_code == 200


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", (415, "not_an_image")),
        (b"hello", (415, "not_an_image")),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", (415, "not_an_image")),
        (b"%PDF-1.4", (415, "not_an_image")),
        (encoded(IMAGES[0], "TIFF"), (415, "not_an_image")),
        (encoded(IMAGES[0], "PPM"), (415, "not_an_image")),
        (PNG[:40], (422, "bad_image")),
        (PNG[:8], (422, "bad_image")),
        (PNG[:30] + b"\0\0\0\0" + PNG[34:], (422, "bad_image")),
        (encoded(Image.new("RGB", (99, 99)), "JPEG")[:-200], (422, "bad_image")),
        (png_of(30_000, 30_000), (422, "bad_image")),
        (png_of(12_000, 8_000), (422, "bad_image")),
        (png_of(MAX_PIXELS + 1, 1), (422, "bad_image")),
        (animated("GIF", 3), (422, "bad_image")),
        (animated("PNG", 3), (422, "bad_image")),
        (encoded(Image.new("I;16", (4, 4)), "PNG"), (200, "")),  # 16 bits: such images are read
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_content_of_an_image(shared, content, expected):
    """415 for what is no image of an accepted format; 422 for one that is damaged, too large, or has frames."""
    response = shared.post("/v1/predict", files=files(content))
    assert response.status_code == 200 if expected[0] == 200 else refusal(response) == expected


def test_bombs_are_refused_by_their_headers():
    """No pixel is decoded, and no third frame of 10,000 is looked for."""
    one = encoded(Image.new("P", (4, 4)), "GIF")
    head = 13 + 3 * 2 ** (1 + (one[10] & 7))  # header and palette; then the frame, and the trailer
    many = one[:head] + one[head:-1] * 10_000 + b";"
    with Image.open(io.BytesIO(many)) as image:
        assert image.n_frames == 10_000
    for content in (many, png_of(30_000, 30_000)):
        with pytest.raises(ServiceError) as caught:
            decode_image(content)
        assert caught.value.code == "bad_image"


def scans(number: int) -> bytes:
    """A progressive JPEG file with so many scans: its last one again and again, each with a few bytes."""
    content = encoded(Image.new("L", (400, 400)), "JPEG", progressive=True)
    start = content.rindex(START_OF_SCAN)
    (length,) = struct.unpack(">H", content[start + 2 : start + 4])
    head = content[start : start + 2 + length]
    return content[:-2] + (head + bytes(8)) * (number - content.count(START_OF_SCAN)) + b"\xff\xd9"


def test_scans_of_a_jpeg_file_are_counted():
    """A scan of 18 bytes takes as long as all pixels: 20 MB of them would take hours. What cameras and programs write
    has about ten."""
    assert decode_image(scans(MAX_SCANS)).size == (400, 400)
    with pytest.raises(ServiceError, match="more than 100 scans") as caught:
        decode_image(scans(MAX_SCANS + 1))
    assert caught.value.code == "bad_image"
    noise = Image.effect_noise((700, 700), 90).convert("RGB")  # pixels do not look like the beginning of a scan
    assert decode_image(encoded(noise, "JPEG", quality=100)).size == (700, 700)


def test_images_are_turned_upright():
    """By their EXIF orientation, as files are."""
    image = Image.new("RGB", (6, 4), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, "JPEG", exif=exif)).size == (4, 6)


def test_body_size(start):
    """Counted while it is read, with or without a Content-Length."""
    client = start(max_body=2000)
    large = files(bytes(5000))
    assert refusal(client.post("/v1/predict", files=large)) == (413, "too_large")
    chunks = (bytes(500) for _ in range(8))
    headers = {"Content-Type": "application/json"}
    assert refusal(client.post("/v1/predict", content=chunks, headers=headers)) == (413, "too_large")
    chunks = (b"--x\r\n" for _ in range(800))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refusal(client.post("/v1/predict", content=chunks, headers=headers)) == (413, "too_large")
    assert client.post("/v1/predict", files=files(PNG)).status_code == 200


def test_bodies_of_all_requests_together():
    """A limit of their bytes in memory; they are given back when requests end."""
    limit = BodyLimit(lambda *_: None, Settings(max_body=100))
    for _ in range(16):
        limit.count(0, 100)
    with pytest.raises(ServiceError) as caught:
        limit.count(0, 100)
    assert (caught.value.code, caught.value.headers) == ("busy", {"Retry-After": "1"})

    async def read(scope, receive, send):
        assert (await receive())["body"] == b"12345"
        assert fresh.held == 5

    async def receive():
        return {"type": "http.request", "body": b"12345", "more_body": False}

    fresh = BodyLimit(read, Settings())
    asyncio.run(fresh({"type": "http", "headers": []}, receive, None))
    assert fresh.held == 0


def test_slow_bodies(start):
    """The whole body has to come within the time, however many pieces come."""

    async def read(scope, receive, send):
        while (await receive()).get("more_body"):
            pass

    async def trickle():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b".", "more_body": True}

    limit = BodyLimit(read, Settings(request_timeout=0.1))
    with pytest.raises(ServiceError) as caught:
        asyncio.run(limit({"type": "http", "headers": []}, trickle, None))
    assert (caught.value.status, caught.value.code) == (408, "timeout")


def test_a_full_queue(start):
    """503 with Retry-After, at once; the images that wait are answered."""
    client, work = start(queue=2, batch_size=1), Squares()
    batcher, answers = client.service.batcher, []
    with batcher.places(1) as places:
        places.put(work, 1)
    wait_until(lambda: batcher.waiting == 0)  # the thread runs this one until it may end
    waiting = [
        threading.Thread(target=lambda: answers.append(client.post("/v1/predict", files=files(PNG)))) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: batcher.waiting == 2)
    response = client.post("/v1/predict", files=files(PNG))
    assert refusal(response) == (503, "busy")
    assert int(response.headers["retry-after"]) >= 1
    work.may_run.set()
    for thread in waiting:
        thread.join(10)
    assert [answer.status_code for answer in answers] == [200] * 2
    too_many = client.post("/v1/predict", files=files(PNG, PNG, PNG))
    assert refusal(too_many) == (422, "too_many_images")  # they never fit: no reason to try again


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"topk": "0"}, "bad_value"),
        ({"topk": "x"}, "bad_value"),
        ({"topk": "1.5"}, "bad_value"),
        ({"topk": "9" * 900}, "bad_value"),
        ({"capacity": "0"}, "bad_value"),
        ({"capacity": "-1"}, "bad_value"),
        ({"capacity": "nan"}, "bad_value"),
        ({"capacity": "inf"}, "bad_value"),
        ({"model": "-1"}, "bad_value"),
        ({"other": "1"}, "bad_value"),
        ({"topk": ["1", "2"]}, "bad_value"),
        ({"topk": "1" * 2000}, "bad_multipart"),
    ],
)
def test_options(shared, data, code):
    """Values out of range, unknown options, and those given twice."""
    status = {"bad_value": 422, "bad_multipart": 400}[code]
    assert refusal(shared.post("/v1/predict", files=files(PNG), data=data)) == (status, code)


BASE64 = base64.b64encode(PNG).decode()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", (400, "bad_json")),
        ("[" * 100_000, (400, "bad_json")),
        ('{"images":' * 50_000, (400, "bad_json")),
        ("\xff", (400, "bad_json")),
        ("[]", (422, "bad_value")),
        ("null", (422, "bad_value")),
        ("{}", (422, "bad_value")),
        (json.dumps({"images": []}), (422, "bad_value")),
        (json.dumps({"images": "x"}), (422, "bad_value")),
        (json.dumps({"images": [1]}), (422, "bad_value")),
        (json.dumps({"images": ["?"]}), (422, "bad_value")),
        (json.dumps({"images": ["é"]}), (422, "bad_value")),
        (json.dumps({"images": [BASE64], "topk": True}), (422, "bad_value")),
        (json.dumps({"images": [BASE64], "topk": "1"}), (422, "bad_value")),
        (json.dumps({"images": [BASE64], "topk": float("nan")}), (422, "bad_value")),
        (json.dumps({"images": [BASE64], "further": 1}), (422, "bad_value")),
        (json.dumps({"images": [""]}), (415, "not_an_image")),
        (json.dumps({"images": [BASE64] * 65}), (422, "too_many_images")),
    ],
)
def test_json(shared, body, expected):
    """Deep and broken JSON, and values of other types."""
    content = body.encode("latin-1") if body == "\xff" else body.encode()
    headers = {"Content-Type": "application/json"}
    assert refusal(shared.post("/v1/predict", content=content, headers=headers)) == expected


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        (b"x", "text/plain", (415, "unsupported_type")),
        (b"x", "", (415, "unsupported_type")),
        (b"a=1", "application/x-www-form-urlencoded", (415, "unsupported_type")),
        (b"x", "multipart/form-data", (400, "bad_multipart")),
        (b"x", "multipart/form-data; boundary=a", (400, "bad_multipart")),
        (b"", "multipart/form-data; boundary=a", (422, "bad_value")),
        (b"--a\r\n\r\n\r\n--a--\r\n", "multipart/form-data; boundary=a", (400, "bad_multipart")),
        (
            b"--a\r\nContent-Disposition: form-data\r\n\r\n\r\n--a--\r\n",
            "multipart/form-data; boundary=a",
            (400, "bad_multipart"),
        ),
        (
            b'--a\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--a--\r\n',
            "multipart/form-data; boundary=a",
            (422, "bad_value"),
        ),
        (
            b'--a\r\nContent-Disposition: form-data; name="other"; filename="a"\r\n\r\nx\r\n--a--\r\n',
            "multipart/form-data; boundary=a",
            (422, "bad_value"),
        ),
    ],
)
def test_forms(shared, content, kind, expected):
    """Other types, and forms that are damaged or lack the image."""
    assert refusal(shared.post("/v1/predict", content=content, headers={"Content-Type": kind})) == expected


def test_explain_takes_one_image(shared):
    assert refusal(shared.post("/v1/explain", files=files(PNG, PNG))) == (422, "too_many_images")
    assert refusal(shared.post("/v1/explain", json={"images": [BASE64]})) == (415, "unsupported_type")


def test_file_names_are_not_used(shared):
    """Whatever they are."""
    for name in ("../../etc/passwd", "\u202e.png", "a" * 2000, 'x";\r\nX: 1', "=cmd()"):
        assert shared.post("/v1/predict", files=[("image", (name, PNG))]).status_code == 200


def test_heads(shared):
    """A head that arrives at once is limited too; tests/serve/test_process.py sends one in pieces."""
    assert refusal(shared.get("/v1/model", headers={"X-Large": "a" * 40_000})) == (431, "head_too_large")
    assert shared.get("/v1/model", headers={"X-Large": "a" * 20_000}).status_code == 200
    for address in ("/" + "a" * 40_000, "/v1/run?" + "a" * 40_000):
        assert refusal(shared.get(address)) == (431, "head_too_large")

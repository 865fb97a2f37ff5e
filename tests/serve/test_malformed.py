"""pytest -m slow tests/serve/test_malformed.py: a thousand malformed requests, and those that schemathesis makes of the
OpenAPI document. Each gets the right code, and the service still answers."""

import base64
import json
import random
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from .conftest import IMAGES, encoded, refusal
from .test_limits import animated, png_of
from .test_process import FORM, HEAD, Process, answer

pytestmark = pytest.mark.slow
PNG = encoded(IMAGES[0])
PHOTOS = [encoded(Image.effect_noise((64, 64), 80), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
ROUNDS = 50


def post(content, **headers):
    return {"method": "POST", "url": "/v1/predict", "content": content, "headers": headers}


def form(content, name="a.png", field="image", **data):
    return {"method": "POST", "url": "/v1/predict", "files": [(field, (name, content))], "data": data}


def as_json(value):
    content = value if isinstance(value, str) else json.dumps(value)
    return post(content.encode(), **{"Content-Type": "application/json"})


def gif_of(frames):
    one = encoded(Image.new("P", (4, 4)), "GIF")
    head = 13 + 3 * 2 ** (1 + (one[10] & 7))
    return one[:head] + one[head:-1] * frames + b";"


def kinds(draw):
    """A request of each kind, with the status and code of its answer."""
    some = draw.randbytes(draw.randrange(1, 400))
    photo = draw.choice(PHOTOS)
    text = base64.b64encode(PNG).decode()
    deep = draw.choice(["[", '{"images":', '{"a":[']) * draw.randrange(5_000, 15_000)
    odd = draw.choice(["../../etc/passwd", "\u202egnp.exe", "=1+1", "a" * 1000, "\x7f", "%00", "<script>"])
    strange = draw.choice(["https://evil.example", "null", "http://127.0.0.1:1", "chrome-extension://abc"])
    frames = draw.choice([gif_of(10_000), animated("PNG", 3), animated("WEBP", 3)])
    kind = draw.choice(["text/plain", "image/png", "a"])
    host = draw.choice(["evil.example", "127.0.0.2", "[::2]"])
    path = draw.choice(["/v2", "/.env", "/page/%2e%2e", "/%00"])
    method = draw.choice(["GET", "PUT", "DELETE"])
    is_form = {"Content-Type": "multipart/form-data; boundary=x"}
    return {
        "empty form": (post(b"", **is_form), 422, "bad_value"),
        "empty image": (form(b""), 415, "not_an_image"),
        "no image": (form(b"\0" + some), 415, "not_an_image"),
        "truncated": (form(photo[: draw.randrange(len(photo) // 4, len(photo) // 2)]), 422, "bad_image"),
        "large in pixels": (form(png_of(30_000, 30_000)), 422, "bad_image"),
        "many frames": (form(frames), 422, "bad_image"),
        "wrong type": (post(some, **{"Content-Type": kind}), 415, "unsupported_type"),
        "broken form": (post(some, **is_form), 400, "bad_multipart"),
        "wrong option": (form(PNG, topk=draw.choice(["", "x", "-1", "1e9", "0"])), 422, "bad_value"),
        "wrong field": (form(PNG, field=odd), 422, "bad_value"),
        "deep JSON": (as_json(deep), 400, "bad_json"),
        "bad base64": (as_json({"images": [text[:-1] + draw.choice("?-_ ")]}), 422, "bad_value"),
        "wrong JSON": (as_json(draw.choice([[], {"images": 1}, {"images": [text], "topk": []}])), 422, "bad_value"),
        "too large": (form(bytes(draw.randrange(450_000, 600_000))), 413, "too_large"),
        "foreign Origin": (form(PNG) | {"headers": {"Origin": strange}}, 403, "foreign_origin"),
        "foreign Host": (form(PNG) | {"headers": {"Host": host}}, 421, "unknown_host"),
        "odd name": (form(PNG, odd), 200, ""),
        "unknown path": ({"method": "GET", "url": path}, 404, "not_found"),
        "wrong method": ({"method": method, "url": "/v1/predict"}, 405, "method_not_allowed"),
    }


@pytest.fixture(scope="module")
def process(folder):
    started = Process(folder, "--request-timeout", "2", "--max-body", "400KB")
    yield started
    assert started.stop() == 0


def test_a_thousand_malformed_requests(process):
    """Of nineteen kinds, and on connections of their own heads that are too large and bodies that do not come. The
    process that answers at the end is the one of the beginning."""
    draw, wrong, number = random.Random(0), [], 0
    before = process.ask()
    with httpx.Client(base_url=f"http://127.0.0.1:{process.port}", timeout=20) as client:
        for _ in range(ROUNDS):
            for kind, (request, status, code) in kinds(draw).items():
                response = client.request(**request)
                got = (response.status_code, "") if response.status_code == 200 else refusal(response)
                wrong += [] if got == (status, code) else [(kind, got)]
                number += 1
    with ThreadPoolExecutor(30) as pool:
        slow = list(pool.map(lambda _: raw(process, HEAD + b"\r\n" + FORM[:30]), range(30)))
    large = [raw(process, HEAD + b"X: " + b"a" * size + b"\r\n\r\n") for size in range(50_000, 80_000, 1000)]
    assert wrong == []
    assert set(slow) == {(408, "timeout")}
    assert set(large) == {(431, "head_too_large")}
    assert number + len(slow) + len(large) >= 1000
    assert process.ask() == before


def raw(process, content):
    with process.connect() as connection:
        connection.sendall(content)
        return answer(connection)


def test_schemathesis(process, tmp_path):
    """No answer that the OpenAPI document does not describe. (`positive_data_acceptance` is left out: the document
    cannot say which bytes are an image.)"""
    program = shutil.which("schemathesis") or str(Path(sys.executable).with_name("schemathesis"))
    if not Path(program).is_file():
        pytest.skip("schemathesis is not installed")
    options = ["--exclude-checks", "positive_data_acceptance", "--max-examples", "15", "--seed", "1", "--no-color"]
    done = subprocess.run(
        [program, "run", f"http://127.0.0.1:{process.port}/openapi.json", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,  # it writes a cache
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    (made,) = re.findall(r"(\d+) generated, \1 passed", done.stdout)
    assert int(made) > 100
    assert process.ask()

"""pytest tests/files/test_http.py: files over HTTP, from a server in this process that cuts, refuses and errs."""

import base64
import hashlib
import random
import socket
import time

import pytest

from vismoe.files.http import fetch

from .file_server import serving

CONTENT = random.Random(0).randbytes(200_000)


@pytest.fixture
def server():
    with serving() as shop:
        shop.files["a"] = CONTENT
        yield shop


@pytest.fixture
def waited(monkeypatch):
    """Seconds that were waited, none of which passes."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def whole(tmp_path, content=CONTENT):
    """The file is there, and nothing beside it."""
    return (tmp_path / "a").read_bytes() == content and [path.name for path in tmp_path.iterdir()] == ["a"]


def fails(server, tmp_path, message):
    with pytest.raises(ValueError, match=message) as raised:
        fetch(f"{server.address}/a", tmp_path / "a")
    assert f"{server.address}/a" in str(raised.value)
    assert not (tmp_path / "a").exists()


def test_a_file_comes_with_progress(server, tmp_path, capsys):
    """Whole, in one request, with a bar on stderr."""
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    assert server.seen == [("a", None)]
    assert "200k/200k" in capsys.readouterr().err


@pytest.mark.parametrize("with_tags", [True, False])
def test_a_broken_download_goes_on(server, tmp_path, waited, with_tags):
    """A cut connection: only what is missing is asked for."""
    server.with_tags, server.plan = with_tags, [1000, 50_000, 0]
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    assert [asked for _, asked in server.seen] == [None, "bytes=1000-", "bytes=51000-", "bytes=51000-"]
    assert waited == [1, 1, 2]


def test_another_call_goes_on(server, tmp_path, waited):
    """What a call that gave up has kept is where the next one begins; a whole part needs no request."""
    server.plan = [70_000, *[(503, {})] * 4]
    fails(server, tmp_path, "answers 503 Service Unavailable .tried 5 times in a row; 70,000 bytes are kept")
    assert waited == [1, 2, 4, 8]
    server.seen.clear()
    server.plan.clear()
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    assert server.seen == [("a", "bytes=70000-")]


def test_a_server_without_ranges(server, tmp_path, waited):
    """It sends everything again, which replaces what came before; one that always breaks off is given up."""
    server.with_ranges, server.plan = False, [1000]
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    (tmp_path / "a").unlink()
    server.plan = [1000] * 9
    fails(server, tmp_path, "interrupted after 1,000 of 200,000 bytes .tried 5 times")
    assert len(server.plan) == 4


@pytest.mark.parametrize("with_tags", [True, False])
def test_another_file_meanwhile(server, tmp_path, waited, with_tags):
    """Halves of two files are never put together, be the other one of another tag, longer or shorter."""
    server.with_tags = with_tags
    for other in (CONTENT[::-1] if with_tags else CONTENT[1:], CONTENT * 2, CONTENT[:500]):
        server.files["a"], server.plan = CONTENT, [1000, (404, {})]
        fails(server, tmp_path, "404")
        assert (tmp_path / "a.part").read_bytes() == CONTENT[:1000]
        server.files["a"] = other
        fetch(f"{server.address}/a", tmp_path / "a")
        assert whole(tmp_path, other)
        (tmp_path / "a").unlink()


def test_416_begins_again(server, tmp_path, waited):
    """An answer that there is nothing behind what came before: it was of another file."""
    server.plan = [1000, (416, {})]
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    assert [asked for _, asked in server.seen] == [None, "bytes=1000-", None]
    (tmp_path / "a").unlink()
    server.plan = [(416, {})] * 9
    fails(server, tmp_path, "answers 416")
    assert not list(tmp_path.iterdir())


def test_503_is_tried_again(server, tmp_path, waited):
    """After as long as the server says, in seconds or as a date, else after longer and longer."""
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    server.plan = [(503, {"Retry-After": "7"}), (503, {}), (429, {"Retry-After": soon}), (503, {"Retry-After": "x"})]
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    assert (waited[0], waited[1], waited[3]) == (7, 2, 8)
    assert 50 < waited[2] <= 61


def test_503_is_given_up(server, tmp_path, waited):
    """After five tries, or at once where the server asks for too long a wait."""
    server.plan = [(503, {})] * 9
    fails(server, tmp_path, "answers 503 Service Unavailable .tried 5 times")
    assert len(server.plan) == 4
    server.plan, waited[:] = [(503, {"Retry-After": "86400"})], []
    fails(server, tmp_path, "503 Service Unavailable, and asks to wait 86400 seconds")
    assert not waited
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [403, 404])
def test_what_is_not_there(server, tmp_path, waited, code):
    """One request, one error, nothing written."""
    server.plan = [(code, {})]
    fails(server, tmp_path, f"answers {code}")
    assert len(server.seen) == 1
    assert not list(tmp_path.iterdir())


def test_nobody_answers(tmp_path, waited):
    """Without a network it says so after a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"127.0.0.1:{port}/a: no server can be reached .check the network"):
        fetch(f"http://127.0.0.1:{port}/a", tmp_path / "a")
    assert waited == [1]
    with pytest.raises(ValueError, match="is not a valid address"):
        fetch("http://127.0.0.1:port/a", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_the_publishers_digest(server, tmp_path):
    """Google's storage says a file's MD5: what is damaged on the way is not kept."""
    digests = [base64.b64encode(hashlib.md5(content).digest()).decode() for content in (CONTENT, b"other")]
    server.headers = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digests[0]}"}
    fetch(f"{server.address}/a", tmp_path / "a")
    assert whole(tmp_path)
    (tmp_path / "a").unlink()
    server.headers = {"x-goog-hash": f"crc32c=AAAAAA==,md5={digests[1]}"}
    fails(server, tmp_path, "it is damaged; try again")
    assert not list(tmp_path.iterdir())

"""Downloads over HTTP with the standard library: resumed after a break, whole or not there."""

import base64
import hashlib
import math
import os
import re
import time
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, InvalidURL
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub.utils.tqdm import tqdm

from .atomic import put_in_place, read_json, write_json

TIMEOUT = 30.0
"""Seconds without a byte, after which a connection is given up."""
CHUNK = 2**20
BUSY = (408, 429, 500, 502, 503, 504)
"""Status codes that another try may change."""
TRIES, UNREACHABLE_TRIES = 5, 2
"""Tries in a row without a further byte; the same for a server that never answered."""
LONGEST_WAIT = 120.0
"""Seconds between tries that a server may ask for."""


class _BrokenError(Exception):
    """A failed try that may be repeated: `tries` in all, after `wait` seconds where the server said so."""

    def __init__(self, message: str, tries: int = TRIES, wait: float | None = None):
        super().__init__(message)
        self.tries, self.wait = tries, wait


@dataclass(frozen=True)
class _Partial:
    """The part of a file that has arrived, PATH.part, and beside it the server's description of the whole file."""

    path: Path

    @property
    def description_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def description(self) -> dict[str, Any]:
        return read_json(self.description_path) if self.path.exists() else {}

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.description_path.unlink(missing_ok=True)


def fetch(url: str, path: Path) -> None:
    """Downloads a file to PATH.part, with progress, and moves it to `path` once it is whole and on the disk.

    A download that broke off continues by HTTP Range where the server still has the same file (its ETag or date, and
    size), else it starts again. Temporary failures are tried again, up to five times without a further byte, at growing
    intervals or the server's Retry-After.

    **Raises:** ValueError for an address that does not answer, has no such file, or sends another one than it says.
    What has arrived so far is kept for the next call.
    """
    part = _Partial(path.with_name(f"{path.name}.part"))
    failed, largest = 0, part.size
    while True:
        try:
            _continue(url, part)
            break
        except _BrokenError as error:
            failed = failed + 1 if part.size <= largest else 1
            largest = max(largest, part.size)
            wait = 2.0 ** (failed - 1) if error.wait is None else error.wait
            if failed >= error.tries or wait > LONGEST_WAIT:
                asked_wait = f", and asks to wait {wait:.0f} seconds" if wait > LONGEST_WAIT else ""
                kept = f"; {part.size:,} bytes are kept, the next call goes on there" if part.size else ""
                raise ValueError(f"{url}: {error}{asked_wait} (tried {failed} times in a row{kept})") from error
            time.sleep(wait)
    _check_digest(url, part)
    put_in_place(part.path, path)
    part.description_path.unlink(missing_ok=True)


def _continue(url: str, part: _Partial) -> None:
    """One try to download the missing part of a file.

    **Raises:** _BrokenError for failures that may be temporary; ValueError for others.
    """
    received, description = part.size, part.description()
    if received and received == description.get("size"):
        return
    headers = {"User-Agent": "vismoe"}
    if received and description:
        headers["Range"] = f"bytes={received}-"
        if description.get("validator"):
            headers["If-Range"] = description["validator"]
    with _open(Request(url, headers=headers), part) as response:
        answered = _description(response, received, description)
        if answered is None:
            part.discard()
            raise _BrokenError("the server has another file than the one whose beginning came before", wait=0.0)
        start = received if response.status == 206 else 0
        if not start:
            part.discard()
            write_json(part.description_path, answered)
        _receive(response, part.path, start, answered["size"])
    if answered["size"] is not None and part.size != answered["size"]:
        raise _BrokenError(f"broke off after {part.size:,} of {answered['size']:,} bytes")


def _open(request: Request, part: _Partial) -> HTTPResponse:
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            status = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # the range starts behind the file's end: the first part was of another file
                part.discard()
                raise _BrokenError(status, wait=0.0) from error
            if error.code in BUSY:
                raise _BrokenError(status, wait=_retry_after(error.headers)) from error
            raise ValueError(f"{request.full_url}: {status}") from error
    except InvalidURL as error:
        raise ValueError(f"{request.full_url} is no address: {error}") from error
    except (URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise _BrokenError(f"no server can be reached (is there a network?): {reason}", UNREACHABLE_TRIES) from error
    except (OSError, HTTPException) as error:
        raise _BrokenError(f"the connection broke before an answer: {error!r}") from error
    return response


def _description(response: HTTPResponse, received: int, description: dict[str, Any]) -> dict[str, Any] | None:
    """The server's description of the whole file; None where the rest that it sends is of another file."""
    size = response.headers.get("Content-Length")
    answered: dict[str, Any] = {
        "size": int(size) if size is not None and size.isdecimal() else None,
        "validator": response.headers.get("ETag") or response.headers.get("Last-Modified"),
        "md5": _md5(response.headers),
    }
    if response.status != 206:
        return answered
    range_match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    is_same_file = (
        range_match is not None and int(range_match[1]) == received and int(range_match[2]) == description.get("size")
    )
    return description if is_same_file and answered["validator"] == description.get("validator") else None


def _receive(response: HTTPResponse, path: Path, start: int, size: int | None) -> None:
    with (
        path.open("ab") as file,
        tqdm(desc=path.name.removesuffix(".part"), initial=start, total=size, unit="B", unit_scale=True) as bar,
    ):
        try:
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            file.flush()
            os.fsync(file.fileno())


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, HTTPException) as error:
        raise _BrokenError(f"the connection broke: {error!r}") from error


def _check_digest(url: str, part: _Partial) -> None:
    """Compares a whole file with the server's MD5, which Google's storage gives for most files."""
    expected = part.description().get("md5")
    if expected is None:
        return
    with part.path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != expected:
        part.discard()
        raise ValueError(
            f"{url}: what came has MD5 {digest}, the server says {expected}: damaged on the way; try again"
        )


def _md5(headers: Message) -> str | None:
    for entry in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        kind, _, value = entry.strip().partition("=")
        if kind == "md5":
            try:
                return base64.b64decode(value, validate=True).hex()
            except ValueError:
                return None
    return None


def _retry_after(headers: Message) -> float | None:
    """Seconds until the server's Retry-After, a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return float(max(0, math.ceil(parsedate_to_datetime(value).timestamp() - time.time())))
    except ValueError:
        return None

"""Files over HTTP, by the standard library: resumed where they broke off, whole or not there."""

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
"""Seconds without a byte."""
CHUNK = 2**20
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers that another try may change."""
TRIES, UNREACHABLE_TRIES = 5, 2
"""In a row without a further byte; of a server that never answered."""
LONGEST_WAIT = 120.0
"""Seconds between tries that a server may ask for."""


class _BrokenError(Exception):
    """A try that failed, and may be repeated: `tries` in all, after `wait` seconds where the server said so."""

    def __init__(self, message: str, tries: int = TRIES, wait: float | None = None):
        super().__init__(message)
        self.tries, self.wait = tries, wait


@dataclass(frozen=True)
class _Partial:
    """What has come of a file, PATH.part, and beside it what the server said of the whole."""

    path: Path

    @property
    def about(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def told(self) -> dict[str, Any]:
        return read_json(self.about) if self.path.exists() else {}

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)


def fetch(url: str, path: Path) -> None:
    """Downloads a file to PATH.part, with progress, and moves it to `path` once it is whole and on the disk. What broke
    off goes on by HTTP Range where the server has the same file still (its ETag or date, and size), else it begins
    again. What fails for the moment is tried again, up to five times without a further byte, at growing distances or
    the server's Retry-After.

    **Raises:** ValueError for an address that does not answer, has no such file, or sends another one than it says.
    What has come so far stays for the next call.
    """
    part = _Partial(path.with_name(f"{path.name}.part"))
    failed, most = 0, part.size
    while True:
        try:
            _go_on(url, part)
            break
        except _BrokenError as error:
            failed = failed + 1 if part.size <= most else 1
            most = max(most, part.size)
            wait = 2.0 ** (failed - 1) if error.wait is None else error.wait
            if failed >= error.tries or wait > LONGEST_WAIT:
                asked = f", and asks to wait {wait:.0f} seconds" if wait > LONGEST_WAIT else ""
                kept = f"; {part.size:,} bytes are kept, the next call goes on there" if part.size else ""
                raise ValueError(f"{url}: {error}{asked} (tried {failed} times in a row{kept})") from error
            time.sleep(wait)
    _check_digest(url, part)
    put_in_place(part.path, path)
    part.about.unlink(missing_ok=True)


def _go_on(url: str, part: _Partial) -> None:
    """One try: what is missing of a file.

    **Raises:** _BrokenError for what may be tried again; ValueError for what may not.
    """
    had, told = part.size, part.told()
    if had and had == told.get("size"):
        return
    headers = {"User-Agent": "vismoe"}
    if had and told:
        headers["Range"] = f"bytes={had}-"
        if told.get("validator"):
            headers["If-Range"] = told["validator"]
    with _answer(Request(url, headers=headers), part) as response:
        whole = _whole(response, had, told)
        if whole is None:
            part.discard()
            raise _BrokenError("the server has another file than the one whose beginning came before", wait=0.0)
        begun = had if response.status == 206 else 0
        if not begun:
            part.discard()
            write_json(part.about, whole)
        _receive(response, part.path, begun, whole["size"])
    if whole["size"] is not None and part.size != whole["size"]:
        raise _BrokenError(f"broke off after {part.size:,} of {whole['size']:,} bytes")


def _answer(request: Request, part: _Partial) -> HTTPResponse:
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            said = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # it has nothing behind what came before: that was of another file
                part.discard()
                raise _BrokenError(said, wait=0.0) from error
            if error.code in BUSY:
                raise _BrokenError(said, wait=_retry_after(error.headers)) from error
            raise ValueError(f"{request.full_url}: {said}") from error
    except InvalidURL as error:
        raise ValueError(f"{request.full_url} is no address: {error}") from error
    except (URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise _BrokenError(f"no server can be reached (is there a network?): {reason}", UNREACHABLE_TRIES) from error
    except (OSError, HTTPException) as error:
        raise _BrokenError(f"the connection broke before an answer: {error!r}") from error
    return response


def _whole(response: HTTPResponse, had: int, told: dict[str, Any]) -> dict[str, Any] | None:
    """What the server says of the whole file; None where it goes on with another one."""
    size = response.headers.get("Content-Length")
    said: dict[str, Any] = {
        "size": int(size) if size is not None and size.isdecimal() else None,
        "validator": response.headers.get("ETag") or response.headers.get("Last-Modified"),
        "md5": _md5(response.headers),
    }
    if response.status != 206:
        return said
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    goes_on = found is not None and int(found[1]) == had and int(found[2]) == told.get("size")
    return told if goes_on and said["validator"] == told.get("validator") else None


def _receive(response: HTTPResponse, path: Path, begun: int, size: int | None) -> None:
    with (
        path.open("ab") as file,
        tqdm(desc=path.name.removesuffix(".part"), initial=begun, total=size, unit="B", unit_scale=True) as bar,
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
    """Compares a whole file with the MD5 that the server says it has, as Google's storage does of most."""
    expected = part.told().get("md5")
    if expected is None:
        return
    with part.path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        part.discard()
        raise ValueError(f"{url}: what came has MD5 {found}, the server says {expected}: damaged on the way; try again")


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
    """Seconds until the time that the server says, as a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return float(max(0, math.ceil(parsedate_to_datetime(value).timestamp() - time.time())))
    except ValueError:
        return None

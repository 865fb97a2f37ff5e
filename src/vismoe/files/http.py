"""Downloads over HTTP: resumed after an interruption, checked, and moved into place only when complete."""

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
"""Timeout of a connection: seconds without new data."""
CHUNK = 2**20
BUSY = (408, 429, 500, 502, 503, 504)
"""Status codes of temporary failures."""
TRIES, UNREACHABLE_TRIES = 5, 2
"""Number of tries in a row without new data; the same if no server can be reached."""
LONGEST_WAIT = 120.0
"""Longest wait between tries, in seconds, that a server may ask for."""


class _BrokenError(Exception):
    """A failed try that can be repeated.

    - `tries`: total number of tries.
    - `wait`: seconds to wait before the next try, if the server asks for it.
    """

    def __init__(self, message: str, tries: int = TRIES, wait: float | None = None):
        super().__init__(message)
        self.tries, self.wait = tries, wait


@dataclass(frozen=True)
class _Partial:
    """A partly downloaded file, PATH.part, and the server's description of the complete file, PATH.part.json."""

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
    """Downloads a file, with a progress bar. The data is written to PATH.part, which is renamed to `path` when it is
    complete and on the disk.

    An interrupted download is continued by HTTP Range if the server still has the same file (same ETag or date, same
    size); otherwise it starts again. After temporary failures there are up to five tries without new data, at growing
    intervals or those of the server's Retry-After.

    **Arguments:**

    - `url`: the address.
    - `path`: the file to write.

    **Raises:** ValueError if the server does not answer, does not have the file, or the file's checksum is wrong.
    Partial data is kept for the next call.
    """
    part = _Partial(path.with_name(f"{path.name}.part"))
    failed, most_bytes = 0, part.size
    while True:
        try:
            _continue(url, part)
            break
        except _BrokenError as error:
            failed = failed + 1 if part.size <= most_bytes else 1
            most_bytes = max(most_bytes, part.size)
            wait = 2.0 ** (failed - 1) if error.wait is None else error.wait
            if failed >= error.tries or wait > LONGEST_WAIT:
                asked_wait = f", and asks to wait {wait:.0f} seconds" if wait > LONGEST_WAIT else ""
                kept = f"; {part.size:,} bytes are kept, and the next call continues from there" if part.size else ""
                raise ValueError(f"{url}: {error}{asked_wait} (tried {failed} times in a row{kept})") from error
            time.sleep(wait)
    _check_digest(url, part)
    put_in_place(part.path, path)
    part.description_path.unlink(missing_ok=True)


def _continue(url: str, part: _Partial) -> None:
    """Tries once to download the missing part of a file.

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
        new_description = _description(response, received, description)
        if new_description is None:
            part.discard()
            raise _BrokenError("the file on the server has changed since the first part was downloaded", wait=0.0)
        start = received if response.status == 206 else 0
        if not start:
            part.discard()
            write_json(part.description_path, new_description)
        _receive(response, part.path, start, new_description["size"])
    if new_description["size"] is not None and part.size != new_description["size"]:
        raise _BrokenError(f"interrupted after {part.size:,} of {new_description['size']:,} bytes")


def _open(request: Request, part: _Partial) -> HTTPResponse:
    try:
        response: HTTPResponse = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            status = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # the range starts after the end of the file, so the file has changed
                part.discard()
                raise _BrokenError(status, wait=0.0) from error
            if error.code in BUSY:
                raise _BrokenError(status, wait=_retry_after(error.headers)) from error
            raise ValueError(f"{request.full_url}: {status}") from error
    except InvalidURL as error:
        raise ValueError(f"{request.full_url} is not a valid address: {error}") from error
    except (URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise _BrokenError(f"no server can be reached (check the network): {reason}", UNREACHABLE_TRIES) from error
    except (OSError, HTTPException) as error:
        raise _BrokenError(f"the connection was lost before an answer: {error!r}") from error
    return response


def _description(response: HTTPResponse, received: int, description: dict[str, Any]) -> dict[str, Any] | None:
    """The server's description of the complete file; None if the server sends the rest of another file."""
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
        raise _BrokenError(f"the connection was lost: {error!r}") from error


def _check_digest(url: str, part: _Partial) -> None:
    """Compares a complete file with the MD5 of the server, which Google's storage sends for most files."""
    expected = part.description().get("md5")
    if expected is None:
        return
    with part.path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != expected:
        part.discard()
        raise ValueError(
            f"{url}: the downloaded file has MD5 {digest}, but the server states {expected}: it is damaged; try again"
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
    """Seconds to wait by the header Retry-After, which is a number or a date; None without one."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return float(max(0, math.ceil(parsedate_to_datetime(value).timestamp() - time.time())))
    except ValueError:
        return None

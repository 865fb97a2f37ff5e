"""A server of files, for tests: with ranges, and with whatever goes wrong on the way."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """`files`: what there is, by name. `plan`: what becomes of the next requests, in turn: a number of bytes after
    which the connection is cut; a status with headers; None, which is as usual. `seen`: name and range of each."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    plan: list[int | tuple[int, dict[str, str]] | None] = field(default_factory=list)
    seen: list[tuple[str, str | None]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    with_ranges: bool = True
    with_tags: bool = True


def _tag(content: bytes) -> str:
    return f'"{hash(content)}"'


class _Handler(BaseHTTPRequestHandler):
    @property
    def shop(self) -> FileServer:
        return self.server.shop

    def do_GET(self):
        shop, name, asked = self.shop, self.path.rpartition("/")[2], self.headers.get("Range")
        shop.seen.append((name, asked))
        step = shop.plan.pop(0) if shop.plan else None
        if isinstance(step, tuple):
            return self.answer(step[0], step[1])
        if name not in shop.files:
            return self.answer(404)
        content = shop.files[name]
        headers = dict(shop.headers) | ({"ETag": _tag(content)} if shop.with_tags else {})
        changed = self.headers.get("If-Range") not in (None, headers.get("ETag"))
        code, start = 200, 0
        if asked and shop.with_ranges and not changed:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
            code, headers["Content-Range"] = 206, f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(code, headers, content[start:], step)

    def answer(self, code, headers=None, body=b"", cut=None):
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextmanager
def serving() -> Iterator[FileServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.shop = FileServer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.shop
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

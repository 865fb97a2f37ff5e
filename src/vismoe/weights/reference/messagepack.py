"""Reads MessagePack from a file header by header, so that large values are not loaded until they are needed.

Format: https://github.com/msgpack/msgpack/blob/master/spec.md. msgpack-python loads whole objects, with a copy of each
array inside a copy of its file. This reader needs no more memory than the file's size.
"""

import io
import struct
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

DEEPEST = 100
"""Max depth of nested values."""
LONGEST_KEY = 1024

_SIMPLE: dict[int, tuple[str, Any]] = {0xC0: ("nil", None), 0xC2: ("bool", False), 0xC3: ("bool", True)}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_NUMBERS = {
    **{0xCA: ("float", ">f"), 0xCB: ("float", ">d")},
    **{0xCC + number: ("int", form) for number, form in enumerate((">B", ">H", ">I", ">Q", ">b", ">h", ">i", ">q"))},
    **{0xC4 + number: ("bin", form) for number, form in enumerate((">B", ">H", ">I"))},
    **{0xC7 + number: ("ext", form) for number, form in enumerate((">B", ">H", ">I"))},
    **{0xD9 + number: ("str", form) for number, form in enumerate((">B", ">H", ">I"))},
    **{0xDC + number: ("array", form) for number, form in enumerate((">H", ">I"))},
    **{0xDE + number: ("map", form) for number, form in enumerate((">H", ">I"))},
}


@dataclass(frozen=True)
class Extension:
    """A value of an application-specific type."""

    code: int
    payload: bytes


class Packed:
    """One document in a file of `size` bytes, from the file's current position.

    All methods raise ValueError for invalid MessagePack, and for a value of another kind than requested.
    """

    def __init__(self, file: BufferedIOBase, size: int):
        self.file, self.size, self.position = file, size, file.tell()

    def take(self, count: int) -> bytes:
        self._need(count)
        self.position += count
        return self.file.read(count)

    def skip(self, count: int) -> int:
        """Skips `count` bytes; returns their position."""
        self._need(count)
        start = self.position
        self.position += count
        self.file.seek(self.position)
        return start

    def _need(self, count: int) -> None:
        if self.position + count > self.size:
            raise ValueError(f"it ends at byte {self.size}, {self.position + count - self.size:,} bytes too early")

    def head(self) -> tuple[str, Any]:
        """The kind of the next value, and the value; for containers, text, bytes and extensions its length."""
        first = self.take(1)[0]
        if first < 0x80 or first >= 0xE0:
            return "int", first if first < 0x80 else first - 0x100
        if first < 0xA0:
            return "map" if first < 0x90 else "array", first & 15
        if first < 0xC0:
            return "str", first & 31
        if first in _SIMPLE:
            return _SIMPLE[first]
        if first in _FIXED_EXTENSIONS:
            return "ext", _FIXED_EXTENSIONS[first]
        if first not in _NUMBERS:
            raise ValueError(f"byte {self.position - 1} is not valid MessagePack (0x{first:02x})")
        kind, form = _NUMBERS[first]
        return kind, struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def expect(self, name: str, *kinds: str) -> Any:
        """The value or length of the next value, of one of these kinds. `name`: its name in error messages."""
        start = self.position
        kind, value = self.head()
        if kind not in kinds:
            raise ValueError(f"byte {start}: expected {name} ({' or '.join(kinds)}), found {kind}")
        return value

    def extension(self, name: str, code: int) -> int:
        """The payload's length of the next value, an extension with this code. `name`: its name in error messages."""
        start = self.position
        length: int = self.expect(name, "ext")
        if (given := self.code()) != code:
            raise ValueError(f"byte {start}: expected {name} (ext {code}), found ext {given}")
        return length

    def code(self) -> int:
        return int.from_bytes(self.take(1), signed=True)

    def key(self) -> str:
        length = self.expect("a key", "str")
        if length > LONGEST_KEY:
            raise ValueError(f"a key has {length:,} bytes, expected at most {LONGEST_KEY:,}")
        return self.take(length).decode()  # UnicodeDecodeError is a ValueError

    def value(self, raw: bool = False, depth: int = 0) -> Any:
        """The next value with its contents: None, bool, int, float, str, bytes, list, dict (with str keys) or
        `Extension`. With `raw`, text is returned as bytes."""
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        kind, value = self.head()
        if kind == "array":
            return [self.value(raw, depth + 1) for _ in range(value)]
        if kind == "map":
            entries: dict[str, Any] = {}
            for _ in range(value):
                if (key := self.key()) in entries:
                    raise ValueError(f"duplicate key {key!r}")
                entries[key] = self.value(raw, depth + 1)
            return entries
        if kind == "ext":
            return Extension(self.code(), self.take(value))
        if kind in ("str", "bin"):
            content = self.take(value)
            return content.decode() if kind == "str" and not raw else content
        return value

    def end(self) -> None:
        if self.position != self.size:
            raise ValueError(f"{self.size - self.position:,} bytes follow its end")


def unpack(document: bytes, raw: bool = False) -> Any:
    """Unpacks a whole document. **Raises:** ValueError."""
    packed = Packed(io.BytesIO(document), len(document))
    value = packed.value(raw)
    packed.end()
    return value

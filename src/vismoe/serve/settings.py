"""The settings of a service."""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

LEAST_TOKEN = 16
"""Least number of characters of a token."""
WILDCARDS = ("", "0.0.0.0", "::")
"""Addresses that stand for all addresses of the machine."""


@dataclass(frozen=True)
class Settings:
    """The settings of a service.

    - `host`, `port`: the address that it listens at; default 127.0.0.1, 8000. Port 0: any free port.
    - `token`: what each request must have as `Authorization: Bearer TOKEN`; default None: no token.
    - `allow_hosts`: names that the service is reached by, in addition to its address; default: none.
    - `public`: whether an address that other machines reach is accepted without a token; default False.
    - `max_body`: largest body of a request, in bytes; default 20 MB.
    - `queue`: number of images that may wait; default 64.
    - `batch_size`: images per forward pass, at most; default 16.
    - `max_wait_ms`: how long an image waits for others to share its forward pass, in milliseconds, at most; default 5.
      It waits only while other images are being decoded.
    - `request_timeout`: how long a client may take to send the head of a request, and its body, in seconds; default 30.
    - `stop_timeout`: how long the service finishes requests after SIGTERM, in seconds; default 30.

    **Raises:** ValueError for values out of range, and for a public address without a token.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    allow_hosts: Sequence[str] = ()
    public: bool = False
    max_body: int = 20_000_000
    queue: int = 64
    batch_size: int = 16
    max_wait_ms: float = 5.0
    request_timeout: float = 30.0
    stop_timeout: int = 30

    def __post_init__(self) -> None:
        for name in ("max_body", "queue", "batch_size", "stop_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port}: accepted are 0 (any free port) to 65535")
        if not self.max_wait_ms >= 0 or not self.request_timeout > 0:
            raise ValueError(
                f"max_wait_ms={self.max_wait_ms}, request_timeout={self.request_timeout}: the first must be at least "
                "0, the second above 0"
            )
        if not self.is_local and self.token is None and not self.public:
            raise ValueError(
                f"host={self.host} is an address that other machines reach: give --token-file, or --public if "
                "everybody may use the service"
            )
        for name in self.allow_hosts:
            if not name or set(name) & set("/:@ "):
                raise ValueError(f"allow_host={name!r}: expected a host name without scheme and port, as example.org")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_token(path: Path) -> str:
    """Reads a token from a file; white space around it is left out.

    **Raises:** FileNotFoundError; ValueError for a token with less than 16 characters, or with characters that a header
    cannot have.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; for example: openssl rand -hex 32 > {path}")
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if len(token) < LEAST_TOKEN or not all("!" <= character <= "~" for character in token):
        raise ValueError(
            f"{path} has no usable token: expected at least {LEAST_TOKEN} letters, digits or signs in ASCII without "
            f"spaces; for example: openssl rand -hex 32 > {path}"
        )
    return token

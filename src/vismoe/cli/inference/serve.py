"""vismoe serve"""

import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vismoe.files.amounts import parse_bytes

from ..shared.notes import note

MODULES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"} | {
    "prometheus_client": "prometheus-client"
}
"""Modules that the service needs, each with the name of its package."""


def serve_model(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    /,
    compare: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    allow_host: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME…")] = (),
    public: bool = False,
    max_body: str = "20MB",
    queue: int = 64,
    batch_size: int = 16,
    max_wait_ms: float = 5.0,
    request_timeout: float = 30.0,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Answer over HTTP: predictions, features, what the experts do, and a web page. SIGTERM finishes the requests that
    have begun; SIGHUP loads the model again.

    Example: vismoe serve runs/demo --port 8000

    Args:
        model: Run folder (of a run in training: its newest checkpoint), model folder, .onnx file, timm:NAME,
            hf:ORG/NAME or PRESET.TAG.
        compare: A second model, to compare with on the page; programs name it by model=1.
        host: Address to listen at. Other machines reach 0.0.0.0 or an address of this machine; that needs
            --token-file.
        port: Port to listen at; 0: any free port.
        token_file: File with a secret of at least 16 characters. Every request but /healthz needs it then, as
            Authorization: Bearer TOKEN.
        allow_host: Names that the service is reached by, as that of a proxy.
        public: Accept a public address without a token: everybody who reaches it may use the service.
        max_body: Largest body of a request.
        queue: Number of images that may wait; further requests get the status 503.
        batch_size: Images per forward pass, at most.
        max_wait_ms: How long an image waits for others that are being decoded, in milliseconds, at most.
        request_timeout: How long a client may take to send the head of a request, and its body, in seconds.
        device: Device: auto, cpu, cuda or mps.
        dtype: Data type of weights and products on a CPU; bfloat16 needs AVX512-BF16 or AMX.
    """
    if missing := [package for module, package in MODULES.items() if find_spec(module) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'vismoe[serve]'")
    from vismoe.serve import Models, Service, Settings, read_token, run_service

    settings = Settings(
        host=host,
        port=port,
        token=None if token_file is None else read_token(token_file),
        allow_hosts=allow_host,
        public=public,
        max_body=parse_bytes(max_body, "max_body"),
        queue=queue,
        batch_size=batch_size,
        max_wait_ms=max_wait_ms,
        request_timeout=request_timeout,
    )
    if not settings.is_local and settings.token is None:
        note(f"everybody who reaches {host} may use the service")
    sources = [model] if compare is None else [model, compare]
    models = Models(sources, device=device, dtype=dtype, batch_size=batch_size)
    run_service(Service(models, settings), lambda address: print(f"vismoe: ready at {address}", flush=True))


def main(arguments: list[str]) -> None:
    if hasattr(signal, "SIGHUP"):  # once the service runs it loads the models again, and must not end it before
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    tyro.cli(serve_model, args=arguments, prog="vismoe serve")

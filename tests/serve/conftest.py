"""What tests of the service have: a tiny network in a folder, images as files, and clients of services."""

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import vismoe

for module in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "httpx"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'vismoe[serve]' httpx")

from starlette.testclient import TestClient  # noqa: E402

from vismoe.serve import Models, Service, Settings  # noqa: E402

IMAGES = [Image.effect_noise((8 + number, 9), 80) for number in range(6)]
NAMES = ["cat", "dog", "<b>owl</b>"]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of a form."""
    return [("image", ("an image.png", content)) for content in contents]


def network(seed: int = 0) -> nn.Module:
    """A sparse network with three named classes, told apart by weights that are drawn."""
    torch.manual_seed(seed)
    model = vismoe.create_model("vmoe_pico_patch2_8_every2_e8", num_classes=3, in_chans=1)
    nn.init.normal_(model.head.weight)
    model.pretrained_cfg |= {"label_names": NAMES}
    return model.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network's model folder."""
    return vismoe.save(network(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def models(folder: Path) -> Models:
    """The network, opened once for all services that do not load it again."""
    return Models([str(folder)])


@pytest.fixture
def start(models: Models) -> Iterator[Callable[..., TestClient]]:
    """Starts a service in this process with settings, and returns a client."""
    with ExitStack() as stack:

        def started(used: Models | None = None, **settings: Any) -> TestClient:
            service = Service(models if used is None else used, Settings(**settings))
            client = TestClient(service.application, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
            client.service = service
            return stack.enter_context(client)

        yield started


@pytest.fixture(scope="session")
def shared(models: Models) -> Iterator[TestClient]:
    """A client of a service with the default settings, which tests must leave as it is."""
    application = Service(models, Settings()).application
    with TestClient(application, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def refusal(response: Any) -> tuple[int, str]:
    """The status and code of an error, which has the form of every error."""
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"code", "message"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert "/" not in response.json()["error"]["message"].replace("/docs", "").replace(
        "multipart/form-data", ""
    ).replace("application/json", "")
    assert "Traceback" not in response.text
    return response.status_code, response.json()["error"]["code"]

"""What tests of the page need: a service of two tiny trained networks, and a browser that misses no error."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

import vismoe

MODULES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
MARKUP = "<img src=x onerror=alert(1)>"
"""The name of the class 0 of the dense network: text, wherever it is shown."""
STEPS = 30
TOKEN = "a-token-of-these-tests"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass(frozen=True)
class Service:
    """A running `vismoe serve`, its address and the models that it serves."""

    address: str
    sparse: Path
    dense: Path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The runs of a tiny sparse network and of its dense twin."""
    folder = tmp_path_factory.mktemp("runs")
    options = {"steps": STEPS, "evaluate_every": STEPS // 2}
    for name in ("digits", "digits_dense"):
        vismoe.train(name, out=folder / name, **options)
    config = folder / "digits_dense" / "model" / "config.json"
    text = config.read_text()
    assert '"0"' in text
    config.write_text(text.replace('"0"', f'"{MARKUP}"', 1))
    return folder / "digits", folder / "digits_dense"


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., str]]:
    """Starts `vismoe serve` with arguments, and returns its address; stopped when the tests end."""
    for module in MODULES:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'vismoe[serve]'")
    processes = []

    def start(*arguments: object) -> str:
        command = [sys.executable, "-m", "vismoe", "serve", *map(str, arguments), "--port", "0"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        processes.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if "ready at " in line:
                return line.split("ready at ")[1].strip().rstrip("/")
        raise AssertionError(f"vismoe serve ended with {process.wait()}")

    yield start
    for process in processes:
        process.terminate()
    for process in processes:
        assert process.wait(30) == 0
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def service(runs: tuple[Path, Path], serve: Callable[..., str]) -> Service:
    """Both networks, side by side."""
    sparse, dense = runs
    return Service(serve(sparse, "--compare", dense), sparse, dense)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Debian's Chromium, with a camera that films a test image."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a fresh context, with options of playwright's. At the end it has reported no error, and has asked
    no other host."""
    contexts, errors, foreign = [], [], []

    def start(address: str, expect: str = "", **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)

        def heard(message: Any) -> None:
            if message.type in ("error", "warning") and not (expect and expect in message.text):
                errors.append(message.text)

        def asked(request: Any) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                foreign.append(request.url)

        page.on("console", heard)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", asked)
        page.goto(address)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not errors
    assert not foreign


@pytest.fixture
def page(open_page: Callable[..., Any], service: Service) -> Any:
    """The page of the service of both networks."""
    return open_page(service.address)


@pytest.fixture(scope="session")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handwritten digit as an image file."""
    path = tmp_path_factory.mktemp("images") / "digit.png"
    Image.fromarray((load_digits().images[0] * 15.9).astype("uint8")).resize((64, 64), Image.Resampling.NEAREST).save(
        path
    )
    return path


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph as an image file."""
    path = tmp_path_factory.mktemp("images") / "photo.jpg"
    Image.fromarray(load_sample_image("china.jpg")).save(path)
    return path

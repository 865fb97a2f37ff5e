"""From the Hugging Face hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

SIZE_TIMEOUT = 10.0
"""Seconds that the hub may take to say what a repository holds."""


def download(name: str, files: Sequence[str]) -> Path:
    """The folder with these files, where they exist, of the repository `ORG/NAME`: downloaded, with progress, but for
    what the hub's cache has already; without a network what is there.

    **Raises:** ValueError, within seconds, for a repository that cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), etag_timeout=SIZE_TIMEOUT))
    except HFValidationError as error:
        raise ValueError(f"hf:{name}: the name of a repository on the hub is ORG/NAME") from error
    except GatedRepoError as error:
        raise ValueError(
            f"hf:{name} is given only to who has accepted its terms: do so on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"hf:{name}: the hub has no such model, or it is private (`hf auth login` shows who you are)"
        ) from error
    except failures() as error:
        raise ValueError(
            f"{name} cannot be had from the hub, and is not in its cache (is there a network?): {first_line(error)}"
        ) from error


def downloading(source: str, create: Callable[[], Made]) -> Made:
    """What `create` gives, which downloads.

    **Raises:** ValueError where that fails.
    """
    try:
        return create()
    except (OSError, RuntimeError, _http_error()) as error:
        raise ValueError(f"the weights of {source} cannot be had (is there a network?): {first_line(error)}") from error


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where a request fails, or is answered by something else than the hub."""
    return (OSError, ValueError, _http_error())


def _http_error() -> type[Exception]:
    """What all errors of its HTTP library are, which its own derive from."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

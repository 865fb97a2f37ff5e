"""Downloads from the Hugging Face hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

SIZE_TIMEOUT = 10.0
"""Timeout in seconds for the list of a repository's files."""


def download(name: str, files: Sequence[str]) -> Path:
    """Downloads files of a repository on the Hugging Face hub, with a progress bar. Files in the hub's cache are not
    downloaded again; if all are there, no network is needed.

    **Arguments:**

    - `name`: the repository, as ORG/NAME.
    - `files`: names of the files; files that the repository does not have are skipped.

    **Returns:** the folder with the files.

    **Raises:** ValueError if the repository cannot be downloaded; without a network after a few seconds.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files), etag_timeout=SIZE_TIMEOUT))
    except HFValidationError as error:
        raise ValueError(f"hf:{name}: expected hf:ORG/NAME, the name of a repository on the hub") from error
    except GatedRepoError as error:
        raise ValueError(
            f"hf:{name} is available only to users who have accepted its terms: accept them on its page, then run "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"hf:{name}: the hub has no such model, or the model is private (for a private model run `hf auth login`)"
        ) from error
    except failures() as error:
        raise ValueError(
            f"{name} cannot be downloaded from the hub, and is not in its cache (check the network): "
            f"{first_line(error)}"
        ) from error


def downloading(source: str, create: Callable[[], Made]) -> Made:
    """Calls a function that downloads weights, and turns its errors into one with a plain message.

    **Arguments:**

    - `source`: name of the weights, for the error message.
    - `create`: the function.

    **Returns:** the result of `create`.

    **Raises:** ValueError if the download fails.
    """
    try:
        return create()
    except (OSError, RuntimeError, _http_error()) as error:
        raise ValueError(
            f"the weights of {source} cannot be downloaded (check the network): {first_line(error)}"
        ) from error


def failures() -> tuple[type[Exception], ...]:
    """The errors that huggingface_hub raises if a request fails, or another server than the hub answers."""
    return (OSError, ValueError, _http_error())


def _http_error() -> type[Exception]:
    """The base class of the errors of huggingface_hub's HTTP library."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

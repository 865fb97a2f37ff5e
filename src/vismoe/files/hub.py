"""Downloads from the Hugging Face hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")

SIZE_TIMEOUT = 10.0
"""Seconds to wait for the hub's list of a repository's files."""


def download(name: str, files: Sequence[str]) -> Path:
    """Downloads files of the repository `ORG/NAME`, with progress. Files in the hub's cache are not downloaded again,
    and suffice without a network.

    **Arguments:**

    - `name`: the repository, ORG/NAME.
    - `files`: names of files; those that the repository does not have are skipped.

    **Returns:** the folder with the files.

    **Raises:** ValueError, within seconds, for a repository that cannot be downloaded.
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
    """The result of `create`, a function that downloads weights.

    **Raises:** ValueError where the download fails.
    """
    try:
        return create()
    except (OSError, RuntimeError, _http_error()) as error:
        raise ValueError(f"the weights of {source} cannot be had (is there a network?): {first_line(error)}") from error


def failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where a request fails, or something else than the hub answers."""
    return (OSError, ValueError, _http_error())


def _http_error() -> type[Exception]:
    """The base class of all errors of its HTTP library, from which its own errors derive."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

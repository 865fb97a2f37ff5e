"""The Hugging Face hub: model folders from there, and there."""

from collections.abc import Callable
from pathlib import Path

from torch import nn

from .folder import CONFIG, FILES, WEIGHTS, read_config

SIZE_TIMEOUT = 10.0
"""Seconds that the hub may take to say what a repository holds."""


def download(name: str, files: tuple[str, ...] = FILES) -> Path:
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
    except _failures() as error:
        raise ValueError(
            f"{name} cannot be had from the hub, and is not in its cache (is there a network?): {_first_line(error)}"
        ) from error


def downloading(source: str, create: Callable[[], nn.Module]) -> nn.Module:
    """What `create` gives, which downloads.

    **Raises:** ValueError where that fails.
    """
    try:
        return create()
    except (OSError, RuntimeError, _http_error()) as error:
        raise ValueError(
            f"the weights of {source} cannot be had (is there a network?): {_first_line(error)}"
        ) from error


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    message: str = "Upload a model of vismoe",
    token: str | None = None,
) -> str:
    """Uploads a model folder, or that of a run, with its card, as it is, in one commit; says where it is then.

    **Arguments:** `repo_id`: ORG/NAME, made if it is not there; `private`: of one that is made; `message`: the
    commit's; `token`: by default the one of `hf auth login`, or HF_TOKEN.

    **Raises:** FileNotFoundError, ValueError for what is no model folder, without a token that may write, or a network.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError

    folder = Path(folder)
    folder = folder / "model" if (folder / "model" / CONFIG).is_file() else folder
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: expected a run or model folder")
    if "parent" in read_config(folder):
        raise ValueError(f"{folder} holds only what differs from its parent: upload a whole model (vismoe.save)")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: only weights in one file of safetensors are uploaded")
    if (token := token or get_token()) is None:
        raise ValueError(
            "the hub wants to know who you are: `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    api = HfApi(token=token)
    try:
        where = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=where.repo_id, folder_path=folder, commit_message=message, allow_patterns=list(FILES))
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r}: expected ORG/NAME, of letters, digits, -, _ and .") from error
    except _failures() as error:
        raise ValueError(f"{folder} could not be uploaded to {repo_id}: {_first_line(error)}") from error
    return str(where)


def _failures() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where a request fails, or is answered by something else than the hub."""
    return (OSError, ValueError, _http_error())


def _http_error() -> type[Exception]:
    """What all errors of its HTTP library are, which its own derive from."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Uploads model folders to the Hugging Face Hub."""

from pathlib import Path

from vismoe.files.hub import failures, first_line

from .format import FILES, WEIGHTS, model_folder, read_config


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    message: str = "Upload a model of vismoe",
    token: str | None = None,
) -> str:
    """Uploads a model folder with its model card, unchanged, in one commit.

    **Arguments:**

    - `folder`: a model folder or a run folder.
    - `repo_id`: ORG/NAME; created if it does not exist.
    - `private`: whether a new repository is private; default False.
    - `message`: commit message.
    - `token`: access token with write permission; default: that of `hf auth login` or HF_TOKEN.

    **Returns:** the repository's address.

    **Raises:** FileNotFoundError; ValueError if the folder is not a model folder, there is no token, or the upload
    fails.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError

    folder = model_folder(Path(folder))
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: expected a run or model folder")
    if "parent" in read_config(folder):
        raise ValueError(f"{folder} has only the differences from its parent: upload a whole model (vismoe.save)")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: only weights in one safetensors file are uploaded")
    if (token := token or get_token()) is None:
        raise ValueError("the Hub needs a login: run `hf auth login`, or set HF_TOKEN to a token with write permission")
    api = HfApi(token=token)
    try:
        url = api.create_repo(repo_id, private=private, repo_type="model", exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message, allow_patterns=list(FILES))
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r}: expected ORG/NAME with letters, digits, -, _ and .") from error
    except failures() as error:
        raise ValueError(f"{folder} could not be uploaded to {repo_id}: {first_line(error)}") from error
    return str(url)

